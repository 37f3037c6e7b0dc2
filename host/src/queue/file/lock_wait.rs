//! The pauses between attempts to get a lock that another process holds.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

/// Yields pauses that add up to at most `patience`. Locks are held for microseconds, so the
/// first pauses are short.
pub(super) fn pauses(patience: Duration) -> ExponentialBackoff {
    ExponentialBuilder::new()
        .with_min_delay(Duration::from_micros(200))
        .with_max_delay(Duration::from_millis(10))
        .with_factor(2.0)
        .without_max_times()
        .with_total_delay(Some(patience))
        .with_jitter()
        .build()
}
