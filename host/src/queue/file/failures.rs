//! `host/attempts/{id}`: why the executions of a message failed, one JSON text a line.
//!
//! Written only when one fails, and read only when a message comes again.

use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use rustix::fs::{self, Mode, OFlags};
use rustix::io::Errno;

use super::ATTEMPTS;
use super::dirs::{Dirs, FILE, read_to_end, remove, write_all};

/// The longest reason that is kept, in bytes.
const LONGEST: usize = 4096;

/// The failures of all messages.
#[derive(Debug, Default)]
pub(super) struct Failures(OnceLock<OwnedFd>);

impl Failures {
    /// Adds the reason of a failure.
    pub(super) fn add(&self, dirs: &Dirs, id: &str, reason: &str) -> Result<(), Errno> {
        let dir = match self.0.get() {
            Some(dir) => dir,
            None => {
                let dir = dirs.host(ATTEMPTS)?;
                self.0.get_or_init(|| dir)
            }
        };
        let end = reason.floor_char_boundary(LONGEST);
        let cut = if end < reason.len() { " …" } else { "" };
        let reason = serde_json::Value::from(format!("{}{cut}", &reason[..end]));
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::CLOEXEC;
        let file = fs::openat(dir, id, flags, FILE)?;
        write_all(&file, format!("{reason}\n").as_bytes())
    }

    /// The reasons, oldest first. What can't be read is left out: a message must not become
    /// undeliverable by what is said about it.
    pub(super) fn of(&self, dirs: &Dirs, id: &str) -> Vec<String> {
        let read = || {
            let dir = self.dir(dirs)?;
            let file = fs::openat(dir, id, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
            read_to_end(&file).ok()
        };
        let text = read().unwrap_or_default();
        let lines = text.split(|&b| b == b'\n');
        lines.filter_map(|line| serde_json::from_slice(line).ok()).collect()
    }

    /// Removes all that is kept of a message.
    pub(super) fn forget(&self, dirs: &Dirs, id: &str) -> Result<(), Errno> {
        self.dir(dirs).map_or(Ok(()), |dir| remove(dir, id))
    }

    fn dir(&self, dirs: &Dirs) -> Option<&OwnedFd> {
        if self.0.get().is_none() {
            let dir = dirs.host_if_any(ATTEMPTS).ok()??;
            return Some(self.0.get_or_init(|| dir));
        }
        self.0.get()
    }
}
