//! What is remembered of compilations that came to no good: such a component is not compiled
//! again, and its tasks fail with the reason.
//!
//! `DIGEST.failed` is the reason. `DIGEST.trying` is locked by the host that compiles: a file that
//! says a compilation is under way, and that nobody has locked, was left by a host that died of it,
//! or meanwhile. Both lie beside the compiled code, and are used only where that is.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::compiler::{CompileLimits, Failed};
use crate::digest::Digest;

/// Deaths of compilers, or of hosts that compile, after which they are taken to be the
/// component's doing.
pub(super) const MOST_DEATHS: u32 = 2;
/// A death of this age counts no more: it may have had any cause.
pub(super) const DEATHS_COUNT: Duration = Duration::from_secs(24 * 60 * 60);
/// Bytes of a record, at most.
const LONGEST_RECORD: u64 = 256 << 10;
/// Records that are kept, and those that are remembered where none can be kept.
pub(super) const MOST_RECORDS: usize = 1000;

/// What a [`Turn`] leaves behind.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Trying {
    /// Deaths before.
    deaths: u32,
    /// A compilation has begun, and its end was not recorded.
    is_under_way: bool,
}

/// What can't be kept on disk.
#[derive(Debug, Default)]
pub(super) struct Unkept(Mutex<HashMap<Digest, Known>>);

#[derive(Debug, Default)]
struct Known {
    failed: Option<Failed>,
    deaths: u32,
}

impl Unkept {
    pub(super) fn failed(&self, digest: Digest) -> Option<Failed> {
        self.all().get(&digest)?.failed.clone()
    }

    pub(super) fn remember(&self, digest: Digest, failed: Failed) {
        self.known(digest, |known| known.failed = Some(failed));
    }

    pub(super) fn forget(&self, digest: Digest) {
        self.all().remove(&digest);
    }

    /// Counts one more death, and returns how many there were.
    pub(super) fn died(&self, digest: Digest) -> u32 {
        self.known(digest, |known| {
            known.deaths += 1;
            known.deaths
        })
    }

    fn known<T>(&self, digest: Digest, change: impl FnOnce(&mut Known) -> T) -> T {
        let mut all = self.all();
        if all.len() >= MOST_RECORDS && !all.contains_key(&digest) {
            // To compile some of them once more does less harm than to grow.
            all.clear();
        }
        change(all.entry(digest).or_default())
    }

    fn all(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads a record, if it is there and holds for these limits.
pub(super) fn read_failed(path: &Path, limits: CompileLimits) -> Option<Failed> {
    let failed = parse(path)?;
    let is_old = failed.by_death && age(path).is_none_or(|age| age > DEATHS_COUNT);
    (!is_old && failed.holds_for(limits)).then_some(failed)
}

fn parse(path: &Path) -> Option<Failed> {
    let mut text = Vec::new();
    fs::File::open(path).ok()?.take(LONGEST_RECORD).read_to_end(&mut text).ok()?;
    match serde_json::from_slice(&text) {
        Ok(failed) => Some(failed),
        Err(error) => {
            tracing::warn!("{} is damaged and is not heeded: {error}", path.display());
            None
        }
    }
}

fn age(path: &Path) -> Option<Duration> {
    let modified = fs::metadata(path).ok()?.modified().ok()?;
    // One of the future is new.
    Some(SystemTime::now().duration_since(modified).unwrap_or_default())
}

/// The right to compile one component, among the hosts that share a cache. Given back when it
/// is dropped, and by the kernel when its holder dies.
#[derive(Debug)]
pub(super) struct Turn {
    path: PathBuf,
    file: fs::File,
    deaths: u32,
}

impl Turn {
    /// Takes it, unless somebody has it.
    ///
    /// # Errors
    /// Where files can't be made or locked.
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
                // Its last holder has removed it.
                continue;
            }
            let age =
                meta.modified().ok().and_then(|then| SystemTime::now().duration_since(then).ok());
            let mut text = Vec::new();
            (&mut file).take(LONGEST_RECORD).read_to_end(&mut text)?;
            let left: Trying = serde_json::from_slice(&text).unwrap_or_default();
            let deaths = match age {
                Some(age) if age > DEATHS_COUNT => 0,
                _ => left.deaths.saturating_add(u32::from(left.is_under_way)),
            };
            return Ok(Some(Self { path: path.to_owned(), file, deaths }));
        }
    }

    /// How often a compilation of this component was cut short by a death.
    pub(super) fn deaths(&self) -> u32 {
        self.deaths
    }

    /// Notes that a compilation begins, so that the death of this host is noticed.
    pub(super) fn begin(&mut self) -> io::Result<()> {
        self.write(true)?;
        self.file.sync_data()
    }

    /// Counts one more death, and returns how many there were.
    pub(super) fn died(&mut self) -> u32 {
        self.deaths = self.deaths.saturating_add(1);
        self.deaths
    }

    /// The deaths are told elsewhere, or explained.
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

impl Drop for Turn {
    fn drop(&mut self) {
        // Whoever waits has it open, and sees that it is gone when it gets the lock.
        let kept = self.deaths > 0 && self.write(false).is_ok();
        if !kept {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A component that a machine does not compile again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Quarantined {
    /// The SHA-256 of its bytes, in hexadecimal.
    pub digest: String,
    /// Why.
    pub reason: String,
}

/// The components in quarantine in a `compiled` directory, of all versions of the host, in the
/// order of their digests.
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

/// Lets all components in quarantine be compiled again.
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
        // One that nobody has is removed when it is dropped.
        if let Ok(Some(mut turn)) = Turn::try_take(&path) {
            turn.forget_deaths();
        }
    }
    Ok(())
}

fn records(dir: &Path, extension: &'static str) -> impl Iterator<Item = PathBuf> {
    let folders = super::compiled::entries(dir).filter(|folder| folder.is_dir());
    let files = folders.flat_map(|folder| super::compiled::entries(&folder));
    files.filter(move |file| file.extension().is_some_and(|found| found == extension))
}
