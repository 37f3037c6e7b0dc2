//! `fq://DIR`: a queue in a directory, shared with python-task-queue 2.14.
//!
//! ```text
//! queue/{T}--{id}.json   a message; it may be leased from the unix second T
//! movement/{id}          the names it has had; locked while it moves     (movement.rs)
//! insertions             how many were ever sent                         (tally.rs)
//! completions            as many bytes as messages were ever done
//! host/                  ours; Python never looks into it
//!   tmp/{process}/{id}   a message that is being written or deleted      (scratch.rs, reaper.rs)
//!   tmp/{process}/.{id}  its movement file, while that is being written
//!   attempts/{id}        why its executions failed                       (failures.rs)
//! ```
//!
//! A message is held by whoever could rename its file: rename(2) is atomic, also between
//! machines, and fails for all but one. The locks only keep the movement files whole. Every
//! step leaves a state from which the next host goes on: a message is in `queue/`, or it
//! never was sent, or it is done.
//!
//! The calls to the file system are short and made in place; handing each of them to another
//! thread would cost more than it takes.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use rustix::fs::{self, AtFlags, OFlags};
use rustix::io::Errno;
use tokio::sync::Notify;

use super::{Counts, Message, Queue, QueueError, Receipt, Release};
use dirs::{Dirs, FILE, invalid, write_all};
use movement::{Movement, Opened, uncounted};
use name::{Name, now, second_after};
use reaper::Reaper;
use scan::Feed;
use scratch::Scratch;
use tally::Completions;
use watch::Watch;

pub use admin::{Admin, Messages};

mod admin;
mod body;
mod dirs;
mod failures;
mod lease;
mod movement;
mod name;
mod reaper;
mod scan;
mod scratch;
mod tally;
mod watch;

#[cfg(test)]
mod interrupted;
#[cfg(test)]
mod tests;

/// The directory of the failures, in `host/`.
const ATTEMPTS: &str = "attempts";
/// How long the holder of a lease waits for somebody who has its movement file locked.
const PATIENCE: Duration = Duration::from_secs(1);
/// Messages sent between two updates of the count, and between two chances for others.
const BATCH: usize = 256;

/// A queue in a directory.
pub struct FileQueue {
    dirs: Arc<Dirs>,
    feed: Mutex<Feed>,
    watching: Mutex<Watching>,
    /// There are names in the feed that a waiting call may take.
    more: Notify,
    scratch: Mutex<Option<Arc<Scratch>>>,
    reaper: Reaper,
    completions: Completions,
    said_unreadable: std::sync::Once,
}

#[derive(Default)]
struct Watching {
    watch: Option<Arc<Watch>>,
    /// Leases since the last wait.
    leases: u32,
    said_refused: bool,
}

/// What a receipt says.
struct Held {
    name: Name,
    /// How long the movement file was when the message was leased.
    since: usize,
    /// Whether there may be failures of earlier leases.
    redelivered: bool,
}

impl FileQueue {
    /// Opens the queue in the directory `path`, which is made if need be, and finishes what
    /// hosts that were killed have left half done.
    pub fn open(url: &str, path: &Path) -> Result<FileQueue, QueueError> {
        let dirs = Dirs::create(url, path)?;
        scratch::sweep(&dirs)
            .and_then(|()| admin::forget_orphans(&dirs))
            .map_err(|errno| dirs.failed("tidying up after a host that was killed", errno))?;
        Ok(FileQueue::with(dirs))
    }

    fn with(dirs: Dirs) -> FileQueue {
        FileQueue {
            dirs: Arc::new(dirs),
            feed: Mutex::default(),
            watching: Mutex::default(),
            more: Notify::new(),
            scratch: Mutex::default(),
            reaper: Reaper::default(),
            completions: Completions::default(),
            said_unreadable: std::sync::Once::new(),
        }
    }

    fn feed(&self) -> MutexGuard<'_, Feed> {
        self.feed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn held(&self, receipt: &Receipt) -> Result<Held, QueueError> {
        Held::read(receipt)
            .ok_or_else(|| invalid(&self.dirs.url, "the receipt is not of this queue"))
    }

    fn exists(&self, name: &Name) -> Result<bool, Errno> {
        match fs::accessat(&self.dirs.queue, name.as_str(), fs::Access::EXISTS, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    /// Opens and locks the movement file of a message that we hold.
    async fn movement(&self, held: &Held, doing: &str) -> Result<Movement, QueueError> {
        let (dirs, id) = (&*self.dirs, held.name.id());
        let failed = |errno| dirs.failed(format!("{doing} message {id}"), errno);
        let started = Instant::now();
        loop {
            match Movement::open(dirs, id).map_err(failed)? {
                Opened::Locked(movement) => return Ok(movement),
                Opened::Missing => {
                    if !self.exists(&held.name).map_err(failed)? {
                        return Err(dirs.lost(id));
                    }
                    // A Python client that gave up on the message may have removed it.
                    if let Opened::Locked(movement) =
                        Movement::open_or_make(dirs, id).map_err(failed)?
                    {
                        movement.append(&held.name.line()).map_err(failed)?;
                        return Ok(movement);
                    }
                }
                Opened::Busy if started.elapsed() > PATIENCE => return Err(failed(Errno::AGAIN)),
                Opened::Busy => {}
            }
            let pause = Duration::from_micros(fastrand::u64(200..5_000));
            tokio::time::sleep(pause).await;
        }
    }

    /// Gives a message that we hold another time, after more lines for its movement file.
    fn move_to(
        &self,
        movement: &Movement,
        held: &Held,
        to: &Name,
        lines: &str,
    ) -> Result<(), Errno> {
        if *to == held.name {
            // It has that time already; renaming it to itself would tell us nothing.
            if !self.exists(to)? {
                return Err(Errno::NOENT);
            }
            return if lines.is_empty() { Ok(()) } else { movement.append(lines) };
        }
        let lines = format!("{lines}{}", to.line());
        movement.append(&lines)?;
        reached("move: noted");
        fs::renameat(&self.dirs.queue, held.name.as_str(), &self.dirs.queue, to.as_str())
            .inspect_err(|_| movement.take_back(lines.len()))?;
        reached("move: moved");
        Ok(())
    }

    /// This process's own directory in the queue.
    fn scratch(&self) -> Result<Arc<Scratch>, Errno> {
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        // Somebody may tidy up and remove it; a removed directory takes nothing.
        let there = |scratch: &Arc<Scratch>| scratch.is_there();
        let ours = match scratch.take().filter(there) {
            Some(ours) => ours,
            None => Arc::new(Scratch::make(&self.dirs)?),
        };
        Ok(scratch.insert(ours).clone())
    }

    /// Makes the next file in a new directory if it would take long in the present one. What
    /// is under way there is finished there.
    fn leave_worn_scratch(&self) {
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        drop(scratch.take_if(|scratch| scratch.is_worn()));
    }

    /// Takes the message out of the queue, which is what makes it done. Nobody else can do it
    /// once we have.
    fn claim(&self, name: &Name) -> Result<Arc<Scratch>, Errno> {
        let scratch = self.scratch()?;
        match fs::renameat(&self.dirs.queue, name.as_str(), scratch.dir(), name.id()) {
            // The answer to an earlier try got lost, or what came after it failed.
            Err(Errno::NOENT) if scratch.has(name.id()) => Ok(scratch),
            claimed => claimed.map(|()| scratch),
        }
    }

    fn send_one(&self, scratch: &Scratch, body: &[u8]) -> Result<(), Errno> {
        let id = uuid::Uuid::new_v4().to_string();
        let name = Name::new(0, &id);
        let sent = self.write_and_move(scratch, &name, body);
        if sent.is_err() {
            // Room for others. What can't be removed now goes with the directory.
            let _ = scratch.discard(&id);
        }
        sent
    }

    fn write_and_move(&self, scratch: &Scratch, name: &Name, body: &[u8]) -> Result<(), Errno> {
        let id = name.id();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = fs::openat(scratch.dir(), id, flags, FILE)?;
        write_all(&file, &body::with_id(body, id))?;
        if self.dirs.remote {
            // Only then does the server have it, or say that it has no room for it.
            fs::fsync(&file)?;
        }
        drop(file);
        reached("send: written");
        let first = scratch.is_better_place().then(|| scratch.dir());
        Movement::make(&self.dirs, name, first)?;
        reached("send: noted");
        fs::renameat(scratch.dir(), id, &self.dirs.queue, name.as_str())?;
        reached("send: sent");
        Ok(())
    }
}

#[async_trait]
impl Queue for FileQueue {
    async fn lease(
        &self,
        max: usize,
        hold: Duration,
        wait: Duration,
    ) -> Result<Vec<Message>, QueueError> {
        self.lease_within(max, hold, wait).await
    }

    async fn start(&self, receipt: &Receipt) -> Result<(), QueueError> {
        let held = self.held(receipt)?;
        let id = held.name.id();
        let failed = |errno| self.dirs.failed(format!("starting message {id}"), errno);
        let movement = self.movement(&held, "starting").await?;
        // Nobody can lease the message while we have its movement file locked.
        if !self.exists(&held.name).map_err(failed)? {
            return Err(self.dirs.lost(id));
        }
        movement.start().map_err(failed)?;
        reached("start: noted");
        Ok(())
    }

    async fn extend(&self, receipt: &Receipt, hold: Duration) -> Result<Receipt, QueueError> {
        let held = self.held(receipt)?;
        let (dirs, id) = (&*self.dirs, held.name.id());
        let movement = self.movement(&held, "extending the lease of").await?;
        let extended = || {
            let due = second_after(now(), hold);
            let to = match due == held.name.due() {
                true => held.name.clone(),
                false => movement.history()?.unused(&held.name, due),
            };
            self.move_to(&movement, &held, &to, "")?;
            Ok(to)
        };
        match extended() {
            Ok(name) => Ok(Held { name, ..held }.receipt()),
            Err(Errno::NOENT) => Err(dirs.lost(id)),
            Err(errno) => Err(dirs.failed(format!("extending the lease of message {id}"), errno)),
        }
    }

    async fn ack(&self, receipt: &Receipt) -> Result<(), QueueError> {
        let held = self.held(receipt)?;
        let (dirs, id) = (&*self.dirs, held.name.id());
        let failed = |errno| dirs.failed(format!("deleting message {id}"), errno);
        let scratch = self.claim(&held.name).map_err(|errno| match errno {
            Errno::NOENT => dirs.lost(id),
            errno => failed(errno),
        })?;
        reached("ack: claimed");
        if held.redelivered {
            failures::forget(dirs, id).map_err(failed)?;
        }
        self.reaper.discard(scratch, id).map_err(failed)?;
        reached("ack: discarded");
        if let Err(errno) = self.completions.add(dirs) {
            tracing::warn!(queue = dirs.url, %errno, "can't count a message that is done");
        }
        Ok(())
    }

    async fn release(
        &self,
        receipt: &Receipt,
        after: Duration,
        why: Release<'_>,
    ) -> Result<(), QueueError> {
        let held = self.held(receipt)?;
        let (dirs, id) = (&*self.dirs, held.name.id());
        let movement = self.movement(&held, "releasing").await?;
        let released = || {
            if !self.exists(&held.name)? {
                return Err(Errno::NOENT);
            }
            let lines = match why {
                Release::Uncounted => uncounted(movement.history()?.attempts_since(held.since)),
                Release::Failed(reason) => {
                    failures::add(dirs, id, reason)?;
                    reached("release: noted");
                    String::new()
                }
            };
            let to = held.name.at(second_after(now(), after));
            self.move_to(&movement, &held, &to, &lines)
        };
        released().map_err(|errno| match errno {
            Errno::NOENT => dirs.lost(id),
            errno => dirs.failed(format!("releasing message {id}"), errno),
        })
    }

    async fn send(&self, bodies: &[Bytes]) -> Vec<Result<(), QueueError>> {
        let failed = |errno| self.dirs.failed("sending a message", errno);
        let mut results = Vec::with_capacity(bodies.len());
        for batch in bodies.chunks(BATCH) {
            let mut sent = 0;
            if batch.len() == BATCH {
                self.leave_worn_scratch();
            }
            for body in batch {
                let result = self.scratch().and_then(|scratch| self.send_one(&scratch, body));
                sent += u64::from(result.is_ok());
                results.push(result.map_err(failed));
            }
            if sent > 0
                && let Err(errno) = tally::add_insertions(&self.dirs, sent).await
            {
                tracing::warn!(queue = self.dirs.url, %errno, "can't count messages sent");
            }
            tokio::task::yield_now().await;
        }
        results
    }

    async fn counts(&self) -> Result<Counts, QueueError> {
        let dirs = self.dirs.clone();
        let counted = tokio::task::spawn_blocking(move || admin::counts(&dirs)).await;
        counted.map_err(|stopped| QueueError::Unavailable {
            queue: self.dirs.url.clone(),
            doing: "counting the messages".to_owned(),
            source: Box::new(stopped),
        })?
    }
}

impl fmt::Display for FileQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.dirs.url)
    }
}

impl fmt::Debug for FileQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FileQueue").field(&self.dirs.url).finish()
    }
}

impl Held {
    fn receipt(&self) -> Receipt {
        let more = if self.redelivered { "+" } else { "" };
        Receipt(format!("{} {}{more}", self.name.as_str(), self.since))
    }

    fn read(receipt: &Receipt) -> Option<Held> {
        let (name, rest) = receipt.0.split_once(' ')?;
        let since = rest.strip_suffix('+');
        Some(Held {
            name: Name::parse(name)?,
            since: since.unwrap_or(rest).parse().ok()?,
            redelivered: since.is_some(),
        })
    }
}

/// A step that has been made. Here a test kills its process.
#[cfg(test)]
use interrupted::reached;
#[cfg(not(test))]
#[inline(always)]
fn reached(_step: &str) {}
