//! What a bucket is to the host, and how to open one by its URL.
//!
//! Objects are whole: they are fetched into a file, or put from a file in one visible step.
//! `bucket/dir.rs` is a directory; `bucket/object.rs` is any store of the `object_store` crate.

use std::fmt;

use async_trait::async_trait;
use futures_util::stream::BoxStream;

use crate::key::{BucketKey, Prefix};

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

    /// The objects below `prefix`, in no particular order, as a stream that holds a bounded
    /// number of them.
    fn list<'a>(&'a self, prefix: &Prefix) -> BoxStream<'a, Result<Listed, BucketError>>;

    /// True when fetching an object costs no more than reading a local file, so that
    /// remembering its digest across restarts is not worth a file of its own.
    fn is_local(&self) -> bool;
}
