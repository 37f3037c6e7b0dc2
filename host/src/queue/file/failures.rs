//! `host/attempts/{id}`: why the executions of a message failed, one JSON text a line.
//!
//! Written only when one fails, and read only when a message comes again.

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::ATTEMPTS;
use super::dirs::{Dirs, open_file, read_lines, write_all};

/// The longest reason that is kept, in bytes.
const LONGEST: usize = 4096;
/// Bytes of reasons that are read, the newest.
const READ: usize = 256 << 10;

/// Adds the reason of a failure.
pub(super) fn add(dirs: &Dirs, id: &str, reason: &str) -> Result<(), Errno> {
    let end = reason.floor_char_boundary(LONGEST);
    let cut = if end < reason.len() { " …" } else { "" };
    let reason = serde_json::Value::from(format!("{}{cut}", &reason[..end]));
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE;
    let (file, _) = dirs.file(&dirs.host(ATTEMPTS)?, id, flags)?;
    match write_all(&file, format!("{reason}\n").as_bytes()) {
        // It was made as long as a file can be. That the execution failed is known all the same.
        Err(Errno::FBIG) => Ok(()),
        written => written,
    }
}

/// The reasons, oldest first. What can't be read is left out: a message must not become
/// undeliverable by what is said about it. A shortage of this host is another thing, and an
/// error: the failures would be taken for executions that never ended.
pub(super) fn of(dirs: &Dirs, id: &str) -> Result<Vec<String>, Errno> {
    let read = || {
        let Some(dir) = dirs.host_if_any(ATTEMPTS)? else {
            return Ok(Vec::new());
        };
        match open_file(&dir, id, OFlags::RDONLY)? {
            Some((file, _)) => Ok(read_lines(&file, READ)?.1),
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

/// Removes all that is kept of a message.
pub(super) fn forget(dirs: &Dirs, id: &str) -> Result<(), Errno> {
    match dirs.host_if_any(ATTEMPTS)? {
        Some(dir) => dirs.remove(&dir, id),
        None => Ok(()),
    }
}
