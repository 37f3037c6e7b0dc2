//! What a failed cache operation means for the caller.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytesize::ByteSize;
use rustix::io::Errno;

use crate::bucket::BucketError;
use crate::digest::Digest;

/// What a failed cache operation means for the caller. Cheap to clone, since all who wait
/// for one download get its failure.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CacheError {
    /// The bucket failed.
    #[error(transparent)]
    Bucket(#[from] Arc<BucketError>),
    /// The blob was removed since it was fetched, or found to be damaged. Fetching it again
    /// helps.
    #[error("cache {}: blob {digest} was removed since it was fetched", dir.display())]
    Gone {
        /// The cache.
        dir: PathBuf,
        /// The blob.
        digest: Digest,
    },
    /// The disk of the cache is full though blobs were removed to make room.
    #[error(
        "cache {}: no space left for {needed}: its limit is {limit}, its blobs take {used}, and \
         {free} are free on its disk; free some space, or set a smaller limit",
        dir.display()
    )]
    Full {
        /// The cache.
        dir: PathBuf,
        /// What was to be stored.
        needed: ByteSize,
        /// What the cache may take.
        limit: ByteSize,
        /// What it takes.
        used: ByteSize,
        /// What its file system has left.
        free: ByteSize,
    },
    /// The disk of the cache failed. Trying again may help.
    #[error("cache {}: {doing} failed: {source}", dir.display())]
    Local {
        /// The cache.
        dir: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// The cause.
        #[source]
        source: SharedIoError,
    },
    /// An input could not be written to the directory of its task: that directory failed, and
    /// not the cache. Trying again may help.
    #[error("placing an input in {} failed: {source}", into.display())]
    Placing {
        /// The directory of the task's inputs.
        into: PathBuf,
        /// The cause.
        #[source]
        source: SharedIoError,
    },
}

impl From<BucketError> for CacheError {
    fn from(error: BucketError) -> Self {
        Self::Bucket(Arc::new(error))
    }
}

impl CacheError {
    pub(super) fn local(dir: &Path, doing: &'static str, error: io::Error) -> Self {
        Self::Local { dir: dir.to_owned(), doing, source: error.into() }
    }

    /// True when the cause is this machine: its disk, its directories, its limits. No task
    /// and no bucket can be blamed then.
    pub fn is_of_this_host(&self) -> bool {
        match self {
            Self::Bucket(_) => false,
            Self::Gone { .. } | Self::Full { .. } | Self::Local { .. } | Self::Placing { .. } => {
                true
            }
        }
    }

    pub(super) fn is_disk_full(&self) -> bool {
        match self {
            Self::Bucket(error) => error.is_disk_full(),
            Self::Local { source, .. } => is_full(source.get()),
            _ => false,
        }
    }
}

/// An [`io::Error`] that can be cloned. Its source is the error itself, so that who walks
/// along a chain of sources finds it.
#[derive(Debug, Clone)]
pub struct SharedIoError(Arc<io::Error>);

impl SharedIoError {
    /// The error.
    pub fn get(&self) -> &io::Error {
        &self.0
    }
}

impl From<io::Error> for SharedIoError {
    fn from(error: io::Error) -> Self {
        Self(Arc::new(error))
    }
}

impl fmt::Display for SharedIoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for SharedIoError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.0)
    }
}

pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Reading a file never fails so.
pub(super) fn is_of_writing(error: &io::Error) -> bool {
    is_full(error) || matches!(Errno::from_io_error(error), Some(Errno::ROFS | Errno::FBIG))
}
