//! Waiting for what can be observed, instead of for a time.

use std::time::{Duration, Instant};

/// Longer than anything takes on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(120);

/// Looks again and again until there is something to see, and returns that.
///
/// # Panics
/// After two minutes, with `what` was not to be seen.
#[track_caller]
pub fn eventually<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    within(PATIENCE, what, look)
}

/// The same with a time of one's own.
///
/// # Panics
/// After that time, with `what` was not to be seen.
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
