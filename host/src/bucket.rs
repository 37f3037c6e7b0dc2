//! What a bucket is to the host, and how to open one by its URL.
//!
//! Objects are whole: they are fetched into a file, or put from a file in one visible step.
//! `bucket/dir.rs` is a directory; `bucket/object.rs` is any store of the `object_store` crate.

mod dir;
mod object;
mod outgoing;

use std::error::Error as StdError;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::stream::BoxStream;

use crate::key::{BucketKey, Prefix};

pub use dir::DirBucket;
pub(crate) use dir::{blocking, copy};
pub use object::ObjectBucket;

/// Files up to this many bytes are read and written where the caller runs; for larger ones
/// it is worth the way to a thread that may block.
pub(crate) const SMALL: u64 = 256 * 1024;

/// How buckets of clouds are reached.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// The region of S3 buckets, before the environment's.
    pub region: Option<String>,
    /// Send no credentials: for buckets that everybody may read.
    pub anonymous: bool,
    /// Pay for requests to buckets whose owner doesn't.
    pub requester_pays: bool,
}

/// Opens the bucket that `url` names: a path, or `file://PATH`. Creates nothing.
///
/// # Errors
/// [`BucketError::Invalid`] when there is no such directory or no such kind of bucket.
pub fn open(url: &str, _access: &Access) -> Result<Arc<dyn Bucket>, BucketError> {
    Ok(Arc::new(DirBucket::open(directory(url)?)?))
}

/// Opens a directory as a bucket.
///
/// # Errors
/// [`BucketError::Invalid`] when there is no such directory.
pub fn open_dir(dir: &Path) -> Result<Arc<dyn Bucket>, BucketError> {
    Ok(Arc::new(DirBucket::open(dir)?))
}

/// The prefix at which the directory `dir` lies in the bucket that `url` names, if it does.
///
/// # Errors
/// When one of the two is not there.
pub fn prefix_of(dir: &Path, url: &str) -> Result<Option<Prefix>, BucketError> {
    let resolve = |path: &Path| {
        path.canonicalize().map_err(|error| BucketError::Invalid {
            bucket: url.into(),
            problem: format!("{}: {error}", path.display()),
        })
    };
    let (dir, root) = (resolve(dir)?, resolve(directory(url)?)?);
    let Ok(below) = dir.strip_prefix(root) else { return Ok(None) };
    // A name that no key can have is none that a task can write to.
    Ok(below.to_str().and_then(|below| match below {
        "" => Some(Prefix::root()),
        below => Prefix::new(below).ok(),
    }))
}

fn directory(url: &str) -> Result<&Path, BucketError> {
    let invalid = |problem: String| BucketError::Invalid { bucket: url.into(), problem };
    let path = match url.split_once("://") {
        Some(("file", path)) => path,
        Some((scheme @ ("s3" | "gs" | "az"), _)) => {
            return Err(invalid(format!(
                "this release has no backend for `{scheme}://`; \
                 use a directory (a path, or file://PATH), which may be a mounted bucket"
            )));
        }
        Some((scheme, _)) => {
            return Err(invalid(format!(
                "`{scheme}://` is no kind of bucket; use a path, or file://PATH"
            )));
        }
        None => url,
    };
    if path.is_empty() {
        return Err(invalid("names no directory; use a path, or file://PATH".into()));
    }
    Ok(Path::new(path))
}

/// What an object is at one moment: the same version means the same bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Version {
    /// The store's entity tag or version; for a directory: inode, size, and times.
    pub tag: String,
    /// Its length in bytes.
    pub size: u64,
}

/// What a failed bucket operation means for the caller.
#[derive(Debug, thiserror::Error)]
pub enum BucketError {
    /// There is no such object.
    #[error("{bucket}: there is no object `{key}`")]
    NotFound {
        /// The bucket.
        bucket: String,
        /// The key.
        key: String,
    },
    /// The store or the local disk failed; trying again may help.
    #[error("{bucket}: {doing} `{key}` failed: {source}")]
    Unavailable {
        /// The bucket.
        bucket: String,
        /// What was being done: `reading`, `writing`, `listing`.
        doing: &'static str,
        /// The key or prefix.
        key: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The key or the URL can't be right, however often it is tried.
    #[error("{bucket}: {problem}")]
    Invalid {
        /// The bucket.
        bucket: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
}

impl BucketError {
    pub(crate) fn unavailable(
        bucket: &impl fmt::Display,
        doing: &'static str,
        key: &(impl fmt::Display + ?Sized),
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        let (bucket, key) = (bucket.to_string(), key.to_string());
        Self::Unavailable { bucket, doing, key, source: source.into() }
    }

    pub(crate) fn invalid(bucket: &impl fmt::Display, problem: impl Into<String>) -> Self {
        Self::Invalid { bucket: bucket.to_string(), problem: problem.into() }
    }

    /// True when the cause is that the local disk is full, or the user's share of it.
    pub(crate) fn is_disk_full(&self) -> bool {
        let mut cause: Option<&(dyn StdError + 'static)> = Some(self);
        while let Some(error) = cause {
            if let Some(io) = error.downcast_ref::<std::io::Error>() {
                use std::io::ErrorKind::{QuotaExceeded, StorageFull};
                return matches!(io.kind(), StorageFull | QuotaExceeded);
            }
            cause = error.source();
        }
        false
    }
}

/// One object in a listing.
#[derive(Debug, Clone)]
pub struct Listed {
    /// Its key, from the bucket's root.
    pub key: BucketKey,
    /// Its length in bytes.
    pub size: u64,
}

/// A bucket. `Display` is its URL.
#[async_trait]
pub trait Bucket: fmt::Display + fmt::Debug + Send + Sync + 'static {
    /// The version of an object now.
    async fn head(&self, key: &BucketKey) -> Result<Version, BucketError>;

    /// Writes the object's bytes to `into` (an empty file, at its start) and says which
    /// version they are.
    async fn get(&self, key: &BucketKey, into: std::fs::File) -> Result<Version, BucketError>;

    /// Puts one file of a directory under `key`. The object is visible at once and whole,
    /// or not at all. The file may be gone from the directory afterwards (it is moved where
    /// that saves a copy). It has to be a regular file; a link is never followed.
    async fn put(
        &self,
        key: &BucketKey,
        dir: &cap_std::fs::Dir,
        file: &BucketKey,
    ) -> Result<(), BucketError>;

    /// The objects below `prefix` (those of the root, if it is that), in no particular order, as a stream that holds a bounded
    /// number of them.
    fn list<'a>(&'a self, prefix: &Prefix) -> BoxStream<'a, Result<Listed, BucketError>>;

    /// True when fetching an object costs no more than reading a local file, so that
    /// remembering its digest across restarts is not worth a file of its own.
    fn is_local(&self) -> bool;

    /// Asks once whether the bucket is there and can be reached.
    ///
    /// # Errors
    /// What it fails with.
    async fn check(&self) -> Result<(), BucketError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_that_is_no_bucket_says_what_would_be() {
        let root = tempfile::tempdir().unwrap();
        let missing = root.path().join("missing");
        for (url, want) in [
            ("s3://b", "s3://b: this release has no backend for `s3://`"),
            ("gs://b/p", "gs://b/p: this release has no backend for `gs://`"),
            ("az://b", "az://b: this release has no backend for `az://`"),
            ("memory://", "memory://: `memory://` is no kind of bucket"),
            ("", ": names no directory"),
            (missing.to_str().unwrap(), "there is no such directory"),
        ] {
            let error = open(url, &Access::default()).unwrap_err();
            assert!(matches!(error, BucketError::Invalid { .. }), "{url}");
            assert!(error.to_string().contains(want), "{url}: {error}");
        }
        assert!(!missing.exists(), "opening creates nothing");
    }

    #[test]
    fn a_directory_is_opened_by_path_and_by_url() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().to_str().unwrap();
        for url in [path, &format!("file://{path}")] {
            let bucket = open(url, &Access::default()).unwrap();
            assert_eq!(bucket.to_string(), format!("file://{path}"));
        }
    }
}
