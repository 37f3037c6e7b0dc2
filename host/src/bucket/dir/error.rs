//! System errors of a directory bucket, with the directory and how to fix them.

use std::io;
use std::path::Path;

use rustix::io::Errno;

use crate::confinement::refusal;

/// A system error and how to fix it.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(super) struct DirError {
    text: String,
    #[source]
    cause: io::Error,
}

impl DirError {
    /// A failure in the directory `dir`.
    pub(super) fn at(dir: &Path, cause: impl Into<io::Error>) -> Self {
        Self::at_file(dir, dir, cause)
    }

    /// A failure of the file `path`. The advice is about the directory `dir`.
    pub(super) fn at_file(path: &Path, dir: &Path, cause: impl Into<io::Error>) -> Self {
        let cause = cause.into();
        let errno = Errno::from_io_error(&cause);
        let refusal = errno.filter(|e| *e == Errno::ACCESS).and_then(|_| refusal(path));
        let cure = refusal.or_else(|| cure(errno?, dir));
        Self {
            text: cure.map_or_else(|| cause.to_string(), |cure| format!("{cause}; {cure}")),
            cause,
        }
    }

    /// A failure that `text` describes better than the system's message.
    pub(super) fn because(text: impl Into<String>, cause: impl Into<io::Error>) -> Self {
        Self { text: text.into(), cause: cause.into() }
    }
}

/// How to fix an error in `dir`, if that is known.
fn cure(errno: Errno, dir: &Path) -> Option<String> {
    let dir = dir.display();
    Some(match errno {
        Errno::NOSPC => format!("free some space, or inodes, on the file system of {dir}"),
        Errno::DQUOT => {
            format!("the quota on the file system of {dir} is used up; free some space or raise it")
        }
        Errno::ROFS => format!("mount the file system of {dir} writable"),
        Errno::IO => {
            format!("the disk or file server of {dir} has failed; see the kernel log (`dmesg`)")
        }
        Errno::STALE | Errno::NOTCONN | Errno::NODEV | Errno::NXIO | Errno::SHUTDOWN => {
            format!("the file system of {dir} is not available; mount it again")
        }
        Errno::TIMEDOUT | Errno::HOSTDOWN | Errno::HOSTUNREACH => {
            format!("the server of {dir} does not answer")
        }
        Errno::ACCESS | Errno::PERM => format!("give the host's user access to {dir}"),
        Errno::MFILE => "raise the host's limit of open files (`ulimit -n`)".to_owned(),
        Errno::NFILE => "raise the machine's limit of open files (`fs.file-max`)".to_owned(),
        Errno::NOMEM => "the machine is out of memory".to_owned(),
        _ => return None,
    })
}
