//! Whether a queue that can't count its messages is empty.

use std::time::Duration;

use tokio::time::Instant;

/// How long such a queue must bring nothing before it counts as empty. Services sometimes answer
/// that there is no message although there is one.
const QUIET: Duration = Duration::from_secs(30);

/// Since when a queue has brought nothing.
#[derive(Default)]
pub(super) struct Quiet {
    since: Option<Instant>,
}

impl Quiet {
    /// True when nothing came for long enough. `is_idle`: nothing came now, and no task is under
    /// way. `returns`: until when a message that this host released stays invisible.
    pub(super) fn lasts(&mut self, now: Instant, is_idle: bool, returns: Option<Instant>) -> bool {
        if !is_idle {
            self.since = None;
            return false;
        }
        let since = *self.since.get_or_insert(now);
        now.saturating_duration_since(returns.map_or(since, |time| since.max(time))) >= QUIET
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_that_cannot_count_is_empty_when_nothing_came_for_long() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut quiet = Quiet::default();
        let mut check = |at: u32, is_idle: bool, returns: Option<u32>, expected: bool| {
            let returns = returns.map(|at| start + second * at);
            assert_eq!(quiet.lasts(start + second * at, is_idle, returns), expected, "{at}");
        };
        check(0, true, None, false);
        check(29, true, None, false);
        check(30, true, None, true);
        // A task runs, and ends.
        check(31, false, None, false);
        check(32, true, None, false);
        check(61, true, None, false);
        check(62, true, None, true);
        // A message was released, to be tried again later.
        check(63, true, Some(100), false);
        check(129, true, Some(100), false);
        check(130, true, Some(100), true);
    }
}
