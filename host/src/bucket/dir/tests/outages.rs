//! A directory that is replaced, unmounted, full or read-only while a host uses it.

use std::process::Command;

use super::*;

/// A file system that is mounted until it is dropped. The tests are run as root.
struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    fn new(at: &'a Path, args: &[&str]) -> Self {
        std::fs::create_dir_all(at).unwrap();
        run(Command::new("mount").args(args).arg(at));
        Self(at)
    }

    /// A small file system in memory.
    fn small(at: &'a Path) -> Self {
        Self::new(at, &["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
    }

    fn remount(&self, how: &str) {
        run(Command::new("mount").args(["-o", &format!("remount,{how}")]).arg(self.0));
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        // Also works for a file system that is in use.
        run(Command::new("umount").arg("-l").arg(self.0));
    }
}

#[track_caller]
fn run(command: &mut Command) {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} (which takes root): {said}");
}

#[track_caller]
fn copy_dir(from: &Path, to: &Path) {
    run(Command::new("cp").arg("-a").args([from, to]));
}

/// Checks that an error is an outage. Returns its text and the system error in it.
#[track_caller]
fn outage<T: fmt::Debug>(result: Result<T, BucketError>) -> (String, Option<Errno>) {
    let error = result.unwrap_err();
    assert!(matches!(error, BucketError::Unavailable { .. }), "{error}");
    let mut cause = std::error::Error::source(&error);
    let mut errno = None;
    while let Some(error) = cause {
        errno = errno.or_else(|| error.downcast_ref().and_then(Errno::from_io_error));
        cause = error.source();
    }
    (error.to_string(), errno)
}

async fn put(f: &Fixture, text: &str) -> Result<(), BucketError> {
    f.bucket.put(&key(text), &"new".into(), &key("file")).await.map(drop)
}

/// Checks that all operations of the bucket fail like this.
async fn is_out(f: &Fixture, want: &str, errno: Errno) {
    let all = [
        outage(get(&f.bucket, "d/in").await),
        outage(f.bucket.head(&key("missing")).await),
        outage(f.bucket.check().await),
        outage(f.bucket.try_get(&key("d/in")).await),
        outage(f.bucket.try_put(&key("d/out")).await),
        outage(f.bucket.accepts(&key("d/out")).await),
        outage(put(f, "d/out").await),
        outage(f.bucket.list(&Prefix::root()).next().await.unwrap()),
    ];
    for (text, met) in all {
        assert!(text.contains(want), "{text}");
        assert_eq!(met, Some(errno), "{text}");
    }
}

/// Checks that the bucket works again: puts arrive at the path, and nothing else is left there.
async fn works(f: &Fixture) {
    f.bucket.check().await.unwrap();
    assert_eq!(get(&f.bucket, "d/in").await.unwrap(), b"in");
    f.bucket.try_get(&key("d/in")).await.unwrap();
    f.bucket.try_put(&key("d/out")).await.unwrap();
    put(f, "d/out").await.unwrap();
    assert_eq!(std::fs::read(f.path.join("d/out")).unwrap(), b"new");
    // Also with a copy, for which the directory for copies is made again.
    let copied = vec![7; 2 * SMALL as usize];
    f.bucket.put(&key("d/copied"), &copied.clone().into(), &key("file")).await.unwrap();
    assert!(std::fs::read(f.path.join("d/copied")).unwrap() == copied);
    f.bucket.sync().await.unwrap();
    assert_eq!(list(&f.bucket, &Prefix::root()).await.len(), 3);
}

async fn with_an_object() -> Fixture {
    let f = fixture();
    std::fs::create_dir(f.path.join("d")).unwrap();
    std::fs::write(f.path.join("d/in"), "in").unwrap();
    // From here on the bucket is in use.
    assert_eq!(get(&f.bucket, "d/in").await.unwrap(), b"in");
    let tmp = f.bucket.root().unwrap().tmp().unwrap();
    std::fs::write(tmp.path().join("under-way"), "half").unwrap();
    f
}

#[tokio::test]
async fn a_directory_that_was_moved_away_is_missed_and_used_again_when_it_is_back() {
    let f = with_an_object().await;
    let away = f.path.with_extension("away");
    std::fs::rename(&f.path, &away).unwrap();
    is_out(&f, "the directory is gone; put it back", Errno::NOENT).await;
    assert!(!f.path.exists(), "nothing comes into being where it was");
    std::fs::rename(&away, &f.path).unwrap();
    works(&f).await;
}

#[tokio::test]
async fn a_directory_that_was_restored_from_a_copy_is_opened_again() {
    let f = with_an_object().await;
    let kept = f.path.with_extension("kept");
    copy_dir(&f.path, &kept);
    std::fs::remove_dir_all(&f.path).unwrap();
    is_out(&f, "the directory is gone", Errno::NOENT).await;
    copy_dir(&kept, &f.path);
    works(&f).await;
}

#[tokio::test]
async fn a_directory_that_was_exchanged_for_its_copy_is_noticed_without_a_failure() {
    let f = with_an_object().await;
    let old = f.path.with_extension("old");
    copy_dir(&f.path, &f.path.with_extension("copy"));
    std::fs::rename(&f.path, &old).unwrap();
    std::fs::rename(f.path.with_extension("copy"), &f.path).unwrap();
    works(&f).await;
    assert!(!old.join("d/out").exists());
}

#[tokio::test]
async fn a_file_in_place_of_the_directory_is_an_outage() {
    let f = with_an_object().await;
    let away = f.path.with_extension("away");
    std::fs::rename(&f.path, &away).unwrap();
    std::fs::write(&f.path, "a file").unwrap();
    is_out(&f, "replaced by something else; put it back", Errno::NOTDIR).await;
    std::fs::remove_file(&f.path).unwrap();
    std::fs::rename(&away, &f.path).unwrap();
    works(&f).await;
}

#[tokio::test]
async fn nothing_is_put_below_a_file_system_that_is_not_mounted() {
    let f = fixture();
    // The same file system has to come back, so it is mounted twice.
    let backing = f.path.with_extension("backing");
    let _backing = Mounted::small(&backing);
    let args = ["--bind", backing.to_str().unwrap()];
    {
        let _mounted = Mounted::new(&f.path, &args);
        std::fs::create_dir(f.path.join("d")).unwrap();
        std::fs::write(f.path.join("d/in"), "in").unwrap();
        assert_eq!(get(&f.bucket, "d/in").await.unwrap(), b"in", "mounted after it was opened");
    }
    is_out(&f, "replaced by an empty one; is its file system mounted?", Errno::STALE).await;
    assert_eq!(std::fs::read_dir(&f.path).unwrap().count(), 0);
    let _mounted = Mounted::new(&f.path, &args);
    works(&f).await;
}

#[tokio::test]
async fn an_empty_directory_that_was_replaced_by_another_is_used() {
    let f = fixture();
    std::fs::rename(&f.path, f.path.with_extension("old")).unwrap();
    std::fs::create_dir(&f.path).unwrap();
    put(&f, "d/out").await.unwrap();
    assert!(f.path.join("d/out").exists());
}

#[tokio::test]
async fn an_object_that_is_missing_while_a_directory_is_restored_is_no_fault_of_the_task() {
    let f = with_an_object().await;
    let missing = f.bucket.head(&key("d/late")).await.unwrap_err();
    assert!(matches!(missing, BucketError::NotFound { .. }), "{missing}");
    std::fs::rename(&f.path, f.path.with_extension("old")).unwrap();
    std::fs::create_dir_all(f.path.join("d")).unwrap();
    let (text, _) = outage(get(&f.bucket, "d/late").await);
    assert!(text.contains("may not be complete yet"), "{text}");
    std::fs::write(f.path.join("d/late"), "late").unwrap();
    assert_eq!(get(&f.bucket, "d/late").await.unwrap(), b"late");
}

#[tokio::test]
async fn a_listing_of_a_directory_that_goes_away_does_not_end_as_if_it_were_complete() {
    let f = fixture();
    for i in 0..LISTED_AHEAD * 2 {
        std::fs::write(f.path.join(i.to_string()), "").unwrap();
    }
    let mut listing = f.bucket.list(&Prefix::root());
    assert!(listing.next().await.unwrap().is_ok());
    std::fs::rename(&f.path, f.path.with_extension("away")).unwrap();
    let mut last = None;
    while let Some(listed) = listing.next().await {
        last = Some(listed.map(drop));
    }
    outage(last.unwrap());
}

#[tokio::test]
async fn what_is_below_a_link_to_nothing_is_an_outage() {
    let f = fixture();
    let disk = tempfile::tempdir().unwrap();
    let target = disk.path().join("data");
    symlink(&target, f.path.join("linked")).unwrap();
    let want = "the link `linked` leads to nothing; is its file system mounted?";
    for result in [
        f.bucket.head(&key("linked/deep/in")).await.map(drop),
        put(&f, "linked/deep/out").await,
        f.bucket.accepts(&key("linked/deep/out")).await,
    ] {
        let (text, _) = outage(result);
        assert!(text.contains(want), "{text}");
    }
    std::fs::create_dir(&target).unwrap();
    put(&f, "linked/deep/out").await.unwrap();
    assert!(target.join("deep/out").exists());
}

/// Fills the file system at `at`, except for `spare` bytes.
fn fill(at: &Path, spare: u64) {
    let stat = rustix::fs::statvfs(at).unwrap();
    let free = stat.f_bavail * stat.f_frsize - spare;
    std::fs::write(at.join("ballast"), vec![1; free as usize]).unwrap();
}

#[tokio::test]
async fn a_full_disk_is_named_and_tried_with_what_did_not_fit() {
    let f = fixture();
    let _mounted = Mounted::small(&f.path);
    fill(&f.path, 64 << 10);
    f.bucket.try_put(&key("d/out")).await.unwrap();
    let content = Content::from(vec![7; 200 << 10]);
    let (text, errno) = outage(f.bucket.put(&key("d/out"), &content, &key("file")).await);
    let want = format!("free some space, or inodes, on the file system of {}/d", f.path.display());
    assert!(text.contains(&want), "{text}");
    assert_eq!(errno, Some(Errno::NOSPC));
    // There is room for a small file, but not for the object that failed.
    assert_eq!(outage(f.bucket.try_put(&key("d/out")).await).1, Some(Errno::NOSPC));
    std::fs::remove_file(f.path.join("ballast")).unwrap();
    f.bucket.try_put(&key("d/out")).await.unwrap();
    f.bucket.put(&key("d/out"), &content, &key("file")).await.unwrap();
    assert_eq!(list(&f.bucket, &Prefix::root()).await, [("d/out".to_owned(), 200 << 10)]);
}

#[tokio::test]
async fn a_file_system_that_is_read_only_is_named_and_can_be_read() {
    let f = fixture();
    let mounted = Mounted::small(&f.path);
    std::fs::write(f.path.join("in"), "in").unwrap();
    mounted.remount("ro");
    assert_eq!(get(&f.bucket, "in").await.unwrap(), b"in");
    f.bucket.check().await.unwrap();
    let want = format!("mount the file system of {}", f.path.display());
    for result in [put(&f, "d/out").await, f.bucket.try_put(&key("d/out")).await] {
        let (text, errno) = outage(result);
        assert!(text.contains(&want), "{text}");
        assert_eq!(errno, Some(Errno::ROFS));
    }
    mounted.remount("rw");
    f.bucket.try_put(&key("d/out")).await.unwrap();
    put(&f, "d/out").await.unwrap();
}

#[tokio::test]
async fn a_try_is_made_on_the_file_system_that_a_link_leads_to() {
    let f = fixture();
    let disk = f.path.with_extension("disk");
    let _mounted = Mounted::small(&disk);
    symlink(&disk, f.path.join("linked")).unwrap();
    fill(&disk, 0);
    f.bucket.try_put(&key("here")).await.unwrap();
    let (text, errno) = outage(f.bucket.try_put(&key("linked/not/made/yet")).await);
    assert_eq!(errno, Some(Errno::NOSPC), "{text}");
    std::fs::remove_file(disk.join("ballast")).unwrap();
    f.bucket.try_put(&key("linked/not/made/yet")).await.unwrap();
    assert_eq!(std::fs::read_dir(&disk).unwrap().count(), 0, "a try leaves nothing");
    assert_eq!(list(&f.bucket, &Prefix::root()).await, []);
}

#[tokio::test]
async fn a_reader_whose_own_disk_is_full_does_not_blame_the_bucket() {
    let f = fixture();
    std::fs::write(f.path.join("in"), vec![1; 2 << 20]).unwrap();
    let disk = f.path.with_extension("disk");
    let _mounted = Mounted::small(&disk);
    let into = File::create(disk.join("copy")).unwrap();
    let (text, errno) = outage(f.bucket.get(&key("in"), into).await);
    assert!(text.contains("the local copy can't be written"), "{text}");
    assert!(!text.contains("file system of"), "{text}");
    assert_eq!(errno, Some(Errno::NOSPC));
}

#[tokio::test]
async fn what_can_never_be_put_is_known_before_it_is_tried() {
    let f = fixture();
    std::fs::create_dir(f.path.join("dir")).unwrap();
    std::fs::write(f.path.join("object"), "x").unwrap();
    symlink("dir", f.path.join("link-to-dir")).unwrap();
    symlink("self", f.path.join("self")).unwrap();
    for (text, want) in [
        ("dir", "is a directory"),
        ("object/below", "a part of its path is an object"),
        ("object/far/below", "a part of its path is an object"),
        ("a/.task-host-tmp/b", "has a segment `.task-host-tmp`"),
        ("self/x", "a loop of links"),
    ] {
        let error = f.bucket.accepts(&key(text)).await.unwrap_err();
        assert!(matches!(error, BucketError::Invalid { .. }), "{error}");
        assert!(error.to_string().contains(want), "{error}");
        let error = put(&f, text).await.unwrap_err();
        assert!(matches!(error, BucketError::Invalid { .. }), "{error}");
    }
    let long = format!("new/{}", "n".repeat(255));
    for text in ["object", "new/deep", "dir/new", "link-to-dir", "link-to-dir/x", &long] {
        f.bucket.accepts(&key(text)).await.unwrap();
        assert!(!f.path.join("new").exists(), "a look makes nothing");
    }
    for text in ["object", "dir/new", "link-to-dir", &long] {
        put(&f, text).await.unwrap();
    }
}

#[tokio::test]
async fn an_object_that_is_larger_than_a_file_may_be_is_the_tasks_affair() {
    let f = fixture();
    let error = f.bucket.copy_failed(&key("d/big"), 1 << 40, Errno::FBIG.into());
    assert!(matches!(error, BucketError::Invalid { .. }), "{error}");
    assert!(error.to_string().contains("key `d/big`") && error.to_string().contains("ulimit -f"));
}

#[tokio::test]
async fn a_place_for_copies_that_somebody_removed_is_made_again() {
    let f = with_an_object().await;
    std::fs::remove_dir_all(f.path.join(TMP)).unwrap();
    works(&f).await;
}
