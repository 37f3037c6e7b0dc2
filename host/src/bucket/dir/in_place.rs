//! Objects that are read in place, and checked afterwards to be unchanged.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::fs::{Stat, fstat};
use rustix::io::Errno;

use super::{BUSY, DirBucket, READS, size, version};
use crate::blocking::SMALL;
use crate::bucket::{BucketError, Version};
use crate::key::BucketKey;
use crate::shortage;
use crate::system;

/// One version of an object, for reading in place.
///
/// [`InPlace::check`] detects a change to the file. Replacing the file by a rename is not a change,
/// because the opened file stays as it was.
#[derive(Debug)]
pub struct InPlace {
    bucket: DirBucket,
    key: BucketKey,
    seen: Stat,
    /// Open until [`InPlace::close`].
    held: Option<Arc<File>>,
    was_read: AtomicBool,
    failure: Mutex<Option<InPlaceError>>,
}

/// Why the bytes that were read are not one version of the object.
#[derive(Debug, thiserror::Error)]
pub enum InPlaceError {
    /// The file was changed meanwhile.
    #[error("the file was changed while it was read")]
    Changed,
    /// The file could not be read.
    #[error(transparent)]
    Failed(#[from] BucketError),
}

/// True when an open file with the earlier status `before` still has the same bytes. Removing,
/// replacing or linking the file changes only its link count and its change time.
fn is_same(before: &Stat, now: &Stat) -> bool {
    has_same_content(before, now)
        && (is_same_change(before, now) || before.st_nlink != now.st_nlink)
}

/// True when a reopened file is the one with the earlier status `before`. The inode is not
/// compared, because some file systems give a file a new one each time it is opened.
fn is_same_file(before: &Stat, now: &Stat) -> bool {
    has_same_content(before, now) && is_same_change(before, now)
}

fn has_same_content(one: &Stat, other: &Stat) -> bool {
    let content = |stat: &Stat| (stat.st_size, stat.st_mtime, stat.st_mtime_nsec);
    content(one) == content(other)
}

fn is_same_change(one: &Stat, other: &Stat) -> bool {
    let changed = |stat: &Stat| (stat.st_ctime, stat.st_ctime_nsec);
    changed(one) == changed(other)
}

impl DirBucket {
    /// Opens an object for reading in place.
    ///
    /// # Errors
    /// As [`Bucket::open`](crate::bucket::Bucket::open).
    pub fn open_in_place(&self, key: &BucketKey) -> Result<InPlace, BucketError> {
        self.check_key(key)?;
        let (file, stat) = self.open_object(key)?;
        Ok(InPlace {
            bucket: self.clone(),
            key: key.clone(),
            seen: stat,
            held: Some(Arc::new(file)),
            was_read: AtomicBool::new(false),
            failure: Mutex::new(None),
        })
    }

    /// Reads a whole object into memory. Returns its bytes and version, never a mix of two
    /// versions. Reads `found` first, and opens the object again if it changed meanwhile.
    ///
    /// # Errors
    /// As [`Bucket::open`](crate::bucket::Bucket::open); also when it changes during each read.
    pub fn read_small(&self, mut found: InPlace) -> Result<(Bytes, Version), BucketError> {
        for _ in 0..READS {
            if let Some(bytes) = found.read_all()? {
                return Ok((bytes, found.version()));
            }
            found = self.open_in_place(&found.key)?;
        }
        Err(BucketError::unavailable(self, "reading", &found.key, BUSY))
    }
}

impl InPlace {
    /// The length in bytes.
    pub fn size(&self) -> u64 {
        size(&self.seen)
    }

    /// The version that was opened.
    pub fn version(&self) -> Version {
        version(&self.seen)
    }

    /// True when [`InPlace::read_ahead`] has an effect.
    pub fn is_worth_reading_ahead(&self) -> bool {
        self.held.is_some() && self.size() > SMALL
    }

    /// Makes the kernel read a large open object into memory, which the kernel can free at any
    /// time. May block.
    pub fn read_ahead(&self) {
        if let Some(file) = self.held.as_ref().filter(|_| self.is_worth_reading_ahead()) {
            // Without this, the first reads wait for the disk.
            system::read_ahead(file);
        }
    }

    /// Closes the file. [`InPlace::open`] opens it again.
    pub fn close(&mut self) {
        self.held = None;
    }

    /// The file, if it is held open.
    pub fn opened(&self) -> Option<Arc<File>> {
        let file = self.held.as_ref()?;
        self.was_read.store(true, Relaxed);
        Some(file.clone())
    }

    /// Opens the file for reading.
    ///
    /// # Errors
    /// When it can't be opened, or was changed since it was first opened. [`InPlace::check`]
    /// repeats the error.
    pub fn open(&self) -> io::Result<Arc<File>> {
        if let Some(file) = self.opened() {
            return Ok(file);
        }
        let error = match self.bucket.open_object(&self.key) {
            Ok((file, stat)) if is_same_file(&self.seen, &stat) => {
                return Ok(Arc::new(file));
            }
            Ok(_) => InPlaceError::Changed,
            Err(error) => error.into(),
        };
        let number = shortage::errno(&error).unwrap_or(Errno::STALE);
        self.failure.lock().get_or_insert(error);
        Err(number.into())
    }

    /// Records that reading the file failed.
    pub fn failed(&self, error: &io::Error) {
        let number = Errno::from_io_error(error).unwrap_or(Errno::IO);
        let error = self.bucket.unavailable("reading", &self.key, number);
        self.failure.lock().get_or_insert(error.into());
    }

    /// Checks a reopened file, before it is closed.
    pub fn closes(&self, file: &File) {
        if self.held.is_none()
            && let Err(error) = self.check_file(file)
        {
            self.failure.lock().get_or_insert(error);
        }
    }

    /// Checks that all bytes that were read are of one version of the object.
    ///
    /// # Errors
    /// When the file was changed since it was opened, or could not be read.
    pub fn check(&self) -> Result<(), InPlaceError> {
        if let Some(failure) = self.failure.lock().take() {
            return Err(failure);
        }
        match &self.held {
            Some(file) if self.was_read.load(Relaxed) => self.check_file(file),
            _ => Ok(()),
        }
    }

    fn check_file(&self, file: &File) -> Result<(), InPlaceError> {
        let now =
            fstat(file).map_err(|error| self.bucket.unavailable("reading", &self.key, error))?;
        if is_same(&self.seen, &now) { Ok(()) } else { Err(InPlaceError::Changed) }
    }

    /// All bytes; `None` when the file changed meanwhile, or is not open.
    fn read_all(&self) -> Result<Option<Bytes>, BucketError> {
        let Some(file) = &self.held else { return Ok(None) };
        let failed = |error: io::Error| self.bucket.unavailable("reading", &self.key, error);
        let mut bytes = vec![0; self.size() as usize];
        let mut filled = 0;
        while filled < bytes.len() {
            match file.read_at(&mut bytes[filled..], filled as u64) {
                Ok(0) => return Ok(None),
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(error)),
            }
        }
        let now = fstat(file).map_err(|error| failed(error.into()))?;
        Ok(is_same(&self.seen, &now).then(|| bytes.into()))
    }
}
