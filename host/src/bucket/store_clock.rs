//! The clock of a store, from the `Date` header of its responses.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

/// The smallest difference that counts, in milliseconds. A smaller one may come from the delay of
/// the response, or from `Date`, which has a precision of one second.
const WORTH_COUNTING: i64 = 2_000;

/// How far the store's clock is ahead of this machine's, in milliseconds. Clones share the value.
#[derive(Debug, Clone, Default)]
pub(super) struct StoreClock(Arc<AtomicI64>);

impl StoreClock {
    /// Records that a response with this date arrived at `received`.
    pub(super) fn saw(&self, date: &str, received: SystemTime) {
        let Ok(date) = httpdate::parse_http_date(date) else { return };
        let ahead = match date.duration_since(received) {
            Ok(ahead) => millis(ahead),
            Err(behind) => -millis(behind.duration()),
        };
        self.0.store(if ahead.abs() < WORTH_COUNTING { 0 } else { ahead }, Relaxed);
    }

    /// The current time by the store's clock.
    pub(super) fn now(&self) -> SystemTime {
        let (ahead, now) = (self.0.load(Relaxed), SystemTime::now());
        let by = Duration::from_millis(ahead.unsigned_abs());
        let time = if ahead < 0 { now.checked_sub(by) } else { now.checked_add(by) };
        time.unwrap_or(now)
    }
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_with_another_clock_is_asked_for_its_time() {
        let received = httpdate::parse_http_date("Thu, 26 Nov 2026 12:00:00 GMT").unwrap();
        for (date, ahead) in [
            ("Thu, 26 Nov 2026 12:00:01 GMT", 0_i64),
            ("Thu, 26 Nov 2026 12:10:00 GMT", 600),
            ("Thu, 26 Nov 2026 11:00:00 GMT", -3600),
        ] {
            let clock = StoreClock::default();
            clock.saw(date, received);
            clock.saw("no date", received);
            let now = SystemTime::now();
            let wanted = if ahead < 0 {
                now - Duration::from_secs(ahead.unsigned_abs())
            } else {
                now + Duration::from_secs(ahead.unsigned_abs())
            };
            let apart = clock.now().duration_since(wanted).unwrap_or_else(|e| e.duration());
            assert!(apart < Duration::from_secs(60), "{date}: {apart:?}");
        }
    }
}
