//! The current call of an execution, and the times of its calls.

use std::time::{Duration, Instant};

use super::{Phase, Watched};

/// How long each call of a guest took. The time of a call that was not made is zero.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CallTimes([Duration; Phase::ALL.len()]);

impl CallTimes {
    /// The time of a call, whether it succeeded or failed.
    pub fn of(&self, phase: Phase) -> Duration {
        self.0[phase as usize]
    }
}

/// The current call, its start, and the times of the calls before it.
pub(super) struct Progress<'a> {
    phase: Phase,
    since: Instant,
    times: CallTimes,
    watched: Option<&'a Watched>,
}

impl<'a> Progress<'a> {
    /// Starts with the creation of the instance.
    pub(super) fn start(since: Instant, watched: Option<&'a Watched>) -> Self {
        let begun = Self { phase: Phase::Instantiate, since, times: CallTimes::default(), watched };
        begun.show();
        begun
    }

    /// Records that another call begins.
    pub(super) fn enter(&mut self, phase: Phase) {
        self.count();
        self.phase = phase;
        self.show();
    }

    /// Returns the last call, and the times of all calls.
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
