//! The cache on a full disk: a small file system that a test mounts.

use std::os::unix::fs::MetadataExt;
use std::process::Command;

use super::*;

/// A file system in memory, mounted at a directory until it is dropped.
pub(crate) struct Tmpfs(PathBuf);

impl Tmpfs {
    pub(crate) fn mount(dir: &Path, options: &str) -> Self {
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(dir)
            .status()
            .expect("`mount` is needed for this test");
        assert!(status.success(), "this test has to be run by root: mount: {status}");
        Self(dir.to_owned())
    }

    /// Fills the free space with a file, and returns the file's path.
    pub(crate) fn fill(&self) -> PathBuf {
        let ballast = self.0.join("ballast");
        let mut file = File::create(&ballast).unwrap();
        while io::Write::write_all(&mut file, &[1; 4096]).is_ok() {}
        ballast
    }

    /// Removes a file and waits until its blocks are free: a process that another test is
    /// starting has all files of this one open for a moment.
    pub(crate) fn remove(&self, file: &Path) {
        std::fs::remove_file(file).unwrap();
        self.wait_until_empty();
    }

    fn wait_until_empty(&self) {
        loop {
            let stat = rustix::fs::statvfs(&self.0).unwrap();
            if stat.f_bfree * 2 > stat.f_blocks {
                return;
            }
            std::thread::yield_now();
        }
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_full_disk_under_the_cache_is_named_and_tried_until_there_is_room() {
    let f = fixture();
    let dir = f.root.path().join("cache");
    std::fs::create_dir(&dir).unwrap();
    let disk = Tmpfs::mount(&dir, "size=4m");
    let cache = f.cache(LARGE);
    let bucket = Counting::default().with("k", vec![7; 1 << 20]);
    let ballast = disk.fill();
    for error in [
        cache.fetch(&bucket, &key("k"), NOW).await.unwrap_err(),
        cache.try_store(1 << 20).await.unwrap_err(),
    ] {
        assert!(matches!(error, CacheError::Full { .. }), "{error}");
        assert!(error.is_of_this_host());
        assert!(error.to_string().starts_with(&format!("cache {}: no space", dir.display())));
    }
    assert_eq!(f.tmp_files(), 0);
    disk.remove(&ballast);
    cache.try_store(1 << 20).await.unwrap();
    assert_eq!((f.tmp_files(), f.blob_files().len()), (0, 0), "a try leaves nothing");
    cache.fetch(&bucket, &key("k"), NOW).await.unwrap();
}

#[tokio::test]
async fn a_try_needs_as_much_room_as_what_failed() {
    let f = fixture();
    let dir = f.root.path().join("cache");
    std::fs::create_dir(&dir).unwrap();
    let _disk = Tmpfs::mount(&dir, "size=4m");
    let cache = f.cache(LARGE);
    cache.try_store(1 << 20).await.unwrap();
    let error = cache.try_store(1 << 30).await.unwrap_err();
    assert!(matches!(error, CacheError::Full { .. }), "{error}");
}

#[tokio::test]
async fn a_cache_whose_file_system_was_unmounted_goes_on_where_it_is_mounted_again() {
    let f = fixture();
    let dir = f.root.path().join("cache");
    std::fs::create_dir(&dir).unwrap();
    let old = Tmpfs::mount(&dir, "size=4m");
    let cache = f.cache(LARGE);
    let bucket = Counting::default().with("a", "a").with("b", "b");
    cache.fetch(&bucket, &key("a"), NOW).await.unwrap();
    drop(old);
    let new = Tmpfs::mount(&dir, "size=4m");
    // The cache still has the old file system open, so nothing fails. A scan notices the change.
    cache.0.blobs.current_dir().unwrap();
    cache.fetch(&bucket, &key("b"), NOW).await.unwrap();
    let dev = std::fs::metadata(&dir).unwrap().dev();
    let stored: Vec<_> = f.blob_files();
    assert_eq!(stored.len(), 1);
    assert_eq!(std::fs::metadata(&stored[0]).unwrap().dev(), dev);
    drop(cache);
    drop(new);
}

#[tokio::test]
async fn whether_the_bucket_or_the_cache_failed_is_found_out() {
    let f = fixture();
    let cache = f.cache(LARGE);
    let check = async |errno, is_ours: bool| {
        let bucket = Counting { broken: Some(errno), ..Counting::default() }.with("k", "bytes");
        let error = cache.fetch(&bucket, &key("k"), NOW).await.unwrap_err();
        assert_eq!(error.is_of_this_host(), is_ours, "{error}");
        assert_eq!(matches!(error, CacheError::Local { .. }), is_ours, "{error}");
    };
    // Reading can fail with these errors, and the cache is writable.
    check(Errno::IO, false).await;
    check(Errno::STALE, false).await;
    check(Errno::CONNRESET, false).await;
    // Only writing fails with these errors.
    check(Errno::ROFS, true).await;
    check(Errno::FBIG, true).await;
    // If both the bucket and the cache may have failed, the error is the cache's.
    cache.0.capacity.ask(0).await;
    std::fs::remove_dir_all(cache.dir()).unwrap();
    std::fs::write(cache.dir(), "a file").unwrap();
    check(Errno::IO, true).await;
}
