//! The quarantine: components that can't be compiled are not compiled again, and their tasks fail
//! with the recorded reason.
//!
//! `DIGEST.failed` holds the reason. The host that compiles locks `DIGEST.trying`. A `.trying` file
//! that records a compilation under way, but is not locked, was left by a host that died during
//! the compilation. Both files are beside the compiled code.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use parking_lot::{Mutex, MutexGuard};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::compiler::{CompileLimits, Failed};
use crate::digest::Digest;

/// The number of deaths of compilers or compiling hosts after which a component is quarantined.
pub(super) const MAX_DEATHS: u32 = 2;
/// The age after which a death no longer counts, because it may have had another cause.
pub(super) const DEATH_EXPIRES: Duration = Duration::from_secs(24 * 60 * 60);
/// The most bytes of a record.
const MAX_RECORD_BYTES: u64 = 256 << 10;
/// The most records, on disk and in memory.
pub(super) const MAX_RECORDS: usize = 1000;

/// The contents of a `.trying` file.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Trying {
    /// The number of deaths so far.
    deaths: u32,
    /// True if a compilation has started and its end is not recorded.
    is_under_way: bool,
}

/// Failures and deaths that are kept in memory because they can't be stored on disk.
#[derive(Debug, Default)]
pub(super) struct Unstored(Mutex<HashMap<Digest, Known>>);

#[derive(Debug, Default)]
struct Known {
    failed: Option<Failed>,
    deaths: u32,
}

impl Unstored {
    pub(super) fn failed(&self, digest: Digest) -> Option<Failed> {
        self.all().get(&digest)?.failed.clone()
    }

    pub(super) fn remember(&self, digest: Digest, failed: Failed) {
        self.known(digest, |known| known.failed = Some(failed));
    }

    pub(super) fn forget(&self, digest: Digest) {
        self.all().remove(&digest);
    }

    /// Counts one more death. Returns the number of deaths.
    pub(super) fn died(&self, digest: Digest) -> u32 {
        self.known(digest, |known| {
            known.deaths += 1;
            known.deaths
        })
    }

    fn known<T>(&self, digest: Digest, change: impl FnOnce(&mut Known) -> T) -> T {
        let mut all = self.all();
        if all.len() >= MAX_RECORDS && !all.contains_key(&digest) {
            // The memory must stay bounded, even if some components are then compiled again.
            all.clear();
        }
        change(all.entry(digest).or_default())
    }

    fn all(&self) -> MutexGuard<'_, HashMap<Digest, Known>> {
        self.0.lock()
    }
}

/// Reads a record, if it exists and holds for these limits.
pub(super) fn read_failed(path: &Path, limits: CompileLimits) -> Option<Failed> {
    let failed = parse(path)?;
    let is_old = failed.by_death && age(path).is_none_or(|age| age > DEATH_EXPIRES);
    (!is_old && failed.holds_for(limits)).then_some(failed)
}

fn parse(path: &Path) -> Option<Failed> {
    let mut text = Vec::new();
    fs::File::open(path).ok()?.take(MAX_RECORD_BYTES).read_to_end(&mut text).ok()?;
    match parse_failed(&text) {
        Ok(failed) => Some(failed),
        Err(error) => {
            tracing::warn!("{} is damaged and is ignored: {error}", path.display());
            None
        }
    }
}

/// Parses the record of a failure.
pub(super) fn parse_failed(text: &[u8]) -> serde_json::Result<Failed> {
    serde_json::from_slice(text)
}

/// Parses the record of a compilation under way. A damaged record counts as an empty one.
pub(super) fn parse_trying(text: &[u8]) -> Trying {
    serde_json::from_slice(text).unwrap_or_default()
}

fn age(path: &Path) -> Option<Duration> {
    let modified = fs::metadata(path).ok()?.modified().ok()?;
    // A time in the future counts as now.
    Some(SystemTime::now().duration_since(modified).unwrap_or_default())
}

/// The lock for compiling one component, shared by the hosts of a cache. Dropping the value
/// releases the lock. The kernel releases it when its holder dies.
#[derive(Debug)]
pub(super) struct CompileLock {
    path: PathBuf,
    file: fs::File,
    deaths: u32,
}

impl CompileLock {
    /// Takes the lock. `None` if another host holds it.
    ///
    /// # Errors
    /// When files can't be created or locked.
    pub(super) fn try_take(path: &Path) -> io::Result<Option<Self>> {
        let options = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .clone();
        loop {
            let mut file = options.open(path)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
            let meta = file.metadata()?;
            if meta.nlink() == 0 {
                // The last holder has removed the file.
                continue;
            }
            let age =
                meta.modified().ok().and_then(|then| SystemTime::now().duration_since(then).ok());
            let mut text = Vec::new();
            (&mut file).take(MAX_RECORD_BYTES).read_to_end(&mut text)?;
            let left = parse_trying(&text);
            let deaths = match age {
                Some(age) if age > DEATH_EXPIRES => 0,
                _ => left.deaths.saturating_add(u32::from(left.is_under_way)),
            };
            return Ok(Some(Self { path: path.to_owned(), file, deaths }));
        }
    }

    /// The number of compilations of this component that ended with a death.
    pub(super) fn deaths(&self) -> u32 {
        self.deaths
    }

    /// Records that a compilation starts, so that the death of this host is noticed.
    pub(super) fn begin(&mut self) -> io::Result<()> {
        self.write(true)?;
        self.file.sync_data()
    }

    /// Counts one more death. Returns the number of deaths.
    pub(super) fn died(&mut self) -> u32 {
        self.deaths = self.deaths.saturating_add(1);
        self.deaths
    }

    /// Sets the number of deaths to zero, because they no longer matter.
    pub(super) fn forget_deaths(&mut self) {
        self.deaths = 0;
    }

    fn write(&mut self, is_under_way: bool) -> io::Result<()> {
        let text = serde_json::to_vec(&Trying { deaths: self.deaths, is_under_way })?;
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.file.write_all(&text)
    }
}

impl Drop for CompileLock {
    fn drop(&mut self) {
        // A waiting host has the file open and notices the removal when it takes the lock.
        let kept = self.deaths > 0 && self.write(false).is_ok();
        if !kept {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A component that this machine does not compile again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Quarantined {
    /// The SHA-256 of the component, in hexadecimal.
    pub digest: String,
    /// Why it can't be compiled.
    pub reason: String,
}

/// The quarantined components in a `compiled` directory, of all versions of the host, sorted by
/// digest.
pub fn quarantined(dir: &Path) -> Vec<Quarantined> {
    let mut found: Vec<Quarantined> = records(dir, "failed")
        .filter_map(|path| {
            let digest: Digest = path.file_stem()?.to_str()?.parse().ok()?;
            Some(Quarantined { digest: digest.to_string(), reason: parse(&path)?.reason })
        })
        .collect();
    found.sort_by(|a, b| a.digest.cmp(&b.digest));
    found
}

/// Allows all quarantined components to be compiled again.
///
/// # Errors
/// When a record can't be removed.
pub fn forget_quarantined(dir: &Path) -> io::Result<()> {
    for path in records(dir, "failed") {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let problem = format!("{}: {error}", path.display());
                return Err(io::Error::new(error.kind(), problem));
            }
            _ => {}
        }
    }
    for path in records(dir, "trying") {
        // Dropping a lock without deaths removes its file.
        if let Ok(Some(mut lock)) = CompileLock::try_take(&path) {
            lock.forget_deaths();
        }
    }
    Ok(())
}

fn records(dir: &Path, extension: &'static str) -> impl Iterator<Item = PathBuf> {
    let folders = super::entries(dir).filter(|folder| folder.is_dir());
    let files = folders.flat_map(|folder| super::entries(&folder));
    files.filter(move |file| file.extension().is_some_and(|found| found == extension))
}
