//! Errors of the file system, with a hint for the operator.

use std::fmt;
use std::path::Path;

use rustix::io::Errno;

use crate::confinement::refusal;
use crate::queue::QueueError;

/// An error of the file system, and what to do about it.
#[derive(Debug)]
pub(super) struct FileError(pub(super) Errno);

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hint = match self.0 {
            Errno::NOSPC | Errno::DQUOT => "free some space on the queue's file system",
            Errno::ACCESS | Errno::PERM => {
                "this user must be able to read and write the whole queue directory"
            }
            Errno::ROFS => "the file system is mounted read-only; a lease needs to write",
            Errno::NOTDIR => {
                "a part of the path is a file, or a link inside the queue directory, which the \
                 host does not follow"
            }
            Errno::NOENT => {
                "the queue directory, or a part of it, was removed, moved or unmounted: restore \
                 it, or create a new queue with `host submit`"
            }
            Errno::STALE => "the network file system lost the directory: mount it again",
            Errno::NOTCONN => "the program that serves the file system has ended: mount it again",
            Errno::IO => "the disk or its connection failed: see the kernel log",
            Errno::NOLCK | Errno::NOSYS | Errno::OPNOTSUPP => {
                "the file system must support POSIX record locks (Lustre: mount with `flock`)"
            }
            Errno::MFILE | Errno::NFILE => "too many files are open: raise `ulimit -n`",
            Errno::NAMETOOLONG => "use a shorter path",
            _ => return write!(f, "{}", self.0),
        };
        write!(f, "{} ({hint})", self.0)
    }
}

/// An error of the file system that the host's own confinement caused.
#[derive(Debug, thiserror::Error)]
#[error("{errno} ({refusal})")]
struct Refused {
    refusal: String,
    #[source]
    errno: Errno,
}

/// An error in the queue directory `path`.
pub(super) fn at(path: &Path, errno: Errno) -> Box<dyn std::error::Error + Send + Sync> {
    match refusal(path).filter(|_| errno == Errno::ACCESS) {
        Some(refusal) => Box::new(Refused { refusal, errno }),
        None => Box::new(FileError(errno)),
    }
}

impl std::error::Error for FileError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

pub(super) fn invalid(url: &str, problem: impl Into<String>) -> QueueError {
    QueueError::Invalid { queue: url.to_owned(), problem: problem.into() }
}
