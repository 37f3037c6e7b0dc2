//! How far an execution has come, and how long its calls took.

use std::time::{Duration, Instant};

use super::Phase;

/// How long each call of a guest took. A call that was not made took no time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CallTimes([Duration; Phase::ALL.len()]);

impl CallTimes {
    /// The time of a call, also of one that failed.
    pub fn of(&self, phase: Phase) -> Duration {
        self.0[phase as usize]
    }
}

/// The call under way, since when, and the times of those before it.
pub(super) struct Progress {
    phase: Phase,
    since: Instant,
    times: CallTimes,
}

impl Progress {
    /// The instance is being made.
    pub(super) fn start(since: Instant) -> Self {
        Self { phase: Phase::Instantiate, since, times: CallTimes::default() }
    }

    /// Another call begins.
    pub(super) fn enter(&mut self, phase: Phase) {
        let now = Instant::now();
        self.times.0[self.phase as usize] += now - self.since;
        (self.phase, self.since) = (phase, now);
    }

    /// The last call, and the times of all.
    pub(super) fn end(mut self) -> (Phase, CallTimes) {
        let last = self.phase;
        self.enter(last);
        (last, self.times)
    }
}
