//! The two counters: `insertions`, a decimal number, and `completions`, a file that is as
//! long as its count.

use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{self, FlockOperation, OFlags};
use rustix::io::Errno;

use super::dirs::{Dirs, open_file, read, size};

const INSERTIONS: &str = "insertions";
const COMPLETIONS: &str = "completions";
/// Bytes that are read of the number: more than any has.
const DIGITS: usize = 64;

/// How long a sender waits for its turn to count. The count is a statistic: what can't be
/// counted is sent all the same.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Adds to the number of messages ever sent, waiting that long for others who do.
pub(super) async fn add_insertions(
    dirs: &Dirs,
    count: u64,
    patience: Duration,
) -> Result<(), Errno> {
    let started = Instant::now();
    while !change_insertions(dirs, |n| n.saturating_add(count))? {
        if started.elapsed() >= patience {
            return Err(Errno::AGAIN);
        }
        let pause = Duration::from_micros(fastrand::u64(500..20_000));
        tokio::time::sleep(pause).await;
    }
    Ok(())
}

/// Sets both counters to zero. `false` if somebody else is counting just now.
pub(super) fn rezero(dirs: &Dirs) -> Result<bool, Errno> {
    let (file, _) = dirs.file(&dirs.root, COMPLETIONS, OFlags::WRONLY | OFlags::CREATE)?;
    fs::ftruncate(&file, 0)?;
    change_insertions(dirs, |_| 0)
}

/// Rewrites the number of messages ever sent, under its lock. `false` if that is taken.
fn change_insertions(dirs: &Dirs, change: impl Fn(u64) -> u64) -> Result<bool, Errno> {
    // The lock is the process's, so the process's own threads need one more.
    static IN_PROCESS: Mutex<()> = Mutex::new(());
    let _alone = IN_PROCESS.lock().unwrap_or_else(PoisonError::into_inner);

    let (fd, _) = dirs.file(&dirs.root, INSERTIONS, OFlags::RDWR | OFlags::CREATE)?;
    match fs::fcntl_lock(&fd, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::AGAIN | Errno::ACCESS) => return Ok(false),
        Err(errno) => return Err(errno),
    }
    let old = read(&fd, DIGITS)?;
    let new = change(number(&old)).to_string();
    // Python reads without the lock and fails on an empty file, so it is never made empty:
    // overwritten first, and cut off after, if it was longer.
    rustix::io::pwrite(&fd, new.as_bytes(), 0)?;
    if old.len() > new.len() {
        fs::ftruncate(&fd, new.len() as u64)?;
    }
    Ok(true)
}

/// Messages ever sent. `None` if what should say it is no file.
pub(super) fn insertions(dirs: &Dirs) -> Result<Option<u64>, Errno> {
    match open_file(&dirs.root, INSERTIONS, OFlags::RDONLY) {
        Ok(Some((fd, _))) => Ok(Some(number(&read(&fd, DIGITS)?))),
        Ok(None) => Ok(None),
        Err(Errno::NOENT) => Ok(Some(0)),
        Err(errno) => Err(errno),
    }
}

/// Messages ever done. `None` if what should say it is no file.
pub(super) fn completions(dirs: &Dirs) -> Result<Option<u64>, Errno> {
    match fs::statat(&dirs.root, COMPLETIONS, fs::AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => {
            let is_file = fs::FileType::from_raw_mode(stat.st_mode) == fs::FileType::RegularFile;
            Ok(is_file.then_some(size(&stat) as u64))
        }
        Err(Errno::NOENT) => Ok(Some(0)),
        Err(errno) => Err(errno),
    }
}

/// Python leaves the file empty for the moment in which it rewrites it.
fn number(text: &[u8]) -> u64 {
    let text = str::from_utf8(text).unwrap_or_default();
    text.trim().parse().unwrap_or_default()
}

/// The counter of messages done, kept open.
#[derive(Debug, Default)]
pub(super) struct Completions(Mutex<Option<OwnedFd>>);

impl Completions {
    pub(super) fn add(&self, dirs: &Dirs) -> Result<(), Errno> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Somebody may tidy up and remove the file; a count in a removed file is lost.
        let there = |fd: &OwnedFd| fs::fstat(fd).is_ok_and(|stat| stat.st_nlink > 0);
        let fd = match open.take().filter(there) {
            Some(fd) => fd,
            None => {
                let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE;
                dirs.file(&dirs.root, COMPLETIONS, flags)?.0
            }
        };
        rustix::io::retry_on_intr(|| rustix::io::write(&fd, b"\0"))?;
        *open = Some(fd);
        Ok(())
    }
}
