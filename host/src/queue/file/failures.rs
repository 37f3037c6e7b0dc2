//! `host/attempts/{id}`: why the executions of a message failed, one JSON string per line.
//!
//! The file is written only when an execution fails, and read only when the message is
//! delivered again.

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::dirs::Dirs;
use super::files::{open_regular, read_last_lines, write_all};

/// The directory of these files, in `host/`.
pub(super) const ATTEMPTS: &str = "attempts";
/// The maximum size of a stored reason in bytes.
const LONGEST: usize = 4096;
/// The maximum number of bytes that are read, from the end of the file.
const READ: usize = 256 << 10;

/// Appends the reason of a failure.
pub(super) fn add(dirs: &Dirs, id: &str, reason: &str) -> Result<(), Errno> {
    let end = reason.floor_char_boundary(LONGEST);
    let cut = if end < reason.len() { " …" } else { "" };
    let reason = serde_json::Value::from(format!("{}{cut}", &reason[..end]));
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE;
    let file = dirs.file(&dirs.host(ATTEMPTS)?, id, flags)?;
    match write_all(&file, format!("{reason}\n").as_bytes()) {
        // The file has reached its maximum size. The movement file still counts the failure.
        Err(Errno::FBIG) => Ok(()),
        written => written,
    }
}

/// Reads the reasons, oldest first. A reason that cannot be read is left out, because it must not
/// make the message undeliverable. If this host lacks a resource, that is an error: without the
/// reasons, the failures would look like executions that never ended.
pub(super) fn of(dirs: &Dirs, id: &str) -> Result<Vec<String>, Errno> {
    let read = || {
        let Some(dir) = dirs.host_if_any(ATTEMPTS)? else {
            return Ok(Vec::new());
        };
        match open_regular(&dir, id, OFlags::RDONLY)? {
            Some(file) => Ok(read_last_lines(&file, READ)?.1),
            None => Ok(Vec::new()),
        }
    };
    let text = match read() {
        Ok(text) => text,
        Err(errno) if is_shortage(errno) => return Err(errno),
        Err(_) => return Ok(Vec::new()),
    };
    let lines = text.split(|&b| b == b'\n');
    Ok(lines.filter_map(|line| serde_json::from_slice(line).ok()).collect())
}

fn is_shortage(errno: Errno) -> bool {
    [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::STALE, Errno::NOTCONN].contains(&errno)
}

/// Removes the reasons of a message.
pub(super) fn forget(dirs: &Dirs, id: &str) -> Result<(), Errno> {
    match dirs.host_if_any(ATTEMPTS)? {
        Some(dir) => dirs.remove(&dir, id),
        None => Ok(()),
    }
}
