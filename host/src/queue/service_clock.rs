//! The difference between this machine's clock and a service's clock, from the `Date` of its
//! responses.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Once;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
/// The number of most recent responses that count. One response is not enough, because it may have
/// taken long to arrive.
const ANSWERS: usize = 8;
/// The number of responses needed to show that this machine's clock is fast. One response with a
/// date in the future proves that it is slow.
const ENOUGH: usize = 3;
/// The minimum difference that is reported. A smaller one may be the delay of a response, and is
/// harmless.
const WORTH_TELLING: Duration = Duration::from_secs(5);

/// The clock of a service.
#[derive(Debug)]
pub(super) struct ServiceClock {
    /// How far the service's clock was ahead in the most recent responses, in milliseconds. The
    /// delay of a response makes a value too small, never too large.
    ahead: Mutex<VecDeque<i64>>,
    said: Once,
}

/// The difference between two clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Skew {
    /// This machine's clock is slow.
    Behind(Duration),
    /// This machine's clock is fast.
    Ahead(Duration),
}

impl Default for ServiceClock {
    fn default() -> Self {
        Self { ahead: Mutex::default(), said: Once::new() }
    }
}

impl ServiceClock {
    /// Records that a response of `queue` with this date was received. Warns once if the clocks
    /// differ too much.
    pub(super) fn saw(&self, queue: &dyn fmt::Display, date: SystemTime, received: SystemTime) {
        let ahead = match date.duration_since(received) {
            Ok(ahead) => millis(ahead),
            Err(behind) => -millis(behind.duration()),
        };
        {
            let mut all = self.ahead.lock();
            if all.len() >= ANSWERS {
                all.pop_front();
            }
            all.push_back(ahead);
        }
        if let Some(complaint) = self.complaint() {
            self.said.call_once(|| tracing::warn!("{queue}: {complaint}"));
        }
    }

    /// A description of the problem with this machine's clock, and how to fix it.
    pub(super) fn complaint(&self) -> Option<String> {
        self.skew().map(|skew| {
            format!(
                "{skew}; synchronize it with NTP (`timedatectl set-ntp true`): services refuse \
                 requests if clocks differ by more than 5 minutes, and the times in reports are \
                 wrong"
            )
        })
    }

    /// The difference between the clocks, if it is large and enough responses show it.
    pub(super) fn skew(&self) -> Option<Skew> {
        let all = self.ahead.lock();
        let most = *all.iter().max()?;
        let apart = Duration::from_millis(most.unsigned_abs());
        if apart <= WORTH_TELLING {
            None
        } else if most > 0 {
            Some(Skew::Behind(apart))
        } else {
            (all.len() >= ENOUGH).then_some(Skew::Ahead(apart))
        }
    }

    /// The service's time.
    pub(super) fn now(&self) -> SystemTime {
        let now = SystemTime::now();
        let corrected = match self.skew() {
            None => Some(now),
            Some(Skew::Behind(by)) => now.checked_add(by),
            Some(Skew::Ahead(by)) => now.checked_sub(by),
        };
        corrected.unwrap_or(now)
    }
}

/// Parses a date in the format of HTTP.
pub(super) fn parse(text: &str) -> Option<SystemTime> {
    use aws_sdk_sqs::primitives::{DateTime, DateTimeFormat};
    let date = DateTime::from_str(text, DateTimeFormat::HttpDate).ok()?;
    SystemTime::try_from(date).ok()
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

impl fmt::Display for Skew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (by, way) = match self {
            Self::Behind(by) => (by, "behind"),
            Self::Ahead(by) => (by, "ahead of"),
        };
        let by = humantime::format_duration(Duration::from_secs(by.as_secs()));
        write!(f, "this machine's clock is {by} {way} the service's")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// The clock after responses that took these numbers of seconds to arrive, from a service whose
    /// clock is `ahead` seconds ahead of ours.
    fn seen(ahead: i64, under_way: &[i64]) -> ServiceClock {
        let (clock, now) = (ServiceClock::default(), NOW + seconds(1_000_000));
        for late in under_way {
            let time = u64::try_from(1_000_000 + ahead - late).unwrap();
            clock.saw(&"sqs://q", NOW + seconds(time), now);
        }
        clock
    }

    #[test]
    fn a_clock_that_is_wrong_is_told_from_an_answer_that_is_late() {
        let skew = |ahead, under_way: &[i64]| seen(ahead, under_way).skew();
        assert_eq!(skew(0, &[0, 1, 2]), None);
        assert_eq!(skew(0, &[20, 20, 1]), None);
        assert_eq!(skew(-3600, &[1, 0]), None, "too few answers");
        assert_eq!(skew(3600, &[0]), Some(Skew::Behind(seconds(3600))));
        assert_eq!(skew(3600, &[1, 0, 20]), Some(Skew::Behind(seconds(3600))));
        assert_eq!(skew(-3600, &[1, 0, 20]), Some(Skew::Ahead(seconds(3600))));
        assert_eq!(skew(4, &[0, 0, 0]), None);
    }

    #[test]
    fn a_clock_that_was_set_right_is_right() {
        let clock = seen(3600, &[0; 8]);
        assert!(clock.skew().is_some());
        for _ in 0..ANSWERS {
            clock.saw(&"sqs://q", NOW, NOW);
        }
        assert_eq!(clock.skew(), None);
    }

    #[test]
    fn the_words_have_the_figure() {
        let skew = Skew::Behind(seconds(3725));
        assert_eq!(skew.to_string(), "this machine's clock is 1h 2m 5s behind the service's");
    }

    #[test]
    fn a_date_is_read_as_http_writes_it() {
        let date = parse("Thu, 26 Nov 2026 03:14:07 GMT").unwrap();
        assert_eq!(date.duration_since(NOW).unwrap().as_secs(), 1_795_662_847);
        assert_eq!(parse("yesterday"), None);
    }
}
