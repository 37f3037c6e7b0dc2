//! An operation that the service denied.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long a denied operation is not tried again.
const PAUSE: Duration = Duration::from_secs(600);

/// Something that this process is not allowed to do. It is tried again now and then, as
/// permissions are corrected while a host runs.
#[derive(Debug, Default)]
pub(super) struct Denial(Mutex<Option<Instant>>);

impl Denial {
    fn since(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True when it was refused a short while ago.
    pub(super) fn is_recent(&self) -> bool {
        self.is_recent_at(Instant::now())
    }

    fn is_recent_at(&self, now: Instant) -> bool {
        self.since().is_some_and(|since| now.saturating_duration_since(since) < PAUSE)
    }

    /// It was refused. True if that is news.
    pub(super) fn record(&self) -> bool {
        self.since().replace(Instant::now()).is_none()
    }

    /// It was allowed.
    pub(super) fn clear(&self) {
        *self.since() = None;
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
