//! Downloads: each is a file in `tmp` that is renamed to a blob when it is complete.

use std::error::Error as StdError;
use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytesize::ByteSize;
use rustix::fs::{AtFlags, fstat, renameat, unlinkat};
use rustix::io::Errno;

use super::directories::{OpenDirs, create, may_be_gone};
use super::error::is_of_writing;
use super::verified::Stamp;
use super::{Blob, Cache, CacheError, Inner, KnownVersion, ObjectId};
use crate::blocking::{SMALL, blocking};
use crate::bucket::{Bucket, BucketError, Object, Opened};
use crate::digest::Digest;
use crate::fault::{self, Step};
use crate::system;

/// How often a download is tried when the cache's directories fail.
const TRIES: usize = 3;
/// The maximum number of bytes that a trial writes.
const MOST_TRIED: u64 = 64 * 1024 * 1024;
/// The name of a trial's file in `blobs`. A killed trial leaves the file there.
pub(super) const PROBE: &str = ".probe";

impl Cache {
    /// Downloads an object. Repeats the download after evicting blobs if the disk is full, or in
    /// new directories if the old ones were removed.
    pub(super) async fn download(
        &self,
        bucket: &dyn Bucket,
        source: &ObjectId,
        size: u64,
        mut object: Option<Box<dyn Object>>,
    ) -> Result<Blob, CacheError> {
        let (mut made_room, mut tries) = (false, 1);
        loop {
            let open = self.0.directories.get();
            match self.try_download(bucket, source, object.take()).await {
                Err(error) if error.is_disk_full() && made_room => return Err(self.full(size)),
                Err(error) if error.is_disk_full() => {
                    made_room = true;
                    self.0.capacity.free(size).await;
                }
                Err(error) if tries < TRIES && self.is_moved(&error, &open)? => {}
                other => return other,
            }
            tries += 1;
        }
    }

    /// True when a download failed because its files or directories were removed.
    fn is_moved(&self, error: &CacheError, began_in: &Arc<OpenDirs>) -> Result<bool, CacheError> {
        let CacheError::Local { source, .. } = error else { return Ok(false) };
        let Some(errno) = Errno::from_io_error(source.get()) else { return Ok(false) };
        if !may_be_gone(errno) {
            return Ok(false);
        }
        let renewed = self.0.directories.renew(began_in);
        let renewed = renewed.map_err(|error| self.local("opening it again", error))?;
        Ok(renewed || errno == Errno::NOENT)
    }

    async fn try_download(
        &self,
        bucket: &dyn Bucket,
        source: &ObjectId,
        object: Option<Box<dyn Object>>,
    ) -> Result<Blob, CacheError> {
        let looked = Some(Instant::now());
        let object = match object {
            Some(object) => object,
            None => match bucket.open(&source.key, None).await? {
                Opened::Object(object) => object,
                Opened::Unchanged => {
                    let problem = "the store answered 304 Not Modified to an unconditional request";
                    let error = BucketError::unavailable(&bucket, "reading", &source.key, problem);
                    return Err(error.into());
                }
            },
        };
        let expected = object.version().size;
        let mut capacity = self.0.capacity.reserve(expected).await;
        let failed = |doing| move |error| self.local(doing, error);
        let (tmp, file) = Tmp::create(&self.0).map_err(failed("creating a file in tmp"))?;
        let into = file.try_clone().map_err(failed("opening a file in tmp"))?;
        let version = match object.write_to(into).await {
            Ok(version) => version,
            Err(error) => return Err(self.blame(error, expected).await),
        };
        if version.size > expected {
            // The reserved size was wrong: the object was decoded, or its size was unknown.
            drop(capacity);
            capacity = self.0.capacity.reserve(version.size).await;
        }

        // Computed from the file, so that the digest is that of the bytes on disk.
        let (digest, stamp) =
            digest(file, version.size).await.map_err(failed("reading a downloaded file"))?;
        if stamp.size != version.size {
            let problem = format!("{} of {} bytes arrived", stamp.size, version.size);
            return Err(BucketError::unavailable(&bucket, "reading", &source.key, problem).into());
        }
        let blob = self.blob(digest, stamp.size, version.clone(), false);
        let open = tmp.open.clone();
        if tmp.keep(digest, &stamp).map_err(failed("storing a blob"))? {
            capacity.stored();
        }

        if !bucket.is_local() {
            let tmp = self.0.tmp_name();
            let put = self.0.index.put(source, &version, digest, &open, &tmp);
            let failed_before = self.0.index_failed.swap(put.is_err(), Ordering::Relaxed);
            if let Err(error) = put
                && !failed_before
            {
                // The only cost is another download after a restart.
                tracing::warn!(dir = %self.dir().display(), %error, "could not write the cache index");
            }
        }
        self.0.known.insert(source.clone(), KnownVersion { version, digest, looked }).await;
        Ok(blob)
    }

    /// Finds out whether reading from the bucket or writing to the cache failed, because both give
    /// the same error.
    async fn blame(&self, error: BucketError, size: u64) -> CacheError {
        let cause =
            io_cause(&error).and_then(io::Error::raw_os_error).map(Errno::from_raw_os_error);
        let Some(cause) = cause else { return error.into() };
        if error.is_disk_full() {
            return error.into();
        }
        if is_of_writing(&cause.into()) {
            return self.local("writing a download", cause.into());
        }
        let may_be_either = matches!(cause, Errno::IO | Errno::STALE | Errno::NODEV | Errno::NXIO)
            || system::is_damage(cause);
        if !may_be_either {
            return error.into();
        }
        match self.write_and_remove(size, "writing a download").await {
            Ok(()) => error.into(),
            Err(ours) => ours,
        }
    }

    /// Tries the steps of a download, to find out whether a cache that failed works again: creates
    /// a file, writes `bytes` bytes to it (at most 64 MiB), moves it to the blobs and removes it.
    ///
    /// # Errors
    /// [`CacheError::Full`] and [`CacheError::Local`], as for a download.
    pub async fn try_store(&self, bytes: u64) -> Result<(), CacheError> {
        let doing = "writing a file to try it";
        match self.write_and_remove(bytes, doing).await {
            Err(error) if error.is_disk_full() => {}
            other => return other,
        }
        self.0.capacity.free(bytes).await;
        match self.write_and_remove(bytes, doing).await {
            Err(error) if error.is_disk_full() => Err(self.full(bytes)),
            other => other,
        }
    }

    async fn write_and_remove(&self, bytes: u64, doing: &'static str) -> Result<(), CacheError> {
        let cache = self.clone();
        let written = blocking(move || write_and_remove(&cache.0, bytes)).await;
        written.map_err(|error| self.local(doing, error))
    }

    fn full(&self, needed: u64) -> CacheError {
        let free = rustix::fs::fstatvfs(self.0.directories.get().tmp.dir())
            .map_or(0, |stat| stat.f_bavail.saturating_mul(stat.f_frsize));
        CacheError::Full {
            dir: self.dir().to_owned(),
            needed: ByteSize(needed),
            limit: ByteSize(self.0.options.max_bytes),
            used: ByteSize(self.0.capacity.stored()),
            free: ByteSize(free),
        }
    }
}

fn write_and_remove(cache: &Inner, bytes: u64) -> io::Result<()> {
    // Random bytes, because some file systems compress.
    let mut buffer = vec![0; 128 * 1024];
    fastrand::fill(&mut buffer);
    let (mut tmp, mut file) = Tmp::create(cache)?;
    let mut left = bytes.clamp(1, MOST_TRIED);
    while left > 0 {
        let part = left.min(buffer.len() as u64);
        file.write_all(&buffer[..part as usize])?;
        left -= part;
    }
    fault::shortage(Step::StoreBlob)?;
    let blobs = &tmp.open.blobs;
    renameat(tmp.open.tmp.dir(), tmp.name(), blobs, PROBE)?;
    // Another host's trial may have removed the file.
    let _ = unlinkat(blobs, PROBE, AtFlags::empty());
    tmp.name = None;
    Ok(())
}

/// The system's error in a chain of causes.
fn io_cause(error: &BucketError) -> Option<&io::Error> {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref() {
            return Some(io);
        }
        cause = error.source();
    }
    None
}

/// A file in `tmp`. Dropping it removes it, unless it was kept as a blob.
struct Tmp<'a> {
    cache: &'a Inner,
    open: Arc<OpenDirs>,
    name: Option<String>,
}

impl<'a> Tmp<'a> {
    fn create(cache: &'a Inner) -> io::Result<(Self, File)> {
        fault::shortage(Step::Download)?;
        // Each try uses another name, because a failing disk may create a file and still return an
        // error.
        let create = |open: &Arc<OpenDirs>| {
            let name = cache.tmp_name();
            let file = create(open.tmp.dir(), &name)?;
            Ok((open.clone(), name, file))
        };
        let (open, name, file) = cache.directories.with(create)?;
        Ok((Self { cache, open, name: Some(name) }, File::from(file)))
    }

    fn name(&self) -> &str {
        self.name.as_deref().unwrap_or_default()
    }

    /// Makes the file a blob. False when the blob exists already.
    fn keep(mut self, digest: Digest, stamp: &Stamp) -> io::Result<bool> {
        fault::shortage(Step::StoreBlob)?;
        let new = self.cache.blobs.add(&self.open, self.name(), digest, stamp)?;
        fault::point(Step::BlobStored);
        self.name = None;
        Ok(new)
    }
}

impl Drop for Tmp<'_> {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            let _ = unlinkat(self.open.tmp.dir(), &**name, AtFlags::empty());
        }
    }
}

/// The digest of a file from its start, and the file's stamp.
async fn digest(mut file: File, size: u64) -> io::Result<(Digest, Stamp)> {
    let digest = move || {
        let mut stamp = Stamp::of(&fstat(&file)?);
        io::Seek::rewind(&mut file)?;
        if size > SMALL {
            let (digest, read) = Digest::of_reader(file)?;
            stamp.size = read;
            return Ok((digest, stamp));
        }
        let mut bytes = Vec::with_capacity(size as usize + 1);
        io::Read::read_to_end(&mut file, &mut bytes)?;
        stamp.size = bytes.len() as u64;
        Ok((Digest::of(&bytes), stamp))
    };
    if size <= SMALL { digest() } else { blocking(digest).await }
}
