//! Decides how long a receive waits for a message.

use std::time::Duration;

use tokio::time::Instant;

/// The wait of one receive.
pub(super) const LONG_POLL: Duration = Duration::from_secs(20);
/// The wait for a host that stops when the queue is empty.
const SHORT_POLL: Duration = Duration::from_millis(500);
/// The wait for such a host if each receive is a paid request.
const SHORT_PAID_POLL: Duration = Duration::from_secs(5);
/// The minimum wait of receives for tasks to hold ahead. Also the time without events after which a
/// host that may be done starts to wait in receives.
const SECOND: Duration = Duration::from_secs(1);
/// The first pause between two receives that don't wait.
const PAUSE: Duration = Duration::from_millis(100);

/// Decides how long each receive waits.
///
/// A waiting receive delays the end of a host that stops at an empty queue, because a receive is
/// never interrupted. Therefore such a host waits about as long as nothing has happened. It does
/// not wait at all when one of its tasks has just ended, because that may have been the last task.
#[derive(Debug)]
pub(super) struct Polls {
    /// The host stops when the queue is empty.
    has_end: bool,
    /// Each receive is a paid request.
    is_paid: bool,
    /// The maximum wait of a host that does not stop at an empty queue.
    longest: Duration,
    /// When a receive last returned messages, if one did.
    brought: Option<Instant>,
    /// When a receive last returned no message.
    nothing: Option<Instant>,
}

/// The next receive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Poll {
    /// The pause before the receive.
    pub(super) pause: Duration,
    /// The wait of the receive.
    pub(super) wait: Duration,
}

impl Polls {
    pub(super) fn new(has_end: bool, is_paid: bool, longest: Duration) -> Self {
        Self { has_end, is_paid, longest, brought: None, nothing: None }
    }

    /// Records whether a receive returned messages.
    pub(super) fn ended(&mut self, now: Instant, has_brought: bool) {
        match has_brought {
            true => self.brought = Some(now),
            false => self.nothing = Some(now),
        }
    }

    /// The next receive. `freed`: when a slot was last freed. `until_free`: if all slots are in
    /// use, the expected time until one is free; the receive does not wait longer for a task to
    /// hold ahead. `until_left`: the time after which the host leaves if no task comes; zero for a
    /// host that stays only until the queue is empty.
    pub(super) fn next(
        &self,
        now: Instant,
        freed: Option<Instant>,
        until_free: Option<Duration>,
        until_left: Option<Duration>,
    ) -> Poll {
        let poll = match (self.has_end, self.is_paid) {
            (false, _) => Poll { wait: self.longest, ..Poll::default() },
            (true, false) => Poll { wait: SHORT_POLL, ..Poll::default() },
            (true, true) => self.growing(now, freed),
        };
        let wait = poll.wait.min(until_free.map_or(poll.wait, |time| time.max(SECOND)));
        let last = match until_left {
            Some(Duration::ZERO) => SHORT_PAID_POLL,
            Some(left) => left.max(SECOND),
            None => wait,
        };
        let wait = wait.min(last);
        // A paid request can wait only for whole seconds.
        let whole = || Duration::from_secs(wait.as_secs());
        Poll { wait: if self.is_paid { whole() } else { wait }, ..poll }
    }

    fn growing(&self, now: Instant, freed: Option<Instant>) -> Poll {
        // A service may show new messages with a delay.
        let Some(last) = self.brought.max(freed.filter(|_| self.brought.is_some())) else {
            return Poll { wait: SHORT_PAID_POLL, ..Poll::default() };
        };
        let quiet = now.saturating_duration_since(last);
        if quiet >= SECOND {
            return Poll { wait: quiet.min(SHORT_PAID_POLL), ..Poll::default() };
        }
        let has_asked = self.nothing.is_some_and(|asked| asked >= last);
        Poll { pause: if has_asked { quiet.max(PAUSE) } else { Duration::ZERO }, ..Poll::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn poll(pause: Duration, wait: Duration) -> Poll {
        Poll { pause, wait }
    }

    #[test]
    fn a_receive_waits_long_unless_all_slots_are_taken_for_less() {
        let now = Instant::now();
        let check = |is_paid, until_free, wait| {
            let polls = Polls::new(false, is_paid, LONG_POLL);
            assert_eq!(polls.next(now, None, until_free, None), poll(Duration::ZERO, wait));
        };
        check(true, None, LONG_POLL);
        check(true, Some(MINUTE), LONG_POLL);
        check(true, Some(3 * SECOND), 3 * SECOND);
        check(true, Some(SECOND * 7 / 2), 3 * SECOND);
        check(true, Some(SECOND / 2), SECOND);
        check(false, Some(SECOND * 7 / 2), SECOND * 7 / 2);
    }

    #[test]
    fn an_idle_host_does_not_wait_beyond_the_time_when_it_leaves() {
        let now = Instant::now();
        let polls = Polls::new(false, true, 10 * SECOND);
        let wait = |left: Option<Duration>| polls.next(now, None, None, left).wait;
        assert_eq!(wait(None), 10 * SECOND);
        assert_eq!(wait(Some(MINUTE)), 10 * SECOND);
        assert_eq!(wait(Some(SECOND * 7 / 2)), 3 * SECOND);
        assert_eq!(wait(Some(SECOND / 2)), SECOND);
        assert_eq!(wait(Some(Duration::ZERO)), SHORT_PAID_POLL, "it waits for the queue's end");
    }

    #[test]
    fn where_a_queue_may_be_empty_a_receive_waits_about_as_long_as_nothing_has_happened() {
        let start = Instant::now() + MINUTE;
        let mut polls = Polls::new(true, true, LONG_POLL);
        assert_eq!(polls.next(start, None, None, None).wait, SHORT_PAID_POLL, "nothing came yet");
        polls.ended(start, true);
        let mut freed = Some(start + SECOND);
        let mut now = start + SECOND;
        let mut requests = 0;
        while now < start + 2 * SECOND {
            let Poll { pause, wait } = polls.next(now, freed, None, None);
            assert!(pause <= now - freed.unwrap() + PAUSE && wait.is_zero(), "{pause:?} {wait:?}");
            now += pause + Duration::from_millis(5);
            polls.ended(now, false);
            requests += 1;
        }
        assert!(requests <= 6, "{requests}");
        let late = polls.next(now + SECOND, freed, None, None);
        assert!(late.wait > SECOND && late.wait < SHORT_PAID_POLL, "{late:?}");
        assert_eq!(polls.next(now + MINUTE, freed, None, None).wait, SHORT_PAID_POLL);
        freed = Some(now + MINUTE);
        assert_eq!(polls.next(now + MINUTE, freed, None, None), Poll::default());
    }
}
