//! Polls: receive requests, each in a separate tokio task.
//!
//! If a receive request were cancelled, SQS could still lease messages to it. Those messages would
//! be hidden until their leases expire. A poll is therefore never cancelled. If its caller is
//! dropped, its messages are kept for the next caller, and released if no caller comes in time.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::failure::Failure;
use super::leases::LeasedMessage;

/// A message that was received and not yet handed out.
#[derive(Debug)]
pub(super) struct Unclaimed {
    pub(super) held: LeasedMessage,
    pub(super) body: Bytes,
    /// Why `body` is not the text that was sent.
    pub(super) unread: Option<String>,
    /// The earliest end of the lease.
    pub(super) until: Instant,
    /// When too little of the lease is left to hand out the message.
    pub(super) stale: Instant,
}

/// The result of a poll.
pub(super) type PollResult = Result<Vec<Unclaimed>, Failure>;

#[derive(Debug, Default)]
pub(super) struct Polls {
    state: Mutex<PollStates>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct PollStates {
    next: u64,
    /// The polls by number.
    polls: HashMap<u64, Poll>,
    /// Messages that wait for a caller.
    kept: VecDeque<Unclaimed>,
}

#[derive(Debug)]
enum Poll {
    UnderWay,
    /// Under way, but its caller was dropped.
    GivenUp,
    Answered(PollResult),
}

/// The right to the result of a poll. Dropping the ticket abandons the poll.
pub(super) struct Ticket<'a> {
    polls: &'a Polls,
    number: u64,
}

impl Polls {
    /// Records that a poll starts.
    pub(super) fn begin(&self) -> Ticket<'_> {
        let mut state = self.state.lock();
        state.next += 1;
        let number = state.next;
        state.polls.insert(number, Poll::UnderWay);
        Ticket { polls: self, number }
    }

    /// Records the result of a poll.
    pub(super) fn end(&self, number: u64, brought: PollResult) {
        let mut state = self.state.lock();
        match state.polls.remove(&number) {
            Some(Poll::UnderWay) => {
                state.polls.insert(number, Poll::Answered(brought));
            }
            _ => match brought {
                Ok(fresh) => state.kept.extend(fresh),
                Err(failure) => tracing::debug!("an abandoned poll failed: {failure:?}"),
            },
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// Keeps messages for the next caller.
    pub(super) fn keep(&self, fresh: Vec<Unclaimed>) {
        self.state.lock().kept.extend(fresh);
        self.changed.notify_waiters();
    }

    /// Takes up to `max` kept messages.
    pub(super) fn take(&self, max: usize) -> Vec<Unclaimed> {
        let mut state = self.state.lock();
        let count = max.min(state.kept.len());
        state.kept.drain(..count).collect()
    }

    /// Takes the kept messages that are stale.
    pub(super) fn take_stale(&self, now: Instant) -> Vec<Unclaimed> {
        let mut state = self.state.lock();
        let (old, young): (VecDeque<_>, _) =
            state.kept.drain(..).partition(|fresh| fresh.stale <= now);
        state.kept = young;
        old.into()
    }

    /// Waits until a message is kept, and returns when the first kept message will be stale.
    pub(super) async fn first_stale(&self) -> Instant {
        self.until(|state| state.kept.iter().map(|fresh| fresh.stale).min()).await
    }

    /// Whether an abandoned poll is under way.
    pub(super) fn has_given_up(&self) -> bool {
        self.state.lock().polls.values().any(|poll| matches!(poll, Poll::GivenUp))
    }

    /// Waits until no abandoned poll is under way or, if `or_kept`, a message is kept.
    pub(super) async fn given_up(&self, or_kept: bool) {
        self.until(|state| {
            let none = !state.polls.values().any(|poll| matches!(poll, Poll::GivenUp));
            (none || (or_kept && !state.kept.is_empty())).then_some(())
        })
        .await
    }

    async fn until<T>(&self, mut check: impl FnMut(&mut PollStates) -> Option<T>) -> T {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // Changes from here on are noticed.
            changed.as_mut().enable();
            if let Some(found) = check(&mut self.state.lock()) {
                return found;
            }
            changed.await;
        }
    }
}

impl Ticket<'_> {
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Waits for the result of the poll.
    pub(super) async fn brought(self) -> PollResult {
        let number = self.number;
        self.polls
            .until(|state| match state.polls.remove(&number)? {
                Poll::Answered(brought) => Some(brought),
                other => {
                    state.polls.insert(number, other);
                    None
                }
            })
            .await
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut state = self.polls.state.lock();
        match state.polls.remove(&self.number) {
            Some(Poll::Answered(Ok(fresh))) => state.kept.extend(fresh),
            Some(Poll::UnderWay) => {
                state.polls.insert(self.number, Poll::GivenUp);
            }
            _ => {}
        }
        drop(state);
        self.polls.changed.notify_waiters();
    }
}
