//! Compiled code on disk: `compiled/ENGINE/DIGEST.cwasm`, the code and a checksum.
//!
//! Compiled code is native code. It is loaded only from a directory that nobody else can write
//! to, and only if its checksum is right: the engine itself checks little, and would run into
//! whatever a power cut left. The bytes that were checked are the ones that are loaded, so that
//! a disk that fails later does not matter either.

use std::fs;
use std::hash::{Hash, Hasher};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{FlockOperation, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, flock, futimens};
use rustix::io::Errno;
use wasmtime::Engine;
use wasmtime::component::Component;

use crate::cache::is_damage;
use crate::digest::Digest;

/// What ends the name of a folder: how its files are written.
const FORMAT: &str = "-2";
/// The checksum at the end of a file.
const TRAILER: usize = 32;
/// How long a host waits for another that compiles the same component.
const LONGEST_TURN: Duration = Duration::from_secs(60);
/// How often it looks.
const TURN_LOOK: Duration = Duration::from_millis(20);
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
}

impl Compiled {
    /// Removes what killed hosts left in `dir`, and code beyond `max_bytes`.
    pub(super) fn open(dir: &Path, engine: &Engine, max_bytes: u64) -> Self {
        let mut hasher = std::hash::DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        let folder = dir.join(format!("{:016x}{FORMAT}", hasher.finish()));
        let compiled = Self { dir: dir.to_owned(), folder, max_bytes, refused: Mutex::default() };
        if compiled.is_usable() {
            compiled.tidy(None);
        }
        compiled
    }

    /// Loads what was kept. `None` means that the component has to be compiled.
    pub(super) fn load(&self, digest: Digest, engine: &Engine) -> Option<Component> {
        let path = self.path(digest);
        if !self.is_usable() {
            return None;
        }
        let (file, bytes) = match read(&path) {
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
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
        let times = Timestamps { last_access: now, last_modification: omit };
        // A failure makes it look older than it is.
        let _ = futimens(&file, &times);
        // SAFETY: these are the bytes that `keep` wrote for this component: their checksum is
        // right, and the file is in a directory that `is_usable` found to be ours alone. The
        // engine checks that its version and settings are the same.
        match unsafe { Component::deserialize(engine, code) } {
            Ok(component) => Some(component),
            Err(error) => not_loaded(&path, &format!("{error:#}")),
        }
    }

    /// Keeps compiled code for the next start. A failure costs time then, and nothing now.
    pub(super) fn keep(&self, digest: Digest, component: &Component) {
        if !self.is_usable() {
            return;
        }
        let path = self.path(digest);
        let kept = component
            .serialize()
            .map_err(|error| io::Error::other(format!("{error:#}")))
            .and_then(|code| self.write(&path, digest, &code));
        match kept {
            Ok(()) => self.tidy(Some(&path)),
            Err(error) => tracing::warn!(
                "compiled code is not kept, the next start compiles it again: {}: {error}",
                path.display()
            ),
        }
    }

    fn write(&self, path: &Path, digest: Digest, code: &[u8]) -> io::Result<()> {
        make_private(&self.folder)?;
        let (mut file, temporary) = Temporary::create(path)?;
        file.write_all(code)?;
        file.write_all(&checksum(code, digest)?.0)?;
        // Before it has its name, so that a power cut leaves all of it or nothing.
        file.sync_all()?;
        if path.is_dir() {
            remove(path);
        }
        temporary.rename(path)
    }

    /// The right to compile a component, or `None` where that can't be had or took too long.
    /// Then several hosts may compile it, which does no harm.
    pub(super) fn turn(&self, digest: Digest) -> Option<Turn> {
        if !self.is_usable() {
            return None;
        }
        make_private(&self.folder).ok()?;
        Turn::take(self.path(digest).with_extension("lock"))
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
        let mut kept = Vec::new();
        for folder in entries(&self.dir).filter(|folder| folder.is_dir()) {
            let is_ours = folder == self.folder;
            for file in entries(&folder) {
                match file.extension().and_then(|extension| extension.to_str()) {
                    Some("tmp" | "lock") => remove_abandoned(&file, now),
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

fn not_loaded(path: &Path, why: &str) -> Option<Component> {
    tracing::warn!("compiled code {} is not usable, compiling again: {why}", path.display());
    None
}

/// The paths in a directory, as far as it can be listed.
fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> + use<> {
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

/// Removes a file that a host locks while it needs it, if none does.
fn remove_abandoned(path: &Path, now: SystemTime) {
    let Ok(file) = fs::File::open(path) else { return };
    let age = file.metadata().and_then(|meta| meta.modified());
    let age = age.ok().and_then(|modified| now.duration_since(modified).ok());
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => remove(path),
        Err(Errno::WOULDBLOCK) => {}
        Err(_) if age.is_some_and(|age| age > ABANDONED) => remove(path),
        Err(_) => {}
    }
}

/// The right to compile one component, among the hosts that share a cache. Given back when it
/// is dropped, and by the kernel when its holder dies.
pub(super) struct Turn {
    lock: PathBuf,
    _file: OwnedFd,
}

impl Turn {
    /// Waits for it, but not for ever: the holder may be stopped.
    fn take(lock: PathBuf) -> Option<Self> {
        let options =
            fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).clone();
        let file = OwnedFd::from(options.open(&lock).ok()?);
        let start = Instant::now();
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Some(Self { lock, _file: file }),
                Err(Errno::WOULDBLOCK) if start.elapsed() < LONGEST_TURN => {
                    std::thread::sleep(TURN_LOOK);
                }
                Err(_) => return None,
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // Whoever waits has it open, and finds the compiled code when it gets the lock.
        let _ = fs::remove_file(&self.lock);
    }
}
