//! The estimate behind holding tasks ahead: how many tasks will start within a given time.
//!
//! The estimate uses the durations of recent tasks and the ages of the running tasks. A running
//! task is compared with the recent tasks that took longer than its age: the share of them that
//! ended within the given time after that age is the probability that its slot becomes free in
//! time. If a task has run longer than all recent tasks, their durations are out of date. Then its
//! remaining time is expected to be its age minus the longest duration.
//!
//! A slot that becomes free runs one task after another, each for the mean duration, until the
//! given time is over. A host with two slots and tasks of 10 ms therefore expects about 1,000
//! starts within five seconds. With tasks of an hour it expects none, except shortly before one
//! ends.
//!
//! All functions take times as arguments, so that any clock can be used.

use std::collections::VecDeque;
use std::time::Duration;

/// How many of the last tasks are remembered.
const RECENT: usize = 32;
/// The minimum duration used for the mean.
const SHORTEST: Duration = Duration::from_micros(1);

/// How long the last tasks occupied their slots.
#[derive(Debug, Default)]
pub struct Pace {
    /// In the order in which the tasks ended.
    recent: VecDeque<Duration>,
    /// The same durations in ascending order.
    sorted: Vec<Duration>,
}

impl Pace {
    /// Records how long a task occupied its slot.
    pub fn record(&mut self, took: Duration) {
        if self.recent.len() == RECENT
            && let Some(oldest) = self.recent.pop_front()
        {
            let at = self.sorted.partition_point(|time| *time < oldest);
            self.sorted.remove(at);
        }
        self.recent.push_back(took);
        let at = self.sorted.partition_point(|time| *time < took);
        self.sorted.insert(at, took);
    }

    /// The median duration of the recent tasks. `None` before any task has ended.
    pub fn median(&self) -> Option<Duration> {
        self.sorted.get(self.sorted.len() / 2).copied()
    }

    /// The number of tasks that are expected to start within `time`, on `free` free slots and on
    /// the slots of running tasks with these `ages`. Stops counting at `enough`.
    ///
    /// Before any task has ended, each free slot counts for two tasks. A taken slot counts for one
    /// while its task is younger than `time`.
    pub fn starts_within(
        &self,
        time: Duration,
        free: usize,
        ages: impl IntoIterator<Item = Duration>,
        enough: usize,
    ) -> usize {
        let mean = self.mean_up_to(time * 2);
        // The number of tasks that run one after another on a slot that is free for this long.
        let on_slot = |left: Duration| match mean {
            Some(mean) => 1.0 + (left.as_secs_f64() / mean.as_secs_f64()).floor(),
            None => 1.0,
        };
        let first = if mean.is_none() { 2.0 } else { on_slot(time) };
        let mut starts = free as f64 * first;
        for age in ages {
            if starts >= enough as f64 {
                break;
            }
            let (share, rest) = self.ends_within(time, age);
            starts += share * on_slot(time.saturating_sub(rest));
        }
        // The conversion saturates.
        (starts.round() as usize).min(enough)
    }

    /// The time until the first of the running tasks with these `ages` is expected to end. Zero if
    /// there are none.
    pub fn first_end(&self, ages: impl IntoIterator<Item = Duration>) -> Duration {
        let rest = |age: Duration| {
            let longer = self.longer_than(age);
            match longer.get(longer.len() / 2) {
                Some(time) => *time - age,
                None => age.saturating_sub(self.longest()),
            }
        };
        ages.into_iter().map(rest).min().unwrap_or_default()
    }

    /// The probability that a task of this `age` ends within `time`, and its remaining time if it
    /// does.
    fn ends_within(&self, time: Duration, age: Duration) -> (f64, Duration) {
        let longer = self.longer_than(age);
        if longer.is_empty() {
            let rest = age.saturating_sub(self.longest());
            return (if rest <= time { 1.0 } else { 0.0 }, rest);
        }
        let soon = &longer[..longer.partition_point(|took| *took <= age + time)];
        let sum: Duration = soon.iter().map(|took| *took - age).sum();
        let rest = sum / u32::try_from(soon.len().max(1)).unwrap_or(u32::MAX);
        (soon.len() as f64 / longer.len() as f64, rest)
    }

    /// The durations of recent tasks that took longer than `age`.
    fn longer_than(&self, age: Duration) -> &[Duration] {
        &self.sorted[self.sorted.partition_point(|took| *took <= age)..]
    }

    fn longest(&self) -> Duration {
        self.sorted.last().copied().unwrap_or_default()
    }

    /// The mean duration, with each task counted as at most `most`, because one very long task
    /// among many short ones says little about the next few seconds.
    fn mean_up_to(&self, most: Duration) -> Option<Duration> {
        let count = u32::try_from(self.sorted.len()).ok().filter(|count| *count > 0)?;
        let sum: Duration = self.sorted.iter().map(|took| (*took).min(most)).sum();
        Some((sum / count).max(SHORTEST))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TIME: Duration = Duration::from_secs(5);

    fn seconds(seconds: &[f64]) -> Vec<Duration> {
        seconds.iter().map(|time| Duration::from_secs_f64(*time)).collect()
    }

    fn pace(took: &[f64]) -> Pace {
        let mut pace = Pace::default();
        seconds(took).into_iter().for_each(|took| pace.record(took));
        pace
    }

    #[test]
    fn tasks_that_start_within_five_seconds_are_counted() {
        let check = |what: &str, took: &[f64], free: usize, ages: &[f64], expected: usize| {
            let starts = pace(took).starts_within(TIME, free, seconds(ages), 1000);
            assert_eq!(starts, expected, "{what}: {took:?}, {free} free, {ages:?}");
        };
        check("nothing is known", &[], 2, &[], 4);
        check("nothing is known, and all slots are taken", &[], 0, &[0.0, 0.1], 2);
        check("they take longer than that", &[], 0, &[5.1, 6.0], 0);
        check("one of them is young", &[], 0, &[3600.0, 1.0], 1);

        check("a slot is free", &[10.0], 1, &[], 1);
        check("an hour", &[3600.0; 4], 0, &[0.0, 1800.0, 3590.0], 0);
        check("an hour, about to end", &[3600.0; 4], 0, &[0.0, 1800.0, 3596.0], 1);
        check("six seconds", &[6.0], 0, &[0.5], 0);
        check("six seconds, and one gone", &[6.0], 0, &[1.0], 1);
        check("six seconds, about to end", &[6.0], 0, &[6.0], 1);
        check("four seconds", &[4.0; 8], 0, &[0.0], 1);
        check("four seconds, about to end", &[4.0; 8], 0, &[3.9], 2);
        check("two seconds", &[2.0; 8], 0, &[0.5, 0.5], 4);
        check("half a second", &[0.5; 8], 0, &[0.25, 0.25], 20);
        check("short ones", &[0.001; 32], 0, &[0.0], 1000);

        check("a little late", &[1.0; 8], 0, &[1.5], 5);
        check("so late that the figures are out of date", &[1.0; 8], 0, &[6.1], 0);
        check("all are late", &[0.01; 32], 0, &[60.0, 30.0], 0);
        check("one is late and the other is not", &[0.05; 32], 0, &[60.0, 0.01], 100);

        let mixed = [0.5, 0.5, 30.0, 30.0];
        check("it may be of either kind", &mixed, 0, &[0.1], 1);
        check("it is of the long kind", &mixed, 0, &[1.0], 0);
        check("all may be of either kind", &mixed, 0, &[0.1; 8], 4);
        let mut seldom = [0.01; 32];
        seldom[7] = 600.0;
        check("one long task among many", &seldom, 1, &[], 16);
    }

    #[test]
    fn the_first_end_is_that_of_the_task_with_the_least_left() {
        let check = |took: &[f64], ages: &[f64], expected: f64| {
            let first = pace(took).first_end(seconds(ages));
            assert_eq!(first, Duration::from_secs_f64(expected), "{took:?}, {ages:?}");
        };
        check(&[], &[], 0.0);
        check(&[], &[3.0, 2.0], 2.0);
        check(&[6.0], &[1.0, 4.0], 2.0);
        check(&[6.0], &[8.0], 2.0);
    }

    #[test]
    fn only_the_last_tasks_count() {
        let mut pace = pace(&[1.0; RECENT]);
        seconds(&[2.0; RECENT - 1]).into_iter().for_each(|took| pace.record(took));
        assert_eq!(pace.sorted[0], Duration::from_secs(1));
        pace.record(Duration::from_secs(2));
        assert_eq!(pace.sorted, [Duration::from_secs(2); RECENT]);
    }

    proptest! {
        #[test]
        fn the_count_has_bounds_and_grows_with_the_free_slots(
            took in prop::collection::vec(0.0..100.0, 0..50),
            ages in prop::collection::vec(0.0..100.0, 0..20),
            free in 0_usize..20,
            enough in 0_usize..100,
            time in 0.1..20.0,
        ) {
            let (pace, ages) = (pace(&took), seconds(&ages));
            let time = Duration::from_secs_f64(time);
            let starts = |free, enough| {
                pace.starts_within(time, free, ages.iter().copied(), enough)
            };
            prop_assert!(starts(free, enough) <= enough);
            prop_assert!(starts(free, enough) >= free.min(enough), "a free slot takes a task");
            prop_assert!(starts(free + 1, enough) >= starts(free, enough));
            // No slot starts more than the shortest tasks would allow.
            let (slots, far) = (free + ages.len(), 1_000_000);
            let shortest = pace.sorted.first().map_or(1.0, Duration::as_secs_f64).max(1e-6);
            let each = 2.0 + time.as_secs_f64() / shortest.min(time.as_secs_f64() * 2.0);
            prop_assert!(starts(free, far) as f64 <= slots as f64 * each + 1.0);
        }

        #[test]
        fn long_tasks_that_are_all_alike_are_held_ahead_only_near_their_end(
            took in 30.0..10_000.0,
            age in 0.0..1.0,
        ) {
            let pace = pace(&[took; RECENT]);
            let age = Duration::from_secs_f64(took * age);
            let starts = pace.starts_within(TIME, 0, [age], 1000);
            let is_near = Duration::from_secs_f64(took) - age <= TIME;
            prop_assert_eq!(starts, usize::from(is_near));
        }
    }
}
