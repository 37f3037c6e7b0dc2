//! Warns about tasks that run for much longer than others with their name.

use std::time::{Duration, Instant};

use super::running::{Now, Places};
use super::snapshot::LONGEST_LINE;
use crate::key::TaskName;
use crate::sandbox::Watched;

/// A task is slow if it runs for this many times the median of its name.
const TIMES: u32 = 10;
/// The number of executions that a median needs.
const ENOUGH: u64 = 10;
/// The minimum time of a slow task, whatever the median.
const LEAST: Duration = Duration::from_secs(30);

/// The rule for slow tasks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SlowRule {
    /// No task is slow.
    Never,
    /// Tasks that run for at least 30 s, and for at least ten times the median of their name.
    #[default]
    Usual,
    /// Tasks that are slow under [`SlowRule::Usual`], and tasks that run for at least this time.
    After(Duration),
}

impl SlowRule {
    /// The rule for a setting. Zero disables warnings.
    pub fn of(setting: Option<Duration>) -> Self {
        match setting {
            None => Self::Usual,
            Some(Duration::ZERO) => Self::Never,
            Some(time) => Self::After(time),
        }
    }

    /// Whether a task that has run for `time` is slow. `usual`: the median of its name, and the
    /// number of executions that the median is computed from.
    fn is_slow(self, time: Duration, usual: Option<(Duration, u64)>) -> bool {
        let is_unusual = |(median, count): (Duration, u64)| {
            count >= ENOUGH && time >= LEAST && time >= median.saturating_mul(TIMES)
        };
        match self {
            Self::Never => false,
            Self::After(most) if time >= most => true,
            Self::Usual | Self::After(_) => usual.is_some_and(is_unusual),
        }
    }

    /// The time before which no task can be slow.
    fn least(self) -> Duration {
        match self {
            Self::Never => Duration::MAX,
            Self::Usual => LEAST,
            Self::After(most) => most.min(LEAST),
        }
    }
}

/// Warns once about each slow task. Returns the number of warnings.
pub(super) fn warn(
    places: &Places,
    rule: SlowRule,
    now: Instant,
    usual: impl Fn(&TaskName) -> Option<(Duration, u64)>,
) -> u64 {
    if rule == SlowRule::Never {
        return 0;
    }
    let mut warned = 0;
    for place in places.all() {
        let found = place.with_guest(|task, watched| {
            let time = now.saturating_duration_since(task.since);
            if task.is_slow || time < rule.least() {
                return None;
            }
            let usual = usual(&task.task.name);
            task.is_slow = rule.is_slow(time, usual);
            task.is_slow.then(|| Slow::new(task, watched, time, usual))
        });
        if let Some(slow) = found.flatten() {
            slow.log();
            warned += 1;
        }
    }
    warned
}

/// A slow task.
struct Slow {
    span: tracing::Span,
    time: Duration,
    usual: Option<Duration>,
    last_line: Option<String>,
}

impl Slow {
    fn new(task: &Now, watched: &Watched, time: Duration, usual: Option<(Duration, u64)>) -> Self {
        let usual = usual.filter(|(_, count)| *count >= ENOUGH).map(|(median, _)| median);
        let last_line = watched.last_line(LONGEST_LINE);
        Self { span: task.span.clone(), time, usual, last_line }
    }

    fn log(&self) {
        let seconds = self.time.as_secs_f64();
        let usual_seconds = self.usual.map(|usual| usual.as_secs_f64());
        let last_line = self.last_line.as_deref();
        let time = shown(self.time);
        self.span.in_scope(|| match self.usual {
            Some(usual) => tracing::warn!(
                seconds,
                usual_seconds,
                last_line,
                "slow: still running after {time}; half of the tasks with this name take at \
                 most {}",
                shown(usual),
            ),
            None => tracing::warn!(seconds, last_line, "slow: still running after {time}"),
        });
    }
}

/// The time as text, in whole seconds if it is at least a second.
fn shown(time: Duration) -> humantime::FormattedDuration {
    let rounded = match time.as_secs() {
        0 => Duration::from_millis(u64::from(time.subsec_millis()).max(1)),
        seconds => Duration::from_secs(seconds),
    };
    humantime::format_duration(rounded)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::message;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_task_is_slow_beside_others_of_its_name_or_by_the_setting() {
        let second = Duration::from_secs(1);
        let check =
            |setting: Option<Duration>, time: u32, usual: Option<(u32, u64)>, want: bool| {
                let usual = usual.map(|(median, count)| (second * median, count));
                let found = SlowRule::of(setting).is_slow(second * time, usual);
                assert_eq!(found, want, "{setting:?} {time} {usual:?}");
            };
        check(None, 100_000, None, false);
        check(None, 100_000, Some((5, ENOUGH - 1)), false);
        check(None, 49, Some((5, ENOUGH)), false);
        check(None, 50, Some((5, ENOUGH)), true);
        check(None, 29, Some((1, 1_000)), false);
        check(None, 30, Some((1, 1_000)), true);
        let limit = Some(second * 20);
        check(limit, 19, Some((1, 1_000)), false);
        check(limit, 20, None, true);
        check(Some(HOUR), 50, Some((5, ENOUGH)), true);
        check(Some(Duration::ZERO), 100_000, Some((5, 1_000)), false);
    }

    #[test]
    fn each_task_is_warned_of_once_while_its_guest_runs() {
        let places = Arc::<Places>::default();
        let body = br#"{"basic_info": {"id": 1, "name": "blur", "base_directory": "d"}}"#;
        let task = Arc::new(message::decode(body).unwrap());
        let shown = [1, 2, 3].map(|attempt| Places::take(&places, task.clone(), attempt));
        shown[0].publishes();
        let rule = SlowRule::After(Duration::from_secs(60));
        let warn = |now| warn(&places, rule, now, |_| None);
        assert_eq!(warn(Instant::now()), 0);
        let later = Instant::now() + HOUR;
        assert_eq!([warn(later), warn(later)], [2, 0]);
        drop(shown);
        let _again = Places::take(&places, task, 4);
        assert_eq!([warn(Instant::now()), warn(later), warn(later)], [0, 1, 0]);
    }
}
