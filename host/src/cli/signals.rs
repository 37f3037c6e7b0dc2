//! Counts SIGTERM and SIGINT, for commands that stop in an orderly way.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

/// Signals within this time count as one. `timeout` and programs that forward signals send each
/// signal twice: to the host and to its process group.
const TOGETHER: Duration = Duration::from_millis(500);

/// SIGTERM and SIGINT.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// The time of the last signal that counted.
    last: Option<Instant>,
}

impl Signals {
    /// Keeps all signals from now on, until [`Signals::next`] returns them.
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            last: None,
        })
    }

    /// The number of the next signal that counts.
    pub(crate) async fn next(&mut self) -> i32 {
        loop {
            let kind = tokio::select! {
                _ = self.terminate.recv() => SignalKind::terminate(),
                _ = self.interrupt.recv() => SignalKind::interrupt(),
            };
            if self.counts(Instant::now()) {
                return kind.as_raw_value();
            }
        }
    }

    fn counts(&mut self, now: Instant) -> bool {
        let counts = self.last.is_none_or(|last| now.duration_since(last) >= TOGETHER);
        if counts {
            self.last = Some(now);
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_signal_that_is_sent_twice_counts_once() {
        let mut signals = Signals::listen().unwrap();
        let start = Instant::now();
        let counts: Vec<bool> = [0, 1, 499, 500, 999, 1000]
            .map(|millis| signals.counts(start + Duration::from_millis(millis)))
            .into();
        assert_eq!(counts, [true, false, false, true, false, true]);
    }
}
