//! Buckets: the storage of inputs, outputs and components.
//!
//! An object is fetched into a file, and put in one visible step. `bucket/dir.rs` is a bucket in a
//! directory, `bucket/object.rs` one in any store of the `object_store` crate. `bucket/cloud.rs`
//! makes the clients of S3, Google Cloud Storage, Azure and web servers.

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
    /// The region of S3 buckets. Overrides the environment's.
    pub region: Option<String>,
    /// Send no credentials. For public buckets.
    pub anonymous: bool,
    /// Pay for the requests to buckets whose owner does not (requester pays).
    pub requester_pays: bool,
    /// How long after a put to sync the file system of a directory. Zero leaves syncing to the
    /// system.
    pub sync_every: Duration,
    /// The variables with credentials, regions and endpoints.
    pub environment: Environment,
    /// How to read inputs that are stored compressed.
    pub stored_encoding: StoredEncoding,
    /// The most bytes that one object may decode to. The limit keeps a small object that unpacks to
    /// terabytes from filling the disk.
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
    /// The environment's settings, and defaults for all else.
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

/// The version of an object. Equal versions have equal bytes.
#[derive(Debug, Clone)]
pub struct Version {
    /// The store's entity tag; for a file its device, inode, size and times. It begins with `~`
    /// where [`Version::tells_size`] is false.
    pub tag: String,
    /// The length in bytes. Where [`Version::tells_size`] is false, this is the stored length or 0
    /// until the bytes have arrived, and their number afterwards.
    pub size: u64,
}

/// Begins the tag of a version whose size is unknown until its bytes have arrived.
const UNSIZED: char = '~';

impl Version {
    /// True when `size` is the number of bytes that will arrive. False for an object that is
    /// decoded on its way, and for one whose server does not send a length.
    pub fn tells_size(&self) -> bool {
        !self.tag.starts_with(UNSIZED)
    }

    /// The tag without how the object is read.
    pub fn stored_tag(&self) -> &str {
        object::stored_tag(self)
    }

    /// The parts that make versions equal.
    fn identity(&self) -> (&str, Option<u64>) {
        (&self.tag, self.tells_size().then_some(self.size))
    }
}

/// The tag of a version, whichever way the object is read: [`Version::stored_tag`]. Empty where the
/// store's answer to a put has none.
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
    /// The generation, where the store compares that instead.
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

    /// Starts to fetch an object unless it still has the version `known`. This is one request; its
    /// answer names version and size before any bytes are taken.
    async fn open(&self, key: &BucketKey, known: Option<&Version>) -> Result<Opened, BucketError>;

    /// Writes the object's bytes to `into`, an empty file at its start, and returns their version.
    async fn get(&self, key: &BucketKey, into: std::fs::File) -> Result<Version, BucketError> {
        match self.open(key, None).await? {
            Opened::Object(object) => object.write_to(into).await,
            Opened::Unchanged => {
                let problem = "the store answered 304 Not Modified to an unconditional request";
                Err(BucketError::unavailable(&self.to_string(), "reading", key, problem))
            }
        }
    }

    /// Puts an object under `key`, and returns the tag of its version. It is visible at once and
    /// whole, or not at all. `path` is the output's below `/outputs`: some are stored compressed. A
    /// file may be moved where that saves a copy.
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

    /// Puts an object under `key` if there is none, or if the one there still is `replaced`. False
    /// if the condition is not met. A directory can't compare and replace in one step: of two
    /// processes that replace one object at the same time, both may succeed.
    ///
    /// # Errors
    /// As [`Bucket::put`].
    async fn put_if(
        &self,
        key: &BucketKey,
        bytes: Bytes,
        replaced: Option<&Revision>,
    ) -> Result<bool, BucketError>;

    /// Puts a small object of the host's own, in the place of any other. Unlike a put of an output,
    /// this has little patience and is not synced to disk: the next put replaces it.
    ///
    /// # Errors
    /// As [`Bucket::put`].
    async fn put_own(&self, key: &BucketKey, bytes: Bytes) -> Result<(), BucketError>;

    /// Removes an object of the host's own, if it is there.
    ///
    /// # Errors
    /// As [`Bucket::put`].
    async fn remove_own(&self, key: &BucketKey) -> Result<(), BucketError>;

    /// The time by the clock that [`Listed::modified`] has, as far as it is known: a service says its
    /// time with each listing.
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    /// The digest and number of the bytes that [`Bucket::open`] brings.
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

    /// The directory, if the bucket is one: a task's inputs are read where they are.
    fn as_dir(&self) -> Option<&DirBucket> {
        None
    }

    /// True when fetching an object costs no more than reading a local file. The cache then keeps
    /// no index entry for it.
    fn is_local(&self) -> bool {
        self.as_dir().is_some()
    }

    /// Checks that the object can be read: starts to fetch it and takes none of its bytes.
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

    /// Checks without writing that `key` can be the key of an object here and that nothing is in
    /// its way. For a task with several outputs, before the first is put.
    ///
    /// # Errors
    /// [`BucketError::Invalid`] when an object can never be put under `key`.
    async fn accepts(&self, key: &BucketKey) -> Result<(), BucketError>;

    /// Waits until earlier puts survive a loss of power: for a directory, until they are on the
    /// disk. Services answer a put only then.
    ///
    /// # Errors
    /// When the disk fails. Earlier puts may be lost then.
    async fn sync(&self) -> Result<(), BucketError> {
        Ok(())
    }

    /// Checks once that the bucket exists and can be reached. Less patient than other calls,
    /// because somebody waits for the host to start. A mere doubt is logged, for example that
    /// listing is not allowed.
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
    /// The bytes can be taken.
    Object(Box<dyn Object>),
}

/// An object whose bytes are about to be taken. Dropping it takes none.
#[async_trait]
pub trait Object: fmt::Debug + Send {
    /// The version, as far as it is known before the bytes arrive.
    fn version(&self) -> &Version;

    /// Writes the bytes to `into`, an empty file at its start, and returns their version: a newer
    /// one if the object was replaced meanwhile. Never a mix of two.
    async fn write_to(self: Box<Self>, into: std::fs::File) -> Result<Version, BucketError>;
}
