//! Measures how long a queue has returned no message: a queue that can't count its messages then
//! counts as empty, and an idle host leaves.

use std::time::Duration;

use tokio::time::Instant;

/// How long a queue that can't count must return no message before it counts as empty. Services
/// sometimes return no message although there is one.
const QUIET: Duration = Duration::from_secs(30);

/// The start of the time in which a queue has returned no message.
#[derive(Default)]
pub(super) struct Quiet {
    since: Option<Instant>,
}

impl Quiet {
    /// True if no message came for long enough. `is_idle`: no message came now, and no task is
    /// active. `returns`: until when a message that this host released stays invisible.
    pub(super) fn lasts(&mut self, now: Instant, is_idle: bool, returns: Option<Instant>) -> bool {
        if !is_idle {
            self.since = None;
            return false;
        }
        let since = *self.since.get_or_insert(now);
        now.saturating_duration_since(returns.map_or(since, |time| since.max(time))) >= QUIET
    }
}

/// The start of the time in which a host could have worked but no task came.
pub(super) struct Idle {
    since: Instant,
}

impl Idle {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now }
    }

    /// How long no task came. `could_work`: the host has no task, and nothing prevents it from
    /// executing one. `busy`: until when the host had, or will have, something to do.
    pub(super) fn lasts(
        &mut self,
        now: Instant,
        could_work: bool,
        busy: Option<Instant>,
    ) -> Duration {
        let since = if could_work { busy } else { Some(now) };
        self.since = since.map_or(self.since, |since| since.max(self.since));
        now.saturating_duration_since(self.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_idle_while_it_could_work_and_nothing_comes() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut idle = Idle::new(start);
        let mut check = |at: u32, could_work: bool, busy: Option<u32>, want: u32| {
            let busy = busy.map(|at| start + second * at);
            let lasts = idle.lasts(start + second * at, could_work, busy);
            assert_eq!(lasts, second * want, "{at}");
        };
        check(20, true, None, 20);
        check(40, true, None, 40);
        // A task ran and ended between two calls.
        check(60, true, Some(47), 13);
        // A task is active, or a service has an outage.
        check(80, false, Some(47), 0);
        check(100, true, Some(90), 10);
        // A task was released, and can be leased again later.
        check(110, true, Some(140), 0);
        check(150, true, Some(140), 10);
        check(160, true, Some(90), 20);
    }

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
        // A message was released, and will be retried later.
        check(63, true, Some(100), false);
        check(129, true, Some(100), false);
        check(130, true, Some(100), true);
    }
}
