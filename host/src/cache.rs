//! Content-addressed files on local disk: one download however many tasks ask.
//!
//! ```text
//! CACHE/blobs/ab/abcd…   the bytes whose SHA-256 is abcd…, read-only, never half of them
//! CACHE/index/ab/…       which blob an object of a remote bucket was
//! CACHE/tmp/PROCESS/     downloads under way
//! CACHE/work/PROCESS/    directories of tasks (`workspace.rs`)
//! CACHE/compiled/        components (`catalog.rs`)
//! ```
//!
//! Any number of hosts may share one. Nothing in it is needed: what is missing or damaged is
//! fetched again, and directories that were removed or replaced are made or opened again. A
//! file that this process did not write is read and checked before its first use.

mod blobs;
mod check;
mod error;
mod flight;
mod index;
mod place;
mod places;
mod room;
mod store;
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

use self::blobs::{Blobs, Look};
use self::flight::Flights;
use self::index::Index;
use self::places::Places;
use self::room::{Pin, Room};
use crate::ahead::Ahead;
use crate::blocking::{SMALL, blocking};
use crate::bucket::{Bucket, BucketError, Object, Opened, Version};
use crate::digest::Digest;
use crate::key::BucketKey;
use crate::ownership;

pub use self::check::{Checked, check};
pub use self::error::{CacheError, SharedIoError};
pub use self::place::Sharing;
#[cfg(test)]
pub(crate) use self::tests::Tmpfs;
pub use crate::ownership::NotOurs;

/// How many objects are remembered in memory with their digests.
const REMEMBERED: u64 = 65_536;

/// The directories that the host makes in a cache directory, beside [`COMPILED`]. Anything else
/// may be there too.
pub const PARTS: [&str; 4] = ["blobs", "index", "tmp", "work"];
/// Where compiled code is, in a cache directory.
pub const COMPILED: &str = "compiled";

/// Where the cache is, and how large it may get.
#[derive(Debug, Clone)]
pub struct CacheOptions {
    /// Its directory, made if it is not there.
    pub dir: PathBuf,
    /// What its blobs may take on disk, in bytes. A single input that is larger than that is
    /// delivered all the same, and removed as soon as no task uses it.
    pub max_bytes: u64,
}

/// Looks whether a cache directory, where it is there, can be trusted: its way, itself, and the
/// directories that the host makes in it. Returns a risk on the way, if there is one.
///
/// # Errors
/// Names the first directory that can't.
pub fn check_owner(dir: &Path) -> Result<Option<NotOurs>, NotOurs> {
    let risk = ownership::check(dir, &PARTS)?;
    // Compiled code is loaded by a stricter rule, and is not needed.
    Ok(risk.or_else(|| ownership::check(dir, &[COMPILED]).err()))
}

/// A cache on disk. A clone is another handle on it.
#[derive(Debug, Clone)]
pub struct Cache(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    options: CacheOptions,
    places: Arc<Places>,
    blobs: Arc<Blobs>,
    index: Arc<Index>,
    room: Room,
    known: moka::future::Cache<Source, Known>,
    /// Downloads of one version.
    downloads: Flights<(Source, Version), Result<Blob, CacheError>>,
    /// Looks at whatever version is there, with the download they lead to.
    looks: Flights<Source, Result<(Blob, Instant), CacheError>>,
    /// First readings of blobs that another process stored.
    readings: Flights<Digest, Result<bool, CacheError>>,
    tmp_names: AtomicU64,
    /// The index could not be written the last time.
    index_failed: AtomicBool,
}

/// An object of a bucket.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Source {
    bucket: String,
    key: BucketKey,
}

/// What is known of an object.
#[derive(Debug, Clone)]
struct Known {
    version: Version,
    digest: Digest,
    /// When the bucket was asked that last said so, if this process asked.
    looked: Option<Instant>,
}

impl Known {
    fn is_fresh(&self, freshness: Duration) -> bool {
        self.looked.is_some_and(|looked| looked.elapsed() < freshness)
    }
}

/// Bytes in the cache. While it lives, this process doesn't remove them.
#[derive(Debug, Clone)]
pub struct Blob {
    /// The SHA-256 of the bytes.
    pub digest: Digest,
    /// How many there are.
    pub size: u64,
    /// True when nothing had to be downloaded for this caller.
    pub hit: bool,
    _pin: Arc<Pin>,
}

impl Cache {
    /// Opens a cache, makes it if it is not there, and removes what killed processes left in
    /// `tmp`. Blobs are counted in the background.
    ///
    /// # Errors
    /// When the host can't create files in it, or when somebody else owns it or may write to it.
    pub fn open(options: CacheOptions) -> Result<Self, CacheError> {
        let open = || {
            let places = Arc::new(Places::open(&options.dir)?);
            let blobs = Arc::new(Blobs::new(places.clone()));
            let index = Arc::new(Index::new(options.dir.join("index")));
            let room = Room::new(options.max_bytes, &blobs, index.clone())?;
            Ok((places, blobs, index, room))
        };
        let (places, blobs, index, room) =
            open().map_err(|error| CacheError::local(&options.dir, "opening it", error))?;
        let known = moka::future::Cache::builder()
            .max_capacity(REMEMBERED)
            .eviction_policy(EvictionPolicy::lru())
            .build();
        Ok(Self(Arc::new(Inner {
            options,
            places,
            blobs,
            index,
            room,
            known,
            downloads: Flights::default(),
            looks: Flights::default(),
            readings: Flights::default(),
            tmp_names: AtomicU64::new(0),
            index_failed: AtomicBool::new(false),
        })))
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.0.options.dir
    }

    /// What its blobs may take on disk, in bytes.
    pub fn max_bytes(&self) -> u64 {
        self.0.options.max_bytes
    }

    /// Brings an object into the cache, or finds it there: as it is now, or as it was when it
    /// was last looked at, if that is not longer ago than `freshness`. With a remote bucket
    /// that takes one request at the most, which says that nothing has changed or brings the
    /// new bytes.
    ///
    /// # Errors
    /// What the bucket or the local disk fails with.
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

    /// The same for an input of a task: takes the permit for its bytes before they come.
    ///
    /// # Errors
    /// What the bucket or the local disk fails with.
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

    /// The version of an object: as the bucket says, or as it said not longer ago than
    /// `freshness`.
    ///
    /// # Errors
    /// What the bucket fails with.
    pub async fn version(
        &self,
        bucket: &dyn Bucket,
        key: &BucketKey,
        freshness: Duration,
    ) -> Result<Version, CacheError> {
        if bucket.is_local() {
            return Ok(bucket.head(key).await?);
        }
        let source = Source::new(bucket, key);
        let known = self.known(&source).await;
        if let Some(known) = &known
            && known.is_fresh(freshness)
        {
            return Ok(known.version.clone());
        }
        let asked = Instant::now();
        let version = bucket.head(key).await?;
        if let Some(known) = known.filter(|known| known.version == version) {
            self.0.known.insert(source, Known { looked: Some(asked), ..known }).await;
        }
        Ok(version)
    }

    /// Brings an object into the cache whose version was just asked for. The permit for its
    /// bytes, if it needs one, is the caller's business.
    ///
    /// # Errors
    /// What the bucket or the local disk fails with.
    pub async fn fetch_version(
        &self,
        bucket: &dyn Bucket,
        key: &BucketKey,
        version: Version,
    ) -> Result<Blob, CacheError> {
        let source = Source::new(bucket, key);
        if let Some(blob) = self.held(bucket, &source, &version).await? {
            return Ok(blob);
        }
        self.fly(bucket, &source, version, None).await
    }

    /// One request at the most, however many ask at the same time. The permit is there if the
    /// caller was the one to download, and had to have one.
    async fn look<'a>(
        &self,
        bucket: &dyn Bucket,
        key: &BucketKey,
        freshness: Duration,
        ahead: Option<&'a Ahead>,
    ) -> Result<(Blob, Option<SemaphorePermit<'a>>), CacheError> {
        let source = Source::new(bucket, key);
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
            // A look that began before this one was asked for may have missed a change; one
            // that began since is as good as our own.
            if looked >= asked || looked.elapsed() < freshness {
                blob.hit = true;
                return Ok((blob, None));
            }
        }
    }

    async fn look_now<'a>(
        &self,
        bucket: &dyn Bucket,
        source: &Source,
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
                self.0.known.insert(source.clone(), Known { looked, ..known }).await;
                Ok(blob)
            }
            (Opened::Unchanged, None) => {
                let problem = "the store says that it is unchanged, and it was never fetched";
                Err(BucketError::unavailable(&bucket, "reading", &source.key, problem).into())
            }
            (Opened::Object(object), _) => {
                let version = object.version().clone();
                let mut object = Some(object);
                if let Some(ahead) = ahead {
                    *permit = ahead.try_take(version.size);
                    if permit.is_none() {
                        // The wait may be long. A connection that is held meanwhile is one
                        // less for others, and may be gone by then.
                        object = None;
                        *permit = Some(ahead.take(version.size).await);
                    }
                }
                self.fly(bucket, source, version, object).await
            }
        }
    }

    /// Downloads one version, or waits for somebody else who does. Takes the bytes of the
    /// object that is open, if one is given.
    async fn fly(
        &self,
        bucket: &dyn Bucket,
        source: &Source,
        version: Version,
        object: Option<Box<dyn Object>>,
    ) -> Result<Blob, CacheError> {
        let flight = || async {
            // Another may have landed since this one looked.
            match self.held(bucket, source, &version).await? {
                Some(blob) => Ok(blob),
                None => self.download(bucket, source, version.size, object).await,
            }
        };
        let (blob, led) = self.0.downloads.run((source.clone(), version.clone()), flight).await;
        let mut blob = blob?;
        blob.hit |= !led;
        Ok(blob)
    }

    /// What is known of an object, from this process or one before.
    async fn known(&self, source: &Source) -> Option<Known> {
        if let Some(known) = self.0.known.get(source).await {
            return Some(known);
        }
        let (version, digest) = self.0.index.get(source)?;
        Some(Known { version, digest, looked: None })
    }

    /// The blob of this version, if it is known and there.
    async fn held(
        &self,
        bucket: &dyn Bucket,
        source: &Source,
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

    /// The blob, if it still is there and whole.
    async fn there(&self, known: &Known) -> Result<Option<Blob>, CacheError> {
        let (digest, size) = (known.digest, known.version.size);
        // Pinned first, so that it is not removed between the look and the use.
        let blob = self.blob(digest, size, true);
        let look = self.0.blobs.look(&digest, size);
        let is_whole = match look.map_err(|error| self.local("looking up a blob", error))? {
            Look::Gone => false,
            Look::Verified => true,
            Look::Unread => self.0.readings.run(digest, || self.verify(digest, size)).await.0?,
        };
        Ok(is_whole.then_some(blob))
    }

    /// Reads a blob that this process did not store.
    async fn verify(&self, digest: Digest, size: u64) -> Result<bool, CacheError> {
        let cache = self.clone();
        let verify = move || cache.0.blobs.verify(&digest, size);
        let is_whole = if size <= SMALL { verify() } else { blocking(verify).await };
        is_whole.map_err(|error| self.local("reading a blob", error))
    }

    fn blob(&self, digest: Digest, size: u64, hit: bool) -> Blob {
        Blob { digest, size, hit, _pin: Arc::new(self.0.room.pin(digest)) }
    }

    /// A blob, open for reading.
    ///
    /// # Errors
    /// [`CacheError::Gone`] when the blob has to be fetched again.
    pub fn read(&self, blob: &Blob) -> Result<File, CacheError> {
        let file = self.0.blobs.read(&blob.digest, blob.size);
        file.map_err(|error| self.local("reading a blob", error))?
            .ok_or_else(|| self.gone(blob.digest))
    }

    /// What is to be said of a blob whose bytes somebody could not read, because of `error`, or found
    /// not to be those of its digest. A damaged blob is removed: [`CacheError::Gone`] when the blob
    /// has to be looked up again.
    pub fn distrust(&self, blob: &Blob, error: Option<io::Error>) -> CacheError {
        // What is wrong with it is found out once more, and logged.
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

impl Source {
    fn new(bucket: &dyn Bucket, key: &BucketKey) -> Self {
        Self { bucket: bucket.to_string(), key: key.clone() }
    }
}

impl Inner {
    fn tmp_name(&self) -> String {
        self.tmp_names.fetch_add(1, Ordering::Relaxed).to_string()
    }
}
