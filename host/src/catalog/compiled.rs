//! Compiled code on disk, `compiled/ENGINE/DIGEST.cwasm`, with a checksum. The same directory has
//! the records of components that can't be compiled (`quarantine.rs`).
//!
//! Compiled code is native code, and the engine checks little of it. So code is loaded only from a
//! directory that no other user can write to, and only if its checksum is right. The engine loads
//! the bytes that were checked, not the file, so a disk that fails later has no effect.

use std::cmp::Reverse;
use std::fs;
use std::hash::{Hash, Hasher};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use rustix::fs::{FlockOperation, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, flock, futimens};
use rustix::io::Errno;
use wasmtime::Engine;

use super::compiler::{CompileLimits, Failed};
use super::entries;
use super::quarantine::{CompileLock, DEATH_EXPIRES, MAX_RECORDS, Unstored, read_failed};
use crate::cache::{Stored, of_file};
use crate::digest::Digest;
use crate::fault::{self, Step};
use crate::shortage::is_damage;

/// The suffix of a folder's name: the version of the file format.
const FORMAT: &str = "-3";
/// Bytes of the checksum at the end of a file.
const TRAILER: usize = 32;
/// How long a host waits for another host that compiles the same component.
const MAX_LOCK_WAIT: Duration = Duration::from_secs(60);
/// The time between two attempts to take the lock.
const LOCK_POLL: Duration = Duration::from_millis(50);
/// Unused code of other engine versions is removed after this time.
const OTHERS_KEPT: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// The age at which a temporary file counts as abandoned on a file system without locks.
const ABANDONED: Duration = Duration::from_secs(60 * 60);

/// The stored code for one engine.
#[derive(Debug)]
pub(super) struct Compiled {
    dir: PathBuf,
    /// The folder of this engine.
    folder: PathBuf,
    max_bytes: u64,
    /// Why the directory can't be used, as it was logged last.
    refused: Mutex<Option<String>>,
    /// Failures and deaths that can't be stored on disk.
    unstored: Unstored,
}

impl Compiled {
    /// Opens the store in `dir`. Removes files of killed hosts, and code beyond `max_bytes`.
    pub(super) fn open(dir: &Path, engine: &Engine, max_bytes: u64) -> Self {
        let mut hasher = std::hash::DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        let folder = dir.join(format!("{:016x}{FORMAT}", hasher.finish()));
        let compiled = Self {
            dir: dir.to_owned(),
            folder,
            max_bytes,
            refused: Mutex::default(),
            unstored: Unstored::default(),
        };
        if compiled.is_usable() {
            compiled.tidy(None);
        }
        compiled
    }

    /// The code that [`keep`](Self::keep) stored for this component and this engine. `None` means
    /// that the component must be compiled.
    pub(super) fn load(&self, digest: Digest) -> Option<Vec<u8>> {
        let path = self.path(digest);
        if !self.is_usable() {
            return None;
        }
        let (file, mut bytes) = match read(&path) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                if is_damage(&error) || error.kind() == io::ErrorKind::IsADirectory {
                    remove(&path);
                }
                return not_loaded(&path, &error.to_string());
            }
        };
        let Some(code) = unseal(&bytes, digest) else {
            remove(&path);
            return not_loaded(&path, "it is damaged");
        };
        let length = code.len();
        bytes.truncate(length);
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
        let times = Timestamps { last_access: now, last_modification: omit };
        // If this fails, the file only looks older than it is.
        let _ = futimens(&file, &times);
        Some(bytes)
    }

    /// Stores compiled code for the next start. If this fails, the component is compiled again.
    pub(super) fn keep(&self, digest: Digest, code: &[u8]) {
        self.unstored.forget(digest);
        if !self.is_usable() {
            return;
        }
        let path = self.path(digest);
        let kept = checksum(code, digest).and_then(|sum| self.write(&path, &[code, &sum.0]));
        match kept {
            Ok(()) => {
                // The compilation may have failed before, with lower limits.
                let _ = fs::remove_file(self.failed_path(digest));
                fault::point(Step::CodeStored);
                self.tidy(Some(&path));
            }
            Err(error) => tracing::warn!(
                "compiled code could not be stored, so the next start compiles it again: {}: {error}",
                path.display()
            ),
        }
    }

    fn write(&self, path: &Path, parts: &[&[u8]]) -> io::Result<()> {
        make_private(&self.folder)?;
        fault::shortage(Step::StoreCode)?;
        let (mut file, temporary) = Temporary::create(path)?;
        for part in parts {
            file.write_all(part)?;
        }
        // The sync is before the rename, so that a power cut leaves the whole file or none.
        file.sync_all()?;
        if path.is_dir() {
            remove(path);
        }
        temporary.rename(path)
    }

    /// The lock for compiling a component. `None` if files can't be locked, or after a long wait,
    /// because the holder may be suspended. It does no harm if two hosts compile the same
    /// component.
    pub(super) async fn lock(&self, digest: Digest) -> Option<CompileLock> {
        if !self.is_usable() {
            return None;
        }
        make_private(&self.folder).ok()?;
        let path = self.path(digest).with_extension("trying");
        let start = Instant::now();
        loop {
            match CompileLock::try_take(&path) {
                Ok(Some(lock)) => return Some(lock),
                Ok(None) if start.elapsed() < MAX_LOCK_WAIT => tokio::time::sleep(LOCK_POLL).await,
                _ => return None,
            }
        }
    }

    /// The known reason why a component can't be compiled with these limits.
    pub(super) fn failed(&self, digest: Digest, limits: CompileLimits) -> Option<Failed> {
        if self.is_usable()
            && let Some(failed) = read_failed(&self.failed_path(digest), limits)
        {
            return Some(failed);
        }
        self.unstored.failed(digest).filter(|failed| failed.holds_for(limits))
    }

    /// Records why a component can't be compiled.
    pub(super) fn remember(&self, digest: Digest, failed: &Failed) {
        let path = self.failed_path(digest);
        let kept = self.is_usable()
            && serde_json::to_vec(failed)
                .map_err(io::Error::from)
                .and_then(|text| self.write(&path, &[&text]))
                .inspect_err(|error| tracing::warn!("{}: {error}", path.display()))
                .is_ok();
        match kept {
            true => self.tidy(None),
            false => self.unstored.remember(digest, failed.clone()),
        }
    }

    /// Counts the death of a compiler. Returns the number of deaths for this component.
    pub(super) fn died(&self, digest: Digest, lock: &mut Option<CompileLock>) -> u32 {
        match lock {
            Some(lock) => lock.died(),
            None => self.unstored.died(digest),
        }
    }

    fn failed_path(&self, digest: Digest) -> PathBuf {
        self.path(digest).with_extension("failed")
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.folder.join(format!("{digest}.cwasm"))
    }

    /// Whether the directory exists and only this user can write to it. Creates the directory if it
    /// does not exist, and logs once why it can't be used.
    fn is_usable(&self) -> bool {
        let mut refused = self.refused.lock();
        let Err(error) = private_dir(&self.dir) else {
            *refused = None;
            return true;
        };
        let why = error.to_string();
        if refused.as_deref() != Some(&why) {
            tracing::warn!(
                "compiled code can't be stored, so each start compiles all components: {why}"
            );
            *refused = Some(why);
        }
        false
    }

    /// Removes files of killed hosts, unused code of other engines, and the least recently used
    /// code beyond the limit. Never removes `new` or, if it is None, the code that was used last.
    fn tidy(&self, new: Option<&Path>) {
        let now = SystemTime::now();
        let (mut kept, mut failed) = (Vec::new(), Vec::new());
        for folder in entries(&self.dir).filter(|folder| folder.is_dir()) {
            let is_ours = folder == self.folder;
            for file in entries(&folder) {
                match file.extension().and_then(|extension| extension.to_str()) {
                    Some("tmp" | "lock") => remove_abandoned(&file, now, Duration::ZERO),
                    // The file may record a death that still counts.
                    Some("trying") => remove_abandoned(&file, now, DEATH_EXPIRES),
                    Some("failed") => {
                        let Ok(meta) = file.symlink_metadata() else { continue };
                        failed.push((meta.modified().unwrap_or(now), file));
                    }
                    Some("cwasm") => {
                        let Ok(meta) = file.symlink_metadata() else { continue };
                        let used = meta.accessed().or_else(|_| meta.modified()).unwrap_or(now);
                        let idle = now.duration_since(used).unwrap_or_default();
                        if !is_ours && idle > OTHERS_KEPT {
                            remove(&file);
                        } else {
                            kept.push((used, meta.blocks() * 512, file));
                        }
                    }
                    _ => {}
                }
            }
            if !is_ours {
                // Succeeds only if the folder is empty.
                let _ = fs::remove_dir(&folder);
            }
        }
        failed.sort();
        let too_many = failed.len().saturating_sub(MAX_RECORDS);
        for (_, file) in failed.drain(..too_many) {
            remove(&file);
        }
        let mut total: u64 = kept.iter().map(|(_, bytes, _)| bytes).sum();
        kept.sort();
        let last = kept.last().map(|(_, _, file)| file.clone());
        let stays = new.map(Path::to_owned).or(last);
        for (_, bytes, file) in kept {
            if total <= self.max_bytes {
                break;
            }
            if stays.as_ref() != Some(&file) {
                remove(&file);
                total -= bytes;
            }
        }
    }
}

/// Checks the compiled code of all engines in a `compiled` directory and removes damaged files.
/// Returns the number of files, and how many were damaged.
///
/// # Errors
/// When a file can't be read.
pub fn check_compiled(dir: &Path) -> io::Result<(u64, u64)> {
    let (mut files, mut damaged) = (0, 0);
    let folders = entries(dir).filter(|folder| folder.to_string_lossy().ends_with(FORMAT));
    for file in folders.flat_map(|folder| entries(&folder)) {
        if file.extension().is_none_or(|extension| extension != "cwasm") {
            continue;
        }
        let name = file.file_stem().and_then(|name| name.to_str());
        let Some(digest) = name.and_then(|name| name.parse().ok()) else { continue };
        let bytes = match read(&file) {
            Ok((_, bytes)) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                return Err(io::Error::new(error.kind(), format!("{}: {error}", file.display())));
            }
        };
        files += 1;
        if unseal(&bytes, digest).is_none() {
            damaged += 1;
            remove(&file);
        }
    }
    Ok((files, damaged))
}

/// The compiled code of all engines in a `compiled` directory, the most recently used first. Each
/// entry has the digest of its component.
pub fn stored_code(dir: &Path) -> Vec<(PathBuf, Stored)> {
    let folders = entries(dir).filter(|folder| folder.is_dir());
    let is_code = |file: &PathBuf| file.extension().is_some_and(|extension| extension == "cwasm");
    let files = folders.flat_map(|folder| entries(&folder)).filter(is_code);
    let mut found: Vec<_> =
        files.filter_map(|file| of_file(&file).map(|stored| (file, stored))).collect();
    found.sort_by_key(|(_, stored)| Reverse(stored.used));
    found
}

fn not_loaded(path: &Path, why: &str) -> Option<Vec<u8>> {
    tracing::warn!("compiled code {} is not usable and is compiled again: {why}", path.display());
    None
}

/// Removes a file, or a directory in its place.
fn remove(path: &Path) {
    if fs::remove_file(path).is_err() {
        // It may already be gone.
        let _ = fs::remove_dir_all(path);
    }
}

fn read(path: &Path) -> io::Result<(fs::File, Vec<u8>)> {
    let mut file = fs::File::open(path)?;
    let size = usize::try_from(file.metadata()?.len()).unwrap_or(0);
    let mut bytes = Vec::with_capacity(size.saturating_add(1));
    file.read_to_end(&mut bytes)?;
    Ok((file, bytes))
}

/// The code in a file, if the checksum is right.
pub(super) fn unseal(bytes: &[u8], digest: Digest) -> Option<&[u8]> {
    let (code, sum) = bytes.split_at_checked(bytes.len().checked_sub(TRAILER)?)?;
    (sum == checksum(code, digest).ok()?.0).then_some(code)
}

/// The checksum of compiled code. It covers the component's digest, so that code under a wrong name
/// is not loaded.
pub(super) fn checksum(code: &[u8], digest: Digest) -> io::Result<Digest> {
    Ok(Digest::of_reader((&digest.0[..]).chain(code))?.0)
}

/// Makes a directory that only this user can write to, or checks that an existing one is.
fn private_dir(dir: &Path) -> io::Result<()> {
    if let Some(parent) = dir.parent() {
        fs::create_dir_all(parent)?;
    }
    make_private(dir)?;
    let meta = fs::metadata(dir)?;
    let ours = meta.uid() == rustix::process::geteuid().as_raw();
    if ours && meta.mode() & 0o022 == 0 {
        Ok(())
    } else {
        Err(io::Error::other(format!(
            "{} belongs to another user or is writable by others; \
             native code is loaded only from a directory of our own (`chmod 700` it)",
            dir.display()
        )))
    }
}

fn make_private(dir: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// A locked file that is being written. Dropping it removes the file, unless it was renamed.
struct Temporary(Option<PathBuf>);

impl Temporary {
    fn create(target: &Path) -> io::Result<(fs::File, Self)> {
        loop {
            let path = target.with_extension(format!("{}.tmp", uuid::Uuid::new_v4()));
            let options = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).clone();
            let file = options.open(&path)?;
            let temporary = Self(Some(path));
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                // Another host may have removed the file as abandoned before it was locked.
                Ok(()) if file.metadata()?.nlink() == 0 => {}
                Err(Errno::WOULDBLOCK) => {}
                // If files can't be locked, the age of a file decides whether it is abandoned.
                Ok(()) | Err(_) => return Ok((file, temporary)),
            }
        }
    }

    fn rename(mut self, to: &Path) -> io::Result<()> {
        if let Some(path) = &self.0 {
            fs::rename(path, to)?;
        }
        self.0 = None;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = fs::remove_file(path);
        }
    }
}

/// Removes a file that no host locks any more, if its age is at least `least`.
fn remove_abandoned(path: &Path, now: SystemTime, least: Duration) {
    let Ok(file) = fs::File::open(path) else { return };
    let age = file.metadata().and_then(|meta| meta.modified());
    let age = age.ok().and_then(|modified| now.duration_since(modified).ok()).unwrap_or_default();
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        _ if age < least => {}
        Ok(()) => remove(path),
        Err(Errno::WOULDBLOCK) => {}
        Err(_) if age > ABANDONED => remove(path),
        Err(_) => {}
    }
}
