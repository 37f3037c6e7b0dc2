//! A queue's directories as opened at one time, and the state that belongs to them.
//!
//! When the path leads to other directories, [`FileQueue`](super::FileQueue) opens the queue
//! again and starts with a new [`OpenedQueue`].

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use rustix::fs::{self, AtFlags};
use rustix::io::Errno;
use tokio::sync::Notify;

use super::candidates::Candidates;
use super::clock::Clock;
use super::counters::{self, Completions};
use super::dirs::Dirs;
use super::name::Name;
use super::staging::Staging;
use super::watch::WatchState;
use crate::queue::QueueError;

/// How long directories that replaced others may still be incomplete, because they are being
/// copied.
const COPYING: Duration = Duration::from_secs(5);

/// An open queue.
#[derive(Debug)]
pub(super) struct OpenedQueue {
    pub(super) dirs: Arc<Dirs>,
    pub(super) clock: Clock,
    candidates: Mutex<Candidates>,
    pub(super) watch: WatchState,
    /// Wakes waiting calls when there are candidates for them.
    pub(super) more: Notify,
    staging: Mutex<Option<Arc<Staging>>>,
    completions: Completions,
    pub(super) warned_of_unreadable: Once,
    warned_of_uncounted: Once,
    /// When these directories replaced others, if they did.
    replaced: Option<Instant>,
    /// Whether the queue was opened again since, so that this value is no longer used.
    left: AtomicBool,
}

impl OpenedQueue {
    pub(super) fn new(dirs: Dirs) -> OpenedQueue {
        let path = dirs.path.join("queue");
        OpenedQueue::watching(dirs, path)
    }

    /// Watches another path instead of that of `queue/`.
    pub(super) fn watching(dirs: Dirs, path: PathBuf) -> OpenedQueue {
        OpenedQueue {
            watch: WatchState::new(path),
            dirs: Arc::new(dirs),
            clock: Clock::default(),
            candidates: Mutex::default(),
            more: Notify::new(),
            staging: Mutex::default(),
            completions: Completions::default(),
            warned_of_unreadable: Once::new(),
            warned_of_uncounted: Once::new(),
            replaced: None,
            left: AtomicBool::new(false),
        }
    }

    /// Opens the directories that the path leads to now, and marks this value as no longer used.
    pub(super) fn reopen(&self) -> Result<OpenedQueue, QueueError> {
        let mut opened = OpenedQueue::new(self.dirs.reopen()?);
        self.left.store(true, Ordering::Relaxed);
        self.more.notify_waiters();
        if !self.dirs.are_those_of(&opened.dirs) {
            opened.replaced = Some(Instant::now());
        }
        Ok(opened)
    }

    /// Whether files may still be missing, because the directories recently replaced others.
    pub(super) fn may_be_incomplete(&self) -> bool {
        self.replaced.is_some_and(|when| when.elapsed() < COPYING)
    }

    /// Fails if these are no longer the directories of the queue.
    pub(super) fn check(&self) -> Result<(), QueueError> {
        if self.left.load(Ordering::Relaxed) || !self.dirs.are_in_place()? {
            return Err(self.dirs.failed("looking for messages", Errno::STALE));
        }
        Ok(())
    }

    /// The time of day, since 1970.
    pub(super) fn now(&self) -> Duration {
        self.clock.now(&self.dirs)
    }

    pub(super) fn candidates(&self) -> MutexGuard<'_, Candidates> {
        self.candidates.lock()
    }

    /// Whether a message has this name. If so, the lease with this name is held.
    pub(super) fn exists(&self, name: &Name) -> Result<bool, Errno> {
        match fs::accessat(&self.dirs.queue, name.as_str(), fs::Access::EXISTS, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    /// Does an operation in this process's staging directory. If the directory was removed, creates
    /// a new one and repeats the operation.
    pub(super) fn in_staging<T>(
        &self,
        operation: impl Fn(&Arc<Staging>) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let staging = self.staging(|_| true)?;
        match operation(&staging) {
            Err(Errno::NOENT) if !staging.exists() => operation(&self.staging(Staging::exists)?),
            done => done,
        }
    }

    /// This process's staging directory, or a new one if `is_good` rejects the current one.
    fn staging(&self, is_good: fn(&Staging) -> bool) -> Result<Arc<Staging>, Errno> {
        let mut staging = self.staging.lock();
        let ours = match staging.take().filter(|staging| is_good(staging)) {
            Some(ours) => ours,
            None => Arc::new(Staging::create(&self.dirs)?),
        };
        Ok(staging.insert(ours).clone())
    }

    /// Makes the next use of the directory create a new one.
    #[cfg(test)]
    pub(super) fn forget_staging(&self) {
        *self.staging.lock() = None;
    }

    /// Counts a message as completed.
    pub(super) fn count_completion(&self) {
        if let Err(errno) = self.completions.add_one(&self.dirs) {
            self.warn_of_uncounted("can't count completed messages", errno);
        }
    }

    /// Counts messages as sent.
    pub(super) async fn count_insertions(&self, count: u64) {
        // After one warning, do not wait again for a lock that another process holds.
        let patience = match self.warned_of_uncounted.is_completed() {
            true => Duration::ZERO,
            false => counters::PATIENCE,
        };
        if let Err(errno) = counters::add_insertions(&self.dirs, count, patience).await {
            self.warn_of_uncounted("can't count sent messages", errno);
        }
    }

    /// Warns once. A broken counter does not affect the messages.
    fn warn_of_uncounted(&self, problem: &str, errno: Errno) {
        self.warned_of_uncounted
            .call_once(|| tracing::warn!(queue = self.dirs.url, %errno, "{problem}"));
    }
}
