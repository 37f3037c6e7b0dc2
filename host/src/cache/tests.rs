//! The guarantees of the cache, with a bucket that counts requests.

mod damage;
mod directories;
mod disk;
mod remote;

use std::collections::HashMap;
use std::fmt;
use std::io::Read;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use async_trait::async_trait;
use bytes::Bytes;
use bytesize::ByteSize;
use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::BoxStream;
use rustix::io::Errno;

use super::*;
use crate::bucket::{Content, Listed, PutTag, Revision};
use crate::key::Prefix;

pub(crate) use disk::Tmpfs;

/// A bucket in memory that counts requests, and can be made to fail.
#[derive(Debug, Default)]
struct Counting {
    objects: Mutex<HashMap<String, (u64, Vec<u8>)>>,
    heads: AtomicUsize,
    opens: AtomicUsize,
    /// The number of bodies that were fetched.
    gets: Arc<AtomicUsize>,
    /// This number of bodies fail because the disk is full.
    full: Arc<AtomicUsize>,
    /// This number of bodies are written by half, but reported as complete.
    short: Arc<AtomicUsize>,
    /// Bodies fail with this error.
    broken: Option<Errno>,
    local: bool,
    /// Each body waits until this is released.
    gate: Option<Arc<tokio::sync::Semaphore>>,
}

impl Counting {
    fn with(self, key: &str, bytes: impl Into<Vec<u8>>) -> Self {
        self.set(key, bytes);
        self
    }

    fn set(&self, key: &str, bytes: impl Into<Vec<u8>>) {
        let mut objects = self.objects.lock().unwrap();
        let version = objects.get(key).map_or(1, |(version, _)| version + 1);
        objects.insert(key.into(), (version, bytes.into()));
    }

    fn gets(&self) -> usize {
        self.gets.load(Ordering::SeqCst)
    }

    fn object(&self, key: &BucketKey) -> Result<(Version, Vec<u8>), BucketError> {
        match self.objects.lock().unwrap().get(key.as_str()) {
            Some((version, bytes)) => {
                let version = Version { tag: version.to_string(), size: bytes.len() as u64 };
                Ok((version, bytes.clone()))
            }
            None => Err(BucketError::NotFound { bucket: self.to_string(), key: key.to_string() }),
        }
    }
}

impl fmt::Display for Counting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("counting://")
    }
}

fn take_one(count: &AtomicUsize) -> bool {
    count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok()
}

#[async_trait]
impl Bucket for Counting {
    async fn head(&self, key: &BucketKey) -> Result<Version, BucketError> {
        self.heads.fetch_add(1, Ordering::SeqCst);
        Ok(self.object(key)?.0)
    }

    async fn open(&self, key: &BucketKey, known: Option<&Version>) -> Result<Opened, BucketError> {
        self.opens.fetch_add(1, Ordering::SeqCst);
        let (version, bytes) = self.object(key)?;
        if known == Some(&version) {
            return Ok(Opened::Unchanged);
        }
        let (full, short, gate) = (self.full.clone(), self.short.clone(), self.gate.clone());
        let (gets, broken) = (self.gets.clone(), self.broken);
        Ok(Opened::Object(Box::new(Counted { version, bytes, gets, full, short, broken, gate })))
    }

    async fn put(&self, _: &BucketKey, _: &Content, _: &BucketKey) -> Result<PutTag, BucketError> {
        Err(BucketError::invalid(self, "is only read"))
    }

    async fn read(&self, _: &BucketKey, _: u64) -> Result<(Bytes, Revision), BucketError> {
        Err(BucketError::invalid(self, "is not read whole"))
    }

    async fn put_if(
        &self,
        _: &BucketKey,
        _: Bytes,
        _: Option<&Revision>,
    ) -> Result<bool, BucketError> {
        Err(BucketError::invalid(self, "is only read"))
    }

    async fn put_own(&self, _: &BucketKey, _: Bytes) -> Result<(), BucketError> {
        Err(BucketError::invalid(self, "is only read"))
    }

    async fn remove_own(&self, _: &BucketKey) -> Result<(), BucketError> {
        Err(BucketError::invalid(self, "is only read"))
    }

    fn list<'a>(&'a self, _: &Prefix) -> BoxStream<'a, Result<Listed, BucketError>> {
        futures_util::stream::empty().boxed()
    }

    fn is_local(&self) -> bool {
        self.local
    }

    async fn try_put(&self, _: &BucketKey) -> Result<(), BucketError> {
        Err(BucketError::invalid(self, "is only read"))
    }

    async fn accepts(&self, _: &BucketKey) -> Result<(), BucketError> {
        Err(BucketError::invalid(self, "is only read"))
    }

    async fn check(&self) -> Result<(), BucketError> {
        Ok(())
    }
}

#[derive(Debug)]
struct Counted {
    version: Version,
    bytes: Vec<u8>,
    gets: Arc<AtomicUsize>,
    full: Arc<AtomicUsize>,
    short: Arc<AtomicUsize>,
    broken: Option<Errno>,
    gate: Option<Arc<tokio::sync::Semaphore>>,
}

#[async_trait]
impl Object for Counted {
    fn version(&self) -> &Version {
        &self.version
    }

    async fn write_to(self: Box<Self>, mut into: File) -> Result<Version, BucketError> {
        self.gets.fetch_add(1, Ordering::SeqCst);
        if let Some(gate) = &self.gate {
            gate.acquire().await.unwrap().forget();
        }
        let full = take_one(&self.full).then_some(Errno::NOSPC);
        if let Some(error) = full.or(self.broken) {
            let error = io::Error::from(error);
            return Err(BucketError::unavailable(&"counting://", "reading", "", error));
        }
        let short = take_one(&self.short);
        let written = if short { &self.bytes[..self.bytes.len() / 2] } else { &self.bytes[..] };
        io::Write::write_all(&mut into, written)
            .map_err(|error| BucketError::unavailable(&"counting://", "reading", "", error))?;
        Ok(self.version)
    }
}

struct Fixture {
    root: tempfile::TempDir,
}

/// The bytes of a blob, as a task's input is read.
fn read(cache: &Cache, blob: &Blob) -> Result<Vec<u8>, CacheError> {
    let mut bytes = Vec::new();
    cache.read(blob)?.read_to_end(&mut bytes).unwrap();
    Ok(bytes)
}

fn fixture() -> Fixture {
    Fixture { root: tempfile::tempdir().unwrap() }
}

impl Fixture {
    fn cache(&self, max_bytes: u64) -> Cache {
        Cache::open(CacheOptions { dir: self.root.path().join("cache"), max_bytes }).unwrap()
    }

    fn blob_files(&self) -> Vec<PathBuf> {
        files(&self.root.path().join("cache/blobs"))
    }

    fn tmp_files(&self) -> usize {
        files(&self.root.path().join("cache/tmp"))
            .iter()
            .filter(|file| !file.ends_with(".lock"))
            .count()
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found
}

/// Truncates a file, as a loss of power may do.
fn truncate(file: &Path) {
    std::fs::remove_file(file).unwrap();
    std::fs::write(file, "by").unwrap();
}

fn key(text: &str) -> BucketKey {
    BucketKey::new(text).unwrap()
}

const LARGE: u64 = 1 << 40;
const NOW: Duration = Duration::ZERO;

#[tokio::test]
async fn a_hundred_tasks_that_want_the_same_input_download_it_once() {
    let f = fixture();
    let cache = f.cache(LARGE);
    let gate = Some(Arc::new(tokio::sync::Semaphore::new(0)));
    let bucket = Counting { gate, ..Counting::default() }.with("k", "bytes");
    let k = key("k");
    let mut all = Box::pin(join_all((0..100).map(|_| cache.fetch(&bucket, &k, NOW))));
    assert!(futures_util::poll!(&mut all).is_pending());
    bucket.gate.as_ref().unwrap().add_permits(100);
    let blobs: Vec<_> = all.await.into_iter().map(Result::unwrap).collect();
    assert_eq!(bucket.gets(), 1);
    assert!(blobs.iter().all(|blob| blob.digest == Digest::of(b"bytes")));
    assert_eq!(blobs.iter().filter(|blob| !blob.hit).count(), 1);
    // Callers that asked during the first look share a look that began after they asked.
    assert_eq!(bucket.opens.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn an_input_costs_one_request_and_none_while_it_is_fresh() {
    let f = fixture();
    let cache = f.cache(LARGE);
    let bucket = Counting::default().with("k", "one");
    let requests = || (bucket.heads.load(Ordering::SeqCst), bucket.opens.load(Ordering::SeqCst));
    let long = Duration::from_secs(3600);
    cache.fetch(&bucket, &key("k"), long).await.unwrap();
    assert_eq!((requests(), bucket.gets()), ((0, 1), 1), "unknown: one request");
    assert!(cache.fetch(&bucket, &key("k"), long).await.unwrap().hit);
    cache.version(&bucket, &key("k"), long).await.unwrap();
    assert_eq!(requests(), (0, 1), "fresh: none");
    assert!(cache.fetch(&bucket, &key("k"), NOW).await.unwrap().hit);
    assert_eq!((requests(), bucket.gets()), ((0, 2), 1), "known: one, without bytes");
    bucket.set("k", "two");
    let old = cache.fetch(&bucket, &key("k"), long).await.unwrap();
    assert_eq!(old.digest, Digest::of(b"one"), "as fresh as was asked for");
    let new = cache.fetch(&bucket, &key("k"), NOW).await.unwrap();
    assert_eq!(new.digest, Digest::of(b"two"));
    assert_eq!((requests(), bucket.gets()), ((0, 3), 2), "changed: one, with the bytes");
    // Another process knows the fetched version, but not when it was last confirmed.
    assert!(f.cache(LARGE).fetch(&bucket, &key("k"), long).await.unwrap().hit);
    assert_eq!((requests(), bucket.gets()), ((0, 4), 2));
}

#[tokio::test]
async fn who_asks_after_a_change_does_not_get_what_was_asked_for_before() {
    let f = fixture();
    let cache = f.cache(LARGE);
    let gate = Some(Arc::new(tokio::sync::Semaphore::new(0)));
    let bucket = Counting { gate, ..Counting::default() }.with("k", "old");
    let k = key("k");
    let mut first = Box::pin(cache.fetch(&bucket, &k, NOW));
    assert!(futures_util::poll!(&mut first).is_pending());
    bucket.set("k", "new");
    let mut second = Box::pin(cache.fetch(&bucket, &k, NOW));
    assert!(futures_util::poll!(&mut second).is_pending());
    bucket.gate.as_ref().unwrap().add_permits(2);
    let (first, second) = futures_util::future::join(first, second).await;
    assert_eq!(first.unwrap().digest, Digest::of(b"old"));
    assert_eq!(second.unwrap().digest, Digest::of(b"new"));
}

#[tokio::test]
async fn bytes_wait_for_their_permit_without_a_connection() {
    let f = fixture();
    let cache = f.cache(LARGE);
    let bucket = Counting::default().with("k", vec![7; 4096]);
    let ahead = Ahead::new(ByteSize::kib(4));
    let other = ahead.take(1024).await;
    let k = key("k");
    let mut fetch = Box::pin(cache.fetch_ahead(&bucket, &k, NOW, &ahead));
    assert!(futures_util::poll!(&mut fetch).is_pending());
    assert_eq!((bucket.opens.load(Ordering::SeqCst), bucket.gets()), (1, 0));
    drop(other);
    let (blob, permit) = fetch.await.unwrap();
    assert_eq!((blob.size, bucket.gets()), (4096, 1));
    assert_eq!(bucket.opens.load(Ordering::SeqCst), 2, "asked again, not held");
    assert!(ahead.try_take(1024).is_none(), "its bytes count until it runs");
    drop(permit);
    assert!(ahead.try_take(4096).is_some());
}

#[tokio::test]
async fn a_failed_download_fails_for_all_who_wait_and_can_be_tried_again() {
    let f = fixture();
    let cache = f.cache(LARGE);
    let bucket = Counting::default().with("k", "bytes");
    bucket.short.store(1, Ordering::SeqCst);
    let fetch = || async { cache.fetch(&bucket, &key("k"), NOW).await };
    let error = fetch().await.unwrap_err();
    assert!(error.to_string().contains("2 of 5 bytes arrived"), "{error}");
    assert_eq!((f.blob_files().len(), f.tmp_files()), (0, 0), "no half blob is kept");
    assert_eq!(fetch().await.unwrap().digest, Digest::of(b"bytes"));
}

#[tokio::test]
async fn a_download_that_is_dropped_leaves_nothing_behind() {
    use futures_util::FutureExt;
    let f = fixture();
    let cache = f.cache(LARGE);
    let gate = Some(Arc::new(tokio::sync::Semaphore::new(0)));
    let bucket = Counting { gate, ..Counting::default() }.with("k", "bytes");
    {
        let k = key("k");
        let mut fetch = Box::pin(cache.fetch(&bucket, &k, NOW));
        assert!((&mut fetch).now_or_never().is_none());
        assert_eq!(f.tmp_files(), 1);
    }
    assert_eq!(f.tmp_files(), 0);
    bucket.gate.as_ref().unwrap().add_permits(1);
    cache.fetch(&bucket, &key("k"), NOW).await.unwrap();
}

#[tokio::test]
async fn a_second_use_is_a_hit_and_a_changed_object_is_seen() {
    let f = fixture();
    let cache = f.cache(LARGE);
    let bucket = Counting::default().with("k", "one");
    assert!(!cache.fetch(&bucket, &key("k"), NOW).await.unwrap().hit);
    assert!(cache.fetch(&bucket, &key("k"), NOW).await.unwrap().hit);
    assert_eq!(bucket.gets(), 1);
    bucket.set("k", "two");
    let changed = cache.fetch(&bucket, &key("k"), NOW).await.unwrap();
    assert!(!changed.hit);
    assert_eq!(changed.digest, Digest::of(b"two"));
}

#[tokio::test]
async fn equal_content_under_two_keys_is_stored_once() {
    let f = fixture();
    let cache = f.cache(LARGE);
    let bucket = Counting::default().with("a", "same").with("b", "same");
    let a = cache.fetch(&bucket, &key("a"), NOW).await.unwrap();
    let b = cache.fetch(&bucket, &key("b"), NOW).await.unwrap();
    assert_eq!(a.digest, b.digest);
    assert_eq!((f.blob_files().len(), f.tmp_files()), (1, 0));
}

#[tokio::test]
async fn an_object_that_is_not_there_is_the_buckets_error() {
    let f = fixture();
    let error = f.cache(LARGE).fetch(&Counting::default(), &key("k"), NOW).await.unwrap_err();
    assert_eq!(error.to_string(), "counting://: there is no object `k`");
}

#[tokio::test]
async fn what_was_fetched_survives_a_restart() {
    let f = fixture();
    let bucket = Counting::default().with("k", "bytes");
    f.cache(LARGE).fetch(&bucket, &key("k"), NOW).await.unwrap();
    let restarted = f.cache(LARGE);
    assert!(restarted.fetch(&bucket, &key("k"), NOW).await.unwrap().hit);
    assert_eq!(bucket.gets(), 1);
    bucket.set("k", "other");
    assert_eq!(
        restarted.fetch(&bucket, &key("k"), NOW).await.unwrap().digest,
        Digest::of(b"other")
    );
    // Reading an object of a directory bucket costs no more than reading the index.
    let local = Counting { local: true, ..Counting::default() }.with("l", "local");
    restarted.fetch(&local, &key("l"), NOW).await.unwrap();
    assert_eq!(files(&f.root.path().join("cache/index")).len(), 1);
}

#[tokio::test]
async fn an_index_entry_goes_with_its_blob() {
    let f = fixture();
    let bucket = Counting::default().with("k", "bytes");
    f.cache(LARGE).fetch(&bucket, &key("k"), NOW).await.unwrap();
    std::fs::remove_file(&f.blob_files()[0]).unwrap();
    let restarted = f.cache(LARGE);
    while !files(&f.root.path().join("cache/index")).is_empty() {
        tokio::task::yield_now().await;
    }
    assert!(!restarted.fetch(&bucket, &key("k"), NOW).await.unwrap().hit);
}

#[tokio::test]
async fn what_a_killed_host_left_is_swept_and_no_half_blob_is_used() {
    let f = fixture();
    let cache_dir = f.root.path().join("cache");
    let dead = cache_dir.join("tmp/dead");
    std::fs::create_dir_all(&dead).unwrap();
    std::fs::write(dead.join(".lock"), "").unwrap();
    std::fs::write(dead.join("0"), "half a down").unwrap();
    let cache = f.cache(LARGE);
    assert!(!dead.exists());
    let bucket = Counting::default().with("k", "bytes");
    cache.fetch(&bucket, &key("k"), NOW).await.unwrap();
    assert_eq!(std::fs::read(&f.blob_files()[0]).unwrap(), b"bytes");
}

#[tokio::test]
async fn two_hosts_on_one_directory_share_its_blobs() {
    let f = fixture();
    let (one, two) = (f.cache(LARGE), f.cache(LARGE));
    let bucket = Counting::default().with("k", "bytes");
    one.fetch(&bucket, &key("k"), NOW).await.unwrap();
    let blob = two.fetch(&bucket, &key("k"), NOW).await.unwrap();
    assert!(blob.hit, "the index is shared too");
    // One host removes a blob that the other knows. The other notices this and fetches it again.
    std::fs::remove_file(&f.blob_files()[0]).unwrap();
    let error = read(&two, &blob).unwrap_err();
    assert!(matches!(error, CacheError::Gone { .. }), "{error}");
    let again = two.fetch(&bucket, &key("k"), NOW).await.unwrap();
    assert_eq!(read(&two, &again).unwrap(), b"bytes");
}

#[tokio::test]
async fn a_blob_of_the_wrong_size_is_dropped_and_fetched_again() {
    let f = fixture();
    let cache = f.cache(LARGE);
    let bucket = Counting::default().with("k", "bytes");
    let blob = cache.fetch(&bucket, &key("k"), NOW).await.unwrap();
    truncate(&f.blob_files()[0]);
    let error = read(&cache, &blob).unwrap_err();
    assert!(matches!(error, CacheError::Gone { .. }), "{error}");
    assert!(!cache.fetch(&bucket, &key("k"), NOW).await.unwrap().hit);
    let _known = cache.fetch(&bucket, &key("k"), NOW).await.unwrap();
    truncate(&f.blob_files()[0]);
    assert!(!cache.fetch(&bucket, &key("k"), NOW).await.unwrap().hit, "seen by the fetch as well");
}

#[tokio::test]
async fn the_cache_keeps_its_bound_and_what_was_used_last() {
    let f = fixture();
    let limit = 40 * 8192;
    let cache = f.cache(limit);
    let bucket = Counting::default().with("hot", vec![255; 8000]);
    for i in 0..200_u8 {
        bucket.set(&format!("{i}"), vec![i; 8000]);
        cache.fetch(&bucket, &key(&format!("{i}")), NOW).await.unwrap();
        // A use is recorded at most once a minute, so the test makes the last one look older.
        let hot = cache.fetch(&bucket, &key("hot"), NOW).await.unwrap();
        let old = std::time::SystemTime::now() - std::time::Duration::from_secs(100);
        let times = std::fs::FileTimes::new().set_accessed(old);
        cache.read(&hot).unwrap().set_times(times).unwrap();
        cache.fetch(&bucket, &key("hot"), NOW).await.unwrap();
        drop(hot);
        let stored: u64 = f.blob_files().iter().map(|b| b.metadata().map_or(0, |b| b.len())).sum();
        assert!(stored <= limit, "{stored}");
    }
    assert!(f.blob_files().len() > 20, "no more is removed than is needed");
    assert_eq!(bucket.gets(), 201, "the one that is used all the time stays");
}

#[tokio::test]
async fn what_is_in_use_is_not_removed() {
    let f = fixture();
    let cache = f.cache(20 * 8192);
    let bucket = Counting::default().with("held", "held");
    let held = cache.fetch(&bucket, &key("held"), NOW).await.unwrap();
    for i in 0..200_u8 {
        bucket.set("k", vec![i; 8000]);
        cache.fetch(&bucket, &key("k"), NOW).await.unwrap();
    }
    let there =
        |digest: Digest| f.blob_files().iter().any(|file| file.ends_with(digest.to_string()));
    assert!(there(held.digest));
    let held = { held }.digest;
    for i in 0..200_u8 {
        bucket.set("k", vec![i; 8001]);
        cache.fetch(&bucket, &key("k"), NOW).await.unwrap();
    }
    assert!(!there(held), "and later it is");
}

#[tokio::test]
async fn an_input_larger_than_the_cache_is_delivered() {
    let f = fixture();
    let cache = f.cache(10_000);
    let large = vec![7; 3 * SMALL as usize];
    let bucket = Counting::default().with("l", large.clone()).with("s", "small");
    let blob = cache.fetch(&bucket, &key("l"), NOW).await.unwrap();
    cache.fetch(&bucket, &key("s"), NOW).await.unwrap();
    assert_eq!(read(&cache, &blob).unwrap(), large);
    drop(blob);
    bucket.set("s", "other");
    // Eviction pauses for a second if all remaining blobs were in use.
    while f.blob_files().iter().any(|file| file.metadata().is_ok_and(|file| file.len() > 10_000)) {
        bucket.set("s", format!("{:?}", std::time::Instant::now()));
        cache.fetch(&bucket, &key("s"), NOW).await.unwrap();
    }
}

#[tokio::test]
async fn what_earlier_hosts_left_counts_too() {
    let f = fixture();
    let bucket = Counting::default();
    for i in 0..50_u8 {
        bucket.set(&format!("{i}"), vec![i; 8000]);
        f.cache(LARGE).fetch(&bucket, &key(&format!("{i}")), NOW).await.unwrap();
    }
    let cache = f.cache(20 * 8192);
    while cache.0.capacity.stored() == 0 {
        tokio::task::yield_now().await;
    }
    bucket.set("new", "new");
    cache.fetch(&bucket, &key("new"), NOW).await.unwrap();
    assert!(f.blob_files().len() <= 20, "{}", f.blob_files().len());
}

#[tokio::test]
async fn a_full_disk_makes_room_once_and_then_says_so() {
    let f = fixture();
    let cache = f.cache(LARGE);
    let bucket = Counting::default().with("old", vec![1; 100_000]).with("new", vec![2; 100_000]);
    cache.fetch(&bucket, &key("old"), NOW).await.unwrap();
    bucket.full.store(1, Ordering::SeqCst);
    cache.fetch(&bucket, &key("new"), NOW).await.unwrap();
    assert_eq!(f.blob_files().len(), 1, "the old one made room");

    bucket.set("newer", vec![3; 100_000]);
    bucket.full.store(2, Ordering::SeqCst);
    let error = cache.fetch(&bucket, &key("newer"), NOW).await.unwrap_err();
    assert!(matches!(error, CacheError::Full { .. }), "{error}");
    let error = error.to_string();
    let dir = cache.dir().to_str().unwrap();
    for part in [dir, "97.7 KiB", "limit 1.0 TiB", "free on its disk "] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert_eq!(f.tmp_files(), 0);
}

#[tokio::test]
async fn a_cache_that_can_not_be_made_is_named() {
    let f = fixture();
    let dir = f.root.path().join("file");
    std::fs::write(&dir, "").unwrap();
    let error = Cache::open(CacheOptions { dir: dir.clone(), max_bytes: 1 }).unwrap_err();
    assert!(error.to_string().starts_with(&format!("cache {}: opening it", dir.display())));
}
