//! Buckets: the storage of inputs, outputs and components.
//!
//! A fetch writes an object to a file. A put is atomic: readers see the whole object or none of it.
//! `bucket/dir.rs` is a bucket in a directory, `bucket/object.rs` a bucket in any store of the
//! `object_store` crate. `bucket/cloud.rs` makes the clients of S3, Google Cloud Storage, Azure and
//! web servers.

mod address;
mod checksums;
mod cloud;
mod content;
mod dir;
mod encoding;
#[doc(hidden)]
pub mod foreign;
mod listing;
mod object;
mod service_error;
mod store_clock;
#[cfg(test)]
pub(crate) mod tests;
mod transport;

use std::error::Error as StdError;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use globset::GlobMatcher;

use self::address::Location;
use self::transport::Patience;
use crate::blocking::{SMALL, blocking};
use crate::digest::Digest;
use crate::environment::Environment;
use crate::key::{BucketKey, Prefix};

pub use address::{Address, AddressError};
pub use content::Content;
pub(crate) use dir::TMP;
pub use dir::{DirBucket, DirSync, InPlace, InPlaceError};
pub use object::ObjectBucket;

/// The default limit of a decoded object's size, in bytes: 10 GiB.
const LARGEST_DECODED: u64 = 10 << 30;

/// How to reach buckets, and how to read and store objects.
#[derive(Debug, Clone)]
pub struct Access {
    /// The region of S3 buckets. Overrides the region in the environment.
    pub region: Option<String>,
    /// Send no credentials. For public buckets.
    pub anonymous: bool,
    /// Pay for requests to buckets whose owner does not (requester pays).
    pub requester_pays: bool,
    /// The longest time from a put into a directory to the sync of its file system. Zero leaves
    /// syncing to the operating system.
    pub sync_every: Duration,
    /// The environment variables with credentials, regions and endpoints.
    pub environment: Environment,
    /// How to read inputs that are stored compressed.
    pub stored_encoding: StoredEncoding,
    /// The largest size that one object may decode to, in bytes. Without a limit, a small object
    /// that decodes to terabytes could fill the disk.
    pub largest_decoded: u64,
    /// Which outputs to store compressed, by their path below `/outputs`.
    pub gzip_outputs: Option<GlobMatcher>,
}

/// How to read an object that is stored with a `Content-Encoding`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StoredEncoding {
    /// Tasks read the decoded content.
    #[default]
    Decode,
    /// Tasks read the stored bytes.
    Keep,
}

impl Access {
    /// Settings from the environment, and defaults for the rest.
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

/// Opens the bucket at `address`. Creates nothing. The only requests to a service are for
/// credentials and for the region of an S3 bucket; [`Bucket::check`] finds out whether the bucket
/// exists.
///
/// # Errors
/// [`BucketError::Invalid`] when there is no such directory, or when a setting is missing that is
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

/// The version of an object. Equal versions have equal bytes.
#[derive(Debug, Clone)]
pub struct Version {
    /// The store's entity tag, after a prefix that says how the object is read. For a file: its
    /// device, inode, size and times. The tag begins with `~` when [`Version::tells_size`] is
    /// false.
    pub tag: String,
    /// The length in bytes. When [`Version::tells_size`] is false, this is the stored length or 0
    /// until the download ends, and the number of received (decoded) bytes afterwards.
    pub size: u64,
}

/// The first character of the tag of a version whose size is unknown until its bytes have arrived.
const UNSIZED: char = '~';

impl Version {
    /// True when `size` is the number of bytes that will arrive. False for an object that is
    /// decoded during the download, and for one whose server does not send a length.
    pub fn tells_size(&self) -> bool {
        !self.tag.starts_with(UNSIZED)
    }

    /// The store's own tag, without the prefixes that say how the object is read.
    pub fn stored_tag(&self) -> &str {
        object::stored_tag(self)
    }

    /// The parts that are compared for equality.
    fn identity(&self) -> (&str, Option<u64>) {
        (&self.tag, self.tells_size().then_some(self.size))
    }
}

/// The store's own tag of an object that was put, as [`Version::stored_tag`] returns it. Empty if
/// the store's response to the put has no tag.
pub type PutTag = String;

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

/// Identifies the bytes of an object for a [conditional put](Bucket::put_if).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revision {
    /// The store's entity tag; for a file the tag of its [`Version`].
    tag: Option<String>,
    /// The generation, for a store that compares generations instead of entity tags.
    generation: Option<String>,
}

/// A failed bucket operation, by what the caller should do next.
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
    /// The store or the local disk failed. A retry may help.
    #[error("{bucket}: {doing}{} failed: {source}", of_key(key))]
    Unavailable {
        /// The bucket.
        bucket: String,
        /// The operation: `reading`, `writing`, `listing`.
        doing: &'static str,
        /// The key or prefix; empty for the whole bucket.
        key: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The key or the URL is wrong. No retry can help.
    #[error("{bucket}: {problem}")]
    Invalid {
        /// The bucket.
        bucket: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
}

/// The key in an error, unless it is about the whole bucket.
fn of_key(key: &str) -> String {
    if key.is_empty() { String::new() } else { format!(" `{key}`") }
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

    /// True when the local disk or the user's quota is full.
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
    /// When it was put, by the clock of the store.
    pub modified: SystemTime,
}

/// A bucket. `Display` is its URL.
#[async_trait]
pub trait Bucket: fmt::Display + fmt::Debug + Send + Sync + 'static {
    /// The current version of an object.
    async fn head(&self, key: &BucketKey) -> Result<Version, BucketError>;

    /// Starts to fetch an object, unless it still has the version `known`. This makes one request.
    /// The response names version and size before any bytes are read.
    async fn open(&self, key: &BucketKey, known: Option<&Version>) -> Result<Opened, BucketError>;

    /// Writes the object's bytes to `into`, an empty file with offset 0, and returns their version.
    async fn get(&self, key: &BucketKey, into: std::fs::File) -> Result<Version, BucketError> {
        match self.open(key, None).await? {
            Opened::Object(object) => object.write_to(into).await,
            Opened::Unchanged => {
                let problem = "the store answered 304 Not Modified to an unconditional request";
                Err(BucketError::unavailable(&self.to_string(), "reading", key, problem))
            }
        }
    }

    /// Puts an object under `key`, and returns the tag of its version. The put is atomic: readers
    /// see the whole object or none of it. `path` is the output's path below `/outputs`; it decides
    /// whether the output is stored compressed. A put may move the content's file instead of
    /// copying it.
    async fn put(
        &self,
        key: &BucketKey,
        content: &Content,
        path: &BucketKey,
    ) -> Result<PutTag, BucketError>;

    /// Reads a whole object into memory.
    ///
    /// # Errors
    /// As [`Bucket::open`]; also [`BucketError::Invalid`] if the object has more than `most` bytes.
    async fn read(&self, key: &BucketKey, most: u64) -> Result<(Bytes, Revision), BucketError>;

    /// Puts an object under `key` if the key has no object or, with `replaced`, if its object still
    /// has that revision. Returns false if the condition is not met. A directory can't compare and
    /// replace atomically: if two processes replace one object at the same time, both may succeed.
    ///
    /// # Errors
    /// As [`Bucket::put`].
    async fn put_if(
        &self,
        key: &BucketKey,
        bytes: Bytes,
        replaced: Option<&Revision>,
    ) -> Result<bool, BucketError>;

    /// Puts a small object that belongs to the host, such as a heartbeat, and replaces any other.
    /// Unlike [`Bucket::put`], this retries only briefly and does not sync to disk, because the
    /// next put replaces the object.
    ///
    /// # Errors
    /// As [`Bucket::put`].
    async fn put_own(&self, key: &BucketKey, bytes: Bytes) -> Result<(), BucketError>;

    /// Removes an object that belongs to the host, if it exists.
    ///
    /// # Errors
    /// As [`Bucket::put`].
    async fn remove_own(&self, key: &BucketKey) -> Result<(), BucketError>;

    /// The current time by the store's clock, which also sets [`Listed::modified`]. A service's
    /// clock is known after the first listing.
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    /// The digest and length of the bytes that [`Bucket::open`] fetches.
    ///
    /// # Errors
    /// As [`Bucket::open`].
    async fn digest(&self, key: &BucketKey) -> Result<(Digest, u64), BucketError> {
        let unavailable = |error: std::io::Error| {
            BucketError::unavailable(&self.to_string(), "reading", key, error)
        };
        let mut file = tempfile::tempfile().map_err(unavailable)?;
        let version = self.get(key, file.try_clone().map_err(unavailable)?).await?;
        let digest = move || {
            std::io::Seek::rewind(&mut file)?;
            Digest::of_reader(file)
        };
        let digest = if version.size <= SMALL { digest() } else { blocking(digest).await };
        digest.map_err(unavailable)
    }

    /// Lists the objects below `prefix`, in no particular order, as a stream that holds a bounded
    /// number of them.
    fn list<'a>(&'a self, prefix: &Prefix) -> BoxStream<'a, Result<Listed, BucketError>>;

    /// The directory, if the bucket is one. A task's inputs are then read in place.
    fn as_dir(&self) -> Option<&DirBucket> {
        None
    }

    /// True when fetching an object costs no more than reading a local file. The cache then keeps
    /// no index entry for it.
    fn is_local(&self) -> bool {
        self.as_dir().is_some()
    }

    /// Checks that an object can be read, by starting to fetch it.
    ///
    /// # Errors
    /// As [`Bucket::open`].
    async fn try_get(&self, key: &BucketKey) -> Result<(), BucketError> {
        self.open(key, None).await.map(drop)
    }

    /// Checks that an object could be put under `key`, with the requests or system calls that a put
    /// makes. Leaves nothing that a reader of the bucket sees.
    ///
    /// # Errors
    /// As [`Bucket::put`].
    async fn try_put(&self, key: &BucketKey) -> Result<(), BucketError>;

    /// Checks, without writing, that an object can be put under `key`. If a task has several
    /// outputs, all are checked before the first is put.
    ///
    /// # Errors
    /// [`BucketError::Invalid`] when an object can never be put under `key`.
    async fn accepts(&self, key: &BucketKey) -> Result<(), BucketError>;

    /// Waits until earlier puts are durable: for a directory, until they are on the disk. A put to
    /// a service is durable when it returns.
    ///
    /// # Errors
    /// When the disk fails. Earlier puts may be lost then.
    async fn sync(&self) -> Result<(), BucketError> {
        Ok(())
    }

    /// Checks once that the bucket exists and can be reached. Retries less than other calls,
    /// because the user waits for the host to start. Logs a warning if the check is inconclusive,
    /// for example because listing is not permitted.
    ///
    /// # Errors
    /// [`BucketError::Invalid`] when there is no such bucket or the credentials are refused,
    /// [`BucketError::Unavailable`] when that is unknown.
    async fn check(&self) -> Result<(), BucketError>;

    /// Waits until abandoned uploads are aborted in the store, and until a directory with periodic
    /// syncs is synced.
    async fn close(&self) {}
}

/// The result of opening an object.
#[derive(Debug)]
pub enum Opened {
    /// The object still has the known version.
    Unchanged,
    /// The object is ready to be fetched.
    Object(Box<dyn Object>),
}

/// An object that is ready to be fetched. Dropping it fetches no bytes.
#[async_trait]
pub trait Object: fmt::Debug + Send {
    /// The version, as far as it is known before the bytes arrive.
    fn version(&self) -> &Version;

    /// Writes the bytes to `into`, an empty file with offset 0, and returns their version. The
    /// version is newer if the object was replaced meanwhile. The bytes are never a mix of two
    /// versions.
    async fn write_to(self: Box<Self>, into: std::fs::File) -> Result<Version, BucketError>;
}
