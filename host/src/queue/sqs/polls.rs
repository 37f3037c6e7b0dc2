//! Polls for messages, each in a task of its own.
//!
//! A request that is given up on can still bring messages, which nobody would know of until
//! their leases end. So a poll is never broken off: when its caller has gone, what it brings
//! is kept for the next caller, and given back if there is none.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::failure::Failure;
use super::leases::LeasedMessage;

/// A message that was received and that nobody has been given yet.
#[derive(Debug)]
pub(super) struct Unclaimed {
    pub(super) held: LeasedMessage,
    pub(super) body: Bytes,
    /// Why that is not the message's text.
    pub(super) unread: Option<String>,
    /// When its lease ends, at the earliest.
    pub(super) until: Instant,
    /// When too much of the lease is over for it to be given to anybody.
    pub(super) stale: Instant,
}

/// What one poll brought.
pub(super) type PollResult = Result<Vec<Unclaimed>, Failure>;

#[derive(Debug, Default)]
pub(super) struct Polls {
    state: Mutex<PollStates>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct PollStates {
    next: u64,
    /// Polls by their numbers.
    polls: HashMap<u64, Poll>,
    /// What polls have brought whose callers had gone.
    kept: VecDeque<Unclaimed>,
}

#[derive(Debug)]
enum Poll {
    UnderWay,
    /// Under way, and nobody waits for it.
    GivenUp,
    Answered(PollResult),
}

/// The right to what a poll brings. Dropping it gives up on the poll.
pub(super) struct Ticket<'a> {
    polls: &'a Polls,
    number: u64,
}

impl Polls {
    fn state(&self) -> MutexGuard<'_, PollStates> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a poll begins.
    pub(super) fn begin(&self) -> Ticket<'_> {
        let mut state = self.state();
        state.next += 1;
        let number = state.next;
        state.polls.insert(number, Poll::UnderWay);
        Ticket { polls: self, number }
    }

    /// Notes what a poll has brought.
    pub(super) fn end(&self, number: u64, brought: PollResult) {
        let mut state = self.state();
        match state.polls.remove(&number) {
            Some(Poll::UnderWay) => {
                state.polls.insert(number, Poll::Answered(brought));
            }
            _ => match brought {
                Ok(fresh) => state.kept.extend(fresh),
                Err(failure) => tracing::debug!("a poll that was given up on: {failure:?}"),
            },
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// Keeps messages for whoever asks next.
    pub(super) fn keep(&self, fresh: Vec<Unclaimed>) {
        self.state().kept.extend(fresh);
        self.changed.notify_waiters();
    }

    /// Takes up to `max` of the messages that are kept.
    pub(super) fn take(&self, max: usize) -> Vec<Unclaimed> {
        let mut state = self.state();
        let count = max.min(state.kept.len());
        state.kept.drain(..count).collect()
    }

    /// Takes of the messages that are kept those that are stale by then.
    pub(super) fn take_stale(&self, now: Instant) -> Vec<Unclaimed> {
        let mut state = self.state();
        let (old, young): (VecDeque<_>, _) =
            state.kept.drain(..).partition(|fresh| fresh.stale <= now);
        state.kept = young;
        old.into()
    }

    /// When the first of the messages that are kept will be stale; waits until there is one.
    pub(super) async fn first_stale(&self) -> Instant {
        self.until(|state| state.kept.iter().map(|fresh| fresh.stale).min()).await
    }

    /// True if a poll is under way that nobody waits for.
    pub(super) fn has_given_up(&self) -> bool {
        self.state().polls.values().any(|poll| matches!(poll, Poll::GivenUp))
    }

    /// Waits until something is kept, or no poll is under way that nobody waits for.
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
            // From here on no change is missed.
            changed.as_mut().enable();
            if let Some(found) = check(&mut self.state()) {
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

    /// Waits for what the poll brings.
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
        let mut state = self.polls.state();
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
