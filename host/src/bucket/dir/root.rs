//! The open directory of a bucket, and how its replacement is noticed.
//!
//! The directory stays open while the bucket is in use. Meanwhile its path may come to lead to
//! another directory, because the directory was restored from a copy or its file system was mounted
//! again. Objects put into the old directory would be lost, so each operation checks the path
//! first.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, fstatvfs, mkdirat, openat, statat};
use rustix::io::Errno;

use super::TMP;
use super::error::DirError;
use crate::dirs::for_each;
use crate::key::BucketKey;
use crate::process_dir::ProcessDir;
use crate::system::Identity;

/// How long after the replacement of a directory a missing object may still arrive, because the
/// directory is being restored from a copy.
const RESTORING: Duration = Duration::from_secs(60);
/// The longest name that every file system in use accepts (ecryptfs has the lowest limit).
const SAFE_NAME_BYTES: usize = 143;

/// An open directory.
#[derive(Debug)]
pub(super) struct Root {
    /// The directory for copies, created for the first copy. The last process that uses it removes
    /// it. This field is dropped before `dir` is closed.
    tmp: Mutex<Option<Arc<ProcessDir>>>,
    path: PathBuf,
    dir: OwnedFd,
    pub(super) id: Identity,
    /// The directory has had objects.
    had_objects: AtomicBool,
    /// When this directory replaced another.
    replaced: Option<Instant>,
}

impl Root {
    /// Opens a directory.
    pub(super) fn open(path: &Path) -> Result<Self, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = openat(CWD, path, flags, Mode::empty())?;
        let id = Identity::of_open(&dir)?;
        let had_objects = AtomicBool::new(has_objects(&dir)?);
        let path = path.to_owned();
        Ok(Self { tmp: Mutex::default(), path, dir, id, had_objects, replaced: None })
    }

    /// The directory that is at the path now: this one, or another, which is then opened.
    ///
    /// # Errors
    /// When there is no directory at the path. Also when that directory is empty and this one was
    /// not: it may be the mount point of an unmounted file system.
    pub(super) fn now(self: &Arc<Self>) -> Result<Arc<Self>, DirError> {
        match Identity::of(&self.path) {
            Ok(id) if id == self.id => return Ok(self.clone()),
            Ok(_) => {}
            Err(errno) => return Err(self.gone(errno)),
        }
        let mut other = Self::open(&self.path).map_err(|errno| self.gone(errno))?;
        if other.id == self.id {
            return Ok(self.clone());
        }
        if self.had_objects.load(Relaxed) && !other.had_objects.load(Relaxed) {
            let text = "the directory was replaced by an empty one; is its file system mounted? \
                        If it is to be empty, restart the host";
            return Err(DirError::because(text, Errno::STALE));
        }
        other.replaced = Some(Instant::now());
        Ok(Arc::new(other))
    }

    fn gone(&self, errno: Errno) -> DirError {
        match errno {
            Errno::NOENT => DirError::because(
                "the directory is gone; put it back, or mount its file system",
                errno,
            ),
            Errno::NOTDIR => DirError::because(
                "the directory was replaced by something else; put it back",
                errno,
            ),
            errno => DirError::at(&self.path, errno),
        }
    }

    /// True while a missing object may still be restored from a copy.
    pub(super) fn is_being_restored(&self) -> bool {
        self.replaced.is_some_and(|at| at.elapsed() < RESTORING)
    }

    /// Records that the directory has objects.
    pub(super) fn has_object(&self) {
        self.had_objects.store(true, Relaxed);
    }

    /// The directory that objects are copied to before they are renamed into place.
    pub(super) fn tmp(&self) -> io::Result<Arc<ProcessDir>> {
        let mut tmp = self.tmp.lock();
        if let Some(tmp) = &*tmp
            && tmp.is_there()
        {
            return Ok(tmp.clone());
        }
        let made = Arc::new(claim(&self.dir, &self.path)?);
        Ok(tmp.insert(made).clone())
    }

    /// The directory that `tmp` last returned, if any. It may have been removed since.
    pub(super) fn last_tmp(&self) -> Option<Arc<ProcessDir>> {
        self.tmp.lock().clone()
    }

    /// The directory above `key` that is a dangling link, if any. Its target may be on an unmounted
    /// file system.
    pub(super) fn dangling_link(&self, key: &BucketKey) -> Option<String> {
        let mut above = key.as_str().match_indices('/').map(|(end, _)| &key.as_str()[..end]);
        let dangles = |path: &&str| {
            let is_link = statat(self, *path, AtFlags::SYMLINK_NOFOLLOW)
                .is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Symlink);
            is_link && matches!(statat(self, *path, AtFlags::empty()), Err(Errno::NOENT))
        };
        above.find(dangles).map(str::to_owned)
    }

    /// The innermost directory above `key` that exists: its path below the root, and the open
    /// directory.
    pub(super) fn deepest_above(&self, key: &BucketKey) -> Result<(String, OwnedFd), Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut path = key.parent();
        loop {
            match openat(self, path.unwrap_or("."), flags, Mode::empty()) {
                Err(Errno::NOENT) if path.is_some() => {}
                opened => return Ok((path.unwrap_or_default().to_owned(), opened?)),
            }
            path = path.and_then(|path| path.rsplit_once('/')).map(|(parent, _)| parent);
        }
    }

    /// Checks the length of a key's names, whose directories may not exist yet.
    pub(super) fn takes_names_of(&self, key: &BucketKey) -> Result<(), Errno> {
        let Some(longest) = key.as_str().split('/').map(str::len).max() else { return Ok(()) };
        if longest <= SAFE_NAME_BYTES {
            return Ok(());
        }
        let (_, dir) = self.deepest_above(key)?;
        if longest as u64 > fstatvfs(&dir)?.f_namemax { Err(Errno::NAMETOOLONG) } else { Ok(()) }
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

/// Makes a directory for copies in `dir`, which is at `path`. Uses the open directory, so that a
/// removed directory is not created again.
pub(super) fn claim(dir: impl AsFd, path: &Path) -> io::Result<ProcessDir> {
    match mkdirat(dir, TMP, Mode::from_raw_mode(0o777)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    ProcessDir::claim_and_tidy(&path.join(TMP))
}

/// True when a directory has entries other than those of the host and of the file system.
fn has_objects(dir: &OwnedFd) -> Result<bool, Errno> {
    let mut found = false;
    let listed = for_each(dir.as_fd(), |name, _| {
        found = ![TMP.as_bytes(), b"lost+found"].contains(&name.to_bytes());
        // The first one is enough.
        if found { Err(Errno::CANCELED) } else { Ok(()) }
    });
    match listed {
        Err(error) if !found => Err(error),
        _ => Ok(found),
    }
}
