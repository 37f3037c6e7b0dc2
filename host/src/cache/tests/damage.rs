//! Damaged files in the cache.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;

/// A way to damage a file, with or without a change of its size.
type Harm = fn(&Path);

/// Changes one bit and no metadata, as a failing disk may do.
fn flip(file: &Path) {
    let modified = file.metadata().unwrap().modified().unwrap();
    let mut bytes = std::fs::read(file).unwrap();
    let half = bytes.len() / 2;
    bytes[half] ^= 1;
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::write(file, bytes).unwrap();
    File::options().write(true).open(file).unwrap().set_modified(modified).unwrap();
}

fn replace_by_a_directory(file: &Path) {
    std::fs::remove_file(file).unwrap();
    std::fs::create_dir_all(file.join("with/something/in/it")).unwrap();
}

fn replace_by_a_link(file: &Path) {
    std::fs::remove_file(file).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", file).unwrap();
}

fn replace_the_shard_by_a_file(file: &Path) {
    std::fs::remove_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(file.parent().unwrap(), "a file").unwrap();
}

fn empty(file: &Path) {
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::write(file, "").unwrap();
}

const HARMS: [Harm; 6] =
    [flip, truncate, empty, replace_by_a_directory, replace_by_a_link, replace_the_shard_by_a_file];

#[tokio::test]
async fn a_damaged_blob_never_reaches_a_task_and_is_fetched_again() {
    for local in [true, false] {
        for bytes in [b"bytes".to_vec(), vec![7; 2 * SMALL as usize]] {
            for harm in HARMS {
                let f = fixture();
                let bucket = Counting { local, ..Counting::default() }.with("k", bytes.clone());
                let cache = f.cache(LARGE);
                let digest = cache.fetch(&bucket, &key("k"), NOW).await.unwrap().digest;
                let file = f.blob_files().remove(0);
                harm(&file);
                let restarted = f.cache(LARGE);
                let blob = restarted.fetch(&bucket, &key("k"), NOW).await.unwrap();
                assert_eq!((blob.digest, blob.hit), (digest, false));
                assert_eq!(read(&restarted, &blob).unwrap(), bytes);
                assert!(restarted.fetch(&bucket, &key("k"), NOW).await.unwrap().hit);
                assert_eq!(bucket.gets(), 2);
                // The host that has run all the time also recognises that this is another file.
                assert!(cache.fetch(&bucket, &key("k"), NOW).await.unwrap().hit);
            }
        }
    }
}

#[tokio::test]
async fn many_who_want_a_damaged_blob_fetch_it_once() {
    let f = fixture();
    let bucket = Counting::default().with("k", vec![7; 2 * SMALL as usize]);
    f.cache(LARGE).fetch(&bucket, &key("k"), NOW).await.unwrap();
    flip(&f.blob_files()[0]);
    let restarted = f.cache(LARGE);
    let k = key("k");
    let all = join_all((0..50).map(|_| restarted.fetch(&bucket, &k, NOW))).await;
    assert!(all.into_iter().all(|blob| blob.is_ok()));
    assert_eq!(bucket.gets(), 2);
}

#[tokio::test]
async fn a_file_that_takes_the_place_of_a_blob_is_read_before_it_is_used() {
    let f = fixture();
    let cache = f.cache(LARGE);
    let bucket = Counting::default().with("k", "bytes");
    cache.fetch(&bucket, &key("k"), NOW).await.unwrap();
    let file = f.blob_files().remove(0);
    let other = f.root.path().join("other");
    std::fs::write(&other, "wrong").unwrap();
    std::fs::rename(&other, &file).unwrap();
    assert!(!cache.fetch(&bucket, &key("k"), NOW).await.unwrap().hit);
    assert_eq!(std::fs::read(&file).unwrap(), b"bytes");
    // A file with the right bytes is used, wherever it came from.
    std::fs::write(&other, "bytes").unwrap();
    std::fs::rename(&other, &file).unwrap();
    assert!(cache.fetch(&bucket, &key("k"), NOW).await.unwrap().hit);
}

#[tokio::test]
async fn what_was_just_fetched_replaces_what_nobody_has_verified() {
    let f = fixture();
    let bucket =
        Counting { local: true, ..Counting::default() }.with("a", "same").with("b", "same");
    f.cache(LARGE).fetch(&bucket, &key("a"), NOW).await.unwrap();
    flip(&f.blob_files()[0]);
    let restarted = f.cache(LARGE);
    restarted.fetch(&bucket, &key("a"), NOW).await.unwrap();
    let file = f.blob_files().remove(0);
    assert_eq!(std::fs::read(&file).unwrap(), b"same");
    // The new file stays, because this process has verified it.
    let inode = file.metadata().unwrap().ino();
    restarted.fetch(&bucket, &key("b"), NOW).await.unwrap();
    assert_eq!(file.metadata().unwrap().ino(), inode);
}

#[tokio::test]
async fn a_damaged_index_costs_a_download_and_is_written_again() {
    let harms: [Harm; 6] = [
        flip,
        truncate,
        empty,
        replace_by_a_directory,
        replace_by_a_link,
        replace_the_shard_by_a_file,
    ];
    for harm in harms {
        let f = fixture();
        let bucket = Counting::default().with("k", "bytes");
        f.cache(LARGE).fetch(&bucket, &key("k"), NOW).await.unwrap();
        let entry = || files(&f.root.path().join("cache/index")).remove(0);
        harm(&entry());
        let blob = f.cache(LARGE).fetch(&bucket, &key("k"), NOW).await.unwrap();
        assert_eq!(blob.digest, Digest::of(b"bytes"));
        // Each of the two caches removes damaged entries in a thread of its own. A thread that read
        // the damaged entry before it was replaced may remove the new one: one more download.
        let mut hits = Vec::new();
        for _ in 0..3 {
            hits.push(f.cache(LARGE).fetch(&bucket, &key("k"), NOW).await.unwrap().hit);
        }
        assert!(hits.contains(&true), "{hits:?}");
    }
}

#[tokio::test]
async fn a_check_removes_what_is_damaged_and_nothing_else() {
    let f = fixture();
    let dir = f.root.path().join("cache");
    assert_eq!(check(&dir, |_| {}).unwrap(), Checked::default(), "there is no cache");
    let cache = f.cache(LARGE);
    // A host that has just started also scans the index.
    cache.0.capacity.ask(0).await;
    let bucket = Counting::default().with("a", "aaaa").with("b", "bbbb").with("c", "cc");
    for name in ["a", "b", "c"] {
        cache.fetch(&bucket, &key(name), NOW).await.unwrap();
    }
    let whole = Checked { blobs: 3, bytes: 10, index_entries: 3, ..Checked::default() };
    assert_eq!(check(&dir, |_| {}).unwrap(), whole);
    let hex = Digest::of(b"bbbb").to_string();
    flip(&dir.join("blobs").join(&hex[..2]).join(&hex));
    empty(&files(&dir.join("index"))[0]);
    let mut seen = 0;
    let found = check(&dir, |checked| seen = checked.blobs).unwrap();
    let damaged =
        Checked { damaged_blobs: 1, damaged_bytes: 4, damaged_index_entries: 1, ..whole.clone() };
    assert_eq!((found, seen), (damaged, 3));
    assert_eq!(f.blob_files().len(), 2);
    // A host that has verified the blob before notices the removal, and fetches it again.
    let blob = cache.fetch(&bucket, &key("b"), NOW).await.unwrap();
    assert!(!blob.hit);
    assert_eq!(io::read_to_string(cache.read(&blob).unwrap()).unwrap(), "bbbb");
    assert_eq!(check(&dir, |_| {}).unwrap().damaged_blobs, 0);
}
