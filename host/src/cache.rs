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
//! Any number of hosts may share one. Nothing in it is needed: what is missing, or has the
//! wrong size, is fetched again.

mod blobs;
mod flight;
mod index;
mod room;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use cap_std::fs::Dir;
use moka::policy::EvictionPolicy;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, mkdirat, openat, unlinkat};
use rustix::io::Errno;
use tokio::sync::SemaphorePermit;

use self::blobs::Blobs;
use self::flight::Flights;
use self::index::Index;
use self::room::{Pin, Room};
use crate::ahead::Ahead;
use crate::bucket::{self, Bucket, BucketError, Object, Opened, SMALL, Version};
use crate::digest::Digest;
use crate::key::BucketKey;
use crate::scratch::{self, Scratch};

/// How many objects are remembered in memory with their digests.
const REMEMBERED: u64 = 65_536;

/// Where the cache is, and how large it may get.
#[derive(Debug, Clone)]
pub struct CacheOptions {
    /// Its directory, made if it is not there.
    pub dir: PathBuf,
    /// What its blobs may take on disk, in bytes. A single input that is larger than that is
    /// delivered all the same, and removed as soon as no task uses it.
    pub max_bytes: u64,
}

/// A cache on disk. A clone is another handle on it.
#[derive(Debug, Clone)]
pub struct Cache(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    options: CacheOptions,
    blobs: Arc<Blobs>,
    index: Arc<Index>,
    room: Room,
    known: moka::future::Cache<Source, Known>,
    /// Downloads of one version.
    downloads: Flights<(Source, Version), Result<Blob, CacheError>>,
    /// Looks at whatever version is there, with the download they lead to.
    looks: Flights<Source, Result<(Blob, Instant), CacheError>>,
    tmp: Scratch,
    tmp_dir: OwnedFd,
    tmp_names: AtomicU64,
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

/// How a task gets a blob's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// A hard link, where that is possible. Only for where the kernel keeps the task from
    /// writing: it is the cache's own file.
    Link,
    /// A file of its own, which shares blocks where the file system can.
    Copy,
}

/// What a failed cache operation means for the caller. Cheap to clone, since all who wait
/// for one download get its failure.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CacheError {
    /// The bucket failed.
    #[error(transparent)]
    Bucket(#[from] Arc<BucketError>),
    /// The blob was removed since it was fetched. Fetching it again helps.
    #[error("cache {}: blob {digest} was removed since it was fetched", dir.display())]
    Gone {
        /// The cache.
        dir: PathBuf,
        /// The blob.
        digest: Digest,
    },
    /// The disk is full though blobs were removed to make room.
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
    /// The local disk failed. Trying again may help.
    #[error("cache {}: {doing} failed: {source}", dir.display())]
    Local {
        /// The cache.
        dir: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// The cause.
        #[source]
        source: Arc<io::Error>,
    },
}

impl From<BucketError> for CacheError {
    fn from(error: BucketError) -> Self {
        Self::Bucket(Arc::new(error))
    }
}

impl CacheError {
    fn is_disk_full(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        match self {
            Self::Bucket(error) => error.is_disk_full(),
            Self::Local { source, .. } => matches!(source.kind(), StorageFull | QuotaExceeded),
            _ => false,
        }
    }
}

impl Cache {
    /// Opens a cache, makes it if it is not there, and removes what killed processes left in
    /// `tmp`. Blobs are counted in the background.
    ///
    /// # Errors
    /// When the host can't create files in it.
    pub fn open(options: CacheOptions) -> Result<Self, CacheError> {
        let open = || {
            let tmp = Scratch::claim(&options.dir.join("tmp"))?;
            let tmp_dir = scratch::open_dir(CWD, tmp.path())?;
            let blobs = Arc::new(Blobs::open(&options.dir.join("blobs"))?);
            let index = Arc::new(Index::new(options.dir.join("index")));
            let room = Room::new(options.max_bytes, blobs.clone(), index.clone())?;
            Ok((tmp, tmp_dir, blobs, index, room))
        };
        let (tmp, tmp_dir, blobs, index, room) =
            open().map_err(|error| local(&options.dir, "opening it", error))?;
        let known = moka::future::Cache::builder()
            .max_capacity(REMEMBERED)
            .eviction_policy(EvictionPolicy::lru())
            .build();
        Ok(Self(Arc::new(Inner {
            options,
            blobs,
            index,
            room,
            known,
            downloads: Flights::default(),
            looks: Flights::default(),
            tmp,
            tmp_dir,
            tmp_names: AtomicU64::new(0),
        })))
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.0.options.dir
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
                && let Some(blob) = self.there(&known)?
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
            Some(known) => self.there(&known)?.map(|blob| (known, blob)),
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
            Some(known) if known.version == *version => self.there(&known),
            _ => Ok(None),
        }
    }

    /// The blob, if it still is there.
    fn there(&self, known: &Known) -> Result<Option<Blob>, CacheError> {
        let (digest, size) = (known.digest, known.version.size);
        // Pinned first, so that it is not removed between the look and the use.
        let blob = self.blob(digest, size, true);
        let there = self.0.blobs.check(&digest, size);
        Ok(there.map_err(|error| self.local("looking up a blob", error))?.then_some(blob))
    }

    fn blob(&self, digest: Digest, size: u64, hit: bool) -> Blob {
        Blob { digest, size, hit, _pin: Arc::new(self.0.room.pin(digest)) }
    }

    /// Downloads, and once more after making room if the disk is full.
    async fn download(
        &self,
        bucket: &dyn Bucket,
        source: &Source,
        size: u64,
        object: Option<Box<dyn Object>>,
    ) -> Result<Blob, CacheError> {
        match self.try_download(bucket, source, object).await {
            Err(error) if error.is_disk_full() => self.0.room.free(size).await,
            other => return other,
        }
        match self.try_download(bucket, source, None).await {
            Err(error) if error.is_disk_full() => Err(self.full(size)),
            other => other,
        }
    }

    async fn try_download(
        &self,
        bucket: &dyn Bucket,
        source: &Source,
        object: Option<Box<dyn Object>>,
    ) -> Result<Blob, CacheError> {
        let looked = Some(Instant::now());
        let object = match object {
            Some(object) => object,
            None => match bucket.open(&source.key, None).await? {
                Opened::Object(object) => object,
                Opened::Unchanged => {
                    let problem = "the store says that it is unchanged, and was not asked that";
                    let error = BucketError::unavailable(&bucket, "reading", &source.key, problem);
                    return Err(error.into());
                }
            },
        };
        let expected = object.version().size;
        let mut room = self.0.room.reserve(expected).await;
        let failed = |doing| move |error| self.local(doing, error);
        let tmp = Tmp::new(&self.0);
        let file = tmp.create().map_err(failed("creating a file in tmp"))?;
        let into = file.try_clone().map_err(failed("opening a file in tmp"))?;
        let version = object.write_to(into).await?;
        if version.size > expected {
            // It was decoded, or nothing was known of its size.
            drop(room);
            room = self.0.room.reserve(version.size).await;
        }

        // The digest is of what is in the file, not of what was meant to be written there.
        let (digest, size) =
            digest(file, version.size).await.map_err(failed("reading a downloaded file"))?;
        if size != version.size {
            let problem = format!("{size} bytes came of {}", version.size);
            return Err(BucketError::unavailable(&bucket, "reading", &source.key, problem).into());
        }
        let blob = self.blob(digest, size, false);
        if tmp.keep(digest, size).map_err(failed("storing a blob"))? {
            room.stored();
        }

        if !bucket.is_local() {
            let tmp = self.0.tmp.path().join(self.0.tmp_name());
            if let Err(error) = self.0.index.put(source, &version, digest, &tmp) {
                // Costs a download after a restart, and nothing now.
                tracing::warn!(dir = %self.dir().display(), %error, "the index was not written");
            }
        }
        self.0.known.insert(source.clone(), Known { version, digest, looked }).await;
        Ok(blob)
    }

    /// Puts a blob's bytes into a directory as a read-only file, with the directories on its
    /// way. Nothing may be there under that name.
    ///
    /// # Errors
    /// [`CacheError::Gone`] when the blob has to be fetched again.
    pub async fn place(
        &self,
        blob: &Blob,
        into: &Dir,
        name: &BucketKey,
        sharing: Sharing,
    ) -> Result<(), CacheError> {
        let there = match sharing {
            Sharing::Link => match self.link(blob, into, name) {
                // Another file system, too many links, or a kernel that forbids it.
                Err(
                    Errno::XDEV | Errno::MLINK | Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP,
                ) => self.copy(blob, into, name).await,
                other => other.map_err(io::Error::from),
            },
            Sharing::Copy => self.copy(blob, into, name).await,
        };
        let there = match there {
            Err(error) if is_full(&error) => {
                self.0.room.free(blob.size).await;
                // What was written of it before the disk was full.
                let _ = unlinkat(into, name.as_str(), AtFlags::empty());
                match self.copy(blob, into, name).await {
                    Err(error) if is_full(&error) => return Err(self.full(blob.size)),
                    other => other,
                }
            }
            other => other,
        };
        match there.map_err(|error| self.local("placing an input", error))? {
            true => Ok(()),
            false => Err(CacheError::Gone { dir: self.dir().to_owned(), digest: blob.digest }),
        }
    }

    /// A blob's bytes, for reading.
    ///
    /// # Errors
    /// [`CacheError::Gone`] when the blob has to be fetched again.
    pub fn read(&self, blob: &Blob) -> Result<File, CacheError> {
        let file = self.0.blobs.read(&blob.digest, blob.size);
        file.map_err(|error| self.local("reading a blob", error))?
            .ok_or_else(|| CacheError::Gone { dir: self.dir().to_owned(), digest: blob.digest })
    }

    fn link(&self, blob: &Blob, into: &Dir, name: &BucketKey) -> Result<bool, Errno> {
        with_parents(into, name, || self.0.blobs.link(&blob.digest, blob.size, into, name.as_str()))
    }

    /// False when the blob is gone.
    async fn copy(&self, blob: &Blob, into: &Dir, name: &BucketKey) -> io::Result<bool> {
        let Some(mut from) = self.0.blobs.read(&blob.digest, blob.size)? else {
            return Ok(false);
        };
        let create = || create(into.as_fd(), name.as_str());
        let mut to = with_parents(into, name, create)?;
        let size = blob.size;
        let mut copy = move || bucket::copy(&mut from, &mut to, size);
        let copied = if size <= SMALL { copy()? } else { bucket::blocking(copy).await? };
        if copied != size {
            return Err(io::Error::other(format!("{copied} bytes came of {size}")));
        }
        Ok(true)
    }

    fn local(&self, doing: &'static str, error: io::Error) -> CacheError {
        local(self.dir(), doing, error)
    }

    fn full(&self, needed: u64) -> CacheError {
        let free = rustix::fs::fstatvfs(&self.0.tmp_dir)
            .map_or(0, |stat| stat.f_bavail.saturating_mul(stat.f_frsize));
        CacheError::Full {
            dir: self.dir().to_owned(),
            needed: ByteSize(needed),
            limit: ByteSize(self.0.options.max_bytes),
            used: ByteSize(self.0.room.stored()),
            free: ByteSize(free),
        }
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

/// A file in `tmp`. Dropping it removes it, unless it was kept as a blob.
struct Tmp<'a> {
    cache: &'a Inner,
    name: Option<String>,
}

impl<'a> Tmp<'a> {
    fn new(cache: &'a Inner) -> Self {
        Self { cache, name: Some(cache.tmp_name()) }
    }

    fn name(&self) -> &str {
        self.name.as_deref().unwrap_or_default()
    }

    fn create(&self) -> io::Result<File> {
        Ok(create(&self.cache.tmp_dir, self.name())?)
    }

    /// Makes it a blob. False when there is one already.
    fn keep(mut self, digest: Digest, size: u64) -> io::Result<bool> {
        let new = self.cache.blobs.add(&self.cache.tmp_dir, self.name(), &digest, size)?;
        self.name = None;
        Ok(new)
    }
}

impl Drop for Tmp<'_> {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            let _ = unlinkat(&self.cache.tmp_dir, &**name, AtFlags::empty());
        }
    }
}

fn local(dir: &Path, doing: &'static str, error: io::Error) -> CacheError {
    CacheError::Local { dir: dir.to_owned(), doing, source: Arc::new(error) }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// A new file that is read-only for everybody but the one who makes it, now.
fn create(dir: impl AsFd, name: &str) -> Result<File, Errno> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    openat(dir, name, flags, Mode::from_raw_mode(0o444)).map(File::from)
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

/// The digest and the length of a file, from its start.
async fn digest(mut file: File, size: u64) -> io::Result<(Digest, u64)> {
    let digest = move || {
        io::Seek::rewind(&mut file)?;
        if size > SMALL {
            return Digest::of_reader(file);
        }
        let mut bytes = Vec::with_capacity(size as usize + 1);
        io::Read::read_to_end(&mut file, &mut bytes)?;
        Ok((Digest::of(&bytes), bytes.len() as u64))
    };
    if size <= SMALL { digest() } else { bucket::blocking(digest).await }
}
