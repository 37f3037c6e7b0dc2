//! An operation that the service denied.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// How long a denied operation is not attempted again.
const PAUSE: Duration = Duration::from_secs(600);

/// A denied operation. It is attempted again after a pause, because permissions may be corrected
/// while a host runs.
#[derive(Debug, Default)]
pub(super) struct Denial(Mutex<Option<Instant>>);

impl Denial {
    /// Whether the operation was denied a short time ago.
    pub(super) fn is_recent(&self) -> bool {
        self.is_recent_at(Instant::now())
    }

    fn is_recent_at(&self, now: Instant) -> bool {
        self.0.lock().is_some_and(|since| now.saturating_duration_since(since) < PAUSE)
    }

    /// Records a denial. Returns whether it is the first one.
    pub(super) fn record(&self) -> bool {
        self.0.lock().replace(Instant::now()).is_none()
    }

    /// Records that the operation was allowed.
    pub(super) fn clear(&self) {
        *self.0.lock() = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_denial_is_tried_again_later() {
        let denial = Denial::default();
        assert!(!denial.is_recent());
        assert!(denial.record());
        assert!(denial.is_recent() && !denial.record());
        assert!(!denial.is_recent_at(Instant::now() + PAUSE));
        denial.clear();
        assert!(!denial.is_recent() && denial.record());
    }
}
