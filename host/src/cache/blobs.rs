//! The files of the cache: `blobs/ab/abcd…`, each named by the SHA-256 of its bytes.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RenameFlags, Stat, Timespec, Timestamps, UTIME_NOW,
    UTIME_OMIT, fstat, linkat, mkdirat, openat, renameat, renameat_with, statat, unlinkat,
    utimensat,
};
use rustix::io::Errno;

use super::places::{Open, Places};
use super::verified::{Stamp, Verified};
use crate::digest::Digest;
use crate::ownership::Us;
use crate::scratch::{for_each, open_dir};
use crate::shortage::is_damage;

/// A use is noted on disk when the last note is older than this.
const TOUCH_SECONDS: u64 = 60;
/// How often a directory is made that somebody removes before a blob is in it.
const TRIES: usize = 5;

#[derive(Debug)]
pub(super) struct Blobs {
    places: Arc<Places>,
    us: Us,
    verified: Verified,
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

/// What is in the place of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// Nothing that can be used.
    Gone,
    /// A file of the right size that this process has not read yet.
    Unread,
    /// The blob: this process has read or written the file.
    Verified,
}

/// What a file of `size` bytes takes on disk, about: whole blocks, and an inode.
pub(super) fn cost(size: u64) -> u64 {
    size.saturating_add(512).next_multiple_of(4096)
}

impl Blobs {
    pub(super) fn new(places: Arc<Places>) -> Self {
        Self { places, us: Us::now(), verified: Verified::default() }
    }

    /// Looks for a blob, and notes that it is used. A file of the wrong size is removed.
    pub(super) fn look(&self, digest: &Digest, size: u64) -> io::Result<Look> {
        let path = path(digest);
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let found =
            self.places.with(|open| Ok((open.clone(), statat(&open.blobs, &*path, flags)?)));
        let (open, stat) = match found {
            Ok(found) => found,
            Err(error) if is_absent(&error) => return Ok(Look::Gone),
            Err(error) => return Err(error),
        };
        let stamp = Stamp::of(&stat);
        if let Some(flaw) = self.flaw(&stat, size) {
            self.discard(digest, &stamp, flaw);
            return Ok(Look::Gone);
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        if now.saturating_sub(u64::try_from(stat.st_atime).unwrap_or(0)) > TOUCH_SECONDS {
            // Only the time of use: a task may see the time of change. A failure makes the
            // blob look older than it is, and that is all.
            let time = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
            let times =
                Timestamps { last_access: time(UTIME_NOW), last_modification: time(UTIME_OMIT) };
            let _ = utimensat(&open.blobs, &*path, &times, flags);
        }
        let is_verified = self.verified.has(digest, &stamp);
        Ok(if is_verified { Look::Verified } else { Look::Unread })
    }

    /// Reads a blob. One whose bytes are not those of its name, or can't be read, is removed,
    /// and the answer is false.
    pub(super) fn verify(&self, digest: &Digest, size: u64) -> io::Result<bool> {
        let Some(file) = self.read(digest, size)? else { return Ok(false) };
        let stamp = Stamp::of(&fstat(&file)?);
        match Digest::of_reader(file) {
            Ok((found, _)) if found == *digest => {
                self.verified.add(*digest, &stamp);
                Ok(true)
            }
            Ok(_) => {
                self.discard(digest, &stamp, "its bytes have changed");
                Ok(false)
            }
            Err(error) if is_damage(&error) => {
                self.discard(digest, &stamp, &format!("it can't be read: {error}"));
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Gives a blob a second name. `Ok(false)` when it is not there or not whole.
    pub(super) fn link(
        &self,
        digest: &Digest,
        size: u64,
        into: impl AsFd,
        name: &str,
    ) -> Result<bool, Errno> {
        let open = self.places.get();
        match linkat(&open.blobs, path(digest), &into, name, AtFlags::empty()) {
            // Either name may be what is missing: the caller knows its own.
            Err(Errno::NOENT | Errno::STALE) if self.is_gone(digest) => return Ok(false),
            other => other?,
        }
        let stat = statat(&into, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let Some(flaw) = self.flaw(&stat, size) else { return Ok(true) };
        unlinkat(&into, name, AtFlags::empty())?;
        self.discard(digest, &Stamp::of(&stat), flaw);
        Ok(false)
    }

    pub(super) fn is_gone(&self, digest: &Digest) -> bool {
        let open = self.places.get();
        let stat = statat(&open.blobs, path(digest), AtFlags::SYMLINK_NOFOLLOW);
        stat.is_err_and(|error| matches!(error, Errno::NOENT | Errno::NOTDIR | Errno::STALE))
    }

    /// Opens a blob. `Ok(None)` when it is not there or not whole.
    pub(super) fn read(&self, digest: &Digest, size: u64) -> io::Result<Option<File>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let path = path(digest);
        let open = self.places.with(|open| openat(&open.blobs, &*path, flags, Mode::empty()));
        let file = match open {
            Ok(file) => File::from(file),
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let stat = fstat(&file)?;
        if let Some(flaw) = self.flaw(&stat, size) {
            self.discard(digest, &Stamp::of(&stat), flaw);
            return Ok(None);
        }
        Ok(Some(file))
    }

    /// Why a file can't be the blob, as far as that shows from outside.
    fn flaw(&self, stat: &Stat, size: u64) -> Option<&'static str> {
        let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        if !is_file || u64::try_from(stat.st_size) != Ok(size) {
            Some("its size is wrong")
        } else if !self.us.trusts(stat.st_uid) {
            // Who could change its bytes after they were read.
            Some("it belongs to another user")
        } else {
            None
        }
    }

    /// Moves a whole file from `tmp` in, in one visible step. False when there was a file
    /// already. One that this process has not verified is replaced: the new bytes are known
    /// to be right.
    pub(super) fn add(
        &self,
        open: &Open,
        name: &str,
        digest: Digest,
        stamp: &Stamp,
    ) -> io::Result<bool> {
        let path = path(&digest);
        let (tmp, blobs) = (open.tmp.dir(), &open.blobs);
        let rename = || renameat_with(tmp, name, blobs, &*path, RenameFlags::NOREPLACE);
        let mut renamed = rename();
        for _ in 0..TRIES {
            if !matches!(renamed, Err(Errno::NOENT | Errno::NOTDIR)) {
                break;
            }
            make_shard(open, &path[..2])?;
            renamed = rename();
        }
        let is_new = match renamed {
            Ok(()) => true,
            // There is a file, or this file system has no such rename.
            Err(Errno::EXIST | Errno::INVAL | Errno::NOSYS) => {
                let old = statat(blobs, &*path, AtFlags::SYMLINK_NOFOLLOW);
                if let Ok(old) = &old
                    && self.flaw(old, stamp.size).is_none()
                    && self.verified.has(&digest, &Stamp::of(old))
                {
                    unlinkat(tmp, name, AtFlags::empty())?;
                    return Ok(false);
                }
                match renameat(tmp, name, blobs, &*path) {
                    Err(Errno::ISDIR | Errno::NOTEMPTY | Errno::EXIST) => {
                        move_away(open, &path)?;
                        renameat(tmp, name, blobs, &*path)?;
                    }
                    other => other?,
                }
                old.is_err()
            }
            Err(error) => return Err(error.into()),
        };
        self.verified.add(digest, stamp);
        Ok(is_new)
    }

    /// Removes a blob that was seen to be damaged, unless another host has replaced it since.
    pub(super) fn discard(&self, digest: &Digest, seen: &Stamp, why: &str) {
        let (open, path) = (self.places.get(), path(digest));
        match statat(&open.blobs, &*path, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if Stamp::of(&stat) == *seen => {}
            _ => return,
        }
        tracing::warn!(%digest, "a blob of the cache is damaged: {why}; it is fetched again");
        let removed = match unlinkat(&open.blobs, &*path, AtFlags::empty()) {
            Err(Errno::ISDIR | Errno::PERM) => move_away(&open, &path),
            other => other,
        };
        if let Err(error) = removed {
            tracing::debug!(%digest, %error, "a damaged blob stays");
        }
    }

    /// Removes a blob that nobody has used since it was seen. True when it is gone.
    pub(super) fn remove_unused(&self, seen: &Seen) -> bool {
        let (open, path) = (self.places.get(), path(&seen.digest));
        match statat(&open.blobs, &*path, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if stat.st_nlink == 1 && used(&stat) == seen.used => {
                unlinkat(&open.blobs, path, AtFlags::empty()).is_ok()
            }
            Ok(_) => false,
            Err(error) => error == Errno::NOENT,
        }
    }

    /// The directory, open.
    pub(super) fn dir(&self) -> Arc<OwnedFd> {
        self.places.get().blobs.clone()
    }

    /// The same, after a look whether it still is the one at its path.
    pub(super) fn current_dir(&self) -> io::Result<Arc<OwnedFd>> {
        self.places.renew(&self.places.get())?;
        Ok(self.dir())
    }
}

/// Calls `each` for every blob below a directory. Removes nothing, and skips what is not a
/// blob.
pub(super) fn scan(blobs: impl AsFd, mut each: impl FnMut(Seen)) -> io::Result<()> {
    // Its own description, since another scan may be reading the directory.
    let top = open_dir(&blobs, ".")?;
    for_each(top.as_fd(), |shard, _| {
        let shard = match open_dir(&blobs, shard) {
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

/// Makes the directory of a blob, also where something else is in its place.
fn make_shard(open: &Open, shard: &str) -> Result<(), Errno> {
    let make = || mkdirat(&open.blobs, shard, Mode::RWXU);
    let is_dir = || {
        statat(&open.blobs, shard, AtFlags::SYMLINK_NOFOLLOW)
            .map(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
    };
    match make() {
        Err(Errno::EXIST) => {}
        other => return other,
    }
    match is_dir() {
        Ok(false) => {
            unlinkat(&open.blobs, shard, AtFlags::empty())?;
            make()
        }
        // Removed again since; the caller tries again.
        Ok(true) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes a directory that is in the place of a blob.
fn move_away(open: &Open, path: &str) -> Result<(), Errno> {
    let name = format!("misplaced-{}", uuid::Uuid::new_v4());
    renameat(&open.blobs, path, open.tmp.dir(), &*name)?;
    // What stays goes with the directory of this process.
    let _ = std::fs::remove_dir_all(open.tmp.path().join(name));
    Ok(())
}

/// Where a blob is, below `blobs`.
pub(super) fn path(digest: &Digest) -> String {
    let hex = digest.to_string();
    let mut path = String::with_capacity(3 + hex.len());
    path.push_str(&hex[..2]);
    path.push('/');
    path.push_str(&hex);
    path
}

/// There is no file of that name, or something that is not one.
fn is_absent(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP))
}

fn used(stat: &Stat) -> (i64, u64) {
    (stat.st_atime, stat.st_atime_nsec)
}
