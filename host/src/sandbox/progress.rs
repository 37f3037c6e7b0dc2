//! How far an execution has come, and how long its calls took.

use std::time::{Duration, Instant};

use super::{Phase, Watched};

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
pub(super) struct Progress<'a> {
    phase: Phase,
    since: Instant,
    times: CallTimes,
    watched: Option<&'a Watched>,
}

impl<'a> Progress<'a> {
    /// The instance is being made.
    pub(super) fn start(since: Instant, watched: Option<&'a Watched>) -> Self {
        let begun = Self { phase: Phase::Instantiate, since, times: CallTimes::default(), watched };
        begun.show();
        begun
    }

    /// Another call begins.
    pub(super) fn enter(&mut self, phase: Phase) {
        self.count();
        self.phase = phase;
        self.show();
    }

    /// The last call, and the times of all.
    pub(super) fn end(mut self) -> (Phase, CallTimes) {
        self.count();
        (self.phase, self.times)
    }

    fn count(&mut self) {
        let now = Instant::now();
        self.times.0[self.phase as usize] += now - self.since;
        self.since = now;
    }

    fn show(&self) {
        if let Some(watched) = self.watched {
            watched.enters(self.phase);
        }
    }
}
