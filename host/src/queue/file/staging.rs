//! `host/tmp/{process}/`: where a message is while it is written or deleted.
//!
//! An entry is named after its message, and whoever finds it knows what to do: the message
//! was not sent, or it is done, and what else there is of it can go. The directory is one of
//! those that are told to be left over when their process is dead; see [`crate::scratch`].

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{self, AtFlags, RawDir};
use rustix::io::Errno;

use super::dirs::{self, Dirs, directory};
use super::name::is_id;
use crate::scratch;

/// This process's directory. What is left in it goes with it.
#[derive(Debug)]
pub(super) struct Staging {
    home: scratch::Scratch,
    dirs: Arc<Dirs>,
}

impl Staging {
    pub(super) fn make(dirs: &Arc<Dirs>) -> Result<Staging, Errno> {
        let all = dirs.host_path("tmp")?;
        let home = scratch::Scratch::make(&all).map_err(|error| errno(&error))?;
        Ok(Staging { home, dirs: dirs.clone() })
    }

    pub(super) fn dir(&self) -> &OwnedFd {
        self.home.dir()
    }

    /// Removes all of a message that was not sent, or is done. Leaves the entry for last:
    /// while it is there, the rest can still be found.
    pub(super) fn discard(&self, id: &str) -> Result<(), Errno> {
        self.dirs.remove(&self.dirs.movement, id)?;
        super::crash_point("discard: forgotten");
        self.dirs.remove(self.dir(), id)
    }

    /// Whether the directory is there still.
    pub(super) fn is_there(&self) -> bool {
        self.home.is_there()
    }

    /// Whether its path still leads to it. A copy of the queue that was put in its place has a
    /// copy of this directory, which is for the next sweep.
    fn is_at_its_path(&self) -> bool {
        match (fs::fstat(self.home.dir()), fs::stat(self.home.path())) {
            (Ok(ours), Ok(there)) => dirs::id(&ours) == dirs::id(&there),
            _ => false,
        }
    }

    /// Whether there is an entry for that message.
    pub(super) fn has(&self, id: &str) -> bool {
        fs::accessat(self.dir(), id, fs::Access::EXISTS, AtFlags::empty()).is_ok()
    }
}

impl Drop for Staging {
    /// Finishes what an error left half done; the directory goes when that is done.
    fn drop(&mut self) {
        if clear(&self.dirs, self.home.dir()).is_err() || !self.is_at_its_path() {
            self.home.stay();
        }
    }
}

/// Finishes what dead processes left half done.
pub(super) fn sweep(dirs: &Dirs) -> Result<(), Errno> {
    let Some(all) = dirs.host_if_any("tmp")? else { return Ok(()) };
    scratch::sweep_in(&all, &dirs.path.join("host/tmp"), &mut |dir| Ok(clear(dirs, dir)?))
        .map_err(|error| errno(&error))
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

fn clear(dirs: &Dirs, dir: &OwnedFd) -> Result<(), Errno> {
    let attempts = dirs.host_if_any(super::ATTEMPTS)?;
    for id in entries(dir)? {
        if !is_id(&id) {
            continue;
        }
        dirs.remove(&dirs.movement, &id)?;
        super::crash_point("sweep: forgotten");
        if let Some(attempts) = &attempts {
            dirs.remove(attempts, &id)?;
        }
        dirs.remove(dir, &id)?;
    }
    Ok(())
}

/// The names in a directory that never holds many.
fn entries(dir: &OwnedFd) -> Result<Vec<String>, Errno> {
    let dir = directory(dir, ".")?;
    let mut buffer = vec![MaybeUninit::uninit(); 32 * 1024];
    let mut raw = RawDir::new(dir, &mut buffer);
    let mut names = Vec::new();
    while let Some(entry) = raw.next() {
        let entry = entry?;
        match entry.file_name().to_str() {
            Ok("." | "..") | Err(_) => {}
            Ok(name) => names.push(name.to_owned()),
        }
    }
    Ok(names)
}
