//! A content-addressed cache on local disk. An object is downloaded once, however many tasks ask
//! for it.
//!
//! ```text
//! CACHE/blobs/ab/abcd…   the bytes whose SHA-256 is abcd…, read-only, always complete
//! CACHE/index/ab/…       the digest that an object of a remote bucket last had
//! CACHE/tmp/PROCESS/     downloads in progress
//! CACHE/work/PROCESS/    outputs that are too large for memory (`spill.rs`)
//! CACHE/compiled/        components (`catalog.rs`)
//! ```
//!
//! Any number of hosts may share a cache. The cache may be removed at any time: missing or damaged
//! blobs are fetched again, and directories that were removed or replaced are made or opened again.
//! A file that another process wrote is checked before this process first uses it.

mod blobs;
mod capacity;
mod check;
mod directories;
mod download;
mod error;
#[doc(hidden)]
pub mod foreign;
mod index;
mod single_flight;
mod stored;
#[cfg(test)]
mod tests;
mod verified;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use moka::policy::EvictionPolicy;
use tokio::sync::SemaphorePermit;

use self::blobs::{Blobs, Lookup};
use self::capacity::{Capacity, Pin};
use self::directories::Directories;
use self::index::Index;
use self::single_flight::SingleFlight;
use crate::ahead::Ahead;
use crate::blocking::{SMALL, blocking};
use crate::bucket::{Bucket, BucketError, Object, Opened, Version};
use crate::digest::Digest;
use crate::key::BucketKey;
use crate::ownership;

pub use self::check::{Checked, check};
pub use self::error::{CacheError, SharedIoError};
pub(crate) use self::stored::of_file;
pub use self::stored::{Stored, remove_stored, stored};
#[cfg(test)]
pub(crate) use self::tests::Tmpfs;
pub use crate::ownership::NotOurs;

/// How many digests of objects are kept in memory.
const REMEMBERED: u64 = 65_536;

/// The directories that the host makes in a cache directory, beside [`COMPILED`]. Other files may
/// be there too.
pub const PARTS: [&str; 4] = ["blobs", "index", "tmp", "work"];
/// The directory of compiled code in a cache directory.
pub const COMPILED: &str = "compiled";

/// Where the cache is, and how large it may get.
#[derive(Debug, Clone)]
pub struct CacheOptions {
    /// The directory, created if needed.
    pub dir: PathBuf,
    /// The maximum size of all blobs on disk, in bytes. A single larger input is still delivered,
    /// and evicted as soon as no task uses it.
    pub max_bytes: u64,
}

/// Checks that a cache directory, its path and the host's directories in it can be trusted, where
/// they exist. Returns a risk on the path, if there is one.
///
/// # Errors
/// Names the first directory that can't be trusted.
pub fn check_owner(dir: &Path) -> Result<Option<NotOurs>, NotOurs> {
    let risk = ownership::check(dir, &PARTS)?;
    // Compiled code is optional and is loaded under a stricter rule, so a problem there is only a
    // risk.
    Ok(risk.or_else(|| ownership::check(dir, &[COMPILED]).err()))
}

/// A cache on disk. Clones share the cache.
#[derive(Debug, Clone)]
pub struct Cache(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    options: CacheOptions,
    directories: Arc<Directories>,
    blobs: Arc<Blobs>,
    index: Arc<Index>,
    capacity: Capacity,
    known: moka::future::Cache<ObjectId, KnownVersion>,
    /// Downloads in progress, by object and version.
    downloads: SingleFlight<(ObjectId, Version), Result<Blob, CacheError>>,
    /// Checks in progress of an object's current version, with the downloads that follow.
    looks: SingleFlight<ObjectId, Result<(Blob, Instant), CacheError>>,
    /// First checks in progress of blobs that another process stored.
    readings: SingleFlight<Digest, Result<bool, CacheError>>,
    tmp_names: AtomicU64,
    /// The last write to the index failed.
    index_failed: AtomicBool,
}

/// An object of a bucket.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct ObjectId {
    bucket: String,
    key: BucketKey,
}

/// The last known version of an object.
#[derive(Debug, Clone)]
struct KnownVersion {
    version: Version,
    digest: Digest,
    /// When this process last confirmed the version with the bucket; `None` if the entry came from
    /// the index on disk.
    looked: Option<Instant>,
}

impl KnownVersion {
    fn is_fresh(&self, freshness: Duration) -> bool {
        self.looked.is_some_and(|looked| looked.elapsed() < freshness)
    }
}

/// A blob in the cache. While this value lives, this process does not evict it.
#[derive(Debug, Clone)]
pub struct Blob {
    /// The SHA-256 of the bytes.
    pub digest: Digest,
    /// The number of bytes.
    pub size: u64,
    /// The version of the object that has these bytes.
    pub version: Version,
    /// True when nothing had to be downloaded for this caller.
    pub hit: bool,
    _pin: Arc<Pin>,
}

impl Cache {
    /// Opens a cache, creates it if needed, and removes the leftovers of killed processes in `tmp`.
    /// Blobs are counted in the background.
    ///
    /// # Errors
    /// When the host can't create files in it, or another user owns it or may write to it.
    pub fn open(options: CacheOptions) -> Result<Self, CacheError> {
        let open = || {
            let directories = Arc::new(Directories::open(&options.dir)?);
            let blobs = Arc::new(Blobs::new(directories.clone()));
            let index = Arc::new(Index::new(options.dir.join("index")));
            let capacity = Capacity::new(options.max_bytes, &blobs, index.clone())?;
            Ok((directories, blobs, index, capacity))
        };
        let (directories, blobs, index, capacity) =
            open().map_err(|error| CacheError::local(&options.dir, "opening it", error))?;
        let known = moka::future::Cache::builder()
            .max_capacity(REMEMBERED)
            .eviction_policy(EvictionPolicy::lru())
            .build();
        Ok(Self(Arc::new(Inner {
            options,
            directories,
            blobs,
            index,
            capacity,
            known,
            downloads: SingleFlight::default(),
            looks: SingleFlight::default(),
            readings: SingleFlight::default(),
            tmp_names: AtomicU64::new(0),
            index_failed: AtomicBool::new(false),
        })))
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.0.options.dir
    }

    /// The size of all blobs on disk in bytes, as far as it is known.
    pub fn stored_bytes(&self) -> u64 {
        self.0.capacity.stored()
    }

    /// The maximum size of all blobs on disk, in bytes.
    pub fn max_bytes(&self) -> u64 {
        self.0.options.max_bytes
    }

    /// Returns an object from the cache, after fetching it if needed. The version is the current
    /// one, or one that was confirmed at most `freshness` ago. With a remote bucket this takes at
    /// most one request. Its response says that the object is unchanged, or brings the new bytes.
    ///
    /// # Errors
    /// Errors of the bucket or the local disk.
    pub async fn fetch(
        &self,
        bucket: &dyn Bucket,
        key: &BucketKey,
        freshness: Duration,
    ) -> Result<Blob, CacheError> {
        if bucket.is_local() {
            let version = bucket.head(key).await?;
            return self.fetch_version(bucket, key, version).await;
        }
        self.look(bucket, key, freshness, None).await.map(|(blob, _)| blob)
    }

    /// As [`Cache::fetch`], for an input of a task: takes the permit from `ahead` before the bytes
    /// arrive.
    ///
    /// # Errors
    /// Errors of the bucket or the local disk.
    pub async fn fetch_ahead<'a>(
        &self,
        bucket: &dyn Bucket,
        key: &BucketKey,
        freshness: Duration,
        ahead: &'a Ahead,
    ) -> Result<(Blob, SemaphorePermit<'a>), CacheError> {
        if bucket.is_local() {
            let version = bucket.head(key).await?;
            let permit = ahead.take(version.size).await;
            return Ok((self.fetch_version(bucket, key, version).await?, permit));
        }
        let (blob, permit) = self.look(bucket, key, freshness, Some(ahead)).await?;
        let permit = match permit {
            Some(permit) => ahead.grown(permit, blob.size).await,
            None => ahead.take(blob.size).await,
        };
        Ok((blob, permit))
    }

    /// The version of an object: the current one, or one that was confirmed at most `freshness`
    /// ago.
    ///
    /// # Errors
    /// Errors of the bucket.
    pub async fn version(
        &self,
        bucket: &dyn Bucket,
        key: &BucketKey,
        freshness: Duration,
    ) -> Result<Version, CacheError> {
        if bucket.is_local() {
            return Ok(bucket.head(key).await?);
        }
        let source = ObjectId::new(bucket, key);
        let known = self.known(&source).await;
        if let Some(known) = &known
            && known.is_fresh(freshness)
        {
            return Ok(known.version.clone());
        }
        let asked = Instant::now();
        let version = bucket.head(key).await?;
        if let Some(known) = known.filter(|known| known.version == version) {
            self.0.known.insert(source, KnownVersion { looked: Some(asked), ..known }).await;
        }
        Ok(version)
    }

    /// Fetches an object whose version was just confirmed. The caller takes the permit for its
    /// bytes, if one is needed.
    ///
    /// # Errors
    /// Errors of the bucket or the local disk.
    pub async fn fetch_version(
        &self,
        bucket: &dyn Bucket,
        key: &BucketKey,
        version: Version,
    ) -> Result<Blob, CacheError> {
        let source = ObjectId::new(bucket, key);
        if let Some(blob) = self.held(bucket, &source, &version).await? {
            return Ok(blob);
        }
        self.download_once(bucket, &source, version, None).await
    }

    /// Makes at most one request for all concurrent callers. Returns a permit if this caller
    /// downloaded the object and needed one.
    async fn look<'a>(
        &self,
        bucket: &dyn Bucket,
        key: &BucketKey,
        freshness: Duration,
        ahead: Option<&'a Ahead>,
    ) -> Result<(Blob, Option<SemaphorePermit<'a>>), CacheError> {
        let source = ObjectId::new(bucket, key);
        let asked = Instant::now();
        loop {
            if let Some(known) = self.known(&source).await
                && (known.is_fresh(freshness) || known.looked >= Some(asked))
                && let Some(blob) = self.there(&known).await?
            {
                return Ok((blob, None));
            }
            let mut permit = None;
            let (source, taken) = (&source, &mut permit);
            let look = self.0.looks.run(source.clone(), move || async move {
                let looked = Instant::now();
                self.look_now(bucket, source, ahead, taken).await.map(|blob| (blob, looked))
            });
            let (outcome, led) = look.await;
            let (mut blob, looked) = outcome?;
            if led {
                return Ok((blob, permit));
            }
            // A check that started before this call may have missed a change. One that started
            // later is as good as our own.
            if looked >= asked || looked.elapsed() < freshness {
                blob.hit = true;
                return Ok((blob, None));
            }
        }
    }

    async fn look_now<'a>(
        &self,
        bucket: &dyn Bucket,
        source: &ObjectId,
        ahead: Option<&'a Ahead>,
        permit: &mut Option<SemaphorePermit<'a>>,
    ) -> Result<Blob, CacheError> {
        let held = match self.known(source).await {
            Some(known) => self.there(&known).await?.map(|blob| (known, blob)),
            None => None,
        };
        let looked = Some(Instant::now());
        let known = held.as_ref().map(|(known, _)| &known.version);
        match (bucket.open(&source.key, known).await?, held) {
            (Opened::Unchanged, Some((known, blob))) => {
                self.0.known.insert(source.clone(), KnownVersion { looked, ..known }).await;
                Ok(blob)
            }
            (Opened::Unchanged, None) => {
                let problem = "the store answered 304 Not Modified to an unconditional request";
                Err(BucketError::unavailable(&bucket, "reading", &source.key, problem).into())
            }
            (Opened::Object(object), _) => {
                let version = object.version().clone();
                let mut object = Some(object);
                if let Some(ahead) = ahead {
                    *permit = ahead.try_take(version.size);
                    if permit.is_none() {
                        // The wait may be long, so the connection is closed: other tasks can use
                        // it, and it could break meanwhile.
                        object = None;
                        *permit = Some(ahead.take(version.size).await);
                    }
                }
                self.download_once(bucket, source, version, object).await
            }
        }
    }

    /// Downloads one version, or waits for another caller's download. Reads the bytes from the open
    /// `object`, if given.
    async fn download_once(
        &self,
        bucket: &dyn Bucket,
        source: &ObjectId,
        version: Version,
        object: Option<Box<dyn Object>>,
    ) -> Result<Blob, CacheError> {
        let single_flight = || async {
            // Another download may have finished meanwhile.
            match self.held(bucket, source, &version).await? {
                Some(blob) => Ok(blob),
                None => self.download(bucket, source, version.size, object).await,
            }
        };
        let (blob, led) =
            self.0.downloads.run((source.clone(), version.clone()), single_flight).await;
        let mut blob = blob?;
        blob.hit |= !led;
        Ok(blob)
    }

    /// The last known version, from this process or an earlier one.
    async fn known(&self, source: &ObjectId) -> Option<KnownVersion> {
        if let Some(known) = self.0.known.get(source).await {
            return Some(known);
        }
        let (version, digest) = self.0.index.get(source)?;
        Some(KnownVersion { version, digest, looked: None })
    }

    /// The blob of this version, if its digest is known and the blob exists.
    async fn held(
        &self,
        bucket: &dyn Bucket,
        source: &ObjectId,
        version: &Version,
    ) -> Result<Option<Blob>, CacheError> {
        let known = if bucket.is_local() {
            self.0.known.get(source).await
        } else {
            self.known(source).await
        };
        match known {
            Some(known) if known.version == *version => self.there(&known).await,
            _ => Ok(None),
        }
    }

    /// The blob, if it exists and is whole.
    async fn there(&self, known: &KnownVersion) -> Result<Option<Blob>, CacheError> {
        let (digest, size) = (known.digest, known.version.size);
        // Pinned first, so that it is not evicted between the check and the use.
        let blob = self.blob(digest, size, known.version.clone(), true);
        let look = self.0.blobs.look(&digest, size);
        let is_whole = match look.map_err(|error| self.local("looking up a blob", error))? {
            Lookup::Gone => false,
            Lookup::Verified => true,
            Lookup::Unread => self.0.readings.run(digest, || self.verify(digest, size)).await.0?,
        };
        Ok(is_whole.then_some(blob))
    }

    /// Checks a blob that another process stored.
    async fn verify(&self, digest: Digest, size: u64) -> Result<bool, CacheError> {
        let cache = self.clone();
        let verify = move || cache.0.blobs.verify(&digest, size);
        let is_whole = if size <= SMALL { verify() } else { blocking(verify).await };
        is_whole.map_err(|error| self.local("reading a blob", error))
    }

    fn blob(&self, digest: Digest, size: u64, version: Version, hit: bool) -> Blob {
        Blob { digest, size, version, hit, _pin: Arc::new(self.0.capacity.pin(digest)) }
    }

    /// Opens a blob for reading.
    ///
    /// # Errors
    /// [`CacheError::Gone`] when the blob has to be fetched again.
    pub fn read(&self, blob: &Blob) -> Result<File, CacheError> {
        let file = self.0.blobs.read(&blob.digest, blob.size);
        file.map_err(|error| self.local("reading a blob", error))?
            .ok_or_else(|| self.gone(blob.digest))
    }

    /// The error for a blob that could not be read because of `error`, or whose bytes do not match
    /// its digest. Removes a damaged blob: [`CacheError::Gone`] means that it has to be fetched
    /// again.
    pub fn distrust(&self, blob: &Blob, error: Option<io::Error>) -> CacheError {
        // Finds and logs the damage.
        match (self.0.blobs.verify(&blob.digest, blob.size), error) {
            (Ok(true), Some(error)) | (Err(error), _) => self.local("reading a blob", error),
            (Ok(true), None) | (Ok(false), _) => self.gone(blob.digest),
        }
    }

    fn gone(&self, digest: Digest) -> CacheError {
        CacheError::Gone { dir: self.dir().to_owned(), digest }
    }

    fn local(&self, doing: &'static str, error: io::Error) -> CacheError {
        CacheError::local(self.dir(), doing, error)
    }
}

impl ObjectId {
    fn new(bucket: &dyn Bucket, key: &BucketKey) -> Self {
        Self { bucket: bucket.to_string(), key: key.clone() }
    }
}

impl Inner {
    fn tmp_name(&self) -> String {
        self.tmp_names.fetch_add(1, Ordering::Relaxed).to_string()
    }
}
