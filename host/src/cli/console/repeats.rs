//! Counts failures with the same cause, instead of repeating them on a terminal.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::Level;

/// The minimum time between two lines about one cause.
const PAUSE: Duration = Duration::from_secs(10);
/// The maximum number of causes that are remembered. Causes come from tasks, so there may be any
/// number.
const MOST: usize = 200;

/// The failures so far, by level and cause.
#[derive(Debug, Default)]
pub(super) struct Repeats(Mutex<HashMap<(Level, String), Seen>>);

#[derive(Debug)]
struct Seen {
    told: Instant,
    /// Failures since then that were not shown.
    untold: u64,
}

/// How to show a failure.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// The first failure with this cause. Show it.
    First,
    /// Show the number of failures since the last one that was shown, including this one.
    Again(u64),
    /// Show nothing now. The failure is counted.
    Nothing,
}

impl Repeats {
    pub(super) fn say(&self, level: Level, cause: &str) -> Said {
        self.say_at(level, cause, Instant::now())
    }

    fn say_at(&self, level: Level, cause: &str, now: Instant) -> Said {
        let mut seen = self.0.lock();
        let key = (level, cause.to_owned());
        if seen.len() >= MOST && !seen.contains_key(&key) {
            // Forget all causes instead of growing without limit.
            seen.clear();
        }
        match seen.get_mut(&key) {
            None => {
                seen.insert(key, Seen { told: now, untold: 0 });
                Said::First
            }
            Some(seen) => {
                seen.untold += 1;
                if now.saturating_duration_since(seen.told) < PAUSE {
                    return Said::Nothing;
                }
                seen.told = now;
                Said::Again(std::mem::take(&mut seen.untold))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_is_told_once_and_then_counted() {
        let (repeats, start) = (Repeats::default(), Instant::now());
        let say = |level, cause: &str, seconds| {
            repeats.say_at(level, cause, start + Duration::from_secs(seconds))
        };
        assert_eq!(say(Level::WARN, "a", 0), Said::First);
        assert_eq!(say(Level::WARN, "a", 1), Said::Nothing);
        assert_eq!(say(Level::WARN, "b", 1), Said::First);
        assert_eq!(say(Level::ERROR, "a", 2), Said::First);
        assert_eq!(say(Level::WARN, "a", 9), Said::Nothing);
        assert_eq!(say(Level::WARN, "a", 11), Said::Again(3));
        assert_eq!(say(Level::WARN, "a", 12), Said::Nothing);
        for n in 0..1000 {
            say(Level::WARN, &n.to_string(), 12);
        }
        assert!(repeats.0.lock().len() <= MOST);
    }
}
