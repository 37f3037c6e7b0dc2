//! The operations of a lease's holder on its message.

use std::sync::Arc;
use std::time::Duration;

use rustix::fs;
use rustix::io::Errno;

use super::dirs::{Dirs, REFUSED};
use super::history::{disowned, failed, uncounted};
use super::lock_wait::pauses;
use super::movement::{Movement, Opened};
use super::name::{Name, second_after};
use super::opened::OpenedQueue;
use super::receipt::LeaseReceipt;
use super::staging::Staging;
use super::{body, failures};
use crate::fault::{self, Step};
use crate::queue::{QueueError, Release};

/// How long the holder of a lease waits for the lock of its movement file.
const PATIENCE: Duration = Duration::from_secs(1);

impl OpenedQueue {
    /// [`Queue::start`](crate::queue::Queue::start).
    pub(super) async fn start(&self, held: &LeaseReceipt) -> Result<(), QueueError> {
        let id = held.name.id();
        let failed = |errno| self.dirs.failed(format!("starting message {id}"), errno);
        let (movement, ()) = self.movement_of(held, "starting", Movement::open_to_append).await?;
        // While the lock is held, no other process can lease the message between the check and the
        // record.
        if !self.exists(&held.name).map_err(failed)? {
            return Err(self.dirs.lost(id));
        }
        movement.start().map_err(failed)?;
        fault::point(Step::StartNoted);
        Ok(())
    }

    /// [`Queue::extend`](crate::queue::Queue::extend). Returns the new name.
    pub(super) async fn extend(
        &self,
        held: &LeaseReceipt,
        duration: Duration,
    ) -> Result<Name, QueueError> {
        let (dirs, id) = (&*self.dirs, held.name.id());
        let (movement, history) =
            self.movement_of(held, "renewing the lease of", Movement::open).await?;
        let extended = || {
            let due = second_after(self.now(), duration);
            let to = match due == held.name.due() {
                true => held.name.clone(),
                false => history.unused(&held.name, due),
            };
            self.rename(&movement, held, &to, "")?;
            Ok(to)
        };
        extended().map_err(|errno| match errno {
            Errno::NOENT => dirs.lost(id),
            errno => dirs.failed(format!("renewing the lease of message {id}"), errno),
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
        let (movement, history) = self.movement_of(held, "releasing", Movement::open).await?;
        let released = || {
            if !self.exists(&held.name)? {
                return Err(Errno::NOENT);
            }
            let started = history.started_under(held.since, &held.name);
            let lines = match why {
                Release::Uncounted => uncounted(started),
                Release::Failed(reason) => {
                    failures::add(dirs, id, reason)?;
                    fault::point(Step::FailureNoted);
                    failed(started > 0)
                }
            };
            let to = held.name.at(second_after(self.now(), after));
            self.rename(&movement, held, &to, &lines)
        };
        released().map_err(|errno| match errno {
            Errno::NOENT => dirs.lost(id),
            errno => dirs.failed(format!("releasing message {id}"), errno),
        })
    }

    /// [`Queue::disown`](crate::queue::Queue::disown).
    pub(super) async fn disown(&self, held: &LeaseReceipt) -> Result<(), QueueError> {
        let id = held.name.id();
        let failed =
            |errno| self.dirs.failed(format!("taking back an execution of message {id}"), errno);
        let mut pauses = pauses(PATIENCE);
        let (movement, history) = loop {
            match Movement::open(&self.dirs, id).map_err(failed)? {
                Opened::Locked(opened) => break opened,
                // The message is finished.
                Opened::Missing => return Ok(()),
                Opened::Busy => {}
            }
            tokio::time::sleep(pauses.next().ok_or(Errno::AGAIN).map_err(failed)?).await;
        };
        let open = history.started_under(held.since, &held.name);
        if open > 0 {
            movement.append(&disowned(held.since, open)).map_err(failed)?;
        }
        fault::point(Step::DisownNoted);
        Ok(())
    }

    /// Deletes a message, and counts it as completed or not.
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
        fault::point(Step::Claimed);
        if held.redelivered {
            failures::forget(dirs, id).map_err(failed)?;
        }
        staging.discard(id).map_err(failed)?;
        fault::point(Step::Discarded);
        if is_done {
            self.count_completion();
        }
        Ok(())
    }

    /// Removes a message that is too long from the queue, and keeps its file.
    fn keep(&self, held: &LeaseReceipt) -> Result<(), Errno> {
        let (dirs, id) = (&*self.dirs, held.name.id());
        let refused = dirs.host(REFUSED)?;
        let kept = body::kept(id);
        let file = kept.rsplit('/').next().unwrap_or_default();
        fs::renameat(&dirs.queue, held.name.as_str(), &refused, file)?;
        tracing::warn!(queue = dirs.url, "message {id} is too long; moved its file to {kept}");
        failures::forget(dirs, id)?;
        dirs.remove(&dirs.movement, id)
    }

    /// Moves the message out of the queue, which finishes it. The rename succeeds for one process
    /// only. Returns `None` if the lease is lost.
    fn claim(&self, name: &Name) -> Result<Option<Arc<Staging>>, Errno> {
        let claimed = self.in_staging(|staging| {
            match fs::renameat(&self.dirs.queue, name.as_str(), staging.dir(), name.id()) {
                // An earlier attempt succeeded, but its response was lost or a later step failed.
                Err(Errno::NOENT) if staging.has(name.id()) => Ok(staging.clone()),
                renamed => renamed.map(|()| staging.clone()),
            }
        });
        match claimed {
            Ok(staging) => Ok(Some(staging)),
            // The staging directory is missing, but the message exists.
            Err(Errno::NOENT) if self.exists(name)? => Err(Errno::NOENT),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Opens and locks the movement file of a message under lease, with the function `open`.
    async fn movement_of<T>(
        &self,
        held: &LeaseReceipt,
        doing: &str,
        open: fn(&Dirs, &str) -> Result<Opened<T>, Errno>,
    ) -> Result<T, QueueError> {
        let (dirs, id) = (&*self.dirs, held.name.id());
        let failed = |errno| dirs.failed(format!("{doing} message {id}"), errno);
        let mut pauses = pauses(PATIENCE);
        loop {
            match open(dirs, id).map_err(failed)? {
                Opened::Locked(movement) => return Ok(movement),
                Opened::Missing => {
                    if !self.exists(&held.name).map_err(failed)? {
                        return Err(dirs.lost(id));
                    }
                    // A Python client may have removed the file.
                    if let Opened::Locked((movement, history)) =
                        Movement::open_or_create(dirs, id).map_err(failed)?
                        && history.is_empty()
                    {
                        movement.append(&held.name.line()).map_err(failed)?;
                    }
                }
                Opened::Busy => {
                    let pause = pauses.next().ok_or(Errno::AGAIN).map_err(failed)?;
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    /// Appends lines and the new name to the movement file, and renames the message.
    fn rename(
        &self,
        movement: &Movement,
        held: &LeaseReceipt,
        to: &Name,
        lines: &str,
    ) -> Result<(), Errno> {
        if *to == held.name {
            // A rename of a file to its own name always succeeds, so it does not prove that the
            // lease is held.
            if !self.exists(to)? {
                return Err(Errno::NOENT);
            }
            return if lines.is_empty() { Ok(()) } else { movement.append(lines) };
        }
        let lines = format!("{lines}{}", to.line());
        movement.append(&lines)?;
        fault::point(Step::MoveNoted);
        fs::renameat(&self.dirs.queue, held.name.as_str(), &self.dirs.queue, to.as_str())
            .inspect_err(|_| movement.take_back(lines.len()))?;
        fault::point(Step::MoveRenamed);
        Ok(())
    }
}
