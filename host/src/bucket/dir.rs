//! A bucket that is a directory: a key is a relative path.
//!
//! An object is put by renaming it into place, so that nobody reads half of one. Where that
//! takes a copy, the copy is made below `.task-host-tmp`, which is no part of the bucket.
//! The directory is its owner's: links in it are followed, so that a data set may be on
//! another disk. Whoever adds objects while hosts run should rename them into place too.

mod walk;

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use cap_std::fs::Dir;
use futures_util::stream::{self, BoxStream, StreamExt};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, Stat, fstat, ioctl_ficlone, mkdirat, openat, renameat,
    statat,
};
use rustix::io::Errno;

use self::walk::Walk;
use super::outgoing::{Outgoing, Refused};
use super::{Bucket, BucketError, Listed, Object, Opened, SMALL, Version};
use crate::key::{BucketKey, Prefix};
use crate::scratch::{self, Scratch};

/// Where copies are made. No key has a segment of this name.
const TMP: &str = ".task-host-tmp";
/// Objects that a listing holds ahead of its reader.
const LISTED_AHEAD: usize = 256;
/// How often an object that changes while it is read is read again.
const READS: usize = 5;

/// A directory as a bucket.
#[derive(Debug, Clone)]
pub struct DirBucket(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    root: OwnedFd,
    /// Made when the first copy needs it; the last process to use it removes it.
    tmp: Mutex<Option<Arc<Scratch>>>,
}

impl DirBucket {
    /// Opens a directory that exists.
    ///
    /// # Errors
    /// [`BucketError::Invalid`] when there is none, [`BucketError::Unavailable`] when it
    /// can't be read.
    pub fn open(path: &Path) -> Result<Self, BucketError> {
        let shown = path.display();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = match openat(CWD, path, flags, Mode::empty()) {
            Ok(root) => root,
            Err(Errno::NOENT) => {
                let problem = "there is no such directory; check the path, or create it";
                return Err(BucketError::invalid(&shown, problem));
            }
            Err(Errno::NOTDIR) => {
                let problem = "is not a directory; a bucket has to be one";
                return Err(BucketError::invalid(&shown, problem));
            }
            Err(error) => {
                let error = io::Error::from(error);
                return Err(BucketError::unavailable(&shown, "opening", &"", error));
            }
        };
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let bucket = Self(Arc::new(Inner { path, root, tmp: Mutex::default() }));
        let tmp = bucket.0.path.join(TMP);
        if tmp.exists()
            && let Err(error) = scratch::sweep_and_tidy(&tmp)
        {
            // A bucket that is only read may well be read-only.
            tracing::debug!(path = %tmp.display(), %error, "leftovers in the bucket stay");
        }
        Ok(bucket)
    }

    /// Opens a directory, which is made if it doesn't exist.
    ///
    /// # Errors
    /// As [`DirBucket::open`]; and when it can't be made.
    pub fn create(path: &Path) -> Result<Self, BucketError> {
        std::fs::create_dir_all(path)
            .map_err(|error| BucketError::unavailable(&path.display(), "creating", &"", error))?;
        Self::open(path)
    }

    /// Where it is, as an absolute path.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// What a failure on `key` means. `doing` it may have met a directory on the way.
    fn failed(&self, doing: &'static str, key: &BucketKey, error: Errno) -> BucketError {
        match error {
            Errno::NOENT => {
                BucketError::NotFound { bucket: self.to_string(), key: key.to_string() }
            }
            Errno::ISDIR => self.invalid(key, "is a directory, not an object"),
            Errno::NOTDIR if doing == "writing" => self.invalid(
                key,
                "can't be written: a part of its path is an object, and has to be a directory",
            ),
            Errno::NOTDIR => {
                BucketError::NotFound { bucket: self.to_string(), key: key.to_string() }
            }
            Errno::NAMETOOLONG => self.invalid(key, "is too long for the file system"),
            Errno::LOOP => self.invalid(key, "leads through links that go round in a circle"),
            error => BucketError::unavailable(self, doing, key, io::Error::from(error)),
        }
    }

    fn invalid(&self, key: &BucketKey, problem: &str) -> BucketError {
        BucketError::invalid(self, format!("key `{key}` {problem}"))
    }

    fn check_key(&self, key: &BucketKey) -> Result<(), BucketError> {
        // One substring search; the segments are looked at only where it finds something.
        if key.as_str().contains(TMP) && key.as_str().split('/').any(|segment| segment == TMP) {
            let problem = format!("has a segment `{TMP}`, which is the host's own");
            return Err(self.invalid(key, &problem));
        }
        Ok(())
    }

    fn stat(&self, key: &BucketKey) -> Result<Version, BucketError> {
        self.check_key(key)?;
        let stat = statat(&self.0.root, key.as_str(), AtFlags::empty())
            .map_err(|error| self.failed("reading", key, error))?;
        self.version(key, &stat)
    }

    fn version(&self, key: &BucketKey, stat: &Stat) -> Result<Version, BucketError> {
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Ok(version(stat)),
            FileType::Directory => Err(self.failed("reading", key, Errno::ISDIR)),
            _ => Err(self.invalid(key, "is not a regular file")),
        }
    }

    fn open_object(&self, key: &BucketKey) -> Result<(File, Version), BucketError> {
        // A FIFO must not hold up the host until somebody writes to it.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let failed = |error| self.failed("reading", key, error);
        let fd = openat(&self.0.root, key.as_str(), flags, Mode::empty()).map_err(failed)?;
        let stat = fstat(&fd).map_err(failed)?;
        Ok((File::from(fd), self.version(key, &stat)?))
    }

    /// Copies one version of an object: never a mix of two.
    fn read_whole(
        &self,
        key: &BucketKey,
        mut opened: (File, Version),
        into: &mut File,
    ) -> Result<Version, BucketError> {
        let unavailable = |error| BucketError::unavailable(self, "reading", key, error);
        for _ in 0..READS {
            let (mut file, before) = opened;
            let copied = copy(&mut file, into, before.size).map_err(unavailable)?;
            let after = fstat(&file).map_err(|error| self.failed("reading", key, error))?;
            if copied == before.size && version(&after) == before {
                return Ok(before);
            }
            into.set_len(0).map_err(unavailable)?;
            io::Seek::rewind(into).map_err(unavailable)?;
            opened = self.open_object(key)?;
        }
        let busy = "it changed each time it was read; \
                    whoever writes it should write another name and rename it";
        Err(BucketError::unavailable(self, "reading", key, busy))
    }

    /// Renames into place, with the directories on the way made only when they are missing.
    fn rename_in(
        &self,
        from: impl AsFd,
        name: &OsStr,
        key: &BucketKey,
    ) -> Result<(), rustix::io::Errno> {
        let rename = || renameat(from.as_fd(), name, &self.0.root, key.as_str());
        match (rename(), key.parent()) {
            (Err(Errno::NOENT), Some(parent)) => {
                self.make_dirs(parent)?;
                rename()
            }
            (result, _) => result,
        }
    }

    fn make_dirs(&self, path: &str) -> Result<(), Errno> {
        let make = |path: &str| match mkdirat(&self.0.root, path, Mode::from_raw_mode(0o777)) {
            Err(Errno::EXIST) => Ok(()),
            other => other,
        };
        match make(path) {
            Err(Errno::NOENT) => {}
            other => return other,
        }
        for (end, _) in path.match_indices('/') {
            make(&path[..end])?;
        }
        make(path)
    }

    fn refused(&self, key: &BucketKey, file: &BucketKey, why: Refused) -> BucketError {
        match why {
            Refused::Not(what) => {
                BucketError::invalid(self, format!("can't put `{file}`: it is not {what}"))
            }
            Refused::Failed(error) => BucketError::unavailable(self, "writing", key, error),
        }
    }

    /// For a file on another file system: copies it, and renames the copy.
    fn put_copy(&self, key: &BucketKey, mut file: File, size: u64) -> Result<(), BucketError> {
        let unavailable = |error| BucketError::unavailable(self, "writing", key, error);
        let tmp = self.tmp().map_err(unavailable)?;
        match self.put_copy_by(&tmp, key, &mut file, size)? {
            Err(Errno::XDEV) => {}
            result => return result.map_err(|error| self.failed("writing", key, error)),
        }
        // The key is on yet another file system, by a link in the bucket: copy there.
        let parent = self.0.path.join(key.parent().unwrap_or("")).join(TMP);
        let tmp = Scratch::claim_and_tidy(&parent).map_err(unavailable)?;
        io::Seek::rewind(&mut file).map_err(unavailable)?;
        self.put_copy_by(&tmp, key, &mut file, size)?
            .map_err(|error| self.failed("writing", key, error))
    }

    fn put_copy_by(
        &self,
        tmp: &Scratch,
        key: &BucketKey,
        file: &mut File,
        size: u64,
    ) -> Result<Result<(), Errno>, BucketError> {
        let unavailable = |error| BucketError::unavailable(self, "writing", key, error);
        let name = uuid::Uuid::new_v4().to_string();
        let copy_path = RemovedOnDrop(tmp.path().join(&name));
        let mut target = File::create_new(&copy_path.0).map_err(unavailable)?;
        let copied = copy(file, &mut target, size).map_err(unavailable)?;
        if copied != size {
            let error = io::Error::other(format!("{copied} bytes came of {size}"));
            return Err(unavailable(error));
        }
        drop(target);
        let dir = scratch::open_dir(CWD, tmp.path()).map_err(|e| unavailable(e.into()))?;
        Ok(self.rename_in(&dir, OsStr::new(&name), key))
    }

    fn tmp(&self) -> io::Result<Arc<Scratch>> {
        let mut tmp = self.0.tmp.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tmp) = &*tmp {
            return Ok(tmp.clone());
        }
        let made = Arc::new(Scratch::claim_and_tidy(&self.0.path.join(TMP))?);
        Ok(tmp.insert(made).clone())
    }
}

struct RemovedOnDrop(PathBuf);

impl Drop for RemovedOnDrop {
    fn drop(&mut self) {
        // Gone already when it was renamed into place.
        let _ = std::fs::remove_file(&self.0);
    }
}

fn size(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

fn version(stat: &Stat) -> Version {
    let Stat { st_dev, st_ino, st_mtime, st_mtime_nsec, st_ctime, st_ctime_nsec, .. } = stat;
    let tag = format!(
        "{st_dev:x}-{st_ino:x}-{:x}-{st_mtime:x}.{st_mtime_nsec:x}-{st_ctime:x}.{st_ctime_nsec:x}",
        stat.st_size
    );
    Version { tag, size: size(stat) }
}

/// Copies to the end of `from`, sharing blocks where the file system can.
pub(crate) fn copy(from: &mut File, to: &mut File, size: u64) -> io::Result<u64> {
    use std::io::{Read, Write};
    const ONE_READ: usize = 64 * 1024;
    if size >= ONE_READ as u64 {
        if ioctl_ficlone(&*to, &*from).is_ok() {
            return Ok(to.metadata()?.len());
        }
        return io::copy(from, to);
    }
    // One byte more than is expected, to see that there is no more.
    let mut buffer = Vec::with_capacity(size as usize + 1);
    from.take(ONE_READ as u64 + 1).read_to_end(&mut buffer)?;
    to.write_all(&buffer)?;
    Ok(buffer.len() as u64)
}

impl fmt::Display for DirBucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "file://{}", self.0.path.display())
    }
}

#[async_trait]
impl Bucket for DirBucket {
    async fn head(&self, key: &BucketKey) -> Result<Version, BucketError> {
        self.stat(key)
    }

    async fn open(&self, key: &BucketKey, known: Option<&Version>) -> Result<Opened, BucketError> {
        self.check_key(key)?;
        let (file, version) = self.open_object(key)?;
        if known == Some(&version) {
            return Ok(Opened::Unchanged);
        }
        let (bucket, key) = (self.clone(), key.clone());
        Ok(Opened::Object(Box::new(OpenFile { bucket, key, file, version })))
    }

    async fn put(&self, key: &BucketKey, dir: &Dir, file: &BucketKey) -> Result<(), BucketError> {
        self.check_key(key)?;
        let outgoing = Outgoing::find(dir, file).map_err(|why| self.refused(key, file, why))?;
        match self.rename_in(outgoing.parent(), outgoing.name(), key) {
            Err(Errno::XDEV) => {}
            result => return result.map_err(|error| self.failed("writing", key, error)),
        }
        let (source, size) = match outgoing.open() {
            Ok(source) => (source, outgoing.size),
            Err(why) => return Err(self.refused(key, file, why)),
        };
        if size <= SMALL {
            return self.put_copy(key, source, size);
        }
        let (bucket, key) = (self.clone(), key.clone());
        blocking(move || bucket.put_copy(&key, source, size)).await
    }

    fn list<'a>(&'a self, prefix: &Prefix) -> BoxStream<'a, Result<Listed, BucketError>> {
        let (bucket, prefix) = (self.clone(), prefix.clone());
        // Starts when the stream is first asked, and ends when nobody takes its objects.
        let start = move || {
            let (sender, receiver) = tokio::sync::mpsc::channel(LISTED_AHEAD);
            tokio::task::spawn_blocking(move || {
                for found in Walk::new(&bucket, &prefix) {
                    if sender.blocking_send(found).is_err() {
                        return;
                    }
                }
            });
            stream::unfold(receiver, |mut receiver| async move {
                receiver.recv().await.map(|found| (found, receiver))
            })
        };
        stream::once(async move { start() }).flatten().boxed()
    }

    fn is_local(&self) -> bool {
        true
    }

    async fn try_put(&self, key: &BucketKey) -> Result<(), BucketError> {
        self.check_key(key)?;
        let unavailable = |error| BucketError::unavailable(self, "writing", key, error);
        let tmp = self.tmp().map_err(unavailable)?;
        let probe = RemovedOnDrop(tmp.path().join(uuid::Uuid::new_v4().to_string()));
        std::fs::write(&probe.0, [0; 4096]).map_err(unavailable)
    }

    async fn accepts(&self, key: &BucketKey) -> Result<(), BucketError> {
        self.check_key(key)?;
        match self.stat(key) {
            Err(error @ BucketError::Invalid { .. }) => Err(error),
            _ => Ok(()),
        }
    }

    async fn check(&self) -> Result<(), BucketError> {
        match std::fs::metadata(&self.0.path) {
            Ok(_) => Ok(()),
            Err(error) => Err(BucketError::unavailable(self, "reading", ".", error)),
        }
    }
}

/// A file of the bucket that is open.
#[derive(Debug)]
struct OpenFile {
    bucket: DirBucket,
    key: BucketKey,
    file: File,
    version: Version,
}

#[async_trait]
impl Object for OpenFile {
    fn version(&self) -> &Version {
        &self.version
    }

    async fn write_to(self: Box<Self>, mut into: File) -> Result<Version, BucketError> {
        let Self { bucket, key, file, version } = *self;
        if version.size <= SMALL {
            return bucket.read_whole(&key, (file, version), &mut into);
        }
        blocking(move || bucket.read_whole(&key, (file, version), &mut into)).await
    }
}

/// Runs on a thread that may block. It goes on when the caller doesn't wait any longer.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is going down, and so is everything that would use the answer.
            Err(_) => std::future::pending().await,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use futures_util::TryStreamExt;

    use super::*;

    struct Fixture {
        _root: tempfile::TempDir,
        bucket: DirBucket,
        path: PathBuf,
        outputs: Dir,
        outputs_path: PathBuf,
    }

    fn fixture() -> Fixture {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("bucket");
        let bucket = DirBucket::create(&path).unwrap();
        let outputs_path = root.path().join("outputs");
        std::fs::create_dir(&outputs_path).unwrap();
        let outputs = Dir::from_std_file(File::open(&outputs_path).unwrap());
        Fixture { _root: root, bucket, path, outputs, outputs_path }
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

    #[tokio::test]
    async fn what_is_put_is_got_and_listed() {
        let f = fixture();
        for (file, size) in [("small", 10), ("dir/large", 3 * SMALL as usize), ("empty", 0)] {
            f.outputs.create_dir_all("dir").unwrap();
            f.outputs.write(file, vec![7; size]).unwrap();
            let target = format!("base/0_output/{file}");
            f.bucket.put(&key(&target), &f.outputs, &key(file)).await.unwrap();
            assert!(!f.outputs.exists(file), "moved, not copied");
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
        assert!(!f.path.join(TMP).exists());
    }

    #[tokio::test]
    async fn an_object_that_is_not_there_is_not_found() {
        let f = fixture();
        std::fs::write(f.path.join("object"), "x").unwrap();
        for text in ["nothing", "no/thing", "object/below"] {
            for error in [
                f.bucket.head(&key(text)).await.unwrap_err(),
                get(&f.bucket, text).await.unwrap_err(),
            ] {
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
        f.outputs.write("file", "x").unwrap();
        for (text, want) in [
            ("dir", "key `dir` is a directory"),
            ("object/below", "key `object/below` can't be written: a part of its path"),
            ("object/far/below", "key `object/far/below` can't be written: a part of its path"),
            ("a/.task-host-tmp/b", "key `a/.task-host-tmp/b` has a segment `.task-host-tmp`"),
        ] {
            let put = f.bucket.put(&key(text), &f.outputs, &key("file")).await;
            let error = put.unwrap_err();
            assert!(matches!(error, BucketError::Invalid { .. }), "{error}");
            assert!(error.to_string().contains(want), "{error}");
        }
        for (text, want) in [("dir", "is a directory"), ("fifo", "is not a regular file")] {
            let error = get(&f.bucket, text).await.unwrap_err();
            assert!(error.to_string().contains(want), "{error}");
        }
    }

    #[tokio::test]
    async fn a_put_follows_no_link_and_takes_only_regular_files() {
        let f = fixture();
        std::fs::create_dir(f.path.join("secret")).unwrap();
        std::fs::write(f.path.join("secret/file"), "secret").unwrap();
        symlink(f.path.join("secret/file"), f.outputs_path.join("link")).unwrap();
        symlink(f.path.join("secret"), f.outputs_path.join("linked")).unwrap();
        std::fs::hard_link(f.path.join("secret/file"), f.outputs_path.join("hard")).unwrap();
        rustix::fs::mkfifoat(CWD, f.outputs_path.join("fifo"), Mode::RWXU).unwrap();
        for file in ["link", "linked/file", "hard", "fifo", "linked"] {
            let error = f.bucket.put(&key("out"), &f.outputs, &key(file)).await.unwrap_err();
            assert!(matches!(error, BucketError::Invalid { .. }), "{file}: {error}");
            assert!(error.to_string().contains(&format!("`{file}`")), "{error}");
        }
        assert!(!f.path.join("out").exists());
        assert!(f.path.join("secret/file").exists());
    }

    #[tokio::test]
    async fn a_changed_object_has_another_version() {
        let f = fixture();
        let mut versions = Vec::new();
        for content in ["one", "two", "three"] {
            f.outputs.write("file", content).unwrap();
            f.bucket.put(&key("k"), &f.outputs, &key("file")).await.unwrap();
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
                    // Another name, renamed: what the documentation asks for.
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
        // A link to above the bucket comes back to it once, and then is seen to be a circle.
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
        let tmp = f.bucket.tmp().unwrap();
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
        for size in [100, 3 * SMALL] {
            f.outputs.write("file", vec![7; size as usize]).unwrap();
            let file = f.outputs.open("file").unwrap().into_std();
            // What `put` does after a rename that failed with EXDEV.
            f.bucket.put_copy(&key("a/b/c"), file, size).unwrap();
            assert_eq!(get(&f.bucket, "a/b/c").await.unwrap(), vec![7; size as usize]);
        }
        let file = f.outputs.open("file").unwrap().into_std();
        let error = f.bucket.put_copy(&key("a"), file, 3 * SMALL).unwrap_err();
        assert!(error.to_string().contains("`a` is a directory"), "{error}");
        assert_eq!(list(&f.bucket, &Prefix::root()).await.len(), 1);
        let path = f.path.clone();
        drop(f.bucket);
        assert!(!path.join(TMP).exists());
    }

    /// `/dev/shm` is a file system of its own wherever there is one.
    #[tokio::test]
    async fn a_file_of_another_file_system_is_put_too() {
        let f = fixture();
        let shm = tempfile::tempdir_in("/dev/shm").unwrap();
        std::fs::write(shm.path().join("file"), "x").unwrap();
        let dir = Dir::from_std_file(File::open(shm.path()).unwrap());
        f.bucket.put(&key("out/file"), &dir, &key("file")).await.unwrap();
        assert_eq!(get(&f.bucket, "out/file").await.unwrap(), b"x");

        // The other way round: the bucket has a link to that file system.
        symlink(shm.path(), f.path.join("other")).unwrap();
        f.outputs.write("file", "y").unwrap();
        f.bucket.put(&key("other/sub/file"), &f.outputs, &key("file")).await.unwrap();
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
            f.outputs.write(format!("{i}"), "x").unwrap();
            let (bucket, dir) = (f.bucket.clone(), f.outputs.try_clone().unwrap());
            tokio::spawn(async move {
                let target = key(&format!("new/deep/{}/{i}", i % 3));
                bucket.put(&target, &dir, &key(&i.to_string())).await.unwrap();
            })
        });
        for put in puts.collect::<Vec<_>>() {
            put.await.unwrap();
        }
        assert_eq!(list(&f.bucket, &Prefix::root()).await.len(), 64);
    }
}
