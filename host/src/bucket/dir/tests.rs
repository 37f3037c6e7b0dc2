//! Guarantees of a directory bucket beyond those of every bucket.

mod outages;

use std::ffi::OsStr;
use std::os::unix::fs::{FileExt, symlink};

use futures_util::TryStreamExt;
use rustix::fs::CWD;

use super::put::Copying;
use super::*;
use crate::bucket::content::Opened;
use crate::spill::SpillDir;

struct Fixture {
    _root: tempfile::TempDir,
    bucket: DirBucket,
    path: PathBuf,
}

fn fixture() -> Fixture {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("bucket");
    let bucket = DirBucket::create(&path).unwrap();
    Fixture { _root: root, bucket, path }
}

fn key(text: &str) -> BucketKey {
    BucketKey::new(text).unwrap()
}

async fn get(bucket: &DirBucket, text: &str) -> Result<Vec<u8>, BucketError> {
    let mut file = tempfile::tempfile().unwrap();
    let version = bucket.get(&key(text), file.try_clone().unwrap()).await?;
    assert_eq!(version, bucket.head(&key(text)).await?);
    let mut bytes = Vec::new();
    io::Seek::rewind(&mut file).unwrap();
    io::Read::read_to_end(&mut file, &mut bytes).unwrap();
    Ok(bytes)
}

async fn list(bucket: &DirBucket, prefix: &Prefix) -> Vec<(String, u64)> {
    let mut all: Vec<_> = bucket
        .list(prefix)
        .map_ok(|listed| (listed.key.to_string(), listed.size))
        .try_collect()
        .await
        .unwrap();
    all.sort();
    all
}

#[test]
fn a_directory_that_can_not_be_made_is_named() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("file");
    std::fs::write(&file, "").unwrap();
    for path in [file.clone(), file.join("below")] {
        let error = DirBucket::create(&path).unwrap_err().to_string();
        assert_eq!(
            error,
            format!("{}: is not a directory; a bucket has to be one", path.display())
        );
    }
    let error = BucketError::unavailable(&"/data", "opening", "", Errno::ACCESS).to_string();
    assert!(error.starts_with("/data: opening failed: Permission denied"), "{error}");
}

#[tokio::test]
async fn what_is_put_is_got_and_listed() {
    let f = fixture();
    for (file, size) in [("small", 10), ("dir/large", 3 * SMALL as usize), ("empty", 0)] {
        let target = format!("base/0_output/{file}");
        f.bucket.put(&key(&target), &vec![7; size].into(), &key(file)).await.unwrap();
        assert_eq!(get(&f.bucket, &target).await.unwrap(), vec![7; size]);
    }
    let want = [
        ("base/0_output/dir/large".to_owned(), 3 * SMALL),
        ("base/0_output/empty".to_owned(), 0),
        ("base/0_output/small".to_owned(), 10),
    ];
    assert_eq!(list(&f.bucket, &Prefix::root()).await, want);
    assert_eq!(list(&f.bucket, &Prefix::new("base/0_output").unwrap()).await, want);
    assert_eq!(list(&f.bucket, &Prefix::new("base/0_output/dir").unwrap()).await, want[..1]);
    assert_eq!(list(&f.bucket, &Prefix::new("base/0_out").unwrap()).await, []);
    let tmp = f.bucket.root().unwrap().tmp().unwrap();
    assert_eq!(std::fs::read_dir(tmp.path()).unwrap().count(), 1, "only its lock is left");
    drop((tmp, f.bucket));
    assert!(!f.path.join(TMP).exists());
}

#[tokio::test]
async fn an_object_that_is_not_there_is_not_found() {
    let f = fixture();
    std::fs::write(f.path.join("object"), "x").unwrap();
    for text in ["nothing", "no/thing", "object/below"] {
        for error in
            [f.bucket.head(&key(text)).await.unwrap_err(), get(&f.bucket, text).await.unwrap_err()]
        {
            assert!(matches!(error, BucketError::NotFound { .. }), "{error}");
            assert!(error.to_string().contains(&format!("`{text}`")), "{error}");
        }
    }
}

#[tokio::test]
async fn a_key_that_collides_with_a_directory_or_an_object_is_named() {
    let f = fixture();
    std::fs::create_dir(f.path.join("dir")).unwrap();
    std::fs::write(f.path.join("object"), "x").unwrap();
    rustix::fs::mkfifoat(CWD, f.path.join("fifo"), Mode::RWXU).unwrap();
    for (text, want) in [
        ("dir", "key `dir` is a directory"),
        ("object/below", "key `object/below` can't be written: a part of its path"),
        ("object/far/below", "key `object/far/below` can't be written: a part of its path"),
        ("a/.task-host-tmp/b", "key `a/.task-host-tmp/b` has a segment `.task-host-tmp`"),
    ] {
        let put = f.bucket.put(&key(text), &"x".into(), &key("file")).await;
        let error = put.unwrap_err();
        assert!(matches!(error, BucketError::Invalid { .. }), "{error}");
        assert!(error.to_string().contains(want), "{error}");
    }
    drop(std::os::unix::net::UnixListener::bind(f.path.join("socket")).unwrap());
    std::os::unix::fs::symlink("fifo", f.path.join("link")).unwrap();
    for (text, want) in [
        ("dir", "is a directory"),
        ("fifo", "is not a regular file"),
        ("link", "is not a regular file"),
        ("socket", "is not a regular file"),
    ] {
        let error = get(&f.bucket, text).await.unwrap_err();
        assert!(error.to_string().contains(want), "{error}");
    }
}

#[tokio::test]
async fn a_changed_object_has_another_version() {
    let f = fixture();
    let mut versions = Vec::new();
    for content in ["one", "two", "three"] {
        f.bucket.put(&key("k"), &content.into(), &key("file")).await.unwrap();
        versions.push(f.bucket.head(&key("k")).await.unwrap());
        assert_eq!(get(&f.bucket, "k").await.unwrap(), content.as_bytes());
    }
    assert!(versions[0] != versions[1] && versions[1] != versions[2]);
}

/// A writer that never stops must lead to an error or to one version, not to a mix.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_never_gets_half_of_one_version_and_half_of_another() {
    let f = fixture();
    let path = f.path.join("k");
    std::fs::write(&path, vec![0; 100_000]).unwrap();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writer = std::thread::spawn({
        let (path, stop) = (path.clone(), stop.clone());
        move || {
            for n in (0..=255).cycle() {
                if stop.load(std::sync::atomic::Ordering::Relaxed) {
                    return;
                }
                // Written under another name and renamed, as the documentation asks.
                std::fs::write(path.with_extension("new"), vec![n; 100_000]).unwrap();
                std::fs::rename(path.with_extension("new"), &path).unwrap();
            }
        }
    });
    for _ in 0..200 {
        let mut file = tempfile::tempfile().unwrap();
        f.bucket.get(&key("k"), file.try_clone().unwrap()).await.ok();
        let mut bytes = Vec::new();
        io::Seek::rewind(&mut file).unwrap();
        io::Read::read_to_end(&mut file, &mut bytes).unwrap();
        assert!(bytes.windows(2).all(|pair| pair[0] == pair[1]));
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    writer.join().unwrap();
}

#[tokio::test]
async fn links_in_the_bucket_are_its_owners_and_are_followed() {
    let f = fixture();
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::write(elsewhere.path().join("a"), "linked").unwrap();
    symlink(elsewhere.path(), f.path.join("data")).unwrap();
    symlink("..", f.path.join("round")).unwrap();
    symlink(".", f.path.join("self")).unwrap();
    symlink("nowhere", f.path.join("dangling")).unwrap();
    assert_eq!(get(&f.bucket, "data/a").await.unwrap(), b"linked");
    let data = Prefix::new("data").unwrap();
    assert_eq!(list(&f.bucket, &data).await, [("data/a".to_owned(), 6)]);
    // A link to a directory above the bucket is followed once, and then recognised as a loop.
    let all = list(&f.bucket, &Prefix::root()).await;
    assert!(all.contains(&("data/a".to_owned(), 6)), "{all:?}");
}

#[tokio::test]
async fn a_listing_skips_what_can_not_be_a_key_and_what_is_the_hosts_own() {
    use std::os::unix::ffi::OsStrExt;
    let f = fixture();
    for name in [&b"ok"[..], b"\xff", b"new\nline", b"back\\slash"] {
        std::fs::write(f.path.join(OsStr::from_bytes(name)), "").unwrap();
    }
    let tmp = f.bucket.root().unwrap().tmp().unwrap();
    std::fs::write(tmp.path().join("half"), "half").unwrap();
    assert_eq!(list(&f.bucket, &Prefix::root()).await, [("ok".to_owned(), 0)]);
}

#[tokio::test]
async fn a_listing_that_is_dropped_early_ends_its_walk() {
    let f = fixture();
    for i in 0..LISTED_AHEAD * 3 {
        std::fs::write(f.path.join(i.to_string()), "").unwrap();
    }
    assert!(f.bucket.list(&Prefix::root()).next().await.unwrap().is_ok());
    // The walk holds a handle on the bucket for as long as it runs.
    while Arc::strong_count(&f.bucket.0) > 1 {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_copy_from_another_file_system_is_whole_and_leaves_nothing_behind() {
    let f = fixture();
    let file = Arc::new(tempfile::tempfile().unwrap());
    let source = || Opened::File(file.clone());
    for size in [100, 3 * SMALL] {
        file.write_all_at(&vec![7; size as usize], 0).unwrap();
        // What `put` does after a rename that failed with EXDEV.
        let copying = Copying { key: key("a/b/c"), source: source(), size };
        f.bucket.put_copy(copying).await.unwrap();
        assert_eq!(get(&f.bucket, "a/b/c").await.unwrap(), vec![7; size as usize]);
    }
    let copying = Copying { key: key("a"), source: source(), size: 3 * SMALL };
    let error = f.bucket.put_copy(copying).await.unwrap_err();
    assert!(error.to_string().contains("`a` is a directory"), "{error}");
    assert_eq!(list(&f.bucket, &Prefix::root()).await.len(), 1);
    let path = f.path.clone();
    drop(f.bucket);
    assert!(!path.join(TMP).exists());
}

/// `/dev/shm`, where it exists, is a separate file system.
#[tokio::test]
async fn a_file_of_another_file_system_is_put_too() {
    let f = fixture();
    let shm = tempfile::tempdir_in("/dev/shm").unwrap();
    let spill = SpillDir::new(shm.path()).unwrap();
    let (file, open) = spill.create().unwrap();
    io::Write::write_all(&mut &open, b"x").unwrap();
    let content = Content::File { file: Arc::new(file), size: 1 };
    f.bucket.put(&key("out/file"), &content, &key("file")).await.unwrap();
    drop((content, spill));
    assert_eq!(get(&f.bucket, "out/file").await.unwrap(), b"x");

    // The other way round: the bucket has a link to that file system.
    symlink(shm.path(), f.path.join("other")).unwrap();
    f.bucket.put(&key("other/sub/file"), &"y".into(), &key("file")).await.unwrap();
    assert_eq!(get(&f.bucket, "other/sub/file").await.unwrap(), b"y");
    assert!(!shm.path().join("sub").join(TMP).exists());
}

#[test]
fn what_a_killed_process_left_is_gone_after_the_next_open() {
    let f = fixture();
    let dead = f.path.join(TMP).join("dead");
    std::fs::create_dir_all(&dead).unwrap();
    std::fs::write(dead.join(".lock"), "").unwrap();
    std::fs::write(dead.join("half"), "half").unwrap();
    DirBucket::open(&f.path).unwrap();
    assert!(!f.path.join(TMP).exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn puts_at_once_into_a_new_directory_all_arrive() {
    let f = fixture();
    let puts = (0..64).map(|i| {
        let bucket = f.bucket.clone();
        tokio::spawn(async move {
            let target = key(&format!("new/deep/{}/{i}", i % 3));
            bucket.put(&target, &"x".into(), &key("x")).await.unwrap();
        })
    });
    for put in puts.collect::<Vec<_>>() {
        put.await.unwrap();
    }
    assert_eq!(list(&f.bucket, &Prefix::root()).await.len(), 64);
}

#[tokio::test]
async fn what_is_put_is_synced_after_a_while_and_at_the_end() {
    let root = tempfile::tempdir().unwrap();
    let put = async |bucket: &DirBucket| {
        let bucket_dir = bucket.path().to_owned();
        bucket.put(&key("out"), &"x".into(), &key("file")).await.unwrap();
        assert!(bucket_dir.join("out").exists());
    };
    let path = root.path().join("bucket");
    std::fs::create_dir(&path).unwrap();
    let soon = DirBucket::open_synced(&path, Duration::from_millis(1)).unwrap();
    for _ in 0..2 {
        put(&soon).await;
        while !soon.0.unsynced.is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    let late = DirBucket::open_synced(&path, Duration::from_secs(3600)).unwrap();
    put(&late).await;
    assert!(!late.0.unsynced.is_empty());
    late.close().await;
    assert!(late.0.unsynced.is_empty());
}

#[tokio::test]
async fn a_put_to_a_linked_file_system_is_synced_there() {
    let f = fixture();
    let shm = tempfile::tempdir_in("/dev/shm").unwrap();
    symlink(shm.path(), f.path.join("linked")).unwrap();
    for name in ["here", "linked/there", "linked/deep/there"] {
        f.bucket.put(&key(name), &"x".into(), &key("file")).await.unwrap();
    }
    let (here, there) = (Identity::of(&f.path).unwrap(), Identity::of(shm.path()).unwrap());
    let mut want = vec![here.device, there.device];
    want.sort_unstable();
    assert_eq!(f.bucket.0.unsynced.devices(), want);
    f.bucket.sync().await.unwrap();
    assert!(f.bucket.0.unsynced.is_empty());
}
