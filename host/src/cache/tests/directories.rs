//! Directories of the cache that are removed or replaced while it is in use.

use std::process::Command;

use super::*;

/// The directories that may be removed, as paths below the cache.
const PARTS: [&str; 5] = ["", "blobs", "tmp", "index", "compiled"];

/// Removes a directory as `rm -rf` does, again if files are added meanwhile.
fn remove(dir: &Path) {
    while let Err(error) = std::fs::remove_dir_all(dir) {
        match error.kind() {
            io::ErrorKind::NotFound => return,
            io::ErrorKind::DirectoryNotEmpty => {}
            _ => panic!("{error}"),
        }
    }
}

impl Fixture {
    /// A cache that has scanned its directories, as after opening.
    async fn scanned_cache(&self) -> Cache {
        let cache = self.cache(LARGE);
        cache.0.capacity.ask(0).await;
        cache
    }

    /// Fetches an object and reads it, as for a task's input: a removed blob is fetched again. True
    /// if the object was downloaded.
    async fn bring(&self, cache: &Cache, bucket: &Counting, name: &str) -> bool {
        let mut downloaded = false;
        for _ in 0..5 {
            let blob = cache.fetch(bucket, &key(name), NOW).await.unwrap();
            downloaded |= !blob.hit;
            match read(cache, &blob) {
                Ok(bytes) => {
                    assert_eq!(bytes, bucket.object(&key(name)).unwrap().1);
                    return downloaded;
                }
                Err(CacheError::Gone { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        panic!("it was gone each time");
    }
}

#[tokio::test]
async fn any_part_may_be_removed_at_any_time() {
    for local in [true, false] {
        let f = fixture();
        let (cache, other) = (f.cache(LARGE), f.cache(LARGE));
        let bucket = Counting { local, ..Counting::default() };
        let bucket = bucket.with("a", "a").with("large", vec![7; 2 * SMALL as usize]);
        for part in PARTS {
            f.bring(&cache, &bucket, "a").await;
            f.bring(&other, &bucket, "large").await;
            remove(&cache.dir().join(part));
            for (name, cache) in [("a", &cache), ("a", &other), ("large", &other)] {
                f.bring(cache, &bucket, name).await;
            }
            bucket.set("new", format!("new after {part}"));
            assert!(f.bring(&other, &bucket, "new").await);
            assert!(!f.bring(&cache, &bucket, "a").await, "{part}: it is kept again");
            cache.try_store(1000).await.unwrap();
        }
        assert_eq!(f.tmp_files(), 0);
        // The index is written again too.
        let restarted = f.cache(LARGE);
        assert_eq!(f.bring(&restarted, &bucket, "new").await, local);
    }
}

#[tokio::test]
async fn what_is_put_back_by_a_copy_is_used() {
    for part in PARTS {
        let f = fixture();
        let cache = f.scanned_cache().await;
        let bucket = Counting::default().with("k", "bytes");
        f.bring(&cache, &bucket, "k").await;
        let (dir, kept) = (cache.dir().join(part), f.root.path().join("kept"));
        std::fs::create_dir_all(&dir).unwrap();
        let copy = |from: &Path, to: &Path| {
            let status = Command::new("cp").arg("-aT").arg(from).arg(to).status().unwrap();
            assert!(status.success());
        };
        copy(&dir, &kept);
        remove(&dir);
        copy(&kept, &dir);
        assert!(!f.bring(&cache, &bucket, "k").await, "{part}: nothing has to be downloaded");
        bucket.set("k", "other");
        assert!(f.bring(&cache, &bucket, "k").await);
        let blobs = f.blob_files();
        assert_eq!(blobs.len(), 2, "{part}: stored where the path leads: {blobs:?}");
    }
}

#[tokio::test]
async fn a_download_survives_the_removal_of_its_directory() {
    for part in PARTS {
        let f = fixture();
        let cache = f.scanned_cache().await;
        let gate = Some(Arc::new(tokio::sync::Semaphore::new(0)));
        let bucket = Counting { gate, ..Counting::default() }.with("k", "bytes");
        let k = key("k");
        let mut fetch = Box::pin(cache.fetch(&bucket, &k, NOW));
        assert!(futures_util::poll!(&mut fetch).is_pending());
        remove(&cache.dir().join(part));
        bucket.gate.as_ref().unwrap().add_permits(2);
        let blob = fetch.await.unwrap();
        assert_eq!(read(&cache, &blob).unwrap(), b"bytes");
    }
}

#[tokio::test]
async fn a_cache_that_is_moved_away_and_back_goes_on() {
    let f = fixture();
    let cache = f.scanned_cache().await;
    let bucket = Counting::default().with("k", "bytes");
    f.bring(&cache, &bucket, "k").await;
    let away = f.root.path().join("away");
    std::fs::rename(cache.dir(), &away).unwrap();
    cache.0.blobs.current_dir().unwrap();
    assert!(!cache.dir().exists(), "nothing is in its way back");
    assert!(!f.bring(&cache, &bucket, "k").await);
    std::fs::rename(&away, cache.dir()).unwrap();
    assert!(!f.bring(&cache, &bucket, "k").await);
    bucket.set("k", "other");
    f.bring(&cache, &bucket, "k").await;
    assert_eq!(f.blob_files().len(), 2);
}

#[tokio::test]
async fn blobs_that_were_removed_by_hand_make_room() {
    let f = fixture();
    let cache = f.cache(20 * super::super::blobs::cost(8000));
    let bucket = Counting::default();
    for i in 0..15_u8 {
        bucket.set(&format!("{i}"), vec![i; 8000]);
        f.bring(&cache, &bucket, &format!("{i}")).await;
    }
    remove(&cache.dir().join("blobs"));
    for i in 100..115_u8 {
        bucket.set(&format!("{i}"), vec![i; 8000]);
        f.bring(&cache, &bucket, &format!("{i}")).await;
    }
    assert_eq!(f.blob_files().len(), 15, "none of the new ones had to go");
}

#[tokio::test]
async fn a_file_in_the_place_of_a_directory_is_said_and_can_be_put_right() {
    let f = fixture();
    let cache = f.scanned_cache().await;
    let bucket = Counting::default().with("k", "bytes");
    remove(cache.dir());
    std::fs::write(cache.dir(), "a file").unwrap();
    let error = cache.fetch(&bucket, &key("k"), NOW).await.unwrap_err();
    assert!(matches!(error, CacheError::Local { .. }), "{error}");
    assert!(cache.try_store(1).await.unwrap_err().is_of_this_host());
    std::fs::remove_file(cache.dir()).unwrap();
    cache.try_store(1).await.unwrap();
    f.bring(&cache, &bucket, "k").await;
}

#[tokio::test]
async fn a_cache_that_is_dropped_takes_its_directory_along() {
    let f = fixture();
    let cache = f.scanned_cache().await;
    let bucket = Counting::default().with("k", "bytes");
    f.bring(&cache, &bucket, "k").await;
    remove(cache.dir());
    f.bring(&cache, &bucket, "k").await;
    let tmp = cache.dir().join("tmp");
    drop(cache);
    let left = |dir: &Path| std::fs::read_dir(dir).unwrap().count();
    // The eviction thread may be using it at this moment.
    while left(&tmp) > 1 {
        tokio::task::yield_now().await;
    }
}
