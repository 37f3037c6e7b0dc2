//! The directories of a queue as they were opened at one time, and what is known of them.
//!
//! When the path comes to lead to other directories, all of this is made anew: see
//! [`FileQueue`](super::FileQueue).

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{self, AtFlags, OFlags};
use rustix::io::Errno;
use tokio::sync::Notify;

use super::candidates::Candidates;
use super::clock::Clock;
use super::counters::Completions;
use super::dirs::{Dirs, FILE, REFUSED, write_all};
use super::movement::{Movement, Opened, disowned, failed, uncounted};
use super::name::{Name, second_after};
use super::staging::Staging;
use super::watch::Watch;
use super::{LeaseReceipt, body, counters, crash_point, failures};
use crate::queue::{QueueError, Release};

/// How long the holder of a lease waits for somebody who has its movement file locked.
const PATIENCE: Duration = Duration::from_secs(1);
/// Directories that were put in the place of others may still be being filled for this long.
const SETTLING: Duration = Duration::from_secs(5);

/// One opened queue.
#[derive(Debug)]
pub(super) struct OpenedQueue {
    pub(super) dirs: Arc<Dirs>,
    pub(super) clock: Clock,
    candidates: Mutex<Candidates>,
    pub(super) watching: Mutex<WatchState>,
    /// The directory to watch.
    pub(super) watched: PathBuf,
    /// There are names in the feed that a waiting call may take.
    pub(super) more: Notify,
    staging: Mutex<Option<Arc<Staging>>>,
    completions: Completions,
    pub(super) said_unreadable: Once,
    said_uncounted: Once,
    /// When this was put in the place of other directories, if it was.
    replaced: Option<Instant>,
    /// Something else was opened since.
    left: AtomicBool,
}

/// What the kernel is asked to tell.
#[derive(Debug, Default)]
pub(super) struct WatchState {
    pub(super) watch: Option<Arc<Watch>>,
    /// Leases since the last wait.
    pub(super) leases: u32,
    pub(super) said_refused: bool,
}

impl OpenedQueue {
    pub(super) fn new(dirs: Dirs) -> OpenedQueue {
        OpenedQueue {
            watched: dirs.path.join("queue"),
            dirs: Arc::new(dirs),
            clock: Clock::default(),
            candidates: Mutex::default(),
            watching: Mutex::default(),
            more: Notify::new(),
            staging: Mutex::default(),
            completions: Completions::default(),
            said_unreadable: Once::new(),
            said_uncounted: Once::new(),
            replaced: None,
            left: AtomicBool::new(false),
        }
    }

    /// What is at the path of these directories now. They are not used any more.
    pub(super) fn opened_again(&self) -> Result<OpenedQueue, QueueError> {
        let mut opened = OpenedQueue::new(self.dirs.again()?);
        self.left.store(true, Ordering::Relaxed);
        self.more.notify_waiters();
        if !self.dirs.are_those_of(&opened.dirs) {
            opened.replaced = Some(Instant::now());
        }
        Ok(opened)
    }

    /// Whether it may be that not all of it is there yet: a copy takes time.
    pub(super) fn is_settling(&self) -> bool {
        self.replaced.is_some_and(|when| when.elapsed() < SETTLING)
    }

    /// Fails if these are no longer the directories of the queue.
    pub(super) fn check(&self) -> Result<(), QueueError> {
        if self.left.load(Ordering::Relaxed) || !self.dirs.are_in_place()? {
            return Err(self.dirs.failed("looking for messages", Errno::STALE));
        }
        Ok(())
    }

    /// The time of day.
    pub(super) fn now(&self) -> Duration {
        self.clock.now(&self.dirs)
    }

    pub(super) fn candidates(&self) -> MutexGuard<'_, Candidates> {
        self.candidates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn exists(&self, name: &Name) -> Result<bool, Errno> {
        match fs::accessat(&self.dirs.queue, name.as_str(), fs::Access::EXISTS, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    /// Opens and locks the movement file of a message that we hold.
    async fn movement(&self, held: &LeaseReceipt, doing: &str) -> Result<Movement, QueueError> {
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
            pause().await;
        }
    }

    /// Gives a message that we hold another time, after more lines for its movement file.
    fn move_to(
        &self,
        movement: &Movement,
        held: &LeaseReceipt,
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
        crash_point("move: noted");
        fs::renameat(&self.dirs.queue, held.name.as_str(), &self.dirs.queue, to.as_str())
            .inspect_err(|_| movement.take_back(lines.len()))?;
        crash_point("move: moved");
        Ok(())
    }

    /// [`Queue::start`](crate::queue::Queue::start).
    pub(super) async fn start(&self, held: &LeaseReceipt) -> Result<(), QueueError> {
        let id = held.name.id();
        let failed = |errno| self.dirs.failed(format!("starting message {id}"), errno);
        let movement = self.movement(held, "starting").await?;
        // Nobody can lease the message while we have its movement file locked.
        if !self.exists(&held.name).map_err(failed)? {
            return Err(self.dirs.lost(id));
        }
        movement.start().map_err(failed)?;
        crash_point("start: noted");
        Ok(())
    }

    /// [`Queue::extend`](crate::queue::Queue::extend); returns the new name.
    pub(super) async fn extend(
        &self,
        held: &LeaseReceipt,
        hold: Duration,
    ) -> Result<Name, QueueError> {
        let (dirs, id) = (&*self.dirs, held.name.id());
        let movement = self.movement(held, "extending the lease of").await?;
        let extended = || {
            let due = second_after(self.now(), hold);
            let to = match due == held.name.due() {
                true => held.name.clone(),
                false => movement.history()?.unused(&held.name, due),
            };
            self.move_to(&movement, held, &to, "")?;
            Ok(to)
        };
        extended().map_err(|errno| match errno {
            Errno::NOENT => dirs.lost(id),
            errno => dirs.failed(format!("extending the lease of message {id}"), errno),
        })
    }

    /// [`Queue::release`](crate::queue::Queue::release).
    pub(super) async fn release(
        &self,
        held: &LeaseReceipt,
        after: Duration,
        why: Release<'_>,
    ) -> Result<(), QueueError> {
        let (dirs, id) = (&*self.dirs, held.name.id());
        let movement = self.movement(held, "releasing").await?;
        let released = || {
            if !self.exists(&held.name)? {
                return Err(Errno::NOENT);
            }
            let started = movement.history()?.started_under(held.since, &held.name);
            let lines = match why {
                Release::Uncounted => uncounted(started),
                Release::Failed(reason) => {
                    failures::add(dirs, id, reason)?;
                    crash_point("release: noted");
                    failed(started > 0)
                }
            };
            let to = held.name.at(second_after(self.now(), after));
            self.move_to(&movement, held, &to, &lines)
        };
        released().map_err(|errno| match errno {
            Errno::NOENT => dirs.lost(id),
            errno => dirs.failed(format!("releasing message {id}"), errno),
        })
    }

    /// [`Queue::disown`](crate::queue::Queue::disown).
    pub(super) async fn disown(&self, held: &LeaseReceipt) -> Result<(), QueueError> {
        let id = held.name.id();
        let failed = |errno| self.dirs.failed(format!("disowning message {id}"), errno);
        let started = Instant::now();
        let movement = loop {
            match Movement::open(&self.dirs, id).map_err(failed)? {
                Opened::Locked(movement) => break movement,
                // Somebody else has done it.
                Opened::Missing => return Ok(()),
                Opened::Busy if started.elapsed() > PATIENCE => return Err(failed(Errno::AGAIN)),
                Opened::Busy => pause().await,
            }
        };
        let open = movement.history().map_err(failed)?.started_under(held.since, &held.name);
        if open > 0 {
            movement.append(&disowned(held.since, open)).map_err(failed)?;
        }
        crash_point("disown: noted");
        Ok(())
    }

    /// Deletes a message, which counts as done or not.
    pub(super) fn delete(&self, held: &LeaseReceipt, is_done: bool) -> Result<(), QueueError> {
        let (dirs, id) = (&*self.dirs, held.name.id());
        let failed = |errno| dirs.failed(format!("deleting message {id}"), errno);
        if held.is_unread {
            return match self.keep(held) {
                Err(Errno::NOENT) => Err(dirs.lost(id)),
                other => other.map_err(failed),
            };
        }
        let staging = self.claim(&held.name).map_err(failed)?.ok_or_else(|| dirs.lost(id))?;
        crash_point("ack: claimed");
        if held.redelivered {
            failures::forget(dirs, id).map_err(failed)?;
        }
        staging.discard(id).map_err(failed)?;
        crash_point("ack: discarded");
        if is_done && let Err(errno) = self.completions.add(dirs) {
            self.say_uncounted("can't count a message that is done", errno);
        }
        Ok(())
    }

    /// Takes a message that nobody has read out of the queue, and keeps it for people.
    fn keep(&self, held: &LeaseReceipt) -> Result<(), Errno> {
        let (dirs, id) = (&*self.dirs, held.name.id());
        let refused = dirs.host(REFUSED)?;
        let kept = body::kept(id);
        let file = kept.rsplit('/').next().unwrap_or_default();
        fs::renameat(&dirs.queue, held.name.as_str(), &refused, file)?;
        tracing::warn!(queue = dirs.url, "message {id} is too long; it is kept as {kept}");
        failures::forget(dirs, id)?;
        dirs.remove(&dirs.movement, id)
    }

    /// How long to wait for a counter's lock: not again and again for one that somebody keeps.
    pub(super) fn patience(&self) -> Duration {
        if self.said_uncounted.is_completed() { Duration::ZERO } else { counters::PATIENCE }
    }

    /// Says that a counter does not work, once: the messages are not kept from anything.
    pub(super) fn say_uncounted(&self, what: &str, errno: Errno) {
        self.said_uncounted.call_once(|| tracing::warn!(queue = self.dirs.url, %errno, "{what}"));
    }

    /// Takes the message out of the queue, which is what makes it done. Nobody else can do it
    /// once we have. `None` if somebody else has it.
    fn claim(&self, name: &Name) -> Result<Option<Arc<Staging>>, Errno> {
        let staging = self.staging()?;
        match fs::renameat(&self.dirs.queue, name.as_str(), staging.dir(), name.id()) {
            Ok(()) => Ok(Some(staging)),
            // The answer to an earlier try got lost, or what came after it failed.
            Err(Errno::NOENT) if staging.has(name.id()) => Ok(Some(staging)),
            // Then it is the place to move it to that is missing.
            Err(Errno::NOENT) if self.exists(name)? => Err(Errno::NOENT),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// This process's own directory in the queue.
    fn staging(&self) -> Result<Arc<Staging>, Errno> {
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        // Somebody may tidy up and remove it; a removed directory takes nothing.
        let there = |staging: &Arc<Staging>| staging.is_there();
        let ours = match staging.take().filter(there) {
            Some(ours) => ours,
            None => Arc::new(Staging::make(&self.dirs)?),
        };
        Ok(staging.insert(ours).clone())
    }

    /// The next use makes a new one.
    #[cfg(test)]
    pub(super) fn forget_staging(&self) {
        *self.staging.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Sends one message.
    pub(super) fn send(&self, body: &[u8]) -> Result<(), QueueError> {
        let send = || {
            let staging = self.staging()?;
            let id = uuid::Uuid::new_v4().to_string();
            let name = Name::new(0, &id);
            let sent = self.write_and_move(&staging, &name, body);
            if sent.is_err() {
                // Room for others. What can't be removed now goes with the directory.
                let _ = staging.discard(&id);
            }
            sent
        };
        send().map_err(|errno| self.dirs.failed("sending a message", errno))
    }

    fn write_and_move(&self, staging: &Staging, name: &Name, body: &[u8]) -> Result<(), Errno> {
        let id = name.id();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = fs::openat(staging.dir(), id, flags, FILE)?;
        write_all(&file, &body::with_id(body, id))?;
        if self.dirs.remote {
            // Only then does the server have it, or say that it has no room for it.
            fs::fsync(&file)?;
        }
        drop(file);
        crash_point("send: written");
        Movement::make(&self.dirs, name)?;
        crash_point("send: noted");
        fs::renameat(staging.dir(), id, &self.dirs.queue, name.as_str())?;
        crash_point("send: sent");
        Ok(())
    }
}

/// Between two tries to lock a movement file.
async fn pause() {
    tokio::time::sleep(Duration::from_micros(fastrand::u64(200..5_000))).await;
}
