//! Failures of the machine that a host runs on, told apart from those of what it works on.

use std::error::Error;
use std::io;
use std::os::fd::AsFd;

use rustix::io::Errno;

/// The system's number for the failure in an error's chain of causes, if there is one.
pub fn errno(error: &(dyn Error + 'static)) -> Option<Errno> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(errno) = error.downcast_ref::<Errno>() {
            return Some(*errno);
        }
        if let Some(io) = error.downcast_ref::<io::Error>() {
            if let Some(errno) = of_io(io) {
                return Some(errno);
            }
            // An I/O error that holds another error is not one of its causes.
            if let Some(inner) = io.get_ref()
                && let Some(errno) = errno(inner)
            {
                return Some(errno);
            }
        }
        cause = error.source();
    }
    None
}

fn of_io(error: &io::Error) -> Option<Errno> {
    Errno::from_io_error(error).or(match error.kind() {
        io::ErrorKind::StorageFull => Some(Errno::NOSPC),
        io::ErrorKind::QuotaExceeded => Some(Errno::DQUOT),
        io::ErrorKind::ReadOnlyFilesystem => Some(Errno::ROFS),
        io::ErrorKind::OutOfMemory => Some(Errno::NOMEM),
        _ => None,
    })
}

/// True for a shortage of this process or machine that any of its calls may meet, whatever
/// the call is about.
pub fn is_of_the_process(errno: Errno) -> bool {
    matches!(errno, Errno::MFILE | Errno::NFILE | Errno::NOMEM)
}

/// True for a failure of a file system or its disk, and not of one file.
pub fn is_of_a_disk(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::NOSPC
            | Errno::DQUOT
            | Errno::ROFS
            | Errno::IO
            | Errno::STALE
            | Errno::NOTCONN
            | Errno::HOSTDOWN
            | Errno::NODEV
            | Errno::NXIO
            | Errno::TIMEDOUT
    )
}

/// True when a part of the disk can't be read, or its checksum is wrong.
pub fn is_damage(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::IO | Errno::BADMSG | Errno::UCLEAN))
}

/// True when another process has had something locked for too long. That says nothing of the
/// rest.
pub fn is_locked(error: &(dyn Error + 'static)) -> bool {
    errno(error) == Some(Errno::AGAIN)
}

/// What a person can do about it.
pub fn cure(errno: Errno) -> &'static str {
    match errno {
        Errno::MFILE => "too many files are open: raise `ulimit -n`, or lower --parallel",
        Errno::NFILE => "too many files are open on this machine: raise fs.file-max",
        Errno::NOMEM => "the machine is short of memory: lower --parallel or --memory",
        Errno::NOSPC | Errno::DQUOT => "free some space on its disk",
        Errno::FBIG => {
            "the file is larger than this process or its file system may have files: raise \
             `ulimit -f`"
        }
        Errno::ROFS => "its file system is mounted read-only: mount it for writing",
        Errno::IO => "its disk fails: look at the system's log",
        Errno::STALE | Errno::NOTCONN | Errno::HOSTDOWN | Errno::TIMEDOUT => {
            "its file system is away: mount it again"
        }
        _ => "look at the system's log",
    }
}

/// Tries whether this process can open some more files: as many as a task needs.
///
/// # Errors
/// The system's, with the cure in words.
pub fn try_descriptors(of: impl AsFd) -> Result<(), String> {
    const NEEDED: usize = 16;
    let mut open = Vec::with_capacity(NEEDED);
    for _ in 0..NEEDED {
        match rustix::io::fcntl_dupfd_cloexec(&of, 0) {
            Ok(fd) => open.push(fd),
            Err(errno) => return Err(format!("opening files failed: {errno} ({})", cure(errno))),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] io::Error);

    #[test]
    fn the_number_is_found_however_deep_it_is() {
        let raw = || io::Error::from_raw_os_error(28);
        let check = |error: &(dyn Error + 'static), want| assert_eq!(errno(error), want);
        check(&raw(), Some(Errno::NOSPC));
        check(&Outer(raw()), Some(Errno::NOSPC));
        check(&Outer(io::Error::other(raw())), Some(Errno::NOSPC));
        check(&Outer(io::Error::other(Outer(Errno::IO.into()))), Some(Errno::IO));
        check(&Outer(io::ErrorKind::StorageFull.into()), Some(Errno::NOSPC));
        check(&Outer(io::Error::other("text")), None);
    }
}
