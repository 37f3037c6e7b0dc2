//! `movement/{id}`: a message's movement file, opened and locked.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::sync::LazyLock;

use parking_lot::Mutex;
use rustix::fs::{self, FlockOperation, OFlags};
use rustix::io::Errno;

use super::dirs::Dirs;
use super::files::{self, FILE, size, write_all};
use super::history::History;
use super::name::Name;
use crate::fault::{self, Step};

/// A movement file, open and locked against all other processes and threads.
#[derive(Debug)]
pub(super) struct Movement {
    // Fields drop in this order. Closing the file releases this process's record lock, and
    // until then no other thread may open the file.
    fd: OwnedFd,
    _lock: ProcessLock,
}

/// The result of opening a movement file.
#[derive(Debug)]
pub(super) enum Opened<T> {
    Locked(T),
    /// Another process or thread is changing the file.
    Busy,
    /// The file does not exist.
    Missing,
}

impl Movement {
    /// Opens, locks and reads a message's file if it exists. Does not wait for the lock.
    pub(super) fn open(dirs: &Dirs, id: &str) -> Result<Opened<(Movement, History)>, Errno> {
        Movement::open_with(dirs, id, OFlags::RDWR, History::read)
    }

    /// Opens, locks and reads a message's file, and creates it if it does not exist. Does not
    /// wait for the lock.
    pub(super) fn open_or_create(
        dirs: &Dirs,
        id: &str,
    ) -> Result<Opened<(Movement, History)>, Errno> {
        Movement::open_with(dirs, id, OFlags::RDWR | OFlags::CREATE, History::read)
    }

    /// Opens and locks a message's file for appending, if it exists. Does not wait for the lock.
    pub(super) fn open_to_append(dirs: &Dirs, id: &str) -> Result<Opened<(Movement, ())>, Errno> {
        Movement::open_with(dirs, id, OFlags::WRONLY, |_| Ok(()))
    }

    /// Reads a message's file, and changes nothing. `None` if another thread has the file open, or
    /// if it does not exist.
    pub(super) fn peek(dirs: &Dirs, id: &str) -> Option<History> {
        let _lock = ProcessLock::of(id)?;
        let file = files::open_regular(&dirs.movement, id, OFlags::RDONLY).ok()??;
        History::read(&file).ok()
    }

    fn open_with<T>(
        dirs: &Dirs,
        id: &str,
        flags: OFlags,
        read: fn(&OwnedFd) -> Result<T, Errno>,
    ) -> Result<Opened<(Movement, T)>, Errno> {
        let Some(lock) = ProcessLock::of(id) else {
            return Ok(Opened::Busy);
        };
        let open = || {
            let Some(fd) = files::open(&dirs.movement, id, flags | OFlags::APPEND)? else {
                return Ok(None);
            };
            match fs::fcntl_lock(&fd, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::ACCESS) => return Err(Errno::AGAIN),
                locked => locked?,
            }
            match read(&fd) {
                Ok(read) => Ok(Some((fd, read))),
                Err(errno) if files::is_not_a_file(errno) => Ok(None),
                Err(errno) => Err(errno),
            }
        };
        match dirs.replacing(&dirs.movement, id, open) {
            Ok((fd, read)) => Ok(Opened::Locked((Movement { fd, _lock: lock }, read))),
            Err(Errno::NOENT) => Ok(Opened::Missing),
            // The file is locked, a file server reserves it for another client, or a process
            // executes it.
            Err(Errno::AGAIN | Errno::TXTBSY) => Ok(Opened::Busy),
            Err(errno) => Err(errno),
        }
    }

    /// Creates the file of a new message, with its first line.
    pub(super) fn create(dirs: &Dirs, name: &Name) -> Result<(), Errno> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = fs::openat(&dirs.movement, name.id(), flags, FILE)?;
        write_all(&file, name.line().as_bytes())
    }

    /// Appends all of the lines, or nothing.
    pub(super) fn append(&self, lines: &str) -> Result<(), Errno> {
        fault::shortage(Step::NoteMove)?;
        let written = rustix::io::retry_on_intr(|| rustix::io::write(&self.fd, lines.as_bytes()));
        match written {
            Ok(n) if n == lines.len() => Ok(()),
            Ok(n) => {
                self.take_back(n);
                Err(Errno::NOSPC)
            }
            Err(errno) => Err(errno),
        }
    }

    /// Removes the last bytes, which were just appended. If that fails, the file contains a name
    /// that no message has, which is harmless.
    pub(super) fn take_back(&self, bytes: usize) {
        if let Ok(stat) = fs::fstat(&self.fd) {
            let _ = fs::ftruncate(&self.fd, size(&stat).saturating_sub(bytes) as u64);
        }
    }

    /// Records the start of an execution.
    pub(super) fn start(&self) -> Result<(), Errno> {
        self.append("\n")
    }
}

/// The right to have one message's movement file open in this process. A record lock belongs to the
/// process: two threads would both get the lock, and the first to close the file would release it
/// for both.
#[derive(Debug)]
struct ProcessLock(Box<str>);

static LOCKED: LazyLock<Mutex<HashSet<Box<str>>>> = LazyLock::new(Mutex::default);

impl ProcessLock {
    fn of(id: &str) -> Option<ProcessLock> {
        LOCKED.lock().insert(id.into()).then(|| ProcessLock(id.into()))
    }
}

impl Drop for ProcessLock {
    fn drop(&mut self) {
        LOCKED.lock().remove(&self.0);
    }
}
