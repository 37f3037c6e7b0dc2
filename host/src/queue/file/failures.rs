//! `host/attempts/{id}`: why the executions of a message failed, one JSON text a line.
//!
//! Written only when one fails, and read only when a message comes again.

use rustix::fs::{self, Mode, OFlags};
use rustix::io::Errno;

use super::ATTEMPTS;
use super::dirs::{Dirs, FILE, read_to_end, remove, write_all};

/// The longest reason that is kept, in bytes.
const LONGEST: usize = 4096;

/// Adds the reason of a failure.
pub(super) fn add(dirs: &Dirs, id: &str, reason: &str) -> Result<(), Errno> {
    let end = reason.floor_char_boundary(LONGEST);
    let cut = if end < reason.len() { " …" } else { "" };
    let reason = serde_json::Value::from(format!("{}{cut}", &reason[..end]));
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::CLOEXEC;
    let file = fs::openat(dirs.host(ATTEMPTS)?, id, flags, FILE)?;
    write_all(&file, format!("{reason}\n").as_bytes())
}

/// The reasons, oldest first. What can't be read is left out: a message must not become
/// undeliverable by what is said about it.
pub(super) fn of(dirs: &Dirs, id: &str) -> Vec<String> {
    let read = || {
        let dir = dirs.host_if_any(ATTEMPTS).ok()??;
        let file = fs::openat(dir, id, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        read_to_end(&file).ok()
    };
    let text = read().unwrap_or_default();
    let lines = text.split(|&b| b == b'\n');
    lines.filter_map(|line| serde_json::from_slice(line).ok()).collect()
}

/// Removes all that is kept of a message.
pub(super) fn forget(dirs: &Dirs, id: &str) -> Result<(), Errno> {
    match dirs.host_if_any(ATTEMPTS)? {
        Some(dir) => remove(dir, id),
        None => Ok(()),
    }
}
