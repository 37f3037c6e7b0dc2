//! Decides whether tasks are short enough for full batches.
//!
//! A receive request costs the same whether it returns one message or ten. While tasks are short,
//! each receive request asks for ten messages, even if the host wants fewer at that moment. The
//! extra messages wait in `polls.rs`, under lease, for the host's next call, which then needs no
//! request. If the host's tasks become longer, the messages are released after ten seconds. While
//! tasks are long, a receive request asks only for the messages that the host wants, because
//! another host could run a message that waits here. If a delivery without an execution counts
//! against the message's redrive policy, a receive request never asks for more than the host wants.
//!
//! Tasks are short while the last ten of this process finished within five seconds. Ten more
//! messages then wait for at most about five seconds.
//!
//! Deletes are batched in the same way: a delete waits until ten can be sent together, but for at
//! most five seconds, and only while another leased message may still join it. A host with short
//! tasks therefore makes about two requests for ten tasks, at any pace.

use std::collections::VecDeque;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::batch::MAX_ENTRIES;

/// How long a message may wait for a batch to fill.
pub(super) const BATCH_WAIT: Duration = Duration::from_secs(5);

/// When the last ten tasks finished.
#[derive(Debug, Default)]
pub(super) struct Pace(Mutex<VecDeque<Instant>>);

impl Pace {
    /// Records that a task finished.
    pub(super) fn record(&self, now: Instant) {
        let mut finished = self.0.lock();
        if finished.len() >= MAX_ENTRIES {
            finished.pop_front();
        }
        finished.push_back(now);
    }

    /// Whether ten more messages would start before much of a lease of `duration` has passed.
    pub(super) fn is_fast(&self, duration: Duration, now: Instant) -> bool {
        let finished = self.0.lock();
        let first = finished.front().filter(|_| finished.len() >= MAX_ENTRIES);
        first.is_some_and(|first| now.duration_since(*first) <= BATCH_WAIT.min(duration / 4))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_are_short_while_ten_finish_within_five_seconds() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let duration = Duration::from_secs(300);
        let pace = Pace::default();
        for _ in 0..9 {
            pace.record(at(0));
        }
        assert!(!pace.is_fast(duration, at(0)), "too few to tell");
        pace.record(at(0));
        assert!(pace.is_fast(duration, at(0)));
        assert!(pace.is_fast(duration, at(2000)));
        assert!(!pace.is_fast(Duration::from_secs(4), at(2000)), "too much of the lease is over");
        assert!(!pace.is_fast(duration, at(6000)));
        for n in 0..10 {
            pace.record(at(10_000 + n * 600));
        }
        assert!(!pace.is_fast(duration, at(15_400)), "ten tasks take 5.4 seconds");
    }
}
