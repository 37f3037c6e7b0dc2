//! The number of messages: in the queue, sent and completed.
//!
//! `insertions` is a decimal number, `completions` a file whose length in bytes is the number.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::fs::{self, FlockOperation, OFlags};
use rustix::io::Errno;

use super::dirs::Dirs;
use super::files::{is_regular, open_regular, read, size};
use super::listing::Listing;
use super::lock_wait::pauses;
use super::movement::Movement;
use super::name::Name;
use crate::queue::{Counts, QueueError};

const INSERTIONS: &str = "insertions";
const COMPLETIONS: &str = "completions";
/// The maximum number of bytes that are read of `insertions`. A number has fewer digits.
const DIGITS: usize = 64;

/// The maximum number of movement files that are read to find out which of the messages that cannot
/// be leased now are not held. If there are more such messages, the result is scaled up.
const LOOKED_AT: usize = 1000;

/// How long a sender waits for the lock of `insertions`. The count is only a statistic: if it
/// cannot be updated, the message is sent anyway.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Counts the messages in the queue by listing it, and reads the counters.
pub(super) fn counts(dirs: &Dirs, now: Duration) -> Result<Counts, QueueError> {
    let now = now.as_secs();
    let count = || {
        let (mut enqueued, mut leased) = (0, 0);
        let mut looked_at = Vec::new();
        let mut listing = Listing::of(&dirs.queue)?;
        let mut each = |_: &str, name: Option<Name>| {
            if let Some(name) = name {
                enqueued += 1;
                if name.due() > now {
                    leased += 1;
                    if looked_at.len() < LOOKED_AT {
                        looked_at.push(name);
                    }
                }
            }
        };
        while listing.piece(&mut each)? {}
        let is_free = |name: &&Name| {
            let history = Movement::peek(dirs, name.id());
            history.is_some_and(|history| !history.is_held(name))
        };
        let free = looked_at.iter().filter(is_free).count() as u64;
        let retrying = free * leased / looked_at.len().max(1) as u64;
        Ok(Counts {
            enqueued: Some(enqueued),
            leased: Some(leased),
            retrying: Some(retrying),
            inserted: insertions(dirs)?,
            completed: completions(dirs)?,
        })
    };
    count().map_err(|errno| dirs.failed("counting the messages", errno))
}

/// Adds to the number of messages ever sent. Waits up to `patience` for the lock.
pub(super) async fn add_insertions(
    dirs: &Dirs,
    count: u64,
    patience: Duration,
) -> Result<(), Errno> {
    let mut pauses = pauses(patience);
    while !change_insertions(dirs, |n| n.saturating_add(count))? {
        tokio::time::sleep(pauses.next().ok_or(Errno::AGAIN)?).await;
    }
    Ok(())
}

/// Sets both counters to zero. Returns `false` if another process holds the lock.
pub(super) fn rezero(dirs: &Dirs) -> Result<bool, Errno> {
    let file = dirs.file(&dirs.root, COMPLETIONS, OFlags::WRONLY | OFlags::CREATE)?;
    fs::ftruncate(&file, 0)?;
    change_insertions(dirs, |_| 0)
}

/// Rewrites the number of messages ever sent, under its lock. Returns `false` if another
/// process holds the lock.
fn change_insertions(dirs: &Dirs, change: impl Fn(u64) -> u64) -> Result<bool, Errno> {
    // A record lock belongs to the process, so threads of this process need a lock of their own.
    static IN_PROCESS: Mutex<()> = Mutex::new(());
    let _in_process = IN_PROCESS.lock();

    let fd = dirs.file(&dirs.root, INSERTIONS, OFlags::RDWR | OFlags::CREATE)?;
    match fs::fcntl_lock(&fd, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::AGAIN | Errno::ACCESS) => return Ok(false),
        Err(errno) => return Err(errno),
    }
    let old = read(&fd, DIGITS)?;
    let new = change(number(&old)).to_string();
    // Python reads without the lock and fails on an empty file. Therefore the number is overwritten
    // in place, and the rest of a longer number is cut off afterwards.
    rustix::io::pwrite(&fd, new.as_bytes(), 0)?;
    if old.len() > new.len() {
        fs::ftruncate(&fd, new.len() as u64)?;
    }
    Ok(true)
}

/// The number of messages ever sent, or `None` if the counter is not a file.
fn insertions(dirs: &Dirs) -> Result<Option<u64>, Errno> {
    match open_regular(&dirs.root, INSERTIONS, OFlags::RDONLY) {
        Ok(Some(fd)) => Ok(Some(number(&read(&fd, DIGITS)?))),
        Ok(None) => Ok(None),
        Err(Errno::NOENT) => Ok(Some(0)),
        Err(errno) => Err(errno),
    }
}

/// The number of messages ever completed, or `None` if the counter is not a file.
fn completions(dirs: &Dirs) -> Result<Option<u64>, Errno> {
    match fs::statat(&dirs.root, COMPLETIONS, fs::AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(is_regular(&stat).then(|| size(&stat) as u64)),
        Err(Errno::NOENT) => Ok(Some(0)),
        Err(errno) => Err(errno),
    }
}

/// Parses a counter. An empty file is zero: Python empties the file for a moment while it rewrites
/// it.
fn number(text: &[u8]) -> u64 {
    let text = str::from_utf8(text).unwrap_or_default();
    text.trim().parse().unwrap_or_default()
}

/// The time between two checks that the counter's file still exists.
const CHECK: Duration = Duration::from_millis(200);

/// The counter of completed messages, kept open.
#[derive(Debug, Default)]
pub(super) struct Completions(Mutex<Option<OpenCounter>>);

#[derive(Debug)]
struct OpenCounter {
    file: OwnedFd,
    checked: Instant,
}

impl OpenCounter {
    /// Opens the counter. An entry that is not a file is moved away.
    fn open(dirs: &Dirs) -> Result<OpenCounter, Errno> {
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE;
        let file = dirs.file(&dirs.root, COMPLETIONS, flags)?;
        Ok(OpenCounter { file, checked: Instant::now() })
    }

    /// Returns the counter unless its file was removed.
    fn checked(self) -> Option<OpenCounter> {
        if self.checked.elapsed() < CHECK {
            return Some(self);
        }
        let exists = fs::fstat(&self.file).is_ok_and(|stat| stat.st_nlink > 0);
        exists.then(|| OpenCounter { checked: Instant::now(), ..self })
    }
}

impl Completions {
    pub(super) fn add_one(&self, dirs: &Dirs) -> Result<(), Errno> {
        let mut open = self.0.lock();
        // If the file was removed, counts are lost until the next check.
        let counter = match open.take().and_then(OpenCounter::checked) {
            Some(counter) => counter,
            None => OpenCounter::open(dirs)?,
        };
        rustix::io::retry_on_intr(|| rustix::io::write(&counter.file, b"\0"))?;
        *open = Some(counter);
        Ok(())
    }
}
