//! What a bucket is to the host, and how to open one by its URL.
//!
//! Objects are whole: they are fetched into a file, or put from a file in one visible step.
//! `bucket/dir.rs` is a directory; `bucket/object.rs` is any store of the `object_store`
//! crate, and `bucket/cloud.rs` makes those that are somewhere else.

mod address;
mod cloud;
mod dir;
mod encoding;
mod explain;
mod listing;
mod object;
mod outgoing;
mod sums;
#[cfg(test)]
pub(crate) mod tests;
mod transport;

use std::error::Error as StdError;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use globset::GlobMatcher;

use self::address::Location;
use self::transport::Patience;
use crate::environment::Environment;
use crate::key::{BucketKey, Prefix};

pub(crate) use crate::blocking::blocking;
pub use address::{Address, AddressError};
pub(crate) use dir::copy;
pub use dir::{DirBucket, DirSync};
pub use object::ObjectBucket;

/// The most bytes that a decoded object may have, unless something else is set: 10 GiB.
const LARGEST_DECODED: u64 = 10 << 30;

/// How buckets of clouds are reached.
#[derive(Debug, Clone)]
pub struct Access {
    /// The region of S3 buckets, before the environment's.
    pub region: Option<String>,
    /// Send no credentials: for buckets that everybody may read.
    pub anonymous: bool,
    /// Pay for requests to buckets whose owner doesn't.
    pub requester_pays: bool,
    /// How long after a put the file system of a directory is synced. Zero leaves that to the
    /// system.
    pub sync_every: Duration,
    /// Where credentials, regions and endpoints are looked for.
    pub environment: Environment,
    /// What is done with inputs that are stored compressed.
    pub stored_encoding: StoredEncoding,
    /// The most bytes that one object may have after it was decoded: what keeps a small object
    /// that unpacks to terabytes from filling the disk.
    pub largest_decoded: u64,
    /// The outputs that are stored compressed, by their path below `/outputs`.
    pub gzip_outputs: Option<GlobMatcher>,
}

/// What is done with an object that is stored with a `Content-Encoding`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StoredEncoding {
    /// Tasks see its content.
    #[default]
    Decode,
    /// Tasks see the bytes as they are stored.
    Keep,
}

impl Access {
    /// What the environment says, and nothing else.
    pub fn new(environment: Environment) -> Self {
        Self {
            region: None,
            anonymous: false,
            requester_pays: false,
            sync_every: Duration::ZERO,
            environment,
            stored_encoding: StoredEncoding::default(),
            largest_decoded: LARGEST_DECODED,
            gzip_outputs: None,
        }
    }
}

/// Opens the bucket at `address`. Creates nothing, and asks a service for nothing but
/// credentials: see [`Bucket::check`].
///
/// # Errors
/// [`BucketError::Invalid`] when there is no such directory, or when something is missing that is
/// needed to reach the service.
pub async fn open(address: &Address, access: &Access) -> Result<Arc<dyn Bucket>, BucketError> {
    Ok(match &address.location {
        Location::Dir(path) => Arc::new(DirBucket::open_synced(path, access.sync_every)?),
        Location::Service(at) => {
            Arc::new(cloud::open(at.clone(), access, Patience::default()).await?)
        }
    })
}

/// Opens a bucket for outputs.
///
/// # Errors
/// As [`open`]; also [`BucketError::Invalid`] for a web server, and for a directory when outputs
/// are to be stored compressed.
pub async fn open_for_outputs(
    address: &Address,
    access: &Access,
) -> Result<Arc<dyn Bucket>, BucketError> {
    if address.is_read_only() {
        return Err(BucketError::invalid(
            address,
            "is a web server, which takes no outputs; give it as --input-bucket, and a bucket for \
             outputs with --bucket",
        ));
    }
    if address.path().is_some() && access.gzip_outputs.is_some() {
        return Err(BucketError::invalid(
            address,
            "is a directory, and files have no Content-Encoding; --gzip-outputs needs s3://, \
             gs:// or az://",
        ));
    }
    open(address, access).await
}

/// Opens a directory as a bucket.
///
/// # Errors
/// [`BucketError::Invalid`] when there is no such directory.
pub fn open_dir(dir: &Path) -> Result<Arc<dyn Bucket>, BucketError> {
    Ok(Arc::new(DirBucket::open(dir)?))
}

/// The prefix at which the directory `dir` lies in a bucket that is a directory; `None` when it
/// is not in the bucket.
///
/// # Errors
/// When one of the two directories does not exist.
pub fn prefix_of(dir: &Path, address: &Address) -> Result<Option<Prefix>, BucketError> {
    let resolve = |path: &Path| {
        path.canonicalize().map_err(|error| BucketError::Invalid {
            bucket: address.to_string(),
            problem: format!("{}: {error}", path.display()),
        })
    };
    let Some(root) = address.path() else { return Ok(None) };
    let (dir, root) = (resolve(dir)?, resolve(root)?);
    let Ok(below) = dir.strip_prefix(root) else { return Ok(None) };
    // A task can't write below a directory whose name can't be in a key.
    Ok(below.to_str().and_then(|below| match below {
        "" => Some(Prefix::root()),
        below => Prefix::new(below).ok(),
    }))
}

/// What an object is at one moment: the same version means the same bytes.
#[derive(Debug, Clone)]
pub struct Version {
    /// The store's entity tag or version; for a directory: inode, size, and times. It begins
    /// with `~` where [`Version::tells_size`] is false.
    pub tag: String,
    /// Its length in bytes. Where [`Version::tells_size`] is false: what the store says of it,
    /// or 0, before its bytes came; and after that the number of those.
    pub size: u64,
}

/// What begins the tag of a version whose size is not known before its bytes came.
const UNSIZED: char = '~';

impl Version {
    /// True when as many bytes come as `size` says. False for an object that is decoded on its
    /// way, and for one whose length the server does not tell.
    pub fn tells_size(&self) -> bool {
        !self.tag.starts_with(UNSIZED)
    }

    /// What two equal versions have in common.
    fn identity(&self) -> (&str, Option<u64>) {
        (&self.tag, self.tells_size().then_some(self.size))
    }
}

impl PartialEq for Version {
    fn eq(&self, other: &Self) -> bool {
        self.identity() == other.identity()
    }
}

impl Eq for Version {}

impl Hash for Version {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.identity().hash(state);
    }
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

    /// Begins to fetch an object, unless its version still is the one that is `known`: one
    /// request, whose answer tells version and size before any of its bytes are taken.
    async fn open(&self, key: &BucketKey, known: Option<&Version>) -> Result<Opened, BucketError>;

    /// Writes the object's bytes to `into` (an empty file, at its start) and says which
    /// version they are.
    async fn get(&self, key: &BucketKey, into: std::fs::File) -> Result<Version, BucketError> {
        match self.open(key, None).await? {
            Opened::Object(object) => object.write_to(into).await,
            Opened::Unchanged => {
                let problem = "the store says that an object is unchanged that it was not asked of";
                Err(BucketError::unavailable(&self.to_string(), "reading", key, problem))
            }
        }
    }

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

    /// Tries whether the object can be read: begins to fetch it, and takes none of its bytes.
    ///
    /// # Errors
    /// As [`Bucket::open`].
    async fn try_get(&self, key: &BucketKey) -> Result<(), BucketError> {
        self.open(key, None).await.map(drop)
    }

    /// Tries whether an object could be put under `key`, by the requests or system calls that
    /// putting makes. Leaves nothing that a reader of the bucket sees.
    ///
    /// # Errors
    /// As [`Bucket::put`].
    async fn try_put(&self, key: &BucketKey) -> Result<(), BucketError>;

    /// Checks what can be known without writing: that `key` can be the key of an object here,
    /// and that nothing is in its way. For a task with several outputs, before the first is
    /// put.
    ///
    /// # Errors
    /// [`BucketError::Invalid`] when an object can never be put under `key`.
    async fn accepts(&self, key: &BucketKey) -> Result<(), BucketError>;

    /// Waits until what was put before is where a loss of power can't reach it: for a directory,
    /// on the disk. Services answer a put only then.
    ///
    /// # Errors
    /// When the disk fails. What was put may be lost then.
    async fn sync(&self) -> Result<(), BucketError> {
        Ok(())
    }

    /// Asks once whether the bucket is there and can be reached, without the patience of the
    /// other calls: for somebody who waits for a host to start. What only may be wrong, as
    /// when listing is not allowed, is logged.
    ///
    /// # Errors
    /// [`BucketError::Invalid`] when there is no such bucket or the credentials are refused,
    /// [`BucketError::Unavailable`] when that can't be said.
    async fn check(&self) -> Result<(), BucketError>;

    /// Waits until uploads that were given up are undone in the store, and until a directory
    /// that is synced now and then is.
    async fn close(&self) {}
}

/// What came of opening an object.
#[derive(Debug)]
pub enum Opened {
    /// It is the version that was known.
    Unchanged,
    /// Its bytes can be taken.
    Object(Box<dyn Object>),
}

/// An object whose bytes are about to be taken. Dropping it takes none.
#[async_trait]
pub trait Object: fmt::Debug + Send {
    /// Which version it is, as far as is known before its bytes came.
    fn version(&self) -> &Version;

    /// Writes its bytes to `into` (an empty file, at its start) and says which version they
    /// are: a newer one, if the object was replaced meanwhile. Never a mix of two.
    async fn write_to(self: Box<Self>, into: std::fs::File) -> Result<Version, BucketError>;
}
