//! The files of the cache: `blobs/ab/abcd…`, each named by the SHA-256 of its bytes.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Stat, Timespec, Timestamps, UTIME_NOW,
    UTIME_OMIT, linkat, mkdirat, openat, renameat, renameat_with, statat, unlinkat, utimensat,
};
use rustix::io::Errno;

use crate::digest::Digest;
use crate::scratch::{for_each, open_dir};

/// A use is noted on disk when the last note is older than this.
const TOUCH_SECONDS: u64 = 60;

#[derive(Debug)]
pub(super) struct Blobs {
    dir: OwnedFd,
}

/// What a scan sees of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Seen {
    /// When it was last used: seconds and nanoseconds since 1970.
    pub(super) used: (i64, u64),
    pub(super) digest: Digest,
    /// What it takes on disk, in bytes.
    pub(super) cost: u64,
}

/// What a file of `size` bytes takes on disk, about: whole blocks, and an inode.
pub(super) fn cost(size: u64) -> u64 {
    size.saturating_add(512).next_multiple_of(4096)
}

impl Blobs {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(path)?;
        Ok(Self { dir: open_dir(CWD, path)? })
    }

    /// True when the blob is there, with the size it has to have. Notes that it is used. One
    /// of another size is removed.
    pub(super) fn check(&self, digest: &Digest, size: u64) -> io::Result<bool> {
        let path = path(digest);
        let stat = match statat(&self.dir, &*path, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        if !is_whole(&stat, size) {
            self.discard(digest, "its size is wrong");
            return Ok(false);
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        if now.saturating_sub(u64::try_from(stat.st_atime).unwrap_or(0)) > TOUCH_SECONDS {
            // Only the time of use: a task may see the time of change. A failure makes the
            // blob look older than it is, and that is all.
            let time = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
            let times =
                Timestamps { last_access: time(UTIME_NOW), last_modification: time(UTIME_OMIT) };
            let _ = utimensat(&self.dir, &*path, &times, AtFlags::SYMLINK_NOFOLLOW);
        }
        Ok(true)
    }

    /// Gives a blob a second name. `Ok(false)` when it is not there or not whole.
    pub(super) fn link(
        &self,
        digest: &Digest,
        size: u64,
        into: impl AsFd,
        name: &str,
    ) -> Result<bool, Errno> {
        match linkat(&self.dir, path(digest), &into, name, AtFlags::empty()) {
            // Either name may be what is missing: the caller knows its own.
            Err(Errno::NOENT) if self.is_gone(digest) => return Ok(false),
            other => other?,
        }
        if is_whole(&statat(&into, name, AtFlags::SYMLINK_NOFOLLOW)?, size) {
            return Ok(true);
        }
        unlinkat(&into, name, AtFlags::empty())?;
        self.discard(digest, "its size is wrong");
        Ok(false)
    }

    pub(super) fn is_gone(&self, digest: &Digest) -> bool {
        let stat = statat(&self.dir, path(digest), AtFlags::SYMLINK_NOFOLLOW);
        stat.is_err_and(|error| error == Errno::NOENT)
    }

    /// Opens a blob. `Ok(None)` when it is not there or not whole.
    pub(super) fn read(&self, digest: &Digest, size: u64) -> io::Result<Option<File>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match openat(&self.dir, path(digest), flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if file.metadata()?.len() != size {
            self.discard(digest, "its size is wrong");
            return Ok(None);
        }
        Ok(Some(file))
    }

    /// Moves a whole file in, in one visible step. False when the blob was there already.
    pub(super) fn add(
        &self,
        from: impl AsFd,
        name: &str,
        digest: &Digest,
        size: u64,
    ) -> io::Result<bool> {
        let path = path(digest);
        let rename = || renameat_with(&from, name, &self.dir, &*path, RenameFlags::NOREPLACE);
        let renamed = match rename() {
            Err(Errno::NOENT) => match mkdirat(&self.dir, &path[..2], Mode::from_raw_mode(0o777)) {
                Ok(()) | Err(Errno::EXIST) => rename(),
                Err(error) => Err(error),
            },
            other => other,
        };
        match renamed {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) if self.check(digest, size)? => {
                unlinkat(&from, name, AtFlags::empty())?;
                Ok(false)
            }
            // The one that was there was not whole; or this file system has no such rename.
            Err(Errno::EXIST | Errno::INVAL | Errno::NOSYS) => {
                renameat(&from, name, &self.dir, &*path)?;
                Ok(true)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn discard(&self, digest: &Digest, why: &str) {
        tracing::warn!(%digest, "a blob of the cache is dropped: {why}");
        let _ = unlinkat(&self.dir, path(digest), AtFlags::empty());
    }

    /// Removes a blob that nobody has used since it was seen. True when it is gone.
    pub(super) fn remove_unused(&self, seen: &Seen) -> bool {
        let path = path(&seen.digest);
        match statat(&self.dir, &*path, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if stat.st_nlink == 1 && used(&stat) == seen.used => {
                unlinkat(&self.dir, path, AtFlags::empty()).is_ok()
            }
            Ok(_) => false,
            Err(error) => error == Errno::NOENT,
        }
    }

    /// Calls `each` for every blob. Removes nothing, and skips what is no blob.
    pub(super) fn scan(&self, mut each: impl FnMut(Seen)) -> io::Result<()> {
        // Its own description, since another scan may be reading the directory.
        let top = open_dir(&self.dir, ".")?;
        for_each(top.as_fd(), |shard, _| {
            let shard = match open_dir(&self.dir, shard) {
                Ok(shard) => shard,
                Err(Errno::NOTDIR | Errno::NOENT | Errno::LOOP) => return Ok(()),
                Err(error) => return Err(error),
            };
            for_each(shard.as_fd(), |name, _| {
                let digest = name.to_str().ok().and_then(|name| name.parse().ok());
                let stat = statat(&shard, name, AtFlags::SYMLINK_NOFOLLOW);
                if let (Some(digest), Ok(stat)) = (digest, stat) {
                    let cost = cost(u64::try_from(stat.st_size).unwrap_or(0));
                    each(Seen { used: used(&stat), digest, cost });
                }
                Ok(())
            })
        })
        .map_err(|error: Errno| error.into())
    }
}

/// Where a blob is, below `blobs`.
fn path(digest: &Digest) -> String {
    let hex = digest.to_string();
    let mut path = String::with_capacity(3 + hex.len());
    path.push_str(&hex[..2]);
    path.push('/');
    path.push_str(&hex);
    path
}

fn is_whole(stat: &Stat, size: u64) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
        && u64::try_from(stat.st_size) == Ok(size)
}

fn used(stat: &Stat) -> (i64, u64) {
    (stat.st_atime, stat.st_atime_nsec)
}
