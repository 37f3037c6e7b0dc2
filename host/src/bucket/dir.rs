//! A bucket in a directory. A key is a relative path.
//!
//! A put renames a file into place, so that readers never see a partial object. If a copy is
//! needed, it is made below `.task-host-tmp`, which is not part of the bucket. Symbolic links in
//! the directory are followed, because its owner made them: a data set may be on another disk.
//! Programs that add objects while hosts run should rename them into place too.

mod error;
mod in_place;
mod put;
mod root;
mod sync;
#[cfg(test)]
mod tests;
mod walk;

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};
use parking_lot::RwLock;
use rustix::fs::{
    AtFlags, FallocateFlags, FileType, Mode, OFlags, Stat, fallocate, fstat, fstatvfs, fsync,
    mkdirat, openat, statat, unlinkat,
};
use rustix::io::Errno;

use self::error::DirError;
use self::root::Root;
use self::sync::{Holder, Unsynced};
use self::walk::Walk;
use super::{Bucket, BucketError, Content, Listed, Object, Opened, PutTag, Revision, Version};
use crate::blocking::{SMALL, blocking};
use crate::digest::Digest;
use crate::fault::{self, Step};
use crate::key::{BucketKey, Prefix};
use crate::process_dir;
use crate::system::{self, Identity};

pub use self::in_place::{InPlace, InPlaceError};
pub use self::sync::DirSync;

/// The directory for copies. No key has a segment of this name.
pub(crate) const TMP: &str = ".task-host-tmp";
/// The number of objects that a listing buffers.
const LISTED_AHEAD: usize = 256;
/// How often to read an object that changes during each read.
const READS: usize = 5;

/// The error text for such an object.
const BUSY: &str = "it changed during each read; \
                    write a file under another name and rename it into place";

/// The number of bytes that a trial put writes. It first checks that there is room for the largest
/// object that did not fit.
const TRIAL: usize = 4096;
/// How long a stopping host waits for its last sync.
const LAST_SYNC: Duration = Duration::from_secs(8);

/// A bucket in a directory. Clones share the bucket.
#[derive(Debug, Clone)]
pub struct DirBucket(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    root: RwLock<Arc<Root>>,
    unsynced: Unsynced,
    /// How long after a put the file system is synced. Zero disables these syncs.
    sync_every: Duration,
    /// A sync is scheduled.
    sync_is_due: AtomicBool,
    /// The size of the largest object that could not be put because the disk was full, in bytes.
    no_room_for: AtomicU64,
}

impl DirBucket {
    /// Opens a directory that exists.
    ///
    /// # Errors
    /// [`BucketError::Invalid`] when there is no directory, [`BucketError::Unavailable`] when it
    /// can't be read.
    pub fn open(path: &Path) -> Result<Self, BucketError> {
        Self::open_synced(path, Duration::ZERO)
    }

    /// As [`DirBucket::open`]. Syncs puts to the disk at most `sync_every` later. Zero leaves
    /// syncing to the operating system.
    ///
    /// # Errors
    /// As [`DirBucket::open`].
    pub fn open_synced(path: &Path, sync_every: Duration) -> Result<Self, BucketError> {
        let shown = path.display();
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let root = match Root::open(&path) {
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
                let error = DirError::at(&path, error);
                return Err(BucketError::unavailable(&shown, "opening", "", error));
            }
        };
        tidy(&path);
        Ok(Self(Arc::new(Inner {
            path,
            root: RwLock::new(Arc::new(root)),
            unsynced: Unsynced::default(),
            sync_every,
            sync_is_due: AtomicBool::new(false),
            no_room_for: AtomicU64::new(0),
        })))
    }

    /// Opens a directory and creates it if needed.
    ///
    /// # Errors
    /// As [`DirBucket::open`]; also when it can't be created.
    pub fn create(path: &Path) -> Result<Self, BucketError> {
        match std::fs::create_dir_all(path) {
            // Opening the directory reports what is there instead.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory
                ) => {}
            Err(error) => {
                let failed = DirError::at(path, error);
                return Err(BucketError::unavailable(&path.display(), "creating", "", failed));
            }
            Ok(()) => {}
        }
        Self::open(path)
    }

    /// The absolute path.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// The directory that is at the path now.
    fn root(&self) -> Result<Arc<Root>, DirError> {
        let known = self.0.root.read().clone();
        let now = known.now()?;
        if Arc::ptr_eq(&known, &now) {
            return Ok(known);
        }
        let mut current = self.0.root.write();
        // Another thread may have opened it meanwhile.
        if current.id != now.id {
            tracing::warn!("{self}: the directory was replaced; using the new one");
            *current = now;
            tidy(&self.0.path);
        }
        Ok(current.clone())
    }

    /// Runs `work` in the directory at the path. If it fails and the path meanwhile leads to
    /// another directory, runs it again there.
    fn in_root<T>(
        &self,
        doing: &'static str,
        key: &BucketKey,
        work: impl Fn(&Arc<Root>) -> Result<T, Errno>,
    ) -> Result<T, BucketError> {
        let root = || self.root().map_err(|gone| BucketError::unavailable(self, doing, key, gone));
        let mut current = root()?;
        loop {
            let error = match work(&current) {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            let now = root()?;
            if Arc::ptr_eq(&now, &current) {
                return Err(self.failed(doing, key, &now, error));
            }
            current = now;
        }
    }

    /// The error for a failure on `key`.
    fn failed(
        &self,
        doing: &'static str,
        key: &BucketKey,
        root: &Root,
        error: Errno,
    ) -> BucketError {
        match error {
            Errno::NOENT | Errno::NOTDIR if doing == "reading" => self.not_found(key, root),
            Errno::NOENT => match root.dangling_link(key) {
                Some(link) => self.dangling(doing, key, &link),
                None => self.unavailable(doing, key, error),
            },
            Errno::NOTDIR => self
                .invalid(key, "can't be written: a part of its path is an object, not a directory"),
            Errno::ISDIR => self.invalid(key, "is a directory, not an object"),
            Errno::NAMETOOLONG => self.invalid(key, "is too long for the file system"),
            Errno::LOOP => self.invalid(key, "leads through a loop of links"),
            // A socket or a missing device.
            Errno::NXIO | Errno::NODEV => self.invalid(key, "is not a regular file"),
            error => self.unavailable(doing, key, error),
        }
    }

    /// The error for a missing object: an outage if its directory may be missing.
    fn not_found(&self, key: &BucketKey, root: &Root) -> BucketError {
        if let Some(link) = root.dangling_link(key) {
            return self.dangling("reading", key, &link);
        }
        if root.is_being_restored() {
            let text = "there is no such object; the directory was replaced a moment ago and may \
                        not be complete yet";
            let error = DirError::because(text, Errno::NOENT);
            return BucketError::unavailable(self, "reading", key, error);
        }
        BucketError::NotFound { bucket: self.to_string(), key: key.to_string() }
    }

    /// The error for an object that exceeds the largest file that this host can write.
    fn too_large(&self, key: &BucketKey) -> BucketError {
        let problem = "can't be written: the object exceeds the largest file that the file system \
                       or the host's `ulimit -f` allows";
        self.invalid(key, problem)
    }

    fn dangling(&self, doing: &'static str, key: &BucketKey, link: &str) -> BucketError {
        let text = format!("the link `{link}` leads to nothing; is its file system mounted?");
        BucketError::unavailable(self, doing, key, DirError::because(text, Errno::NOENT))
    }

    fn unavailable(
        &self,
        doing: &'static str,
        key: &BucketKey,
        error: impl Into<io::Error>,
    ) -> BucketError {
        let dir = self.0.path.join(key.parent().unwrap_or_default());
        let path = self.0.path.join(key.as_str());
        BucketError::unavailable(self, doing, key, DirError::at_file(&path, &dir, error))
    }

    fn invalid(&self, key: &BucketKey, problem: &str) -> BucketError {
        BucketError::invalid(self, format!("key `{key}` {problem}"))
    }

    fn check_key(&self, key: &BucketKey) -> Result<(), BucketError> {
        // The cheap search first.
        if key.as_str().contains(TMP) && key.as_str().split('/').any(|segment| segment == TMP) {
            let problem = format!("has a segment `{TMP}`, which is reserved for the host");
            return Err(self.invalid(key, &problem));
        }
        Ok(())
    }

    fn check_type(&self, key: &BucketKey, stat: &Stat) -> Result<(), BucketError> {
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Ok(()),
            FileType::Directory => Err(self.invalid(key, "is a directory, not an object")),
            _ => Err(self.invalid(key, "is not a regular file")),
        }
    }

    fn open_object(&self, key: &BucketKey) -> Result<(File, Stat), BucketError> {
        // Opening a FIFO must not wait for a writer.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let (fd, stat) = self.in_root("reading", key, |root| {
            fault::shortage(Step::OpenInput)?;
            let fd = openat(root, key.as_str(), flags, Mode::empty())?;
            let stat = fstat(&fd)?;
            root.has_object();
            Ok((fd, stat))
        })?;
        self.check_type(key, &stat)?;
        Ok((File::from(fd), stat))
    }

    /// Copies one version of an object, never a mix of two.
    fn read_whole(
        &self,
        key: &BucketKey,
        mut opened: (File, Version),
        into: &mut File,
    ) -> Result<Version, BucketError> {
        let copy_failed = |error: io::Error| match Errno::from_io_error(&error) {
            // Only writes to the local copy can fail with these errors.
            Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => {
                let text = format!("the local copy can't be written: {error}");
                let error = DirError::because(text, error);
                BucketError::unavailable(self, "reading", key, error)
            }
            _ => self.unavailable("reading", key, error),
        };
        for _ in 0..READS {
            let (mut file, before) = opened;
            let copied = copy(&mut file, into, before.size).map_err(copy_failed)?;
            let after = fstat(&file).map_err(|error| self.unavailable("reading", key, error))?;
            if copied == before.size && version(&after) == before {
                return Ok(before);
            }
            into.set_len(0).map_err(copy_failed)?;
            io::Seek::rewind(into).map_err(copy_failed)?;
            let (file, stat) = self.open_object(key)?;
            opened = (file, version(&stat));
        }
        Err(BucketError::unavailable(self, "reading", key, BUSY))
    }

    /// Records that an object was put into the file system `device`.
    fn has_put(&self, root: &Arc<Root>, key: &BucketKey, device: u64) -> Result<(), BucketError> {
        root.has_object();
        let holder = || {
            if device == root.id.device {
                return Ok(Holder::Root(root.clone()));
            }
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let dir = openat(root, key.parent().unwrap_or("."), flags, Mode::empty())?;
            Ok(Holder::Linked(dir))
        };
        let added = self.0.unsynced.add(device, holder);
        added.map_err(|error| self.unavailable("syncing", key, error))?;
        self.sync_later();
        Ok(())
    }

    /// Schedules a sync unless one is scheduled.
    fn sync_later(&self) {
        if self.0.sync_every.is_zero() || self.0.sync_is_due.swap(true, Relaxed) {
            return;
        }
        let (inner, wait) = (Arc::downgrade(&self.0), self.0.sync_every);
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            let Some(bucket) = inner.upgrade().map(Self) else { return };
            // Cleared before the sync, because the sync may miss later puts.
            bucket.0.sync_is_due.store(false, Relaxed);
            if let Err(error) = bucket.sync().await {
                tracing::error!("{error}; outputs published since the last sync may be lost");
            }
        });
    }

    /// Tries the steps of a put, except for the final rename.
    fn try_to_put(&self, key: &BucketKey) -> Result<(), BucketError> {
        let failed = |error: io::Error| self.unavailable("writing", key, error);
        let (root, path, dir) = self.in_root("writing", key, |root| {
            let (path, dir) = root.deepest_above(key)?;
            Ok((root.clone(), path, dir))
        })?;
        let id = Identity::of_open(&dir).map_err(|error| failed(error.into()))?;
        let tmp = if id.shares_mount_with(root.id) {
            root.tmp()
        } else {
            root::claim(&dir, &self.0.path.join(path)).map(Arc::new)
        };
        let tmp = tmp.map_err(failed)?;
        let made = RemovedOnDrop(tmp.path().join(uuid::Uuid::new_v4().to_string()));
        let renamed = RemovedOnDrop(made.0.with_extension("put"));
        let wanted = self.0.no_room_for.load(Relaxed);
        let try_all = || {
            fault::shortage(Step::CreateOutput)?;
            let mut file = File::create_new(&made.0)?;
            make_room(&file, wanted)?;
            io::Write::write_all(&mut file, &[0; TRIAL])?;
            match fsync(&file) {
                Ok(()) | Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {}
                Err(error) => return Err(error.into()),
            }
            fault::shortage(Step::RenameOutput)?;
            std::fs::rename(&made.0, &renamed.0)?;
            std::fs::remove_file(&renamed.0)
        };
        try_all().map_err(failed)?;
        // Keeps a larger size that a failed put has recorded meanwhile.
        let _ = self.0.no_room_for.compare_exchange(wanted, 0, Relaxed, Relaxed);
        Ok(())
    }
}

/// Removes the leftovers of killed processes.
fn tidy(path: &Path) {
    let tmp = path.join(TMP);
    if tmp.exists()
        && let Err(error) = process_dir::sweep_and_tidy(&tmp)
    {
        // A bucket for inputs may be read-only.
        tracing::debug!(path = %tmp.display(), %error, "could not remove leftovers in the bucket");
    }
}

fn make_dirs(root: &Root, key: &BucketKey) -> Result<(), Errno> {
    let make = |path: &str| match mkdirat(root, path, Mode::from_raw_mode(0o777)) {
        Err(Errno::EXIST) => Ok(()),
        other => other,
    };
    let Some(path) = key.parent() else { return Ok(()) };
    match make(path) {
        Err(Errno::NOENT) => {}
        other => return other,
    }
    for (end, _) in path.match_indices('/') {
        make(&path[..end])?;
    }
    make(path)
}

/// Opens the object's directory and makes it if needed.
fn open_parent(root: &Root, key: &BucketKey) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = || openat(root, key.parent().unwrap_or("."), flags, Mode::empty());
    match open() {
        Err(Errno::NOENT) => {
            make_dirs(root, key)?;
            open()
        }
        opened => opened,
    }
}

/// Checks that there is room for `bytes` more bytes.
fn make_room(file: &File, bytes: u64) -> io::Result<()> {
    if bytes == 0 {
        return Ok(());
    }
    match fallocate(file, FallocateFlags::empty(), 0, bytes) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
            let stat = fstatvfs(file)?;
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            if free < bytes { Err(Errno::NOSPC.into()) } else { Ok(()) }
        }
        made => Ok(made?),
    }
}

struct RemovedOnDrop(PathBuf);

impl Drop for RemovedOnDrop {
    fn drop(&mut self) {
        // Fails if the file was renamed into place.
        let _ = std::fs::remove_file(&self.0);
    }
}

fn size(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

/// When a file was last written. A time before 1970 counts as 1970.
fn modified(stat: &Stat) -> SystemTime {
    let nanos = u32::try_from(stat.st_mtime_nsec).unwrap_or_default();
    let since = Duration::new(u64::try_from(stat.st_mtime).unwrap_or_default(), nanos);
    SystemTime::UNIX_EPOCH.checked_add(since).unwrap_or(SystemTime::UNIX_EPOCH)
}

fn version(stat: &Stat) -> Version {
    let Stat { st_dev, st_ino, st_mtime, st_mtime_nsec, st_ctime, st_ctime_nsec, .. } = stat;
    let tag = format!(
        "{st_dev:x}-{st_ino:x}-{:x}-{st_mtime:x}.{st_mtime_nsec:x}-{st_ctime:x}.{st_ctime_nsec:x}",
        stat.st_size
    );
    Version { tag, size: size(stat) }
}

/// Copies `from` up to its end. Shares blocks if the file system can.
fn copy(from: &mut File, to: &mut File, size: u64) -> io::Result<u64> {
    use std::io::{Read, Write};
    const ONE_READ: usize = 64 * 1024;
    if size >= ONE_READ as u64 {
        if system::share_blocks(to, from).is_ok() {
            return Ok(to.metadata()?.len());
        }
        return io::copy(from, to);
    }
    // The capacity has one extra byte, so that the end of the file is found without growing the
    // buffer.
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
        self.check_key(key)?;
        let stat = self.in_root("reading", key, |root| {
            let stat = statat(root, key.as_str(), AtFlags::empty())?;
            root.has_object();
            Ok(stat)
        })?;
        self.check_type(key, &stat)?;
        Ok(version(&stat))
    }

    async fn open(&self, key: &BucketKey, known: Option<&Version>) -> Result<Opened, BucketError> {
        self.check_key(key)?;
        let (file, stat) = self.open_object(key)?;
        let version = version(&stat);
        if known == Some(&version) {
            return Ok(Opened::Unchanged);
        }
        let (bucket, key) = (self.clone(), key.clone());
        Ok(Opened::Object(Box::new(OpenFile { bucket, key, file, version })))
    }

    async fn put(
        &self,
        key: &BucketKey,
        content: &Content,
        _: &BucketKey,
    ) -> Result<PutTag, BucketError> {
        self.check_key(key)?;
        self.put_content(key, content).await
    }

    async fn read(&self, key: &BucketKey, most: u64) -> Result<(Bytes, Revision), BucketError> {
        self.check_key(key)?;
        let (file, stat) = self.open_object(key)?;
        let version = version(&stat);
        if version.size > most {
            let problem = format!("has {} bytes; the most is {most}", version.size);
            return Err(self.invalid(key, &problem));
        }
        let read = move || {
            let mut bytes = Vec::with_capacity(version.size as usize + 1);
            io::Read::read_to_end(&mut io::Read::take(file, most + 1), &mut bytes)?;
            Ok((bytes.into(), Revision { tag: Some(version.tag), generation: None }))
        };
        let read = if version.size <= SMALL { read() } else { blocking(read).await };
        read.map_err(|error: io::Error| self.unavailable("reading", key, error))
    }

    async fn put_if(
        &self,
        key: &BucketKey,
        bytes: Bytes,
        replaced: Option<&Revision>,
    ) -> Result<bool, BucketError> {
        self.check_key(key)?;
        if bytes.len() as u64 <= SMALL {
            return self.put_bytes_if(key, &bytes, replaced);
        }
        let (bucket, key, replaced) = (self.clone(), key.clone(), replaced.cloned());
        blocking(move || bucket.put_bytes_if(&key, &bytes, replaced.as_ref())).await
    }

    async fn put_own(&self, key: &BucketKey, bytes: Bytes) -> Result<(), BucketError> {
        self.check_key(key)?;
        self.put_bytes_own(key, &bytes)
    }

    async fn remove_own(&self, key: &BucketKey) -> Result<(), BucketError> {
        self.check_key(key)?;
        self.in_root("removing", key, |root| match unlinkat(root, key.as_str(), AtFlags::empty()) {
            Err(Errno::NOENT) => Ok(()),
            removed => removed,
        })
    }

    async fn digest(&self, key: &BucketKey) -> Result<(Digest, u64), BucketError> {
        self.check_key(key)?;
        for _ in 0..READS {
            let (file, stat) = self.open_object(key)?;
            let before = version(&stat);
            let read = move || {
                let digest = Digest::of_reader(&file)?;
                Ok((digest, version(&fstat(&file)?)))
            };
            let read = if before.size <= SMALL { read() } else { blocking(read).await };
            let ((digest, size), after) =
                read.map_err(|error: io::Error| self.unavailable("reading", key, error))?;
            if after == before && size == before.size {
                return Ok((digest, size));
            }
        }
        Err(BucketError::unavailable(self, "reading", key, BUSY))
    }

    fn list<'a>(&'a self, prefix: &Prefix) -> BoxStream<'a, Result<Listed, BucketError>> {
        let (bucket, prefix) = (self.clone(), prefix.clone());
        // The walk starts when the stream is first polled, and ends when the stream is dropped.
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

    fn as_dir(&self) -> Option<&DirBucket> {
        Some(self)
    }

    async fn try_get(&self, key: &BucketKey) -> Result<(), BucketError> {
        self.check_key(key)?;
        let (mut file, _) = self.open_object(key)?;
        // Reads some bytes, because a failing disk may still open files.
        let mut first = [0; TRIAL];
        let read = io::Read::read(&mut file, &mut first);
        read.map(drop).map_err(|error| self.unavailable("reading", key, error))
    }

    async fn try_put(&self, key: &BucketKey) -> Result<(), BucketError> {
        self.check_key(key)?;
        let (bucket, key) = (self.clone(), key.clone());
        blocking(move || bucket.try_to_put(&key)).await
    }

    async fn accepts(&self, key: &BucketKey) -> Result<(), BucketError> {
        self.check_key(key)?;
        self.in_root("writing", key, |root| {
            match statat(root, key.as_str(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                    Err(Errno::ISDIR)
                }
                Ok(_) => Ok(()),
                Err(Errno::NOENT) if root.dangling_link(key).is_some() => Err(Errno::NOENT),
                Err(Errno::NOENT) => root.takes_names_of(key),
                Err(error) => Err(error),
            }
        })
    }

    async fn sync(&self) -> Result<(), BucketError> {
        self.0.unsynced.sync().await.map_err(|error| {
            BucketError::unavailable(self, "syncing", ".", DirError::at(&self.0.path, error))
        })
    }

    async fn check(&self) -> Result<(), BucketError> {
        let root = self.root().map(drop);
        root.map_err(|gone| BucketError::unavailable(self, "reading", ".", gone))
    }

    async fn close(&self) {
        if self.0.sync_every.is_zero() || self.0.unsynced.is_empty() {
            return;
        }
        match tokio::time::timeout(LAST_SYNC, self.sync()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::error!("{error}; outputs published since the last sync may be lost");
            }
            Err(_) => tracing::warn!(
                "{self}: the disk is slow; a loss of power now would lose the last outputs"
            ),
        }
    }
}

/// An open object.
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
