//! Whether tasks are short enough for full batches.
//!
//! A receive costs the same whether it brings one message or ten. While tasks are short, each
//! receive asks for ten messages, however few the host wants at that moment. The messages beyond
//! those wait in `polls.rs`, under lease, for the host's next call, which then needs no request. If
//! the host's tasks become longer, they are released after ten seconds.
//! While tasks are long, a receive asks only for what the host wants: another host could run a
//! message that waits here. Where a delivery that comes to nothing counts against the message's
//! redrive policy, a receive never asks for more.
//!
//! Tasks are short while the last ten of this process finished within five seconds: then ten more
//! messages wait for about five seconds at most.
//!
//! Deletes are batched in the same way: a delete waits for nine others, but for at most five
//! seconds, and only while another leased message may still join it. So a host whose tasks are
//! short makes about two requests for ten tasks, whatever their pace.

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

    /// Whether ten more messages would start before much of a lease of `duration` is over.
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
