//! Functions that wait for a condition instead of a fixed time.

use std::time::{Duration, Instant};

/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Calls `look` repeatedly until it returns a value, and returns this value.
///
/// # Panics
/// After two minutes, with a message that contains `what`.
#[track_caller]
pub fn eventually<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    within(PATIENCE, what, look)
}

/// Does the same with another maximum time.
///
/// # Panics
/// After `time`, with a message that contains `what`.
#[track_caller]
pub fn within<T>(time: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(start.elapsed() < time, "within {time:?} there was no sign of: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
