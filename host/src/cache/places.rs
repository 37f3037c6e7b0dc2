//! The directories that the cache works in, held open.
//!
//! Somebody may remove or replace them while the cache is in use. A call that fails in a way
//! that this can explain compares the open directories with those at their paths, opens or
//! makes them again, and is tried once more. While nothing fails, nothing is compared.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustix::fs::{CWD, Mode, OFlags, fstat, openat, stat};
use rustix::io::Errno;

use super::PARTS;
use crate::ownership::{self, NotOurs};
use crate::scratch::{Scratch, open_dir};

/// The directories of one cache.
#[derive(Debug)]
pub(super) struct Places {
    dir: PathBuf,
    open: RwLock<Arc<Open>>,
}

/// The directories as they were opened last. A download keeps those that it began with.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) tmp: Arc<Scratch>,
    pub(super) blobs: Arc<OwnedFd>,
}

impl Places {
    /// Makes the directories where they are missing, and removes what dead processes left in
    /// `tmp`.
    ///
    /// # Errors
    /// Also when somebody else owns them or may write to them.
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        if let Some(risk) = make_ours(dir)? {
            tracing::warn!("cache {}: {risk}", dir.display());
        }
        let tmp = Arc::new(Scratch::claim(&dir.join("tmp"))?);
        let blobs = open_blobs(dir)?;
        Ok(Self { dir: dir.to_owned(), open: RwLock::new(Arc::new(Open { tmp, blobs })) })
    }

    pub(super) fn get(&self) -> Arc<Open> {
        self.open.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Does `action`, and once more in new directories if it failed because the old ones are
    /// gone.
    pub(super) fn with<T>(
        &self,
        mut action: impl FnMut(&Arc<Open>) -> Result<T, Errno>,
    ) -> io::Result<T> {
        let open = self.get();
        match action(&open) {
            Err(error) if may_be_gone(error) && self.renew(&open)? => Ok(action(&self.get())?),
            other => Ok(other?),
        }
    }

    /// Opens or makes again what was removed, or opens what is in its place now. True when
    /// [`Places::get`] gives other directories than `seen`.
    pub(super) fn renew(&self, seen: &Arc<Open>) -> io::Result<bool> {
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&open, seen) {
            return Ok(true);
        }
        // A cache that was moved away as a whole may come back, and works where it is.
        let is_away = stat(&self.dir).is_err();
        let has_tmp = is_current(open.tmp.dir(), open.tmp.path(), is_away);
        let has_blobs = is_current(&open.blobs, &self.dir.join("blobs"), is_away);
        if has_tmp && has_blobs {
            return Ok(false);
        }
        // Whoever replaced them may be somebody else.
        make_ours(&self.dir)?;
        let tmp = match has_tmp {
            true => open.tmp.clone(),
            false => Arc::new(Scratch::make(&self.dir.join("tmp"))?),
        };
        let blobs = if has_blobs { open.blobs.clone() } else { open_blobs(&self.dir)? };
        *open = Arc::new(Open { tmp, blobs });
        drop(open);
        tracing::warn!(
            "cache {}: its directories were removed or replaced while it was in use; \
             it goes on in those that are there now",
            self.dir.display()
        );
        Ok(true)
    }
}

/// Whether a failed call may be due to a directory that is open and no longer the one at its
/// path: removed, replaced, or on a file system that is gone.
pub(super) fn may_be_gone(error: Errno) -> bool {
    matches!(
        error,
        Errno::NOENT
            | Errno::STALE
            | Errno::NOTCONN
            | Errno::NODEV
            | Errno::NXIO
            | Errno::XDEV
            | Errno::IO
            | Errno::ROFS
            | Errno::ACCESS
    )
}

/// Makes the directories, or checks whose they are. Returns a risk on the way to them.
fn make_ours(dir: &Path) -> io::Result<Option<NotOurs>> {
    ownership::make(dir, &["tmp", "blobs"])?;
    let risk = ownership::check(dir, &PARTS).map_err(io::Error::other)?;
    for part in PARTS {
        ownership::close(&dir.join(part))?;
    }
    Ok(risk)
}

fn open_blobs(dir: &Path) -> io::Result<Arc<OwnedFd>> {
    let path = dir.join("blobs");
    let blobs = open_dir(CWD, &path)?;
    ownership::check_inner(dir, &path, &blobs)?;
    let index = dir.join("index");
    match open_dir(CWD, &index) {
        Ok(open) => ownership::check_inner(dir, &index, &open)?,
        Err(Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(Arc::new(blobs))
}

/// Whether an open directory still is the one to work in.
fn is_current(open: &OwnedFd, path: &Path, is_away: bool) -> bool {
    match (fstat(open), stat(path)) {
        (Ok(open), Ok(there)) => (open.st_dev, open.st_ino) == (there.st_dev, there.st_ino),
        (Ok(open), Err(_)) => is_away && open.st_nlink > 0,
        (Err(_), _) => false,
    }
}

/// A new file that is read-only for everybody but the one who makes it, now.
pub(super) fn create(dir: impl AsFd, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    openat(dir, name, flags, Mode::from_raw_mode(0o444))
}
