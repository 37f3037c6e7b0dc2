//! From a content to an object: a file that is renamed into place.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};
use rustix::io::Errno;

use super::error::DirError;
use super::root::{self, Id, Root};
use super::{DirBucket, copy, make_dirs, open_parent};
use crate::blocking::{SMALL, blocking};
use crate::bucket::BucketError;
use crate::bucket::content::{Content, Opened};
use crate::key::BucketKey;
use crate::process_dir::ProcessDir;

/// Numbers for the names of files: no two of a process have one in common.
static NAMES: AtomicU64 = AtomicU64::new(0);
/// How often directories are made for an object while somebody removes empty ones.
const MAKES: usize = 5;

impl DirBucket {
    /// Puts an object.
    pub(super) async fn put_content(
        &self,
        key: &BucketKey,
        content: &Content,
    ) -> Result<(), BucketError> {
        match content {
            Content::Bytes(bytes) if bytes.len() as u64 <= SMALL => {
                if self.put_small(key, bytes)? {
                    return Ok(());
                }
            }
            Content::Bytes(_) => {}
            Content::File { file, .. } => {
                let renamed = self.in_root("writing", key, |root| {
                    match rename_in(root, file.as_fd(), file.name(), key) {
                        Err(Errno::XDEV) => Ok(None),
                        renamed => renamed.map(|()| Some(root.clone())),
                    }
                })?;
                if let Some(root) = renamed {
                    file.was_moved();
                    let device = file.device().unwrap_or(root.id.device);
                    return self.has_put(&root, key, device);
                }
            }
        }
        let source = content.open().map_err(|error| {
            let text = format!("the file that is to be put can't be read: {error}");
            BucketError::unavailable(self, "writing", key, DirError::because(text, error))
        })?;
        self.put_copy(Copying { key: key.clone(), source, size: content.size() }).await
    }

    /// Creates a file beside the objects and renames it. False when that takes more than those two
    /// calls: the directory for such files is not there, or the key is on another file system.
    fn put_small(&self, key: &BucketKey, bytes: &[u8]) -> Result<bool, BucketError> {
        let put = self.in_root("writing", key, |root| {
            let Some(tmp) = root.last_tmp() else { return Ok(None) };
            let Some(made) = Made::create(&tmp)? else { return Ok(None) };
            if let Err(error) = (&made.file).write_all(bytes) {
                return Ok(Some(Err(error)));
            }
            match rename_in(root, tmp.dir(), &made.name, key) {
                Err(Errno::XDEV) => return Ok(None),
                renamed => renamed?,
            }
            made.was_renamed();
            Ok(Some(Ok(root.clone())))
        })?;
        match put {
            None => Ok(false),
            Some(Ok(root)) => self.has_put(&root, key, root.id.device).map(|()| true),
            Some(Err(error)) => Err(self.copy_failed(key, bytes.len() as u64, error)),
        }
    }

    /// Copies a content to where it can be renamed from.
    fn copy_in(&self, copying: &Copying, elsewhere: bool) -> Result<Copied, BucketError> {
        let (key, size) = (&copying.key, copying.size);
        let failed = |error: io::Error| self.copy_failed(key, size, error);
        let (root, parent) =
            self.in_root("writing", key, |root| Ok((root.clone(), open_parent(root, key)?)))?;
        let id = Id::of_open(&parent).map_err(|error| failed(error.into()))?;
        let tmp = if elsewhere || !id.shares_mount_with(root.id) {
            // The key is on another file system, by a link in the bucket: copy there.
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

    /// Copies a content, and renames the copy.
    pub(super) async fn put_copy(&self, mut copying: Copying) -> Result<(), BucketError> {
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
            // Not on the thread that copies: a put that was given up during the copy must not
            // become visible later.
            let Copied { made, device } = copied;
            let put = self.in_root("writing", &key, |root| {
                match rename_in(root, made.tmp.dir(), &made.name, &key) {
                    Err(Errno::XDEV) if !elsewhere => Ok(None),
                    renamed => renamed.map(|()| Some(root.clone())),
                }
            })?;
            match put {
                Some(root) => {
                    made.was_renamed();
                    return self.has_put(&root, &key, device);
                }
                None => elsewhere = true,
            }
        }
    }
}

/// A content on its way into the bucket.
pub(super) struct Copying {
    pub(super) key: BucketKey,
    pub(super) source: Opened,
    pub(super) size: u64,
}

/// A copy of it that can be renamed.
struct Copied {
    /// The file system that it is in.
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
    /// None when the directory is gone.
    fn create(tmp: &Arc<ProcessDir>) -> Result<Option<Self>, Errno> {
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

/// Copies from the start of `from`, whatever its position is.
fn copy_all(from: &Arc<File>, to: &File, size: u64) -> io::Result<u64> {
    let (mut from, mut to) = (from.try_clone()?, to.try_clone()?);
    io::Seek::rewind(&mut from)?;
    copy(&mut from, &mut to, size)
}

/// Renames into place, with the directories on the way made only when they are missing.
fn rename_in(root: &Root, from: impl AsFd, name: &str, key: &BucketKey) -> Result<(), Errno> {
    let name = OsStr::new(name);
    let rename = || renameat(from.as_fd(), name, root, key.as_str());
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
