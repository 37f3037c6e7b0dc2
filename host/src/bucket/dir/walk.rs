//! The listing of a directory bucket: a walk that holds one open directory for each level.

use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, openat, statat};
use rustix::io::Errno;

use super::error::DirError;
use super::root::Root;
use super::{DirBucket, TMP, modified, size};
use crate::bucket::{BucketError, Listed};
use crate::key::{BucketKey, Prefix};
use crate::system::place;

/// Iterates over the objects below a prefix, in the file system's order.
pub(super) struct Walk<'a> {
    bucket: &'a DirBucket,
    /// The directory that is listed.
    root: Option<Arc<Root>>,
    levels: Vec<Level>,
    /// The path of the innermost level, with a slash at its end; empty at the root.
    path: String,
    /// Why the walk could not start.
    failed: Option<DirError>,
}

struct Level {
    entries: Dir,
    /// Device and inode.
    id: (u64, u64),
}

enum WalkEntry {
    Nothing,
    Object(Listed),
    Level(Level, BucketKey),
}

impl<'a> Walk<'a> {
    pub(super) fn new(bucket: &'a DirBucket, prefix: &Prefix) -> Self {
        let path = if prefix.is_root() { String::new() } else { format!("{prefix}/") };
        let mut walk = Self { bucket, root: None, levels: Vec::new(), path, failed: None };
        match bucket.root() {
            Ok(root) => {
                let top = if prefix.is_root() { "." } else { prefix.as_str() };
                match Level::open(&root, top) {
                    Ok(level) => walk.levels.push(level),
                    Err(Errno::NOENT | Errno::NOTDIR) => {}
                    Err(error) => walk.failed = Some(walk.error(error)),
                }
                walk.root = Some(root);
            }
            Err(gone) => walk.failed = Some(gone),
        }
        walk
    }

    fn error(&self, error: Errno) -> DirError {
        DirError::at(&self.bucket.0.path.join(&self.path), error)
    }

    fn unavailable(&self, error: DirError) -> BucketError {
        let listed = if self.path.is_empty() { "the root" } else { &self.path };
        BucketError::unavailable(self.bucket, "listing", listed, error)
    }

    /// The error at the end of a walk that may have missed objects.
    fn end(&mut self) -> Option<BucketError> {
        let root = self.root.take()?;
        let error = match self.bucket.root() {
            Ok(now) if Arc::ptr_eq(&now, &root) => return None,
            Ok(_) => {
                let text = "the directory was replaced while it was listed";
                DirError::because(text, Errno::STALE)
            }
            Err(gone) => gone,
        };
        self.path.clear();
        Some(self.unavailable(error))
    }

    /// The next entry of the innermost level; `None` at its end.
    fn step(&mut self) -> Option<Result<WalkEntry, Errno>> {
        let level = self.levels.last_mut()?;
        let entry = match level.entries.read()? {
            Ok(entry) => entry,
            Err(error) => return Some(Err(error)),
        };
        let name = entry.file_name();
        if name == c"." || name == c".." || name.to_bytes() == TMP.as_bytes() {
            return Some(Ok(WalkEntry::Nothing));
        }
        let key =
            name.to_str().ok().and_then(|n| BucketKey::new(&format!("{}{n}", self.path)).ok());
        let Some(key) = key else {
            let (bucket, path) = (self.bucket, &self.path);
            tracing::warn!(%bucket, "skipped {name:?} in `{path}`: not a valid key");
            return Some(Ok(WalkEntry::Nothing));
        };
        let stat = level.entries.fd().and_then(|fd| statat(fd, name, AtFlags::empty()));
        Some(match stat {
            Ok(stat) => self.look(key, &stat),
            // The entry was removed since it was listed, or is a dangling link.
            Err(Errno::NOENT | Errno::LOOP) => Ok(WalkEntry::Nothing),
            Err(error) => Err(error),
        })
    }

    fn open(&self, path: &str) -> Result<Level, Errno> {
        Level::open(self.root.as_ref().ok_or(Errno::NOENT)?, path)
    }

    fn look(&self, key: BucketKey, stat: &Stat) -> Result<WalkEntry, Errno> {
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                Ok(WalkEntry::Object(Listed { key, size: size(stat), modified: modified(stat) }))
            }
            // A link to a directory further up makes a loop.
            FileType::Directory if self.levels.iter().any(|l| l.id == place(stat)) => {
                Ok(WalkEntry::Nothing)
            }
            FileType::Directory => match self.open(key.as_str()) {
                Ok(level) => Ok(WalkEntry::Level(level, key)),
                Err(Errno::NOENT) => Ok(WalkEntry::Nothing),
                Err(error) => Err(error),
            },
            _ => Ok(WalkEntry::Nothing),
        }
    }
}

impl Iterator for Walk<'_> {
    type Item = Result<Listed, BucketError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(error) = self.failed.take() {
            return Some(Err(self.unavailable(error)));
        }
        while !self.levels.is_empty() {
            match self.step() {
                Some(Ok(WalkEntry::Nothing)) => {}
                Some(Ok(WalkEntry::Object(listed))) => return Some(Ok(listed)),
                Some(Ok(WalkEntry::Level(level, key))) => {
                    self.levels.push(level);
                    self.path = format!("{key}/");
                }
                // After its error, a directory that can't be read has no more entries.
                Some(Err(error)) => return Some(Err(self.unavailable(self.error(error)))),
                None => {
                    self.levels.pop();
                    let inner = self.path.trim_end_matches('/').rfind('/');
                    self.path.truncate(inner.map_or(0, |slash| slash + 1));
                }
            }
        }
        self.end().map(Err)
    }
}

impl Level {
    fn open(root: impl AsFd, path: &str) -> Result<Self, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = openat(root, path, flags, Mode::empty())?;
        let id = place(&fstat(&fd)?);
        Ok(Self { entries: Dir::new(fd)?, id })
    }
}
