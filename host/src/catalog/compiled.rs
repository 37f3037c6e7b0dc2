//! Compiled code on disk: `compiled/ENGINE/DIGEST.cwasm`, the code and a checksum; and beside it
//! what is known of components that can't be compiled (`quarantine.rs`).
//!
//! Compiled code is native code. It is loaded only from a directory that nobody else can write
//! to, and only if its checksum is right: the engine itself checks little, and would run into
//! whatever a power cut left. The bytes that were checked are the ones that are loaded, so that
//! a disk that fails later does not matter either.

use std::fs;
use std::hash::{Hash, Hasher};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{FlockOperation, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, flock, futimens};
use rustix::io::Errno;
use wasmtime::Engine;

use super::compiler::{CompileLimits, Failed};
use super::quarantine::{DEATHS_COUNT, MOST_RECORDS, Turn, Unkept, read_failed};
use crate::digest::Digest;
use crate::shortage::is_damage;

/// What ends the name of a folder: how its files are written.
const FORMAT: &str = "-2";
/// The checksum at the end of a file.
const TRAILER: usize = 32;
/// How long a host waits for another that compiles the same component.
const LONGEST_TURN: Duration = Duration::from_secs(60);
/// How often it looks.
const TURN_LOOK: Duration = Duration::from_millis(50);
/// Code for other engines and versions that was not used for this long is removed.
const OTHERS_KEPT: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// A temporary file of this age is nobody's, where files can't be locked.
const ABANDONED: Duration = Duration::from_secs(60 * 60);

/// The compiled code that is kept for one engine.
#[derive(Debug)]
pub(super) struct Compiled {
    dir: PathBuf,
    /// The folder of this engine.
    folder: PathBuf,
    max_bytes: u64,
    /// Why the directory could not be used the last time, which was logged.
    refused: Mutex<Option<String>>,
    /// What is known of components that can't be compiled, where it can't be kept.
    unkept: Unkept,
}

impl Compiled {
    /// Removes what killed hosts left in `dir`, and code beyond `max_bytes`.
    pub(super) fn open(dir: &Path, engine: &Engine, max_bytes: u64) -> Self {
        let mut hasher = std::hash::DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        let folder = dir.join(format!("{:016x}{FORMAT}", hasher.finish()));
        let compiled = Self {
            dir: dir.to_owned(),
            folder,
            max_bytes,
            refused: Mutex::default(),
            unkept: Unkept::default(),
        };
        if compiled.is_usable() {
            compiled.tidy(None);
        }
        compiled
    }

    /// The bytes that were kept: those that [`keep`](Self::keep) was given for this component by
    /// a host with an engine like ours. `None` means that the component has to be compiled.
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
        // A failure makes it look older than it is.
        let _ = futimens(&file, &times);
        Some(bytes)
    }

    /// Keeps compiled code for the next start. A failure costs time then, and nothing now.
    pub(super) fn keep(&self, digest: Digest, code: &[u8]) {
        self.unkept.forget(digest);
        if !self.is_usable() {
            return;
        }
        let path = self.path(digest);
        let kept = checksum(code, digest).and_then(|sum| self.write(&path, &[code, &sum.0]));
        match kept {
            Ok(()) => {
                // It failed with lower limits, perhaps.
                let _ = fs::remove_file(self.failed_path(digest));
                self.tidy(Some(&path));
            }
            Err(error) => tracing::warn!(
                "compiled code is not kept, the next start compiles it again: {}: {error}",
                path.display()
            ),
        }
    }

    fn write(&self, path: &Path, parts: &[&[u8]]) -> io::Result<()> {
        make_private(&self.folder)?;
        let (mut file, temporary) = Temporary::create(path)?;
        for part in parts {
            file.write_all(part)?;
        }
        // Before it has its name, so that a power cut leaves all of it or nothing.
        file.sync_all()?;
        if path.is_dir() {
            remove(path);
        }
        temporary.rename(path)
    }

    /// The right to compile a component, or `None` where that can't be had or took too long: its
    /// holder may be stopped. Then several hosts may compile it, which does no harm.
    pub(super) async fn turn(&self, digest: Digest) -> Option<Turn> {
        if !self.is_usable() {
            return None;
        }
        make_private(&self.folder).ok()?;
        let path = self.path(digest).with_extension("trying");
        let start = Instant::now();
        loop {
            match Turn::try_take(&path) {
                Ok(Some(turn)) => return Some(turn),
                Ok(None) if start.elapsed() < LONGEST_TURN => tokio::time::sleep(TURN_LOOK).await,
                _ => return None,
            }
        }
    }

    /// Why a component can't be compiled with these limits, if that is known.
    pub(super) fn failed(&self, digest: Digest, limits: CompileLimits) -> Option<Failed> {
        if self.is_usable()
            && let Some(failed) = read_failed(&self.failed_path(digest), limits)
        {
            return Some(failed);
        }
        self.unkept.failed(digest).filter(|failed| failed.holds_for(limits))
    }

    /// Remembers why a component can't be compiled.
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
            false => self.unkept.remember(digest, failed.clone()),
        }
    }

    /// Counts the death of a compiler. Returns how many there were for this component.
    pub(super) fn died(&self, digest: Digest, turn: &mut Option<Turn>) -> u32 {
        match turn {
            Some(turn) => turn.died(),
            None => self.unkept.died(digest),
        }
    }

    fn failed_path(&self, digest: Digest) -> PathBuf {
        self.path(digest).with_extension("failed")
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.folder.join(format!("{digest}.cwasm"))
    }

    /// Whether the directory is there and ours alone. Makes it, and says once why not.
    fn is_usable(&self) -> bool {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let Err(error) = private_dir(&self.dir) else {
            *refused = None;
            return true;
        };
        let why = error.to_string();
        if refused.as_deref() != Some(&why) {
            tracing::warn!("compiled components are not kept, each start compiles them: {why}");
            *refused = Some(why);
        }
        false
    }

    /// Removes what is left of killed hosts, the code of other engines that was not used for
    /// long, and what was used longest ago beyond the bound; but never `new`, or what was used
    /// last.
    fn tidy(&self, new: Option<&Path>) {
        let now = SystemTime::now();
        let (mut kept, mut failed) = (Vec::new(), Vec::new());
        for folder in entries(&self.dir).filter(|folder| folder.is_dir()) {
            let is_ours = folder == self.folder;
            for file in entries(&folder) {
                match file.extension().and_then(|extension| extension.to_str()) {
                    Some("tmp" | "lock") => remove_abandoned(&file, now, Duration::ZERO),
                    // A death that still counts may have left it.
                    Some("trying") => remove_abandoned(&file, now, DEATHS_COUNT),
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
                // Only if it is empty.
                let _ = fs::remove_dir(&folder);
            }
        }
        failed.sort();
        let too_many = failed.len().saturating_sub(MOST_RECORDS);
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

/// Reads the compiled code of all engines below a `compiled` directory. Returns how many files
/// there are, and how many of them were damaged and have been removed.
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

fn not_loaded(path: &Path, why: &str) -> Option<Vec<u8>> {
    tracing::warn!("compiled code {} is not usable, compiling again: {why}", path.display());
    None
}

/// The paths in a directory, as far as it can be listed.
pub(super) fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// Removes a file, or whatever is in its place.
fn remove(path: &Path) {
    if fs::remove_file(path).is_err() {
        // It may be gone already.
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

/// The code in a file that is whole.
fn unseal(bytes: &[u8], digest: Digest) -> Option<&[u8]> {
    let (code, sum) = bytes.split_at_checked(bytes.len().checked_sub(TRAILER)?)?;
    (sum == checksum(code, digest).ok()?.0).then_some(code)
}

/// The component's own digest is a part of it, so that code under a wrong name is not loaded.
fn checksum(code: &[u8], digest: Digest) -> io::Result<Digest> {
    Ok(Digest::of_reader((&digest.0[..]).chain(code))?.0)
}

/// Makes a directory that only we can write to, or checks that it is one.
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
            "{} belongs to somebody else or is writable by others; \
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

/// A file that is being written, locked. Dropping it removes it, unless it was renamed.
struct Temporary(Option<PathBuf>);

impl Temporary {
    fn create(target: &Path) -> io::Result<(fs::File, Self)> {
        loop {
            let path = target.with_extension(format!("{}.tmp", uuid::Uuid::new_v4()));
            let options = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).clone();
            let file = options.open(&path)?;
            let temporary = Self(Some(path));
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                // A host that starts now may have taken it for one that nobody holds.
                Ok(()) if file.metadata()?.nlink() == 0 => {}
                Err(Errno::WOULDBLOCK) => {}
                // Where files can't be locked, age decides.
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

/// Removes a file of at least that age that a host locks while it needs it, if none does.
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
