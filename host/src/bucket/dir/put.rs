//! Puts content into the directory, as a file that is renamed into place.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rustix::fs::{
    AtFlags, Mode, OFlags, RenameFlags, fstat, linkat, openat, renameat, renameat_with, statat,
    unlinkat,
};
use rustix::io::Errno;

use super::error::DirError;
use super::root::{self, Root};
use super::{DirBucket, copy, make_dirs, open_parent, version};
use crate::blocking::{SMALL, blocking};
use crate::bucket::content::{Content, Opened};
use crate::bucket::{BucketError, PutTag, Revision};
use crate::fault::{self, Step};
use crate::key::BucketKey;
use crate::process_dir::ProcessDir;
use crate::system::{Identity, is_unsupported, place};

/// Numbers for file names, each used once by this process.
static NAMES: AtomicU64 = AtomicU64::new(0);
/// How often to create the directories of an object while another program removes empty ones.
const MAKES: usize = 5;

impl DirBucket {
    /// Puts an object.
    pub(super) async fn put_content(
        &self,
        key: &BucketKey,
        content: &Content,
    ) -> Result<PutTag, BucketError> {
        match content {
            Content::Bytes(bytes) if bytes.len() as u64 <= SMALL => {
                if let Some(tag) = self.put_small(key, bytes)? {
                    return Ok(tag);
                }
            }
            Content::Bytes(_) => {}
            Content::File { file, .. } => {
                let open = file.open().map_err(|error| self.unreadable(key, error))?;
                let renamed = self.in_root("writing", key, |root| {
                    match rename_in(root, file.as_fd(), file.name(), key, Over::Anything) {
                        Err(Errno::XDEV) => Ok(None),
                        renamed => renamed.map(|()| Some(root.clone())),
                    }
                })?;
                if let Some(root) = renamed {
                    file.was_moved();
                    let device = file.device().unwrap_or(root.id.device);
                    self.has_put(&root, key, device)?;
                    return self.tag(key, &open);
                }
            }
        }
        let source = content.open().map_err(|error| self.unreadable(key, error))?;
        self.put_copy(Copying { key: key.clone(), source, size: content.size() }).await
    }

    fn unreadable(&self, key: &BucketKey, error: io::Error) -> BucketError {
        let text = format!("the file that is to be put can't be read: {error}");
        BucketError::unavailable(self, "writing", key, DirError::because(text, error))
    }

    /// The tag of an object that was put, read after the rename, because renaming changes the tag.
    fn tag(&self, key: &BucketKey, file: &File) -> Result<PutTag, BucketError> {
        let stat = fstat(file).map_err(|error| self.unavailable("writing", key, error))?;
        Ok(version(&stat).tag)
    }

    /// Puts an object if the key has none or, with `replaced`, if its object has that revision.
    pub(super) fn put_bytes_if(
        &self,
        key: &BucketKey,
        bytes: &[u8],
        replaced: Option<&Revision>,
    ) -> Result<bool, BucketError> {
        let failed = |error: io::Error| self.copy_failed(key, bytes.len() as u64, error);
        let over = if replaced.is_some() { Over::Anything } else { Over::Nothing };
        let mut elsewhere = false;
        loop {
            let tmp = match elsewhere {
                false => self.in_root("writing", key, |root| Ok(root.tmp()))?,
                true => {
                    let parent = self.in_root("writing", key, |root| open_parent(root, key))?;
                    let path = self.0.path.join(key.parent().unwrap_or_default());
                    root::claim(&parent, &path).map(Arc::new)
                }
            };
            let made = Made::create(&tmp.map_err(failed)?).map_err(|error| failed(error.into()))?;
            let made = made.ok_or_else(|| failed(Errno::NOENT.into()))?;
            (&made.file).write_all(bytes).map_err(failed)?;
            let put = self.in_root("writing", key, |root| {
                if let Some(replaced) = replaced {
                    let there = match statat(root, key.as_str(), AtFlags::empty()) {
                        Ok(stat) => Some(version(&stat).tag),
                        Err(Errno::NOENT) => None,
                        Err(error) => return Err(error),
                    };
                    if there != replaced.tag {
                        return Ok(Put::Unmet);
                    }
                }
                match rename_in(root, made.tmp.dir(), &made.name, key, over) {
                    Ok(()) => Ok(Put::Done(root.clone())),
                    Err(Errno::EXIST) if over == Over::Nothing => Ok(Put::Unmet),
                    Err(Errno::XDEV) if !elsewhere => Ok(Put::Elsewhere),
                    Err(error) => Err(error),
                }
            })?;
            match put {
                Put::Done(root) => {
                    let device = fstat(&made.file).map_or(root.id.device, |stat| place(&stat).0);
                    made.was_renamed();
                    return self.has_put(&root, key, device).map(|()| true);
                }
                Put::Unmet => return Ok(false),
                Put::Elsewhere => elsewhere = true,
            }
        }
    }

    /// Puts an object that belongs to the host, on the file system of the bucket. Leaves syncing to
    /// the operating system.
    pub(super) fn put_bytes_own(&self, key: &BucketKey, bytes: &[u8]) -> Result<(), BucketError> {
        let failed = |error: io::Error| self.unavailable("writing", key, error);
        let tmp = self.in_root("writing", key, |root| Ok(root.tmp()))?.map_err(failed)?;
        let made = Made::named(&tmp).map_err(|error| failed(error.into()))?;
        let made = made.ok_or_else(|| failed(Errno::NOENT.into()))?;
        (&made.file).write_all(bytes).map_err(failed)?;
        self.in_root("writing", key, |root| {
            with_dirs(root, key, || renameat(made.tmp.dir(), &*made.name, root, key.as_str()))
        })?;
        made.was_renamed();
        Ok(())
    }

    /// Creates a file in the directory for copies and renames it. `None` if that is not possible,
    /// because that directory does not exist or the key is on another file system.
    fn put_small(&self, key: &BucketKey, bytes: &[u8]) -> Result<Option<PutTag>, BucketError> {
        let put = self.in_root("writing", key, |root| {
            let Some(tmp) = root.last_tmp() else { return Ok(None) };
            let Some(made) = Made::create(&tmp)? else { return Ok(None) };
            if let Err(error) = (&made.file).write_all(bytes) {
                return Ok(Some(Err(error)));
            }
            match rename_in(root, tmp.dir(), &made.name, key, Over::Anything) {
                Err(Errno::XDEV) => return Ok(None),
                renamed => renamed?,
            }
            let tag = version(&fstat(&made.file)?).tag;
            made.was_renamed();
            Ok(Some(Ok((root.clone(), tag))))
        })?;
        match put {
            None => Ok(None),
            Some(Ok((root, tag))) => self.has_put(&root, key, root.id.device).map(|()| Some(tag)),
            Some(Err(error)) => Err(self.copy_failed(key, bytes.len() as u64, error)),
        }
    }

    /// Copies content to a place from which it can be renamed to its key.
    fn copy_in(&self, copying: &Copying, elsewhere: bool) -> Result<Copied, BucketError> {
        let (key, size) = (&copying.key, copying.size);
        let failed = |error: io::Error| self.copy_failed(key, size, error);
        let (root, parent) =
            self.in_root("writing", key, |root| Ok((root.clone(), open_parent(root, key)?)))?;
        let id = Identity::of_open(&parent).map_err(|error| failed(error.into()))?;
        let tmp = if elsewhere || !id.shares_mount_with(root.id) {
            // The key is on another file system, through a link in the bucket. The copy must be on
            // that file system.
            let path = self.0.path.join(key.parent().unwrap_or_default());
            root::claim(&parent, &path).map(Arc::new)
        } else {
            root.tmp()
        };
        let tmp = tmp.map_err(failed)?;
        let made = Made::create(&tmp).map_err(|error| failed(error.into()))?;
        let made = made.ok_or_else(|| failed(Errno::NOENT.into()))?;
        let copied = match &copying.source {
            Opened::Bytes(bytes) => (&made.file).write_all(bytes).map(|()| size),
            Opened::File(file) => copy_all(file, &made.file, size),
        };
        let copied = copied.map_err(failed)?;
        if copied != size {
            let error = io::Error::other(format!("{copied} bytes came of {size}"));
            return Err(BucketError::unavailable(self, "writing", key, error));
        }
        Ok(Copied { device: id.device, made })
    }

    pub(super) fn copy_failed(&self, key: &BucketKey, size: u64, error: io::Error) -> BucketError {
        match Errno::from_io_error(&error) {
            Some(Errno::FBIG) => return self.too_large(key),
            Some(Errno::NOSPC | Errno::DQUOT) => {
                self.0.no_room_for.fetch_max(size, Relaxed);
            }
            _ => {}
        }
        self.unavailable("writing", key, error)
    }

    /// Copies content, and renames the copy into place.
    pub(super) async fn put_copy(&self, mut copying: Copying) -> Result<PutTag, BucketError> {
        let key = copying.key.clone();
        let mut elsewhere = false;
        loop {
            let copied;
            (copying, copied) = if copying.size <= SMALL {
                let copied = self.copy_in(&copying, elsewhere)?;
                (copying, copied)
            } else {
                let bucket = self.clone();
                blocking(move || {
                    let copied = bucket.copy_in(&copying, elsewhere)?;
                    Ok::<_, BucketError>((copying, copied))
                })
                .await?
            };
            // The rename does not run on the thread that copies: a put that was abandoned during
            // the copy must not become visible later.
            let Copied { made, device } = copied;
            let put = self.in_root("writing", &key, |root| {
                match rename_in(root, made.tmp.dir(), &made.name, &key, Over::Anything) {
                    Err(Errno::XDEV) if !elsewhere => Ok(None),
                    renamed => renamed.map(|()| Some(root.clone())),
                }
            })?;
            match put {
                Some(root) => {
                    let tag = self.tag(&key, &made.file)?;
                    made.was_renamed();
                    return self.has_put(&root, &key, device).map(|()| tag);
                }
                None => elsewhere = true,
            }
        }
    }
}

/// Content that is being copied into the bucket.
pub(super) struct Copying {
    pub(super) key: BucketKey,
    pub(super) source: Opened,
    pub(super) size: u64,
}

/// A copy of the content, which can be renamed into place.
struct Copied {
    /// The device of its file system.
    device: u64,
    made: Made,
}

/// A new file of this process. Dropping it removes it.
struct Made {
    tmp: Arc<ProcessDir>,
    name: String,
    file: File,
    is_renamed: bool,
}

impl Made {
    /// `None` when the directory is gone.
    fn create(tmp: &Arc<ProcessDir>) -> Result<Option<Self>, Errno> {
        fault::shortage(Step::CreateOutput)?;
        Self::named(tmp)
    }

    /// As `create`, for files that are not outputs.
    fn named(tmp: &Arc<ProcessDir>) -> Result<Option<Self>, Errno> {
        let name = format!("put-{}", NAMES.fetch_add(1, Relaxed));
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        match openat(tmp.dir(), &*name, flags, Mode::from_raw_mode(0o666)) {
            Ok(file) => {
                Ok(Some(Self { tmp: tmp.clone(), name, file: file.into(), is_renamed: false }))
            }
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn was_renamed(mut self) {
        self.is_renamed = true;
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if !self.is_renamed {
            let _ = unlinkat(self.tmp.dir(), &*self.name, AtFlags::empty());
        }
    }
}

/// Copies from the start of `from`, whatever its offset is.
fn copy_all(from: &Arc<File>, to: &File, size: u64) -> io::Result<u64> {
    let (mut from, mut to) = (from.try_clone()?, to.try_clone()?);
    io::Seek::rewind(&mut from)?;
    copy(&mut from, &mut to, size)
}

/// What a rename may replace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    Anything,
    Nothing,
}

/// The result of a conditional put.
enum Put {
    Done(Arc<Root>),
    /// The condition is not met.
    Unmet,
    /// The key is on another file system.
    Elsewhere,
}

/// Gives a file its name only if there is no object of that name.
fn rename_new(
    from: BorrowedFd<'_>,
    name: &OsStr,
    root: &Root,
    key: &BucketKey,
) -> Result<(), Errno> {
    match renameat_with(from, name, root, key.as_str(), RenameFlags::NOREPLACE) {
        // Not every file system supports `RENAME_NOREPLACE`. A hard link does not replace a file
        // either.
        Err(error) if is_unsupported(error) => {
            linkat(from, name, root, key.as_str(), AtFlags::empty())?;
            // If the old name remains, it is removed with the directory of the process.
            let _ = unlinkat(from, name, AtFlags::empty());
            Ok(())
        }
        renamed => renamed,
    }
}

/// Renames into place.
fn rename_in(
    root: &Root,
    from: impl AsFd,
    name: &str,
    key: &BucketKey,
    over: Over,
) -> Result<(), Errno> {
    fault::shortage(Step::RenameOutput)?;
    let name = OsStr::new(name);
    let rename = || match over {
        Over::Anything => renameat(from.as_fd(), name, root, key.as_str()),
        Over::Nothing => rename_new(from.as_fd(), name, root, key),
    };
    with_dirs(root, key, rename)
}

/// Renames to `key`. Creates the directories above it only if they are missing.
fn with_dirs(
    root: &Root,
    key: &BucketKey,
    rename: impl Fn() -> Result<(), Errno>,
) -> Result<(), Errno> {
    let mut renamed = rename();
    for _ in 0..MAKES {
        if renamed != Err(Errno::NOENT) || key.parent().is_none() {
            break;
        }
        make_dirs(root, key)?;
        renamed = rename();
    }
    renamed
}
