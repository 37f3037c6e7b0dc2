//! The files of the cache: `blobs/ab/abcd…`, each named by the SHA-256 of its bytes.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RenameFlags, Stat, Timespec, Timestamps, UTIME_NOW,
    UTIME_OMIT, fstat, mkdirat, openat, renameat, renameat_with, statat, unlinkat, utimensat,
};
use rustix::io::Errno;

use super::directories::{Directories, OpenDirs};
use super::verified::{Stamp, Verified};
use crate::digest::Digest;
use crate::dirs::{for_each, open_dir};
use crate::ownership::Us;
use crate::shortage::is_damage;
use crate::system::{is_unsupported, used};

/// A use is recorded on disk when the last record is older than this.
const TOUCH_SECONDS: u64 = 60;
/// How often to make a directory while another process removes it.
const TRIES: usize = 5;

#[derive(Debug)]
pub(super) struct Blobs {
    directories: Arc<Directories>,
    us: Us,
    verified: Verified,
}

/// A blob as a scan finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ScannedBlob {
    /// When it was last used: seconds and nanoseconds since 1970.
    pub(super) used: (i64, u64),
    pub(super) digest: Digest,
    /// Its size on disk in bytes.
    pub(super) cost: u64,
}

/// The state of a blob's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lookup {
    /// Missing or unusable.
    Gone,
    /// A file of the right size that this process has not read yet.
    Unread,
    /// The blob. This process has read or written the file.
    Verified,
}

/// The approximate size on disk of a file of `size` bytes: whole blocks and an inode.
pub(super) fn cost(size: u64) -> u64 {
    size.saturating_add(512).next_multiple_of(4096)
}

impl Blobs {
    pub(super) fn new(directories: Arc<Directories>) -> Self {
        Self { directories, us: Us::now(), verified: Verified::default() }
    }

    /// Looks up a blob and records its use. Removes a file of the wrong size.
    pub(super) fn look(&self, digest: &Digest, size: u64) -> io::Result<Lookup> {
        let path = path(digest);
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let found =
            self.directories.with(|open| Ok((open.clone(), statat(&open.blobs, &*path, flags)?)));
        let (open, stat) = match found {
            Ok(found) => found,
            Err(error) if is_absent(&error) => return Ok(Lookup::Gone),
            Err(error) => return Err(error),
        };
        let stamp = Stamp::of(&stat);
        if let Some(flaw) = self.flaw(&stat, size) {
            self.discard(digest, &stamp, flaw);
            return Ok(Lookup::Gone);
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        if now.saturating_sub(u64::try_from(stat.st_atime).unwrap_or(0)) > TOUCH_SECONDS {
            // Sets only the access time, because a task may see the modification time. If this
            // fails, the blob only looks older than it is.
            let time = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
            let times =
                Timestamps { last_access: time(UTIME_NOW), last_modification: time(UTIME_OMIT) };
            let _ = utimensat(&open.blobs, &*path, &times, flags);
        }
        let is_verified = self.verified.has(digest, &stamp);
        Ok(if is_verified { Lookup::Verified } else { Lookup::Unread })
    }

    /// Reads a blob and checks its digest. A damaged or unreadable blob is removed, and the result
    /// is false.
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

    pub(super) fn is_gone(&self, digest: &Digest) -> bool {
        let open = self.directories.get();
        let stat = statat(&open.blobs, path(digest), AtFlags::SYMLINK_NOFOLLOW);
        stat.is_err_and(|error| matches!(error, Errno::NOENT | Errno::NOTDIR | Errno::STALE))
    }

    /// Opens a blob. `Ok(None)` when it is missing or not whole.
    pub(super) fn read(&self, digest: &Digest, size: u64) -> io::Result<Option<File>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let path = path(digest);
        let open = self.directories.with(|open| openat(&open.blobs, &*path, flags, Mode::empty()));
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

    /// Why a file can't be the blob, as far as its metadata shows.
    fn flaw(&self, stat: &Stat, size: u64) -> Option<&'static str> {
        let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        if !is_file || u64::try_from(stat.st_size) != Ok(size) {
            Some("its size is wrong")
        } else if !self.us.trusts(stat.st_uid) {
            // Its owner could change the bytes after they were read.
            Some("it belongs to another user")
        } else {
            None
        }
    }

    /// Moves a complete file from `tmp` into place, atomically. False when the blob existed.
    /// Replaces a file that this process has not verified, because the new bytes are known to be
    /// right.
    pub(super) fn add(
        &self,
        open: &OpenDirs,
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
            // The file exists, or the file system does not support this rename.
            Err(error) if error == Errno::EXIST || is_unsupported(error) => {
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

    /// Removes a damaged blob, unless another host has replaced it since.
    pub(super) fn discard(&self, digest: &Digest, seen: &Stamp, why: &str) {
        let (open, path) = (self.directories.get(), path(digest));
        match statat(&open.blobs, &*path, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if Stamp::of(&stat) == *seen => {}
            _ => return,
        }
        tracing::warn!(%digest, "a cache blob is damaged: {why}; it will be fetched again");
        let removed = match unlinkat(&open.blobs, &*path, AtFlags::empty()) {
            Err(Errno::ISDIR | Errno::PERM) => move_away(&open, &path),
            other => other,
        };
        if let Err(error) = removed {
            tracing::debug!(%digest, %error, "could not remove a damaged blob");
        }
    }

    /// Removes a blob that was not used since it was seen. True when the blob is gone.
    pub(super) fn remove_unused(&self, seen: &ScannedBlob) -> bool {
        let (open, path) = (self.directories.get(), path(&seen.digest));
        match statat(&open.blobs, &*path, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if used(&stat) == seen.used => {
                unlinkat(&open.blobs, path, AtFlags::empty()).is_ok()
            }
            Ok(_) => false,
            Err(error) => error == Errno::NOENT,
        }
    }

    /// The open directory.
    pub(super) fn dir(&self) -> Arc<OwnedFd> {
        self.directories.get().blobs.clone()
    }

    /// The open directory, after a check that it is still the one at its path.
    pub(super) fn current_dir(&self) -> io::Result<Arc<OwnedFd>> {
        self.directories.renew(&self.directories.get())?;
        Ok(self.dir())
    }
}

/// Calls `each` for every blob below a directory. Skips other files.
pub(super) fn scan(blobs: impl AsFd, mut each: impl FnMut(ScannedBlob)) -> io::Result<()> {
    // Opened again, because another scan may be reading from the same open file description.
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
                each(ScannedBlob { used: used(&stat), digest, cost });
            }
            Ok(())
        })
    })
    .map_err(|error: Errno| error.into())
}

/// Makes a blob's directory, and removes a file in its place.
fn make_shard(open: &OpenDirs, shard: &str) -> Result<(), Errno> {
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
        // The directory exists, or was removed again; then the caller tries again.
        Ok(true) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes a directory that has a blob's name.
fn move_away(open: &OpenDirs, path: &str) -> Result<(), Errno> {
    let name = format!("misplaced-{}", uuid::Uuid::new_v4());
    renameat(&open.blobs, path, open.tmp.dir(), &*name)?;
    // Leftovers are removed with this process's directory.
    let _ = std::fs::remove_dir_all(open.tmp.path().join(name));
    Ok(())
}

/// The path of a blob below `blobs`.
pub(super) fn path(digest: &Digest) -> String {
    let hex = digest.to_string();
    let mut path = String::with_capacity(3 + hex.len());
    path.push_str(&hex[..2]);
    path.push('/');
    path.push_str(&hex);
    path
}

/// True when there is no regular file of that name.
fn is_absent(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP))
}
