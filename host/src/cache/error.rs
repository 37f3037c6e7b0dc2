//! Errors of the cache, by what the caller should do next.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytesize::ByteSize;
use rustix::io::Errno;

use crate::bucket::BucketError;
use crate::confinement::refusal;
use crate::digest::Digest;

/// A failed cache operation, by what the caller should do next. Cheap to clone, because all callers
/// that wait for one download get its failure.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CacheError {
    /// The bucket failed.
    #[error(transparent)]
    Bucket(#[from] Arc<BucketError>),
    /// The blob was removed, or was found to be damaged. Fetch it again.
    #[error("cache {}: blob {digest} was removed since it was fetched", dir.display())]
    Gone {
        /// The cache.
        dir: PathBuf,
        /// The blob.
        digest: Digest,
    },
    /// The cache's disk is full although blobs were evicted.
    #[error(
        "cache {}: no space left for {needed} (limit {limit}, blobs {used}, free on its disk {free}); \
         free some space or lower --cache-size",
        dir.display()
    )]
    Full {
        /// The cache.
        dir: PathBuf,
        /// The size to store.
        needed: ByteSize,
        /// The cache's limit.
        limit: ByteSize,
        /// The size of its blobs.
        used: ByteSize,
        /// Free space on its file system.
        free: ByteSize,
    },
    /// The cache's disk failed. A retry may help.
    #[error("cache {}: {doing} failed: {source}", dir.display())]
    Local {
        /// The cache.
        dir: PathBuf,
        /// The operation.
        doing: &'static str,
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
        let refusal = match error.kind() {
            io::ErrorKind::PermissionDenied => refusal(dir),
            _ => None,
        };
        let error = match refusal {
            Some(refusal) => io::Error::new(error.kind(), format!("{error}; {refusal}")),
            None => error,
        };
        Self::Local { dir: dir.to_owned(), doing, source: error.into() }
    }

    /// True when this machine is the cause (its disk, directories or limits), and not the task or
    /// the bucket.
    pub fn is_of_this_host(&self) -> bool {
        match self {
            Self::Bucket(_) => false,
            Self::Gone { .. } | Self::Full { .. } | Self::Local { .. } => true,
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

/// An [`io::Error`] that can be cloned. Its source is the error itself, so that a walk along the
/// sources finds it.
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

/// True for an error that only writing can cause.
pub(super) fn is_of_writing(error: &io::Error) -> bool {
    is_full(error) || matches!(Errno::from_io_error(error), Some(Errno::ROFS | Errno::FBIG))
}
