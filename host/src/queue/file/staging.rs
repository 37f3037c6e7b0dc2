//! `host/tmp/{process}/`: this process's directory for messages that are being written or
//! deleted.
//!
//! An entry has the id of its message. It means that the message was never sent or is finished, so
//! any process that finds the entry removes the message's other files. A later process recognizes
//! the directory of a dead process: see [`crate::process_dir`].

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{self, AtFlags};
use rustix::io::Errno;

use super::dirs::{self, Dirs};
use super::failures::ATTEMPTS;
use super::files::directory;
use super::name::is_id;
use crate::dirs::for_each;
use crate::fault::{self, Step};
use crate::process_dir::{self, ProcessDir};

/// This process's directory. Dropping the value finishes the entries and removes the directory.
#[derive(Debug)]
pub(super) struct Staging {
    home: ProcessDir,
    dirs: Arc<Dirs>,
}

impl Staging {
    pub(super) fn create(dirs: &Arc<Dirs>) -> Result<Staging, Errno> {
        let all = dirs.host_path("tmp")?;
        let home = ProcessDir::make(&all).map_err(|error| errno(&error))?;
        Ok(Staging { home, dirs: dirs.clone() })
    }

    pub(super) fn dir(&self) -> &OwnedFd {
        self.home.dir()
    }

    /// Removes all files of a message that was never sent or is finished. The entry is removed
    /// last: until then, it tells other processes what to remove.
    pub(super) fn discard(&self, id: &str) -> Result<(), Errno> {
        self.dirs.remove(&self.dirs.movement, id)?;
        fault::point(Step::Forgotten);
        self.dirs.remove(self.dir(), id)
    }

    /// Whether the directory still exists.
    pub(super) fn exists(&self) -> bool {
        self.home.is_there()
    }

    /// Whether the path still leads to this directory. If the queue was replaced by a copy, the
    /// path leads to a copy of this directory. The next sweep finishes the copy's entries.
    fn is_at_its_path(&self) -> bool {
        match (fs::fstat(self.home.dir()), fs::stat(self.home.path())) {
            (Ok(ours), Ok(there)) => dirs::id(&ours) == dirs::id(&there),
            _ => false,
        }
    }

    /// Whether there is an entry for the message `id`.
    pub(super) fn has(&self, id: &str) -> bool {
        fs::accessat(self.dir(), id, fs::Access::EXISTS, AtFlags::empty()).is_ok()
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Finish entries that an error left incomplete.
        if clear(&self.dirs, self.home.dir()).is_err() || !self.is_at_its_path() {
            self.home.stay();
        }
    }
}

/// Finishes the entries of dead processes, and removes their directories.
pub(super) fn sweep(dirs: &Dirs) -> Result<(), Errno> {
    let Some(all) = dirs.host_if_any("tmp")? else { return Ok(()) };
    process_dir::sweep_in(&all, &dirs.path.join("host/tmp"), &mut |dir| Ok(clear(dirs, dir)?))
        .map_err(|error| errno(&error))
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

fn clear(dirs: &Dirs, dir: &OwnedFd) -> Result<(), Errno> {
    let attempts = dirs.host_if_any(ATTEMPTS)?;
    for id in entries(dir)? {
        if !is_id(&id) {
            continue;
        }
        dirs.remove(&dirs.movement, &id)?;
        fault::point(Step::SweepForgotten);
        if let Some(attempts) = &attempts {
            dirs.remove(attempts, &id)?;
        }
        dirs.remove(dir, &id)?;
    }
    Ok(())
}

/// The names in a staging directory. There are never many.
fn entries(dir: &OwnedFd) -> Result<Vec<String>, Errno> {
    let dir = directory(dir, ".")?;
    let mut names = Vec::new();
    for_each(dir.as_fd(), |name, _| {
        names.extend(name.to_str().ok().map(str::to_owned));
        Ok::<(), Errno>(())
    })?;
    Ok(names)
}
