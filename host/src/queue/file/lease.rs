//! Leasing: trying the candidates, and waiting for a message if there is none.

use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::name::Name;
use super::opened::OpenedQueue;
use super::take::Taken;
use crate::queue::{Message, QueueError};
use crate::system::Watch;

/// The maximum wait before a call checks that its directory is still the queue's.
const CHECK: Duration = Duration::from_secs(1);

impl OpenedQueue {
    /// [`Queue::lease`](crate::queue::Queue::lease), waiting up to `until`. Fails if these are no
    /// longer the directories of the queue.
    pub(super) async fn lease(
        &self,
        max: usize,
        duration: Duration,
        until: Instant,
    ) -> Result<Vec<Message>, QueueError> {
        if max == 0 {
            return Ok(Vec::new());
        }
        let mut listing = self.candidates().next_listing();
        let mut watch = None;
        let mut has_waited = false;
        let mut poll = None;
        loop {
            let found = self.take_up_to(max, duration, listing).await?;
            if !found.is_empty() {
                if !has_waited {
                    self.watch.leased_without_wait();
                }
                return Ok(found);
            }
            self.check()?;
            if Instant::now() >= until {
                return Ok(found);
            }
            if !has_waited {
                has_waited = true;
                if let Some((new, begun)) = self.watch.get(&self.dirs.url) {
                    watch = Some(new);
                    if begun {
                        // A message may have arrived between the listing and the start of the
                        // watch.
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

    /// Leases messages without waiting. If none is found, reads on until the end of the listing
    /// with the number `listing`.
    async fn take_up_to(
        &self,
        max: usize,
        duration: Duration,
        listing: u64,
    ) -> Result<Vec<Message>, QueueError> {
        let mut found = Vec::new();
        let mut pieces = 0;
        loop {
            while found.len() < max {
                let Some(name) = self.candidates().next() else {
                    break;
                };
                match self.try_candidate(name, duration) {
                    Ok(message) => found.extend(message),
                    // Return the messages that are already leased. The next call gets the error.
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
                    // Two pieces contain all of a short queue, and a small part of a long one.
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
            // Yield only without a message: if the future is dropped here, leases that it holds
            // would be lost.
            if found.is_empty() {
                tokio::task::yield_now().await;
            }
        }
    }

    fn try_candidate(&self, name: Name, duration: Duration) -> Result<Option<Message>, QueueError> {
        let busy_for = self.candidates().busy_for(&name);
        match self.take(&name, duration, busy_for) {
            Ok(Taken::Leased(message)) => {
                self.candidates().forget(&name);
                Ok(Some(message))
            }
            Ok(Taken::Gone) => {
                self.candidates().forget(&name);
                Ok(None)
            }
            Ok(Taken::Busy) => {
                self.candidates().saw_busy(name);
                Ok(None)
            }
            Ok(Taken::Foreign) => {
                let mut candidates = self.candidates();
                candidates.forget(&name);
                candidates.saw_foreign(&self.dirs, name.as_str());
                Ok(None)
            }
            // The error concerns only this message.
            Err(errno @ (Errno::ACCESS | Errno::PERM | Errno::FBIG | Errno::NAMETOOLONG)) => {
                self.warned_of_unreadable.call_once(|| {
                    tracing::warn!(
                        queue = self.dirs.url,
                        message = name.as_str(),
                        %errno,
                        "skipping a message, and others like it: this user can't read the \
                         message or write its movement file"
                    );
                });
                Ok(None)
            }
            Err(errno) => Err(self.dirs.failed(format!("leasing message {}", name.id()), errno)),
        }
    }

    /// Waits until there may be a message to lease. Returns whether the directory must be
    /// listed to find it.
    async fn wait(&self, watch: Option<&Watch>, poll: Instant, until: Instant) -> bool {
        let (due, retry) = {
            let now = self.now();
            let candidates = self.candidates();
            let away = |due| Duration::from_secs(due).saturating_sub(now);
            // The jitter keeps hosts from listing at the same moment of a second.
            let jitter = Duration::from_micros(fastrand::u64(500..15_000));
            let due = candidates
                .next_due()
                .and_then(|due| Instant::now().checked_add(away(due) + jitter));
            (due, candidates.retry_after().map(|after| Instant::now() + after))
        };
        let list = due.map_or(poll, |due| due.min(poll));
        let wake = retry.map_or(list, |retry| retry.min(list)).min(Instant::now() + CHECK);
        let alarm = tokio::time::sleep_until(wake.min(until).into());
        tokio::pin!(alarm);
        loop {
            tokio::select! {
                () = changed(watch) => {
                    let now = self.now().as_secs();
                    let mut candidates = self.candidates();
                    let complete =
                        watch.is_none_or(|watch| watch.read(|name| {
                            if let Some(name) = Name::parse(name) {
                                candidates.saw(name, now);
                            }
                        }));
                    if !complete || candidates.has_more() {
                        return !complete;
                    }
                }
                () = self.more.notified() => return false,
                () = &mut alarm => {
                    self.candidates().retry_busy();
                    return Instant::now() >= list;
                }
            }
        }
    }
}

async fn changed(watch: Option<&Watch>) {
    match watch {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    }
}
