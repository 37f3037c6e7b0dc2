//! From a blob to a file in a task's directory.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;

use cap_std::fs::Dir;
use rustix::fs::{AtFlags, Mode, fstat, mkdirat, unlinkat};
use rustix::io::Errno;

use super::error::{is_full, is_of_writing};
use super::places::create;
use super::{Blob, Cache, CacheError};
use crate::blocking::{SMALL, blocking};
use crate::bucket;
use crate::key::BucketKey;

/// How a task gets a blob's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// A hard link, where that is possible. Only for where the kernel keeps the task from
    /// writing: it is the cache's own file.
    Link,
    /// A file of its own, which shares blocks where the file system can.
    Copy,
}

/// Which of the two directories failed.
enum Failed {
    /// The blob could not be read.
    Cache(io::Error),
    /// The task's directory could not be written to.
    Into(io::Error),
}

impl Cache {
    /// Puts a blob's bytes into a directory as a read-only file, with the directories on its
    /// way. Nothing may be there under that name.
    ///
    /// # Errors
    /// [`CacheError::Gone`] when the blob has to be fetched again, [`CacheError::Placing`]
    /// when it is `into` that failed.
    pub async fn place(
        &self,
        blob: &Blob,
        into: &Dir,
        name: &BucketKey,
        sharing: Sharing,
    ) -> Result<(), CacheError> {
        let mut placed = self.try_place(blob, into, name, sharing).await;
        if let Err(Failed::Into(error)) = &placed
            && is_full(error)
            && self.is_on_the_disk_of(into)
        {
            self.0.room.free(blob.size).await;
            placed = self.try_place(blob, into, name, sharing).await;
        }
        match placed {
            Ok(true) => Ok(()),
            Ok(false) => Err(self.gone(blob.digest)),
            Err(Failed::Cache(error)) => Err(self.local("reading a blob", error)),
            Err(Failed::Into(error)) => {
                Err(CacheError::Placing { into: path_of(into), source: error.into() })
            }
        }
    }

    /// False when the blob is gone. Leaves nothing when it fails.
    async fn try_place(
        &self,
        blob: &Blob,
        into: &Dir,
        name: &BucketKey,
        sharing: Sharing,
    ) -> Result<bool, Failed> {
        if sharing == Sharing::Link {
            match self.link(blob, into, name) {
                // Another file system, too many links, or a kernel that forbids it.
                Err(
                    Errno::XDEV | Errno::MLINK | Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP,
                ) => {}
                linked => return linked.map_err(|error| Failed::Into(error.into())),
            }
        }
        self.copy(blob, into, name).await
    }

    fn link(&self, blob: &Blob, into: &Dir, name: &BucketKey) -> Result<bool, Errno> {
        with_parents(into, name, || self.0.blobs.link(&blob.digest, blob.size, into, name.as_str()))
    }

    async fn copy(&self, blob: &Blob, into: &Dir, name: &BucketKey) -> Result<bool, Failed> {
        let (digest, size) = (blob.digest, blob.size);
        let Some(mut from) = self.0.blobs.read(&digest, size).map_err(Failed::Cache)? else {
            return Ok(false);
        };
        let create = || create(into.as_fd(), name.as_str());
        let to = with_parents(into, name, create).map_err(|e| Failed::Into(e.into()))?;
        let mut to = File::from(to);
        let mut copy = move || bucket::copy(&mut from, &mut to, size);
        let copied = if size <= SMALL { copy() } else { blocking(copy).await };
        if copied.as_ref().is_ok_and(|copied| *copied == size) {
            return Ok(true);
        }
        // What was written of it.
        let _ = unlinkat(into, name.as_str(), AtFlags::empty());
        match copied {
            Ok(_) => Ok(false),
            Err(error) if is_of_writing(&error) => Err(Failed::Into(error)),
            // The call does not say which of the two files failed.
            Err(error) => {
                let cache = self.clone();
                let verify = move || cache.0.blobs.verify(&digest, size);
                match blocking(verify).await {
                    Ok(true) => Err(Failed::Into(error)),
                    Ok(false) => Ok(false),
                    Err(error) => Err(Failed::Cache(error)),
                }
            }
        }
    }

    fn is_on_the_disk_of(&self, into: &Dir) -> bool {
        match (fstat(&*self.0.places.get().blobs), fstat(into)) {
            (Ok(blobs), Ok(into)) => blobs.st_dev == into.st_dev,
            _ => false,
        }
    }
}

/// Where an open directory is, for a person.
fn path_of(dir: &Dir) -> PathBuf {
    std::fs::read_link(format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd()))
        .unwrap_or_else(|_| "the task's directory".into())
}

/// Makes the directories on the way to `name` if the first try shows that they are missing.
fn with_parents<T>(
    into: &Dir,
    name: &BucketKey,
    mut action: impl FnMut() -> Result<T, Errno>,
) -> Result<T, Errno> {
    match action() {
        Err(Errno::NOENT) => {}
        other => return other,
    }
    let path = name.as_str();
    for (end, _) in path.match_indices('/') {
        match mkdirat(into, &path[..end], Mode::from_raw_mode(0o777)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
    }
    action()
}
