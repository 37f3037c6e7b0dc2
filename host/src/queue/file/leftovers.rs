//! Removes files about messages that are no longer in the queue.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::fs::{self, AtFlags, OFlags};
use rustix::io::Errno;

use super::dirs::Dirs;
use super::failures::ATTEMPTS;
use super::files::{is_regular, open_regular, read, written};
use super::listing::Listing;
use super::name::{Name, is_id};

/// A sender creates the movement file up to this long before the message.
const BEING_SENT: Duration = Duration::from_secs(60);

/// Removes files about messages if the queue is empty. If a Python client leases a message while
/// another deletes it, an empty movement file is left. A host can tell cheaply that no message
/// needs such a file only if the queue is empty.
pub(super) fn remove_if_empty(dirs: &Dirs, now: Duration) -> Result<(), Errno> {
    let mut listing = Listing::of(&dirs.queue)?;
    let (mut empty, mut more) = (true, true);
    while empty && more {
        more = listing.piece(|_, name| empty &= name.is_none())?;
    }
    if empty { remove_before(dirs, now.saturating_sub(BEING_SENT)) } else { Ok(()) }
}

/// Removes movement files and reasons of failures that were last written before `time`.
pub(super) fn remove_before(dirs: &Dirs, time: Duration) -> Result<(), Errno> {
    remove_from(dirs, &dirs.movement, time, is_movement_file)?;
    match dirs.host_if_any(ATTEMPTS)? {
        Some(attempts) => remove_from(dirs, &attempts, time, |_, _| true),
        None => Ok(()),
    }
}

/// Removes the files about messages in `dir`, and no other files.
fn remove_from(
    dirs: &Dirs,
    dir: &OwnedFd,
    time: Duration,
    is_ours: impl Fn(&OwnedFd, &str) -> bool,
) -> Result<(), Errno> {
    let mut listing = Listing::of(dir)?;
    let mut more = true;
    while more {
        let mut ids = Vec::new();
        more = listing.piece(|text, _| ids.push(text.to_owned()))?;
        for id in ids.iter().filter(|id| is_id(id)) {
            match fs::statat(dir, &**id, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) if is_regular(&stat) && written(&stat) < time && is_ours(dir, id) => {
                    dirs.remove(dir, id)?;
                }
                Ok(_) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
    Ok(())
}

/// Whether a file is the movement file of the message `id`. The file must be empty, or its first
/// non-empty line must be a name of that message.
fn is_movement_file(dir: &OwnedFd, id: &str) -> bool {
    /// The number of bytes within which the first line must end.
    const BEGINNING: usize = 4096;
    let Ok(Some(file)) = open_regular(dir, id, OFlags::RDONLY) else { return false };
    let Ok(text) = read(&file, BEGINNING) else { return false };
    let first = text.split(|&b| b == b'\n').find(|line| !line.is_empty());
    first.is_none_or(|line| {
        let name = str::from_utf8(line).ok().and_then(Name::parse);
        name.is_some_and(|name| name.id() == id)
    })
}
