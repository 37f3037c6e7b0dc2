//! What the cache promises, against a bucket that counts.

use std::collections::HashMap;
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::BoxStream;

use super::*;
use crate::bucket::Listed;
use crate::key::Prefix;

/// A bucket in memory that counts what it is asked, and can be made to fail.
#[derive(Debug, Default)]
struct Counting {
    objects: Mutex<HashMap<String, (u64, Vec<u8>)>>,
    heads: AtomicUsize,
    gets: AtomicUsize,
    /// That many gets find the disk full.
    full: AtomicUsize,
    /// That many gets write half of the object and claim that it is all.
    short: AtomicUsize,
    local: bool,
    /// Each get waits until this is released.
    gate: Option<tokio::sync::Semaphore>,
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

    async fn get(&self, key: &BucketKey, mut into: File) -> Result<Version, BucketError> {
        self.gets.fetch_add(1, Ordering::SeqCst);
        if let Some(gate) = &self.gate {
            gate.acquire().await.unwrap().forget();
        }
        let (version, bytes) = self.object(key)?;
        if take_one(&self.full) {
            let error = io::Error::from(Errno::NOSPC);
            return Err(BucketError::unavailable(self, "reading", key, error));
        }
        let short = take_one(&self.short);
        let written = if short { &bytes[..bytes.len() / 2] } else { &bytes[..] };
        io::Write::write_all(&mut into, written).unwrap();
        Ok(version)
    }

    async fn put(&self, _: &BucketKey, _: &Dir, _: &BucketKey) -> Result<(), BucketError> {
        Err(BucketError::invalid(self, "is only read"))
    }

    fn list<'a>(&'a self, _: &Prefix) -> BoxStream<'a, Result<Listed, BucketError>> {
        futures_util::stream::empty().boxed()
    }

    fn is_local(&self) -> bool {
        self.local
    }

    async fn check(&self) -> Result<(), BucketError> {
        Ok(())
    }
}

struct Fixture {
    root: tempfile::TempDir,
    into: Dir,
}

fn fixture() -> Fixture {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("into")).unwrap();
    let into = Dir::from_std_file(File::open(root.path().join("into")).unwrap());
    Fixture { root, into }
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

/// What a disk that lost its power may do to a file.
fn truncate(file: &Path) {
    std::fs::remove_file(file).unwrap();
    std::fs::write(file, "by").unwrap();
}

fn key(text: &str) -> BucketKey {
    BucketKey::new(text).unwrap()
}

const LARGE: u64 = 1 << 40;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_tasks_that_want_the_same_input_download_it_once() {
    let f = fixture();
    let cache = f.cache(LARGE);
    let gate = Some(tokio::sync::Semaphore::new(0));
    let bucket = Arc::new(Counting { gate, ..Counting::default() }.with("k", "bytes"));
    let tasks: Vec<_> = (0..100)
        .map(|_| {
            let (cache, bucket) = (cache.clone(), bucket.clone());
            tokio::spawn(async move { cache.fetch(&*bucket, &key("k")).await.unwrap() })
        })
        .collect();
    while bucket.heads.load(Ordering::SeqCst) < 100 {
        tokio::task::yield_now().await;
    }
    bucket.gate.as_ref().unwrap().add_permits(100);
    let blobs: Vec<_> = join_all(tasks).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(bucket.gets(), 1);
    assert!(blobs.iter().all(|blob| blob.digest == Digest::of(b"bytes")));
    assert_eq!(blobs.iter().filter(|blob| !blob.hit).count(), 1);
}

#[tokio::test]
async fn a_failed_download_fails_for_all_who_wait_and_can_be_tried_again() {
    let f = fixture();
    let cache = f.cache(LARGE);
    let bucket = Counting::default().with("k", "bytes");
    bucket.short.store(1, Ordering::SeqCst);
    let fetch = || async { cache.fetch(&bucket, &key("k")).await };
    let error = fetch().await.unwrap_err();
    assert!(error.to_string().contains("2 bytes came of 5"), "{error}");
    assert_eq!((f.blob_files().len(), f.tmp_files()), (0, 0), "no half blob is kept");
    assert_eq!(fetch().await.unwrap().digest, Digest::of(b"bytes"));
}

#[tokio::test]
async fn a_download_that_is_dropped_leaves_nothing_behind() {
    use futures_util::FutureExt;
    let f = fixture();
    let cache = f.cache(LARGE);
    let gate = Some(tokio::sync::Semaphore::new(0));
    let bucket = Counting { gate, ..Counting::default() }.with("k", "bytes");
    {
        let k = key("k");
        let mut fetch = Box::pin(cache.fetch(&bucket, &k));
        assert!((&mut fetch).now_or_never().is_none());
        assert_eq!(f.tmp_files(), 1);
    }
    assert_eq!(f.tmp_files(), 0);
    bucket.gate.as_ref().unwrap().add_permits(1);
    cache.fetch(&bucket, &key("k")).await.unwrap();
}

#[tokio::test]
async fn a_second_use_is_a_hit_and_a_changed_object_is_seen() {
    let f = fixture();
    let cache = f.cache(LARGE);
    let bucket = Counting::default().with("k", "one");
    assert!(!cache.fetch(&bucket, &key("k")).await.unwrap().hit);
    assert!(cache.fetch(&bucket, &key("k")).await.unwrap().hit);
    assert_eq!(bucket.gets(), 1);
    bucket.set("k", "two");
    let changed = cache.fetch(&bucket, &key("k")).await.unwrap();
    assert!(!changed.hit);
    assert_eq!(changed.digest, Digest::of(b"two"));
}

#[tokio::test]
async fn equal_content_under_two_keys_is_stored_once() {
    let f = fixture();
    let cache = f.cache(LARGE);
    let bucket = Counting::default().with("a", "same").with("b", "same");
    let a = cache.fetch(&bucket, &key("a")).await.unwrap();
    let b = cache.fetch(&bucket, &key("b")).await.unwrap();
    assert_eq!(a.digest, b.digest);
    assert_eq!((f.blob_files().len(), f.tmp_files()), (1, 0));
}

#[tokio::test]
async fn an_object_that_is_not_there_is_the_buckets_error() {
    let f = fixture();
    let error = f.cache(LARGE).fetch(&Counting::default(), &key("k")).await.unwrap_err();
    assert_eq!(error.to_string(), "counting://: there is no object `k`");
}

#[tokio::test]
async fn what_was_fetched_survives_a_restart() {
    let f = fixture();
    let bucket = Counting::default().with("k", "bytes");
    f.cache(LARGE).fetch(&bucket, &key("k")).await.unwrap();
    let restarted = f.cache(LARGE);
    assert!(restarted.fetch(&bucket, &key("k")).await.unwrap().hit);
    assert_eq!(bucket.gets(), 1);
    bucket.set("k", "other");
    assert_eq!(restarted.fetch(&bucket, &key("k")).await.unwrap().digest, Digest::of(b"other"));
    // A directory bucket's objects are as near as the index would be.
    let local = Counting { local: true, ..Counting::default() }.with("l", "local");
    restarted.fetch(&local, &key("l")).await.unwrap();
    assert_eq!(files(&f.root.path().join("cache/index")).len(), 1);
}

#[tokio::test]
async fn an_index_entry_goes_with_its_blob() {
    let f = fixture();
    let bucket = Counting::default().with("k", "bytes");
    f.cache(LARGE).fetch(&bucket, &key("k")).await.unwrap();
    std::fs::remove_file(&f.blob_files()[0]).unwrap();
    let restarted = f.cache(LARGE);
    while !files(&f.root.path().join("cache/index")).is_empty() {
        tokio::task::yield_now().await;
    }
    assert!(!restarted.fetch(&bucket, &key("k")).await.unwrap().hit);
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
    cache.fetch(&bucket, &key("k")).await.unwrap();
    assert_eq!(std::fs::read(&f.blob_files()[0]).unwrap(), b"bytes");
}

#[tokio::test]
async fn two_hosts_on_one_directory_share_its_blobs() {
    let f = fixture();
    let (one, two) = (f.cache(LARGE), f.cache(LARGE));
    let bucket = Counting::default().with("k", "bytes");
    one.fetch(&bucket, &key("k")).await.unwrap();
    let blob = two.fetch(&bucket, &key("k")).await.unwrap();
    assert!(blob.hit, "the index is shared too");
    // One removes what the other knows of; the other finds out and fetches it again.
    std::fs::remove_file(&f.blob_files()[0]).unwrap();
    let error = two.place(&blob, &f.into, &key("in"), Sharing::Copy).await.unwrap_err();
    assert!(matches!(error, CacheError::Gone { .. }), "{error}");
    let again = two.fetch(&bucket, &key("k")).await.unwrap();
    two.place(&again, &f.into, &key("in"), Sharing::Copy).await.unwrap();
    assert_eq!(f.into.read("in").unwrap(), b"bytes");
}

#[tokio::test]
async fn a_blob_of_the_wrong_size_is_dropped_and_fetched_again() {
    let f = fixture();
    let cache = f.cache(LARGE);
    let bucket = Counting::default().with("k", "bytes");
    for sharing in [Sharing::Link, Sharing::Copy] {
        let blob = cache.fetch(&bucket, &key("k")).await.unwrap();
        truncate(&f.blob_files()[0]);
        let error = cache.place(&blob, &f.into, &key("in"), sharing).await.unwrap_err();
        assert!(matches!(error, CacheError::Gone { .. }), "{error}");
        assert!(!f.into.exists("in"));
        assert!(!cache.fetch(&bucket, &key("k")).await.unwrap().hit);
    }
    let _known = cache.fetch(&bucket, &key("k")).await.unwrap();
    truncate(&f.blob_files()[0]);
    assert!(!cache.fetch(&bucket, &key("k")).await.unwrap().hit, "seen by the fetch as well");
}

#[tokio::test]
async fn an_input_is_read_only_and_a_copy_is_a_file_of_its_own() {
    let f = fixture();
    let cache = f.cache(LARGE);
    let large = vec![7; 2 * SMALL as usize];
    let bucket = Counting::default().with("k", "bytes").with("l", large.clone());
    let blob = cache.fetch(&bucket, &key("k")).await.unwrap();
    cache.place(&blob, &f.into, &key("a/link"), Sharing::Link).await.unwrap();
    cache.place(&blob, &f.into, &key("a/b/copy"), Sharing::Copy).await.unwrap();
    let blob = cache.fetch(&bucket, &key("l")).await.unwrap();
    cache.place(&blob, &f.into, &key("large"), Sharing::Copy).await.unwrap();
    let into = f.root.path().join("into");
    let meta = |name: &str| std::fs::metadata(into.join(name)).unwrap();
    assert_eq!(meta("a/link").nlink(), 2);
    assert_eq!(meta("a/b/copy").nlink(), 1);
    assert_eq!(std::fs::read(into.join("large")).unwrap(), large);
    for name in ["a/link", "a/b/copy", "large"] {
        assert_eq!(meta(name).mode() & 0o777, 0o444, "{name}");
    }
}

#[tokio::test]
async fn a_link_to_another_file_system_becomes_a_copy() {
    let f = fixture();
    let cache = f.cache(LARGE);
    let bucket = Counting::default().with("k", "bytes");
    let blob = cache.fetch(&bucket, &key("k")).await.unwrap();
    let shm = tempfile::tempdir_in("/dev/shm").unwrap();
    let into = Dir::from_std_file(File::open(shm.path()).unwrap());
    cache.place(&blob, &into, &key("d/in"), Sharing::Link).await.unwrap();
    assert_eq!(into.read("d/in").unwrap(), b"bytes");
}

#[tokio::test]
async fn the_cache_keeps_its_bound_and_what_was_used_last() {
    let f = fixture();
    let limit = 40 * 8192;
    let cache = f.cache(limit);
    let bucket = Counting::default().with("hot", vec![255; 8000]);
    for i in 0..200_u8 {
        bucket.set(&format!("{i}"), vec![i; 8000]);
        cache.fetch(&bucket, &key(&format!("{i}"))).await.unwrap();
        // A use is noted at most once a minute, so the test makes the last one look older.
        let hot = cache.fetch(&bucket, &key("hot")).await.unwrap();
        let old = std::time::SystemTime::now() - std::time::Duration::from_secs(100);
        let times = std::fs::FileTimes::new().set_accessed(old);
        cache.read(&hot).unwrap().set_times(times).unwrap();
        cache.fetch(&bucket, &key("hot")).await.unwrap();
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
    let bucket = Counting::default().with("linked", "linked").with("held", "held");
    let linked = cache.fetch(&bucket, &key("linked")).await.unwrap();
    cache.place(&linked, &f.into, &key("in"), Sharing::Link).await.unwrap();
    let linked = { linked }.digest;
    let held = cache.fetch(&bucket, &key("held")).await.unwrap();
    for i in 0..200_u8 {
        bucket.set("k", vec![i; 8000]);
        cache.fetch(&bucket, &key("k")).await.unwrap();
    }
    let there =
        |digest: Digest| f.blob_files().iter().any(|file| file.ends_with(digest.to_string()));
    assert!(there(linked) && there(held.digest));
    f.into.remove_file("in").unwrap();
    let held = { held }.digest;
    for i in 0..200_u8 {
        bucket.set("k", vec![i; 8001]);
        cache.fetch(&bucket, &key("k")).await.unwrap();
    }
    assert_eq!((there(linked), there(held)), (false, false), "and later it is");
}

#[tokio::test]
async fn an_input_larger_than_the_cache_is_delivered() {
    let f = fixture();
    let cache = f.cache(10_000);
    let large = vec![7; 3 * SMALL as usize];
    let bucket = Counting::default().with("l", large.clone()).with("s", "small");
    let blob = cache.fetch(&bucket, &key("l")).await.unwrap();
    cache.fetch(&bucket, &key("s")).await.unwrap();
    cache.place(&blob, &f.into, &key("in"), Sharing::Copy).await.unwrap();
    assert_eq!(f.into.read("in").unwrap(), large);
    drop(blob);
    bucket.set("s", "other");
    // Nothing is tried for a second after all that was left was in use.
    while f.blob_files().iter().any(|file| file.metadata().is_ok_and(|file| file.len() > 10_000)) {
        bucket.set("s", format!("{:?}", std::time::Instant::now()));
        cache.fetch(&bucket, &key("s")).await.unwrap();
    }
}

#[tokio::test]
async fn what_earlier_hosts_left_counts_too() {
    let f = fixture();
    let bucket = Counting::default();
    for i in 0..50_u8 {
        bucket.set(&format!("{i}"), vec![i; 8000]);
        f.cache(LARGE).fetch(&bucket, &key(&format!("{i}"))).await.unwrap();
    }
    let cache = f.cache(20 * 8192);
    while cache.0.room.stored() == 0 {
        tokio::task::yield_now().await;
    }
    bucket.set("new", "new");
    cache.fetch(&bucket, &key("new")).await.unwrap();
    assert!(f.blob_files().len() <= 20, "{}", f.blob_files().len());
}

#[tokio::test]
async fn a_full_disk_makes_room_once_and_then_says_so() {
    let f = fixture();
    let cache = f.cache(LARGE);
    let bucket = Counting::default().with("old", vec![1; 100_000]).with("new", vec![2; 100_000]);
    cache.fetch(&bucket, &key("old")).await.unwrap();
    bucket.full.store(1, Ordering::SeqCst);
    cache.fetch(&bucket, &key("new")).await.unwrap();
    assert_eq!(f.blob_files().len(), 1, "the old one made room");

    bucket.set("newer", vec![3; 100_000]);
    bucket.full.store(2, Ordering::SeqCst);
    let error = cache.fetch(&bucket, &key("newer")).await.unwrap_err();
    assert!(matches!(error, CacheError::Full { .. }), "{error}");
    let error = error.to_string();
    let dir = cache.dir().to_str().unwrap();
    for part in [dir, "97.7 KiB", "its limit is 1.0 TiB", "are free on its disk"] {
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
