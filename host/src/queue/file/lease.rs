//! Leasing: finding a message, taking it, and waiting for one.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::fs::{self, OFlags};
use rustix::io::Errno;

use super::clock::written;
use super::dirs::open_file;
use super::movement::{History, Movement, Opened};
use super::name::{Name, second_after};
use super::opened::OpenedQueue;
use super::watch::Watch;
use super::{LeaseReceipt, body, crash_point, failures};
use crate::queue::{Message, QueueError};

/// After this a message without a movement file is one whose sender died, and not one that
/// is being sent. Python makes the message first.
const ABANDONED: Duration = Duration::from_secs(10);
/// How often a call that waits looks whether the directory is still the one it waits in.
const LOOK: Duration = Duration::from_secs(1);
/// After so many leases without a wait the kernel is no longer asked to tell of each.
const BUSY: u32 = 64;

/// What trying to lease a message came to.
enum LeaseAttempt {
    Leased(Message),
    /// It is somebody else's, or done.
    Gone,
    /// It is just being sent or moved.
    Later,
    /// A directory, a link, a socket: not a message, whatever its name.
    Foreign,
}

impl OpenedQueue {
    /// [`Queue::lease`](crate::queue::Queue::lease), waiting until then. Fails when the
    /// directory is not the queue's any more.
    pub(super) async fn lease(
        &self,
        max: usize,
        hold: Duration,
        until: Instant,
    ) -> Result<Vec<Message>, QueueError> {
        if max == 0 {
            return Ok(Vec::new());
        }
        let mut listing = self.candidates().next_listing();
        let mut watch = None;
        let mut asked = false;
        let mut poll = None;
        loop {
            let found = self.take(max, hold, listing).await?;
            if !found.is_empty() {
                if !asked {
                    self.unwatch_when_busy();
                }
                return Ok(found);
            }
            self.check()?;
            if Instant::now() >= until {
                return Ok(found);
            }
            if !asked {
                asked = true;
                if let Some((new, begun)) = self.watch() {
                    watch = Some(new);
                    if begun {
                        // Of what came between the listing and the watch nobody tells.
                        listing = self.candidates().next_listing();
                        continue;
                    }
                }
            }
            let at = *poll.get_or_insert_with(|| Instant::now() + self.candidates().pause());
            if self.wait(watch.as_deref(), at, until).await {
                poll = None;
                listing = self.candidates().next_listing();
            }
        }
    }

    /// Leases what can be found without waiting, listing the directory until the end of the
    /// listing of that number.
    async fn take(
        &self,
        max: usize,
        hold: Duration,
        listing: u64,
    ) -> Result<Vec<Message>, QueueError> {
        let mut found = Vec::new();
        let mut pieces = 0;
        loop {
            while found.len() < max {
                let Some(name) = self.candidates().next() else {
                    break;
                };
                match self.try_one(name, hold) {
                    Ok(message) => found.extend(message),
                    // What is leased has to be handed over; the next call meets the error.
                    Err(error) if found.is_empty() => return Err(error),
                    Err(_) => return Ok(found),
                }
            }
            {
                let now = self.now().as_secs();
                let mut candidates = self.candidates();
                if !found.is_empty() {
                    candidates.found();
                    if candidates.has_more() {
                        self.more.notify_one();
                    }
                    // Two pieces are all of a short queue, and nothing of a long one.
                    if found.len() >= max || pieces >= 2 {
                        return Ok(found);
                    }
                }
                if candidates.has_ended(listing) {
                    return Ok(found);
                }
                pieces += 1;
                if let Err(errno) = candidates.refill(&self.dirs, now) {
                    if found.is_empty() {
                        return Err(self.dirs.failed("listing the messages", errno));
                    }
                    return Ok(found);
                }
            }
            // Never with a message in hand: it would be lost if we were dropped here.
            if found.is_empty() {
                tokio::task::yield_now().await;
            }
        }
    }

    fn try_one(&self, name: Name, hold: Duration) -> Result<Option<Message>, QueueError> {
        let tried_for = self.candidates().tried_for(&name);
        match self.try_lease(&name, hold, tried_for) {
            Ok(LeaseAttempt::Leased(message)) => {
                self.candidates().settled(&name);
                Ok(Some(message))
            }
            Ok(LeaseAttempt::Gone) => {
                self.candidates().settled(&name);
                Ok(None)
            }
            Ok(LeaseAttempt::Later) => {
                self.candidates().try_again(name);
                Ok(None)
            }
            Ok(LeaseAttempt::Foreign) => {
                let mut candidates = self.candidates();
                candidates.settled(&name);
                candidates.saw_foreign(&self.dirs, name.as_str());
                Ok(None)
            }
            // Of this one message, whatever the others are.
            Err(errno @ (Errno::ACCESS | Errno::PERM | Errno::FBIG | Errno::NAMETOOLONG)) => {
                self.said_unreadable.call_once(|| {
                    tracing::warn!(
                        queue = self.dirs.url,
                        message = name.as_str(),
                        %errno,
                        "this user can't read a message and write its movement file; \
                         it is left to others, as will be others like it"
                    );
                });
                Ok(None)
            }
            Err(errno) => Err(self.dirs.failed(format!("leasing message {}", name.id()), errno)),
        }
    }

    fn try_lease(
        &self,
        name: &Name,
        hold: Duration,
        tried_for: Duration,
    ) -> Result<LeaseAttempt, Errno> {
        let (dirs, id) = (&*self.dirs, name.id());
        // First, because it costs least to see here that somebody else was faster.
        let (file, stat) = match open_file(&dirs.queue, name.as_str(), OFlags::RDONLY) {
            Ok(Some(opened)) => opened,
            Ok(None) => return Ok(LeaseAttempt::Foreign),
            Err(Errno::NOENT) => return Ok(LeaseAttempt::Gone),
            // A file server has given it to somebody else for the moment.
            Err(Errno::AGAIN) => return Ok(LeaseAttempt::Later),
            Err(errno) => return Err(errno),
        };

        // Nobody is writing it any more, nor putting back the queue's directory.
        let abandoned = || {
            let age = self.now().saturating_sub(written(&stat));
            !self.is_settling() && (tried_for >= ABANDONED || age >= ABANDONED)
        };
        let mut opened = Movement::open(dirs, id)?;
        let adopted = matches!(opened, Opened::Missing) && abandoned();
        if adopted {
            opened = Movement::open_or_make(dirs, id)?;
        }
        let Opened::Locked(movement) = opened else {
            return Ok(LeaseAttempt::Later);
        };
        let mut history = movement.history()?;
        if history.is_empty() {
            if !adopted && !abandoned() {
                return Ok(LeaseAttempt::Later);
            }
            movement.append(&name.line())?;
            history = History::of(name);
        }

        let (body, unread) = match body::read(&file, &stat, id)? {
            Ok(body) => (body, None),
            Err(size) => {
                let (problem, kept) = (body::too_long(name.as_str(), size), body::kept(id));
                let dir = dirs.path.display();
                (Bytes::new(), Some(format!("{problem}; the file is kept as {dir}/{kept}")))
            }
        };
        let leased = history.unused(name, second_after(self.now(), hold));
        if leased == *name {
            // It has no time that could be later. Renaming it to itself would succeed for
            // everybody.
            return Ok(LeaseAttempt::Later);
        }
        let redelivered = adopted || history.was_moved();
        let failures = match redelivered {
            true => failures::of(dirs, id)?,
            false => Vec::new(),
        };
        // The reasons may have been removed, or one added by a host that was killed then.
        let attempts = u32::try_from(failures.len()).unwrap_or(u32::MAX).max(history.failed());
        // The name comes first: one that no file has does no harm, but Python deletes a
        // message by the names that it finds here.
        let end = if history.is_torn() { "\n" } else { "" };
        let line = format!("{end}{}", leased.line());
        movement.append(&line)?;
        crash_point("lease: noted");
        let renamed = fs::renameat(&dirs.queue, name.as_str(), &dirs.queue, leased.as_str());
        if let Err(errno) = renamed {
            movement.take_back(line.len());
            if adopted {
                let _ = dirs.remove(&dirs.movement, id);
            }
            return match errno {
                Errno::NOENT => Ok(LeaseAttempt::Gone),
                errno => Err(errno),
            };
        }
        crash_point("lease: leased");

        let is_unread = unread.is_some();
        Ok(LeaseAttempt::Leased(Message {
            id: id.to_owned(),
            body,
            unread,
            attempts,
            deaths: history.started().saturating_sub(attempts),
            unaccounted: 0,
            failures,
            receipt: LeaseReceipt {
                name: leased,
                since: history.len() + end.len(),
                redelivered,
                is_unread,
            }
            .receipt(),
        }))
    }

    /// Waits until there may be something to lease. Returns whether the directory must be
    /// listed to find it.
    async fn wait(&self, watch: Option<&Watch>, poll: Instant, until: Instant) -> bool {
        let (due, again) = {
            let now = self.now();
            let candidates = self.candidates();
            let away = |due| Duration::from_secs(due).saturating_sub(now);
            // A few milliseconds apart, so that not all hosts list at the stroke of a second.
            let jitter = Duration::from_micros(fastrand::u64(500..15_000));
            let due = candidates
                .next_due()
                .and_then(|due| Instant::now().checked_add(away(due) + jitter));
            (due, candidates.retry_after().map(|after| Instant::now() + after))
        };
        let look = due.map_or(poll, |due| due.min(poll));
        let wake = again.map_or(look, |again| again.min(look)).min(Instant::now() + LOOK);
        let wake = wake.min(until);
        let alarm = tokio::time::sleep_until(wake.into());
        tokio::pin!(alarm);
        loop {
            tokio::select! {
                () = changed(watch) => {
                    let now = self.now().as_secs();
                    let mut candidates = self.candidates();
                    let whole = watch.is_none_or(|watch| watch.read(|name| candidates.saw(name, now)));
                    if !whole || candidates.has_more() {
                        return !whole;
                    }
                }
                () = self.more.notified() => return false,
                () = &mut alarm => {
                    self.candidates().retry();
                    return Instant::now() >= look;
                }
            }
        }
    }

    /// The watch on the directory, and whether it has only just begun. `None` if the kernel
    /// has none for us; then there is the polling.
    pub(super) fn watch(&self) -> Option<(Arc<Watch>, bool)> {
        let mut watching = self.watching.lock().unwrap_or_else(PoisonError::into_inner);
        watching.leases = 0;
        if let Some(watch) = &watching.watch {
            return Some((watch.clone(), false));
        }
        match Watch::begin(&self.watched) {
            Ok(watch) => {
                let watch = Arc::new(watch);
                watching.watch = Some(watch.clone());
                Some((watch, true))
            }
            Err(errno) => {
                if !watching.said_refused {
                    watching.said_refused = true;
                    tracing::warn!(
                        queue = self.dirs.url,
                        %errno,
                        "can't watch for new messages (fs.inotify.max_user_instances may be \
                         too low); looking every few seconds instead"
                    );
                }
                None
            }
        }
    }

    /// Stops the watch when leases are had without waiting: nobody reads what it tells.
    fn unwatch_when_busy(&self) {
        let mut watching = self.watching.lock().unwrap_or_else(PoisonError::into_inner);
        watching.leases = watching.leases.saturating_add(1);
        if watching.leases >= BUSY {
            watching.watch = None;
        }
    }
}

async fn changed(watch: Option<&Watch>) {
    match watch {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    }
}
