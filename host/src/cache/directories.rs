//! The open directories of the cache.
//!
//! A user may remove or replace the directories while the cache is in use. If a call fails and this
//! may be the reason, the open directories are compared with those at their paths. If they differ,
//! they are opened or made again, and the call is repeated once. Otherwise only a scan compares
//! them.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::RwLock;
use rustix::fs::{CWD, Mode, OFlags, fstat, openat, stat};
use rustix::io::Errno;

use super::PARTS;
use crate::dirs::open_dir;
use crate::ownership::{self, NotOurs};
use crate::process_dir::ProcessDir;
use crate::system::place;

/// The directories of one cache.
#[derive(Debug)]
pub(super) struct Directories {
    dir: PathBuf,
    open: RwLock<Arc<OpenDirs>>,
}

/// The directories as last opened. A download keeps the ones that it started with.
#[derive(Debug)]
pub(super) struct OpenDirs {
    pub(super) tmp: Arc<ProcessDir>,
    pub(super) blobs: Arc<OwnedFd>,
}

impl Directories {
    /// Makes missing directories, and removes the leftovers of dead processes in `tmp`.
    ///
    /// # Errors
    /// When the directories can't be made or opened, or another user owns them or may write to
    /// them.
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        if let Some(risk) = make_ours(dir)? {
            tracing::warn!("cache {}: {risk}", dir.display());
        }
        let tmp = Arc::new(ProcessDir::claim(&dir.join("tmp"))?);
        let blobs = open_blobs(dir)?;
        Ok(Self { dir: dir.to_owned(), open: RwLock::new(Arc::new(OpenDirs { tmp, blobs })) })
    }

    pub(super) fn get(&self) -> Arc<OpenDirs> {
        self.open.read().clone()
    }

    /// Runs `action`, and again in new directories if the old ones are gone.
    pub(super) fn with<T>(
        &self,
        mut action: impl FnMut(&Arc<OpenDirs>) -> Result<T, Errno>,
    ) -> io::Result<T> {
        let open = self.get();
        match action(&open) {
            Err(error) if may_be_gone(error) && self.renew(&open)? => Ok(action(&self.get())?),
            other => Ok(other?),
        }
    }

    /// Makes removed directories again, or opens their replacements. True when [`Directories::get`]
    /// no longer returns `seen`.
    pub(super) fn renew(&self, seen: &Arc<OpenDirs>) -> io::Result<bool> {
        let mut open = self.open.write();
        if !Arc::ptr_eq(&open, seen) {
            return Ok(true);
        }
        // A cache that was moved away may be moved back, and its open directories still work.
        let is_away = stat(&self.dir).is_err();
        let has_tmp = is_current(open.tmp.dir(), open.tmp.path(), is_away);
        let has_blobs = is_current(&open.blobs, &self.dir.join("blobs"), is_away);
        if has_tmp && has_blobs {
            return Ok(false);
        }
        // Another user may have replaced them.
        make_ours(&self.dir)?;
        let tmp = match has_tmp {
            true => open.tmp.clone(),
            false => Arc::new(ProcessDir::make(&self.dir.join("tmp"))?),
        };
        let blobs = if has_blobs { open.blobs.clone() } else { open_blobs(&self.dir)? };
        *open = Arc::new(OpenDirs { tmp, blobs });
        drop(open);
        tracing::warn!(
            "cache {}: its directories were removed or replaced while in use; continuing in the \
             current ones",
            self.dir.display()
        );
        Ok(true)
    }
}

/// True when a call may have failed because an open directory was removed, replaced or unmounted.
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

/// Makes the directories, or checks their owners. Returns a risk on the path.
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

/// True when an open directory is still the one to use.
fn is_current(open: &OwnedFd, path: &Path, is_away: bool) -> bool {
    match (fstat(open), stat(path)) {
        (Ok(open), Ok(there)) => place(&open) == place(&there),
        (Ok(open), Err(_)) => is_away && open.st_nlink > 0,
        (Err(_), _) => false,
    }
}

/// Creates a file that only this descriptor can write to.
pub(super) fn create(dir: impl AsFd, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    openat(dir, name, flags, Mode::from_raw_mode(0o444))
}
