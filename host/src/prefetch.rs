//! Brings a task's inputs from the bucket to where its guest reads them.
//!
//! Small inputs are read into memory. A few of the large ones are opened, and the others are opened
//! when the guest opens them. Large inputs are files of the cache, which keeps them while a task
//! uses them. If the bucket is a directory, its objects are read in place instead. When the task
//! has ended, the host checks that they did not change.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use futures_util::stream::{self, FuturesUnordered, StreamExt, TryStreamExt};
use tokio::sync::SemaphorePermit;

use crate::ahead::Ahead;
use crate::blocking::blocking;
use crate::bucket::{Bucket, BucketError, DirBucket, InPlace, InPlaceError, Version};
use crate::cache::{Blob, Cache, CacheError};
use crate::digest::Digest;
use crate::key::{BucketKey, Prefix};
use crate::sandbox::{Input, InputContent, Source};
use crate::turns::Turns;

/// Inputs of up to this many bytes are kept in memory.
const SMALL: u64 = 64 << 10;
/// The maximum number of bytes of one task's inputs that are kept in memory.
const MEMORY: u64 = 1 << 20;
/// The maximum number of a task's inputs that are open before its guest opens them.
const OPEN: usize = 4;
/// The maximum number of a task's inputs that are fetched at the same time.
const AT_ONCE: usize = 8;
/// If there are more inputs than this, duplicates are removed on a thread that may block.
const SORTED_INLINE: usize = 256;
/// The maximum number of fetches of an input whose blob another host evicts before it is read or
/// opened.
const FETCHES: usize = 5;

/// An input to fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The path below `/inputs`.
    pub path: BucketKey,
    /// The key, from the bucket's root.
    pub key: BucketKey,
    /// Whether the object may be missing.
    pub is_optional: bool,
}

/// The object that an input is read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadObject {
    /// The key, from the bucket's root.
    pub key: BucketKey,
    /// The version.
    pub version: Version,
}

/// The inputs of a task, ready for its guest.
pub struct Brought<'a> {
    /// The size of the inputs, and the cache hits and misses.
    pub fetched: Fetched,
    /// The inputs.
    pub inputs: Vec<Input>,
    /// The objects of the inputs, in the same order.
    pub objects: Vec<ReadObject>,
    /// The inputs that are read in place in the bucket.
    pub in_place: ReadInPlace,
    /// The permit for the bytes of the inputs. Drop it when the task runs.
    pub ahead: Option<SemaphorePermit<'a>>,
}

/// The size of a task's inputs, and the cache hits and misses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fetched {
    /// The total size of the inputs.
    pub bytes: u64,
    /// The number of inputs that were in the cache.
    pub hits: u32,
    /// The number of inputs that were downloaded.
    pub misses: u32,
}

/// Why a task's inputs cannot be brought. The variant says how the task continues.
#[derive(Debug, thiserror::Error)]
pub enum PrefetchError {
    /// An input does not exist. It may not exist yet.
    #[error("input `{input}`: {bucket} has no object `{key}`")]
    NotFound {
        /// The name in the task.
        input: BucketKey,
        /// The bucket.
        bucket: String,
        /// The key in the bucket.
        key: BucketKey,
    },
    /// The bucket or the local disk failed. The task is not at fault; a retry may help.
    #[error("input `{input}`: {source}")]
    Unavailable {
        /// The name in the task.
        input: BucketKey,
        /// The key in the bucket.
        key: BucketKey,
        /// The cause.
        #[source]
        source: CacheError,
    },
    /// A file of a directory bucket was changed while the guest read it.
    #[error(
        "input `{input}`: it was changed while the task read it; write a file under another name \
         and rename it into place"
    )]
    Changed {
        /// The name in the task.
        input: BucketKey,
    },
    /// An input was replaced after the task's plan had read it.
    #[error(
        "input `{input}`: it was replaced after `plan` had read it and before the task started"
    )]
    Replaced {
        /// The name in the task.
        input: BucketKey,
    },
    /// The task's inputs are invalid. A retry cannot help.
    #[error("input `{input}`: {problem}")]
    Invalid {
        /// The name in the task.
        input: BucketKey,
        /// What is wrong.
        problem: String,
    },
}

/// Where inputs come from, and how they are fetched.
#[derive(Debug)]
pub struct Prefetch {
    /// The bucket.
    pub bucket: Arc<dyn Bucket>,
    /// The cache that inputs of remote buckets are kept in.
    pub cache: Cache,
    /// How long the known version of an object in a remote bucket is used before the bucket is
    /// asked again.
    pub freshness: Duration,
    /// Limits the bytes of inputs whose tasks do not run yet.
    pub ahead: Ahead,
}

impl Prefetch {
    /// Brings `inputs`, which are relative to `base`, to where a guest can read them. An input that
    /// is named twice is brought once.
    ///
    /// # Errors
    /// For the first input that fails.
    pub async fn bring(
        &self,
        base: &Prefix,
        inputs: &[BucketKey],
    ) -> Result<Brought<'_>, PrefetchError> {
        let wanted = |path: &BucketKey| Wanted {
            path: path.clone(),
            key: base.join(path),
            is_optional: false,
        };
        self.bring_all(inputs.iter().map(wanted).collect()).await
    }

    /// Brings inputs to where a guest can read them. Of several inputs with the same path, the
    /// first is brought.
    ///
    /// # Errors
    /// For the first input that fails.
    pub async fn bring_all(&self, wanted: Vec<Wanted>) -> Result<Brought<'_>, PrefetchError> {
        let dir = self.bucket.as_dir();
        if let ([one @ Wanted { is_optional: false, .. }], None) = (&wanted[..], dir) {
            return self.bring_one(one).await;
        }
        let distinct = match wanted.len() <= SORTED_INLINE {
            true => distinct(wanted)?,
            false => blocking(move || distinct(wanted)).await?,
        };
        if let Some(dir) = dir {
            return self.bring_in_place(dir, distinct).await;
        }
        // All sizes are needed before the first fetch: if two tasks each held a part of the bytes
        // that they need, they would wait for each other forever.
        let mut turns = Turns::begin();
        let finds: Vec<_> = distinct.iter().map(|wanted| self.find(wanted)).collect();
        let mut finds = stream::iter(finds).buffered(AT_ONCE);
        let mut found = Vec::with_capacity(distinct.len());
        while let Some(one) = finds.try_next().await? {
            found.extend(one);
            turns.pass().await;
        }
        // A server may report any size.
        let claimed = found.iter().fold(0_u64, |sum, one| sum.saturating_add(one.version.size));
        let permit = self.ahead.take(claimed).await;
        let (room, mut sum) = (Room::new(), Fetched::default());
        let mut inputs = Vec::with_capacity(found.len());
        let mut objects = Vec::with_capacity(found.len());
        let mut add = |(fetched, input, object)| {
            sum = sum.plus(fetched);
            inputs.push(input);
            objects.push(object);
        };
        let mut under_way = FuturesUnordered::new();
        // A `StreamExt::map` would be simpler, but the compiler cannot prove that its future is
        // `Send`.
        for found in found {
            turns.pass().await;
            if under_way.len() == AT_ONCE
                && let Some(one) = under_way.try_next().await?
            {
                add(one);
            }
            under_way.push(self.bring_found(found, &room));
        }
        while let Some(one) = under_way.try_next().await? {
            add(one);
        }
        // Objects that are stored compressed are larger than their reported size.
        let permit = self.ahead.grown(permit, sum.bytes).await;
        let in_place = ReadInPlace::default();
        Ok(Brought { fetched: sum, inputs, objects, in_place, ahead: Some(permit) })
    }

    /// Opens inputs in the directory of the bucket, and reads the small ones.
    async fn bring_in_place(
        &self,
        dir: &DirBucket,
        wanted: Vec<Wanted>,
    ) -> Result<Brought<'_>, PrefetchError> {
        let (room, mut turns) = (Room::new(), Turns::begin());
        let mut inputs = Vec::with_capacity(wanted.len());
        let mut objects = Vec::with_capacity(wanted.len());
        let mut in_place = ReadInPlace::default();
        let mut bytes = 0_u64;
        for Wanted { path, key, is_optional } in wanted {
            turns.pass().await;
            let failed = |error: BucketError| PrefetchError::from_cache(&path, &key, error.into());
            let mut found = match dir.open_in_place(&key) {
                Err(BucketError::NotFound { .. }) if is_optional => continue,
                found => found.map_err(failed)?,
            };
            let mut size = found.size();
            let (content, version) = if room.has_memory_for(size) {
                let (bytes, version) = dir.read_small(found).map_err(failed)?;
                size = bytes.len() as u64;
                (InputContent::Bytes(bytes), version)
            } else {
                if !room.has_a_file() {
                    found.close();
                }
                let version = found.version();
                let source = Arc::new(found);
                in_place.0.push((path.clone(), key.clone(), source.clone()));
                (InputContent::File { source, size }, version)
            };
            bytes = bytes.saturating_add(size);
            inputs.push(Input { path, content });
            objects.push(ReadObject { key, version });
        }
        let permit = self.ahead.take(bytes).await;
        if in_place.0.iter().any(|(.., file)| file.is_worth_reading_ahead()) {
            let files = in_place.clone();
            blocking(move || files.0.iter().for_each(|(.., file)| file.read_ahead())).await;
        }
        let fetched = Fetched { bytes, ..Fetched::default() };
        Ok(Brought { fetched, inputs, objects, in_place, ahead: Some(permit) })
    }

    /// Brings the only input of a task. Its size is not needed before the fetch.
    async fn bring_one(&self, wanted: &Wanted) -> Result<Brought<'_>, PrefetchError> {
        let Wanted { path, key, .. } = wanted;
        let failed = |error| PrefetchError::from_cache(path, key, error);
        let (cache, bucket, room) = (&self.cache, &*self.bucket, Room::new());
        let first = cache.fetch_ahead(bucket, key, self.freshness, &self.ahead).await;
        let (mut blob, permit) = first.map_err(failed)?;
        let mut fetches = 1;
        let content = loop {
            match self.hold(&blob, &room, fetches).map_err(failed)? {
                Some(content) => break content,
                None => fetches += 1,
            }
            blob = cache.fetch(bucket, key, Duration::ZERO).await.map_err(failed)?;
        };
        let inputs = vec![Input { path: path.clone(), content }];
        let (fetched, in_place) = (Fetched::of(&blob), ReadInPlace::default());
        let objects = vec![ReadObject { key: key.clone(), version: blob.version }];
        Ok(Brought { fetched, inputs, objects, in_place, ahead: Some(permit) })
    }

    /// Looks up the version of an input. `None` if an optional input does not exist.
    async fn find<'a>(&self, wanted: &'a Wanted) -> Result<Option<Found<'a>>, PrefetchError> {
        match self.cache.version(&*self.bucket, &wanted.key, self.freshness).await {
            Ok(version) => Ok(Some(Found { wanted, version })),
            Err(error) => match PrefetchError::from_cache(&wanted.path, &wanted.key, error) {
                PrefetchError::NotFound { .. } if wanted.is_optional => Ok(None),
                error => Err(error),
            },
        }
    }

    async fn bring_found(
        &self,
        found: Found<'_>,
        room: &Room,
    ) -> Result<(Fetched, Input, ReadObject), PrefetchError> {
        let Found { wanted: Wanted { path, key, .. }, mut version } = found;
        let failed = |error| PrefetchError::from_cache(path, key, error);
        let (cache, bucket) = (&self.cache, &*self.bucket);
        let mut fetches = 1;
        loop {
            let blob = cache.fetch_version(bucket, key, version).await.map_err(failed)?;
            if let Some(content) = self.hold(&blob, room, fetches).map_err(failed)? {
                let input = Input { path: path.clone(), content };
                let object = ReadObject { key: key.clone(), version: blob.version.clone() };
                return Ok((Fetched::of(&blob), input, object));
            }
            fetches += 1;
            version = bucket.head(key).await.map_err(|error| failed(error.into()))?;
        }
    }

    /// Reads or opens a blob, or only protects it from eviction. `None` if the blob is gone and has
    /// to be fetched again, unless `fetches` has reached its limit.
    fn hold(
        &self,
        blob: &Blob,
        room: &Room,
        fetches: usize,
    ) -> Result<Option<InputContent>, CacheError> {
        let size = blob.size;
        let in_memory = room.has_memory_for(size);
        let open = match in_memory || room.has_a_file() {
            true => self.cache.read(blob).map(Some),
            false => Ok(None),
        };
        let read = open.and_then(|open| match open {
            Some(file) if in_memory => read(&self.cache, blob, file).map(InputContent::Bytes),
            open => {
                let (cache, blob) = (self.cache.clone(), blob.clone());
                let source = Arc::new(HeldBlob { cache, blob, open: open.map(Arc::new) });
                Ok(InputContent::File { source, size })
            }
        });
        match read {
            Ok(content) => Ok(Some(content)),
            Err(CacheError::Gone { .. }) if fetches < FETCHES => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Reads a small blob.
fn read(cache: &Cache, blob: &Blob, mut file: File) -> Result<bytes::Bytes, CacheError> {
    let mut bytes = Vec::with_capacity(blob.size as usize + 1);
    match file.read_to_end(&mut bytes) {
        Ok(read) if read as u64 == blob.size => Ok(bytes.into()),
        Ok(_) => Err(cache.distrust(blob, None)),
        Err(error) => Err(cache.distrust(blob, Some(error))),
    }
}

/// The memory and open files that a task's inputs may still use before the guest opens them.
struct Room {
    memory: AtomicU64,
    files: AtomicUsize,
}

impl Room {
    fn new() -> Self {
        Self { memory: AtomicU64::new(MEMORY), files: AtomicUsize::new(OPEN) }
    }

    fn has_memory_for(&self, size: u64) -> bool {
        let less = |left: u64| left.checked_sub(size);
        size <= SMALL && self.memory.fetch_update(Relaxed, Relaxed, less).is_ok()
    }

    fn has_a_file(&self) -> bool {
        self.files.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok()
    }
}

/// A blob that is an input of a task.
struct HeldBlob {
    cache: Cache,
    blob: Blob,
    open: Option<Arc<File>>,
}

impl Source for HeldBlob {
    fn digest(&self) -> Option<Digest> {
        Some(self.blob.digest)
    }

    fn opened(&self) -> Option<Arc<File>> {
        self.open.clone()
    }

    fn open(&self) -> io::Result<Arc<File>> {
        self.cache.read(&self.blob).map(Arc::new).map_err(io::Error::other)
    }
}

/// Inputs that a guest reads in place in a directory bucket: their paths, their keys and the files.
#[derive(Debug, Clone, Default)]
pub struct ReadInPlace(Vec<(BucketKey, BucketKey, Arc<InPlace>)>);

impl ReadInPlace {
    /// Checks, after the guest has ended, that each file that it read existed and did not change.
    ///
    /// # Errors
    /// For the first file that is missing or has changed.
    pub fn check(&self) -> Result<(), PrefetchError> {
        self.0.iter().try_for_each(|(input, key, file)| {
            let (input, key) = (|| input.clone(), || key.clone());
            file.check().map_err(|error| match error {
                InPlaceError::Changed => PrefetchError::Changed { input: input() },
                InPlaceError::Failed(error) => {
                    PrefetchError::Unavailable { input: input(), key: key(), source: error.into() }
                }
            })
        })
    }

    /// True if no input is read in place.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Source for InPlace {
    fn opened(&self) -> Option<Arc<File>> {
        self.opened()
    }

    fn open(&self) -> io::Result<Arc<File>> {
        self.open()
    }

    fn failed(&self, error: &io::Error) {
        self.failed(error);
    }

    fn closes(&self, file: &File) {
        self.closes(file);
    }
}

/// An input that exists in the bucket.
struct Found<'a> {
    wanted: &'a Wanted,
    version: Version,
}

/// Removes inputs whose path occurred before, and keeps the order.
///
/// # Errors
/// When the path of one input is a directory in the path of another.
fn distinct(all: Vec<Wanted>) -> Result<Vec<Wanted>, PrefetchError> {
    let mut names = HashSet::with_capacity(all.len());
    let wanted: Vec<Wanted> =
        all.into_iter().filter(|wanted| names.insert(wanted.path.clone())).collect();
    for Wanted { path, .. } in &wanted {
        let mut parents = path.as_str().match_indices('/').map(|(end, _)| &path.as_str()[..end]);
        if let Some(above) = parents.find(|parent| names.contains(*parent)) {
            let problem = format!(
                "can't be placed below /inputs/{above}, which is an input itself; a name can be a \
                 file or a directory, not both"
            );
            return Err(PrefetchError::Invalid { input: path.clone(), problem });
        }
    }
    Ok(wanted)
}

impl Fetched {
    fn of(blob: &Blob) -> Self {
        let (hits, misses) = if blob.hit { (1, 0) } else { (0, 1) };
        Self { bytes: blob.size, hits, misses }
    }

    /// The result for inputs that were brought in several steps. Each step brings all of them, and
    /// a later step finds in the cache what an earlier step has downloaded.
    pub fn after(self, before: Self) -> Self {
        let hits = self.hits.saturating_sub(before.hits + before.misses) + before.hits;
        Self { bytes: self.bytes, hits, misses: self.misses + before.misses }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            bytes: self.bytes + other.bytes,
            hits: self.hits + other.hits,
            misses: self.misses + other.misses,
        }
    }
}

impl PrefetchError {
    pub(crate) fn from_cache(input: &BucketKey, key: &BucketKey, error: CacheError) -> Self {
        let input = input.clone();
        if let CacheError::Bucket(error) = &error {
            match &**error {
                BucketError::NotFound { bucket, .. } => {
                    return Self::NotFound { input, bucket: bucket.clone(), key: key.clone() };
                }
                BucketError::Invalid { .. } => {
                    return Self::Invalid { input, problem: error.to_string() };
                }
                BucketError::Unavailable { .. } => {}
            }
        }
        Self::Unavailable { input, key: key.clone(), source: error }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fmt;
    use std::io::Read;

    use async_trait::async_trait;
    use bytesize::ByteSize;
    use futures_util::stream::BoxStream;

    use super::*;
    use crate::bucket::{Content, Listed, Opened, PutTag, Revision};
    use crate::cache::CacheOptions;

    struct Fixture {
        _root: tempfile::TempDir,
        bucket: DirBucket,
        cache: Cache,
    }

    fn fixture() -> Fixture {
        let root = tempfile::tempdir().unwrap();
        let bucket = DirBucket::create(&root.path().join("bucket")).unwrap();
        let dir = root.path().join("cache");
        let cache = Cache::open(CacheOptions { dir, max_bytes: 1 << 30 }).unwrap();
        for (key, content) in [("d/a", "A"), ("d/0_input/b", "B"), ("d/x/y/z", "same A")] {
            let path = bucket.path().join(key);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        Fixture { _root: root, bucket, cache }
    }

    /// The bytes of the inputs by name.
    type Inputs = BTreeMap<String, Vec<u8>>;

    async fn bring(f: &Fixture, names: &[&str]) -> Result<(Fetched, Inputs), PrefetchError> {
        let keys: Vec<_> = names.iter().map(|name| BucketKey::new(name).unwrap()).collect();
        let base = Prefix::new("d").unwrap();
        let prefetch = f.prefetch(ByteSize::mib(1));
        prefetch.bring(&base, &keys).await.map(|brought| (brought.fetched, bytes(&brought)))
    }

    fn bytes(brought: &Brought<'_>) -> Inputs {
        let read = |input: &Input| match &input.content {
            InputContent::Bytes(bytes) => bytes.to_vec(),
            InputContent::File { source, size } => {
                let mut bytes = Vec::new();
                (&*source.open().unwrap()).read_to_end(&mut bytes).unwrap();
                assert_eq!(bytes.len() as u64, *size);
                bytes
            }
        };
        let inputs = brought.inputs.iter();
        inputs.map(|input| (input.path.to_string(), read(input))).collect()
    }

    /// A directory bucket whose objects go through the cache.
    #[derive(Debug)]
    struct Cached(DirBucket);

    impl fmt::Display for Cached {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.fmt(f)
        }
    }

    #[async_trait]
    impl Bucket for Cached {
        async fn head(&self, key: &BucketKey) -> Result<Version, BucketError> {
            self.0.head(key).await
        }

        async fn open(
            &self,
            key: &BucketKey,
            known: Option<&Version>,
        ) -> Result<Opened, BucketError> {
            self.0.open(key, known).await
        }

        async fn put(
            &self,
            key: &BucketKey,
            content: &Content,
            path: &BucketKey,
        ) -> Result<PutTag, BucketError> {
            self.0.put(key, content, path).await
        }

        async fn read(
            &self,
            key: &BucketKey,
            most: u64,
        ) -> Result<(bytes::Bytes, Revision), BucketError> {
            self.0.read(key, most).await
        }

        async fn put_if(
            &self,
            key: &BucketKey,
            bytes: bytes::Bytes,
            replaced: Option<&Revision>,
        ) -> Result<bool, BucketError> {
            self.0.put_if(key, bytes, replaced).await
        }

        async fn put_own(&self, key: &BucketKey, bytes: bytes::Bytes) -> Result<(), BucketError> {
            self.0.put_own(key, bytes).await
        }

        async fn remove_own(&self, key: &BucketKey) -> Result<(), BucketError> {
            self.0.remove_own(key).await
        }

        fn list<'a>(&'a self, prefix: &Prefix) -> BoxStream<'a, Result<Listed, BucketError>> {
            self.0.list(prefix)
        }

        fn is_local(&self) -> bool {
            true
        }

        async fn try_put(&self, key: &BucketKey) -> Result<(), BucketError> {
            self.0.try_put(key).await
        }

        async fn accepts(&self, key: &BucketKey) -> Result<(), BucketError> {
            self.0.accepts(key).await
        }

        async fn check(&self) -> Result<(), BucketError> {
            self.0.check().await
        }
    }

    impl Fixture {
        fn prefetch(&self, ahead: ByteSize) -> Prefetch {
            Prefetch {
                bucket: Arc::new(Cached(self.bucket.clone())),
                cache: self.cache.clone(),
                freshness: Duration::ZERO,
                ahead: Ahead::new(ahead),
            }
        }
    }

    #[tokio::test]
    async fn bytes_ahead_of_execution_are_bounded_and_nobody_starves() {
        let f = fixture();
        std::fs::write(f.bucket.path().join("d/large"), vec![0; 3 << 10]).unwrap();
        let prefetch = f.prefetch(ByteSize::kib(2));
        let (base, keys) = (Prefix::new("d").unwrap(), [BucketKey::new("a").unwrap()]);
        // An input larger than the bound gets all of it.
        let large = [BucketKey::new("large").unwrap()];
        let first = prefetch.bring(&base, &large).await.unwrap();
        let mut second = std::pin::pin!(prefetch.bring(&base, &keys));
        assert!(futures_util::poll!(&mut second).is_pending());
        drop(first);
        second.await.unwrap();
    }

    /// Brings inputs as the host does for a directory bucket.
    async fn bring_in_place<'a>(prefetch: &'a Prefetch, names: &[&str]) -> Brought<'a> {
        let keys: Vec<_> = names.iter().map(|name| BucketKey::new(name).unwrap()).collect();
        prefetch.bring(&Prefix::new("d").unwrap(), &keys).await.unwrap()
    }

    #[tokio::test]
    async fn files_of_a_directory_are_read_where_they_are() {
        let f = fixture();
        let large: Vec<String> = (0..6).map(|n| format!("large {n}")).collect();
        for name in &large {
            std::fs::write(f.bucket.path().join("d").join(name), vec![7; 1 << 20]).unwrap();
        }
        let bucket = Arc::new(f.bucket.clone());
        let prefetch = Prefetch { bucket, ..f.prefetch(ByteSize::gib(1)) };
        let mut names: Vec<&str> = large.iter().map(String::as_str).collect();
        names.push("a");
        let brought = bring_in_place(&prefetch, &names).await;
        assert_eq!(brought.fetched, Fetched { bytes: (6 << 20) + 1, hits: 0, misses: 0 });
        let opened = |input: &&Input| match &input.content {
            InputContent::Bytes(_) => false,
            InputContent::File { source, .. } => source.opened().is_some(),
        };
        assert_eq!(brought.inputs.iter().filter(opened).count(), OPEN);
        let inputs = bytes(&brought);
        assert_eq!((inputs["a"].as_slice(), inputs["large 5"].len()), (&b"A"[..], 1 << 20));
        brought.in_place.check().unwrap();
        let blobs = f.cache.dir().join("blobs");
        assert_eq!(std::fs::read_dir(blobs).map_or(0, Iterator::count), 0, "nothing was copied");
    }

    #[tokio::test]
    async fn a_file_that_changes_while_it_is_read_is_noticed() {
        let f = fixture();
        let path = f.bucket.path().join("d/large");
        let bucket = Arc::new(f.bucket.clone());
        let prefetch = Prefetch { bucket, ..f.prefetch(ByteSize::gib(1)) };
        let write = |byte: u8| std::fs::write(&path, vec![byte; 1 << 20]).unwrap();
        type Change<'a> = (&'a str, &'a dyn Fn(), bool);
        let changes: [Change<'_>; 6] = [
            ("nothing", &|| (), false),
            ("other bytes", &|| write(2), true),
            (
                "shorter",
                &|| File::options().write(true).open(&path).unwrap().set_len(1).unwrap(),
                true,
            ),
            (
                "the same time again",
                &|| {
                    let file = File::options().write(true).open(&path).unwrap();
                    let modified = file.metadata().unwrap().modified().unwrap();
                    io::Write::write_all(&mut &file, b"3").unwrap();
                    file.set_modified(modified).unwrap();
                },
                true,
            ),
            (
                "replaced",
                &|| {
                    let other = path.with_extension("new");
                    std::fs::write(&other, "4").unwrap();
                    std::fs::rename(other, &path).unwrap();
                },
                false,
            ),
            ("removed", &|| std::fs::remove_file(&path).unwrap(), false),
        ];
        for (what, change, is_noticed) in changes {
            write(1);
            // If the file system's clock is coarse, two writes in quick succession get the same
            // time.
            std::thread::sleep(Duration::from_millis(20));
            let brought = bring_in_place(&prefetch, &["large"]).await;
            let InputContent::File { source, .. } = &brought.inputs[0].content else { panic!() };
            change();
            brought.in_place.check().expect("the guest has not read it");
            source.closes(&source.open().unwrap());
            match brought.in_place.check() {
                Ok(()) => assert!(!is_noticed, "{what}"),
                Err(error) => assert!(
                    is_noticed && matches!(error, PrefetchError::Changed { .. }),
                    "{what}: {error}"
                ),
            }
        }
    }

    #[tokio::test]
    async fn a_file_that_is_replaced_before_it_is_opened_again_is_noticed() {
        let f = fixture();
        let names = ["0", "1", "2", "3", "4"];
        for name in names {
            std::fs::write(f.bucket.path().join("d").join(name), vec![7; 1 << 20]).unwrap();
        }
        let bucket = Arc::new(f.bucket.clone());
        let prefetch = Prefetch { bucket, ..f.prefetch(ByteSize::gib(1)) };
        for content in [Some("other"), None] {
            let brought = bring_in_place(&prefetch, &names).await;
            let InputContent::File { source, .. } = &brought.inputs[OPEN].content else { panic!() };
            assert!(source.opened().is_none());
            let path = f.bucket.path().join("d/4");
            std::fs::remove_file(&path).unwrap();
            if let Some(content) = content {
                std::fs::write(&path, content).unwrap();
            }
            source.open().unwrap_err();
            let error = brought.in_place.check().unwrap_err();
            match content {
                Some(_) => assert!(matches!(error, PrefetchError::Changed { .. }), "{error}"),
                None => assert!(error.to_string().contains("there is no object"), "{error}"),
            }
            std::fs::write(&path, vec![7; 1 << 20]).unwrap();
        }
    }

    #[tokio::test]
    async fn inputs_are_where_the_guest_expects_them() {
        let f = fixture();
        assert_eq!(bring(&f, &[]).await.unwrap(), (Fetched::default(), Inputs::new()));
        let (fetched, inputs) = bring(&f, &["a", "0_input/b", "x/y/z", "a"]).await.unwrap();
        assert_eq!(fetched, Fetched { bytes: 8, hits: 0, misses: 3 });
        let want = [("0_input/b", "B"), ("a", "A"), ("x/y/z", "same A")];
        assert_eq!(inputs, want.map(|(name, text)| (name.to_owned(), text.into())).into());
    }

    #[test]
    fn an_input_below_another_is_found_whatever_is_between_them() {
        let check = |names: &[&str], want: Option<&str>| {
            let keys: Vec<_> = names.iter().map(|name| BucketKey::new(name).unwrap()).collect();
            let wanted = |path: &BucketKey| Wanted {
                path: path.clone(),
                key: path.clone(),
                is_optional: false,
            };
            match (distinct(keys.iter().map(wanted).collect()), want) {
                (Ok(distinct), None) => {
                    let got: Vec<_> = distinct.iter().map(|one| one.path.as_str()).collect();
                    assert_eq!(got, names, "in the order of the message");
                }
                (Err(error), Some(want)) => assert!(error.to_string().contains(want), "{error}"),
                (got, want) => panic!("{names:?}: {:?}, {want:?}", got.err()),
            }
        };
        check(&["z", "a/b", "a-b", "ab", "a.b/c"], None);
        check(
            &["a/b/c", "a-b", "a", "a/a"],
            Some("input `a/b/c`: can't be placed below /inputs/a"),
        );
        check(
            &["a/b/x/y", "a/b-c", "a/b"],
            Some("input `a/b/x/y`: can't be placed below /inputs/a/b"),
        );
    }

    #[tokio::test]
    async fn small_inputs_are_in_memory_and_few_of_the_large_ones_are_open() {
        let f = fixture();
        let mut names = Vec::new();
        for (kind, count, size) in [("small", 40, SMALL), ("large", 10, SMALL + 1)] {
            std::fs::create_dir(f.bucket.path().join("d").join(kind)).unwrap();
            for n in 0..count {
                let name = format!("{kind}/{n}");
                let bytes = vec![n; size as usize];
                std::fs::write(f.bucket.path().join("d").join(&name), bytes).unwrap();
                names.push(BucketKey::new(&name).unwrap());
            }
        }
        let (base, prefetch) = (Prefix::new("d").unwrap(), f.prefetch(ByteSize::gib(1)));
        let brought = prefetch.bring(&base, &names).await.unwrap();
        let (mut memory, mut open, mut closed) = (0, 0, 0);
        for input in &brought.inputs {
            match &input.content {
                InputContent::Bytes(bytes) => memory += bytes.len() as u64,
                InputContent::File { source, .. } if source.opened().is_some() => open += 1,
                InputContent::File { .. } => closed += 1,
            }
        }
        assert_eq!((memory, open), (MEMORY, OPEN));
        assert_eq!(closed, 50 - OPEN - (MEMORY / SMALL) as usize);
        assert_eq!(bytes(&brought).len(), 50);
    }

    #[tokio::test]
    async fn an_input_that_is_not_there_is_named() {
        let f = fixture();
        for names in [&["no/such"][..], &["a", "no/such"]] {
            let error = bring(&f, names).await.unwrap_err();
            assert!(matches!(error, PrefetchError::NotFound { .. }));
            let want = format!("input `no/such`: {} has no object `d/no/such`", f.bucket);
            assert_eq!(error.to_string(), want);
        }
    }

    #[tokio::test]
    async fn an_input_that_can_not_be_is_named() {
        let f = fixture();
        for (names, want) in [
            (&["x", "a"][..], "input `x`: "),
            (&["x/y", "x/y/z"], "input `x/y/z`: can't be placed below /inputs/x/y"),
            (&["x/y/z", "x"], "input `x/y/z`: can't be placed below /inputs/x,"),
        ] {
            let error = bring(&f, names).await.unwrap_err();
            assert!(matches!(error, PrefetchError::Invalid { .. }), "{error}");
            assert!(error.to_string().starts_with(want), "{error}");
        }
    }

    #[tokio::test]
    async fn many_inputs_all_arrive() {
        let f = fixture();
        let names: Vec<_> = (0..500).map(|i| format!("many/{i}")).collect();
        std::fs::create_dir(f.bucket.path().join("d/many")).unwrap();
        for name in &names {
            std::fs::write(f.bucket.path().join("d").join(name), name).unwrap();
        }
        let names: Vec<_> = names.iter().map(|name| BucketKey::new(name).unwrap()).collect();
        // Run on the runtime's worker threads, as the host does.
        let (prefetch, all) = (f.prefetch(ByteSize::mib(1)), names.clone());
        let brought = tokio::spawn(async move {
            let base = Prefix::new("d").unwrap();
            prefetch.bring(&base, &all).await.map(|brought| (brought.fetched, bytes(&brought)))
        });
        let (fetched, inputs) = brought.await.unwrap().unwrap();
        assert_eq!(fetched.misses, 500);
        for name in names.iter().map(BucketKey::as_str) {
            assert_eq!(inputs[name], name.as_bytes());
        }
    }

    #[tokio::test]
    async fn a_blob_that_vanishes_before_it_is_read_is_fetched_again() {
        // This test plays the other host, and removes each blob as soon as it sees it.
        let f = fixture();
        let blobs = f.cache.dir().join("blobs");
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let remover = std::thread::spawn({
            let stop = stop.clone();
            move || {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    for shard in std::fs::read_dir(&blobs).into_iter().flatten().flatten() {
                        for blob in std::fs::read_dir(shard.path()).into_iter().flatten() {
                            let _ = std::fs::remove_file(blob.unwrap().path());
                        }
                    }
                    std::thread::sleep(std::time::Duration::from_micros(300));
                }
            }
        });
        for i in 0..200 {
            std::fs::write(f.bucket.path().join("d/a"), format!("{i}")).unwrap();
            let (_, inputs) = bring(&f, &["a"]).await.unwrap();
            assert_eq!(inputs["a"], format!("{i}").into_bytes());
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        remover.join().unwrap();
    }
}
