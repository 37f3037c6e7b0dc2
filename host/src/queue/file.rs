//! `fq://DIR`: a queue in a directory, shared with python-task-queue 2.14.
//!
//! ```text
//! queue/{T}--{id}.json   a message; it may be leased from the unix second T (name.rs, body.rs)
//! movement/{id}          the names it has had; locked while it is renamed   (movement.rs)
//! insertions             the number of messages ever sent                   (counters.rs)
//! completions            a file with one byte per completed message
//! host/                  only hosts use it, Python ignores it
//!   tmp/{process}/{id}   a message that is being written or deleted         (staging.rs)
//!   attempts/{id}        why the message's executions failed                (failures.rs)
//!   refused/             entries found in the place of one of the queue's files, and messages
//!                        that are too long; kept for the operator           (dirs.rs)
//! hosts/{name}.json      what a host is doing now                           (hosts.rs)
//! ```
//!
//! The process that succeeds in renaming a message's file holds the message: rename(2) is atomic,
//! also between machines, and only one of several renames succeeds. The locks only keep the
//! movement files intact. A host may be killed after any step. Then each message is in `queue/`,
//! was never sent, or is finished, and other hosts continue.
//!
//! Anyone with write access to the directory can put anything into it. The host reads only regular
//! files and never more bytes than a valid file can have. It does not follow links, and opens files
//! without waiting.
//!
//! Calls to the file system are short, so async functions make them directly. Handing a call to
//! another thread would take longer than the call.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use rustix::io::Errno;

use super::{Counts, Message, Queue, QueueError, Receipt, Release};
use dirs::Dirs;
use error::{FileError, invalid};
use opened::OpenedQueue;
use receipt::LeaseReceipt;

pub use admin::{Admin, Messages};
pub use hosts::{HostFile, HostFiles};

mod admin;
mod body;
mod candidates;
mod clock;
mod counters;
mod dirs;
mod error;
mod failures;
mod files;
#[doc(hidden)]
pub mod foreign;
mod held;
mod history;
mod hosts;
mod lease;
mod leftovers;
mod listing;
mod lock_wait;
mod movement;
mod name;
mod opened;
mod receipt;
mod send;
mod staging;
mod take;
mod watch;

#[cfg(test)]
mod tests;

/// The number of messages that are sent before the counter is updated and other tasks may run.
const BATCH: usize = 256;
/// The time between two checks that the path still leads to the open directories. A failed
/// operation causes a check at once.
const CHECK: Duration = Duration::from_millis(200);
/// The maximum number of attempts at an operation if the directories keep being replaced.
const TRIES: usize = 3;

/// Does an operation in the open queue, and repeats it if the directories were replaced.
macro_rules! in_current {
    ($queue:expr, $opened:ident => $operation:expr) => {{
        let mut tries = 0;
        loop {
            let $opened = $queue.opened()?;
            let result = $operation;
            tries += 1;
            if !$queue.was_replaced(&$opened, &result)? || tries == TRIES {
                break result;
            }
        }
    }};
}

/// A queue in a directory.
///
/// While hosts run, the directory may be removed and created again, moved away and back, restored
/// from a copy, or mounted again. A host uses the open directories until it notices that the path
/// leads to others, and then opens those. While the path does not exist, every operation fails with
/// [`QueueError::Unavailable`], and the host creates nothing.
pub struct FileQueue {
    url: String,
    current: Mutex<Current>,
}

struct Current {
    opened: Arc<OpenedQueue>,
    /// When the path was last found to lead to these directories.
    checked: Instant,
    /// Whether the path did not exist at the last check.
    is_away: bool,
}

impl FileQueue {
    /// Opens the queue in the directory `path`, and creates it if it does not exist. Removes the
    /// leftovers of killed hosts.
    ///
    /// # Errors
    /// [`QueueError::Invalid`] if no queue can exist at the path, and [`QueueError::Unavailable`]
    /// if the leftovers of killed hosts cannot be removed.
    pub fn open(url: &str, path: &Path) -> Result<FileQueue, QueueError> {
        let opened = OpenedQueue::new(Dirs::create(url, path)?);
        let dirs = &opened.dirs;
        staging::sweep(dirs)
            .and_then(|()| leftovers::remove_if_empty(dirs, opened.now()))
            .map_err(|errno| dirs.failed("cleaning up after a killed host", errno))?;
        Ok(FileQueue::with(opened))
    }

    fn with(opened: OpenedQueue) -> FileQueue {
        FileQueue {
            url: opened.dirs.url.clone(),
            current: Mutex::new(Current {
                opened: Arc::new(opened),
                checked: Instant::now(),
                is_away: false,
            }),
        }
    }

    fn held(&self, receipt: &Receipt) -> Result<LeaseReceipt, QueueError> {
        LeaseReceipt::decode(receipt)
            .ok_or_else(|| invalid(&self.url, "the receipt is not from this queue"))
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock()
    }

    /// The open queue. Checks the path if the last check is not recent.
    fn opened(&self) -> Result<Arc<OpenedQueue>, QueueError> {
        let mut current = self.current();
        if current.is_away || current.checked.elapsed() >= CHECK {
            current.check(false)?;
        }
        Ok(current.opened.clone())
    }

    /// Whether to repeat an operation that failed in `opened`, because the queue has other
    /// directories now. Fails if the path does not exist or the new directories may be incomplete:
    /// then a lease that seems lost may still be held.
    fn was_replaced<T>(
        &self,
        opened: &Arc<OpenedQueue>,
        result: &Result<T, QueueError>,
    ) -> Result<bool, QueueError> {
        let Err(error) = result else {
            return Ok(false);
        };
        let is_lost = matches!(error, QueueError::LeaseLost { .. });
        let mut current = self.current();
        // Another call may already have opened the queue again.
        if Arc::ptr_eq(&current.opened, opened) {
            current.check(is_stale(error))?;
        }
        if !Arc::ptr_eq(&current.opened, opened) {
            return Ok(true);
        }
        if is_lost && opened.may_be_incomplete() {
            return Err(QueueError::Unavailable {
                queue: self.url.clone(),
                doing: error.to_string(),
                source: Box::new(MayBeIncomplete(Errno::NOENT)),
            });
        }
        if is_lost {
            opened.clock.suspect();
        }
        Ok(false)
    }

    fn delete(&self, receipt: &Receipt, is_done: bool) -> Result<(), QueueError> {
        let held = self.held(receipt)?;
        in_current!(self, opened => opened.delete(&held, is_done))
    }
}

impl Current {
    /// Opens the directories that the path leads to, if they differ from the open ones or if the
    /// open ones are stale.
    fn check(&mut self, is_stale: bool) -> Result<(), QueueError> {
        // After an unmount and a mount, the directories are the same, but the open descriptors
        // belong to the old mount.
        let must_open = std::mem::replace(&mut self.is_away, true) || is_stale;
        if !self.opened.dirs.are_in_place()? || must_open {
            self.opened = Arc::new(self.opened.reopen()?);
            let dirs = &self.opened.dirs;
            if self.opened.may_be_incomplete() {
                let queue = &dirs.url;
                tracing::warn!(queue, "the queue directory was replaced; opened the new one");
            }
            // A copy of the queue contains copies of staging directories.
            if let Err(errno) = staging::sweep(dirs) {
                tracing::debug!(queue = dirs.url, %errno, "can't clean up after killed hosts");
            }
        }
        (self.is_away, self.checked) = (false, Instant::now());
        Ok(())
    }
}

/// Whether an error means that the open directories are unusable, wherever the path leads.
fn is_stale(error: &QueueError) -> bool {
    match error {
        QueueError::Unavailable { source, .. } => source
            .downcast_ref::<FileError>()
            .is_some_and(|e| matches!(e.0, Errno::STALE | Errno::NOTCONN | Errno::XDEV)),
        _ => false,
    }
}

/// The source of an error about a lease that may or may not be lost.
#[derive(Debug, thiserror::Error)]
#[error("the queue directory was replaced a moment ago and may still be incomplete")]
struct MayBeIncomplete(#[source] Errno);

#[async_trait]
impl Queue for FileQueue {
    async fn lease(
        &self,
        max: usize,
        duration: Duration,
        wait: Duration,
    ) -> Result<Vec<Message>, QueueError> {
        const LONG: Duration = Duration::from_secs(365 * 24 * 3600);
        let until = Instant::now() + wait.min(LONG);
        in_current!(self, opened => opened.lease(max, duration, until).await)
    }

    async fn start(&self, receipt: &Receipt) -> Result<(), QueueError> {
        let held = self.held(receipt)?;
        in_current!(self, opened => opened.start(&held).await)
    }

    async fn extend(&self, receipt: &Receipt, duration: Duration) -> Result<Receipt, QueueError> {
        let held = self.held(receipt)?;
        let name = in_current!(self, opened => opened.extend(&held, duration).await)?;
        Ok(LeaseReceipt { name, ..held }.encode())
    }

    async fn ack(&self, receipt: &Receipt) -> Result<(), QueueError> {
        self.delete(receipt, true)
    }

    async fn give_up(&self, receipt: &Receipt) -> Result<(), QueueError> {
        self.delete(receipt, false)
    }

    async fn disown(&self, receipt: &Receipt) -> Result<(), QueueError> {
        let held = self.held(receipt)?;
        in_current!(self, opened => opened.disown(&held).await)
    }

    async fn release(
        &self,
        receipt: &Receipt,
        after: Duration,
        why: Release<'_>,
    ) -> Result<(), QueueError> {
        let held = self.held(receipt)?;
        in_current!(self, opened => opened.release(&held, after, why).await)
    }

    async fn send(&self, bodies: &[Bytes]) -> Vec<Result<(), QueueError>> {
        let send_one = |body| in_current!(self, opened => opened.send(body));
        let mut results = Vec::with_capacity(bodies.len());
        for batch in bodies.chunks(BATCH) {
            let mut sent = 0;
            for body in batch {
                let result = send_one(body);
                sent += u64::from(result.is_ok());
                results.push(result);
            }
            if sent > 0 {
                let opened = self.current().opened.clone();
                opened.count_insertions(sent).await;
            }
            tokio::task::yield_now().await;
        }
        results
    }

    async fn counts(&self) -> Result<Counts, QueueError> {
        in_current!(self, opened => {
            let counted = opened.clone();
            let count = move || counters::counts(&counted.dirs, counted.now());
            tokio::task::spawn_blocking(count).await.unwrap_or_else(|stopped| {
                Err(QueueError::Unavailable {
                    queue: self.url.clone(),
                    doing: "counting the messages".to_owned(),
                    source: Box::new(stopped),
                })
            })
        })
    }
}

impl fmt::Display for FileQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

impl fmt::Debug for FileQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FileQueue").field(&self.url).finish()
    }
}
