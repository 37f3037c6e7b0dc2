//! `fq://DIR`: a queue in a directory, shared with python-task-queue 2.14.
//!
//! ```text
//! queue/{T}--{id}.json   a message; it may be leased from the unix second T
//! movement/{id}          the names it has had; locked while it moves     (movement.rs)
//! insertions             how many were ever sent                         (counters.rs)
//! completions            as many bytes as messages were ever done
//! host/                  ours; Python never looks into it
//!   tmp/{process}/{id}   a message that is being written or deleted      (staging.rs)
//!   attempts/{id}        why its executions failed                       (failures.rs)
//!   refused/             what stood where a file of the queue should, and messages that are too
//!                        long: nobody but people looks at it                 (dirs.rs)
//! ```
//!
//! A message is held by whoever could rename its file: rename(2) is atomic, also between
//! machines, and fails for all but one. The locks only keep the movement files whole. Every
//! step leaves a state from which the next host goes on: a message is in `queue/`, or it
//! never was sent, or it is done.
//!
//! Whoever may write to the directory may put anything into it. What is opened here is a regular
//! file, or it is not read; links are not followed, no open waits, and of each file no more is
//! read than such a file has.
//!
//! The calls to the file system are short and made in place; handing each of them to another
//! thread would cost more than it takes.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use rustix::io::Errno;

use super::{Counts, LONGEST_MESSAGE, Message, Queue, QueueError, Receipt, Release};
use dirs::{Dirs, FileError, invalid};
use name::Name;
use opened::OpenedQueue;

pub use admin::{Admin, Messages};

mod admin;
mod body;
mod candidates;
mod clock;
mod counters;
mod dirs;
mod failures;
mod lease;
mod movement;
mod name;
mod opened;
mod staging;
mod watch;

#[cfg(test)]
mod tests;

/// The directory of the failures, in `host/`.
const ATTEMPTS: &str = "attempts";
/// Messages sent between two updates of the count, and between two chances for others.
const BATCH: usize = 256;
/// Between two looks whether the path still leads to the directories that are open, while
/// nothing fails.
const LOOK: Duration = Duration::from_millis(200);
/// How often an operation is tried in directories that were replaced meanwhile.
const TRIES: usize = 3;

/// Does something in the directories of a queue, and again if they were replaced meanwhile.
macro_rules! in_current {
    ($queue:expr, $opened:ident => $act:expr) => {{
        let mut tries = 0;
        loop {
            let $opened = $queue.opened()?;
            let result = $act;
            tries += 1;
            if !$queue.was_replaced(&$opened, &result)? || tries == TRIES {
                break result;
            }
        }
    }};
}

/// A queue in a directory.
///
/// The directory may be removed and made again, moved away and back, restored from a copy or
/// mounted anew while hosts run. What is open is used until it is seen that the path leads
/// elsewhere, and then what is there is opened. While there is nothing, every operation is
/// [`QueueError::Unavailable`], and nothing is made.
pub struct FileQueue {
    url: String,
    current: Mutex<Current>,
}

struct Current {
    opened: Arc<OpenedQueue>,
    /// When the path was last seen to lead there.
    looked: Instant,
    /// It led to nothing at the last look.
    is_away: bool,
}

/// What a receipt says.
#[derive(Debug, Clone)]
struct LeaseReceipt {
    name: Name,
    /// How long the movement file was when the message was leased.
    since: usize,
    /// Whether there may be failures of earlier leases.
    redelivered: bool,
    /// The message is too long to be read.
    is_unread: bool,
}

impl FileQueue {
    /// Opens the queue in the directory `path`, which is made if need be, and finishes what
    /// hosts that were killed have left half done.
    pub fn open(url: &str, path: &Path) -> Result<FileQueue, QueueError> {
        let opened = OpenedQueue::new(Dirs::create(url, path)?);
        let dirs = &opened.dirs;
        staging::sweep(dirs)
            .and_then(|()| admin::forget_orphans(dirs, opened.now()))
            .map_err(|errno| dirs.failed("tidying up after a host that was killed", errno))?;
        Ok(FileQueue::with(opened))
    }

    fn with(opened: OpenedQueue) -> FileQueue {
        FileQueue {
            url: opened.dirs.url.clone(),
            current: Mutex::new(Current {
                opened: Arc::new(opened),
                looked: Instant::now(),
                is_away: false,
            }),
        }
    }

    fn held(&self, receipt: &Receipt) -> Result<LeaseReceipt, QueueError> {
        LeaseReceipt::read(receipt)
            .ok_or_else(|| invalid(&self.url, "the receipt is not of this queue"))
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The directories of the queue.
    fn opened(&self) -> Result<Arc<OpenedQueue>, QueueError> {
        let mut current = self.current();
        if current.is_away || current.looked.elapsed() >= LOOK {
            current.look(false)?;
        }
        Ok(current.opened.clone())
    }

    /// Whether to try again what failed in `place`, since the queue has other directories by
    /// now. Fails if it has none: what seems to be a lost lease is not one then.
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
        // Others may have found out already.
        if Arc::ptr_eq(&current.opened, opened) {
            current.look(is_stale(error))?;
        }
        if !Arc::ptr_eq(&current.opened, opened) {
            return Ok(true);
        }
        if is_lost && opened.is_settling() {
            return Err(QueueError::Unavailable {
                queue: self.url.clone(),
                doing: error.to_string(),
                source: Box::new(NotYetComplete(Errno::NOENT)),
            });
        }
        if is_lost {
            opened.clock.suspect();
        }
        Ok(false)
    }

    fn send_one(&self, body: &[u8]) -> Result<(), QueueError> {
        if body.len() > LONGEST_MESSAGE {
            let problem = format!(
                "a message of {} bytes is too large: {LONGEST_MESSAGE} are the most; put what is \
                 large into an input",
                body.len()
            );
            return Err(invalid(&self.url, problem));
        }
        in_current!(self, opened => opened.send(body))
    }

    fn delete(&self, receipt: &Receipt, is_done: bool) -> Result<(), QueueError> {
        let held = self.held(receipt)?;
        in_current!(self, opened => opened.delete(&held, is_done))
    }
}

impl Current {
    /// Opens the directories that the path leads to, if they are others than before, or if
    /// those are of no use.
    fn look(&mut self, is_stale: bool) -> Result<(), QueueError> {
        // What was away may have been mounted anew: the same directories, and yet not the
        // ones that are open.
        let must_open = std::mem::replace(&mut self.is_away, true) || is_stale;
        if !self.opened.dirs.are_in_place()? || must_open {
            self.opened = Arc::new(self.opened.opened_again()?);
            let dirs = &self.opened.dirs;
            if self.opened.is_settling() {
                let queue = &dirs.url;
                tracing::warn!(queue, "the queue's directory was replaced, and opened again");
            }
            // What our directory in a copy has of ours is settled by whoever comes next.
            if let Err(errno) = staging::sweep(dirs) {
                tracing::debug!(queue = dirs.url, %errno, "can't tidy up");
            }
        }
        (self.is_away, self.looked) = (false, Instant::now());
        Ok(())
    }
}

/// Whether an error says that what is open is of no use, whatever the path leads to.
fn is_stale(error: &QueueError) -> bool {
    match error {
        QueueError::Unavailable { source, .. } => source
            .downcast_ref::<FileError>()
            .is_some_and(|t| matches!(t.0, Errno::STALE | Errno::NOTCONN | Errno::XDEV)),
        _ => false,
    }
}

/// Why nobody can tell yet whether a lease is lost.
#[derive(Debug, thiserror::Error)]
#[error("the queue's directory was replaced a moment ago, and may not be complete yet")]
struct NotYetComplete(#[source] Errno);

#[async_trait]
impl Queue for FileQueue {
    async fn lease(
        &self,
        max: usize,
        hold: Duration,
        wait: Duration,
    ) -> Result<Vec<Message>, QueueError> {
        const LONG: Duration = Duration::from_secs(365 * 24 * 3600);
        let until = Instant::now() + wait.min(LONG);
        in_current!(self, opened => opened.lease(max, hold, until).await)
    }

    async fn start(&self, receipt: &Receipt) -> Result<(), QueueError> {
        let held = self.held(receipt)?;
        in_current!(self, opened => opened.start(&held).await)
    }

    async fn extend(&self, receipt: &Receipt, hold: Duration) -> Result<Receipt, QueueError> {
        let held = self.held(receipt)?;
        let name = in_current!(self, opened => opened.extend(&held, hold).await)?;
        Ok(LeaseReceipt { name, ..held }.receipt())
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
        let mut results = Vec::with_capacity(bodies.len());
        for batch in bodies.chunks(BATCH) {
            let mut sent = 0;
            for body in batch {
                let result = self.send_one(body);
                sent += u64::from(result.is_ok());
                results.push(result);
            }
            let opened = self.current().opened.clone();
            if sent > 0
                && let Err(errno) =
                    counters::add_insertions(&opened.dirs, sent, opened.patience()).await
            {
                opened.say_uncounted("can't count messages sent", errno);
            }
            tokio::task::yield_now().await;
        }
        results
    }

    async fn counts(&self) -> Result<Counts, QueueError> {
        in_current!(self, opened => {
            let opened = opened.clone();
            let count = move || admin::counts(&opened.dirs, opened.now());
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

impl LeaseReceipt {
    fn receipt(&self) -> Receipt {
        let more = if self.redelivered { "+" } else { "" };
        let unread = if self.is_unread { "!" } else { "" };
        Receipt(format!("{} {}{more}{unread}", self.name.as_str(), self.since))
    }

    fn read(receipt: &Receipt) -> Option<LeaseReceipt> {
        let (name, rest) = receipt.0.split_once(' ')?;
        let (rest, is_unread) = match rest.strip_suffix('!') {
            Some(rest) => (rest, true),
            None => (rest, false),
        };
        let since = rest.strip_suffix('+');
        Some(LeaseReceipt {
            name: Name::parse(name)?,
            since: since.unwrap_or(rest).parse().ok()?,
            redelivered: since.is_some(),
            is_unread,
        })
    }
}

/// A step that has been made. Here a test kills its process.
#[cfg(test)]
use tests::crashes::crash_point;
#[cfg(not(test))]
#[inline(always)]
fn crash_point(_step: &str) {}
