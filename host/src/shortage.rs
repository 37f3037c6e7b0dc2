//! Recognizes failures of the host's machine, as opposed to failures of tasks.

use std::error::Error;
use std::io;
use std::os::fd::AsFd;

use rustix::io::Errno;

use crate::system;

/// The first system error number in an error's chain of causes.
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
            // `io::Error` does not report its inner error as a source.
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

/// True for a shortage of files or memory, which can make any system call fail.
pub fn is_of_the_process(errno: Errno) -> bool {
    matches!(errno, Errno::MFILE | Errno::NFILE | Errno::NOMEM)
}

/// True if a part of the disk can't be read or has a wrong checksum.
pub fn is_damage(error: &io::Error) -> bool {
    let is_damage = |errno| matches!(errno, Errno::IO | Errno::BADMSG) || system::is_damage(errno);
    Errno::from_io_error(error).is_some_and(is_damage)
}

/// True if another process held a lock for too long. This does not affect other operations.
pub fn is_locked(error: &(dyn Error + 'static)) -> bool {
    errno(error) == Some(Errno::AGAIN)
}

/// Tells the user how to repair the failure.
pub fn cure(errno: Errno) -> &'static str {
    match errno {
        Errno::MFILE => "too many files are open: raise `ulimit -n`, or lower --parallel",
        Errno::NFILE => "too many files are open on this machine: raise fs.file-max",
        Errno::NOMEM => "the machine is short of memory: lower --parallel or --memory",
        Errno::NOSPC | Errno::DQUOT => "free some space on its disk",
        Errno::FBIG => {
            "the file exceeds the largest size that the process or file system allows: raise \
             `ulimit -f`"
        }
        Errno::ROFS => "its file system is mounted read-only: mount it writable",
        Errno::IO => "its disk fails: see the system log",
        Errno::STALE | Errno::NOTCONN | Errno::HOSTDOWN | Errno::TIMEDOUT => {
            "its file system is not available: mount it again"
        }
        _ => "see the system log",
    }
}

/// Checks that this process can open as many more files as a task needs.
///
/// # Errors
/// The system's error, and how to repair it.
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
