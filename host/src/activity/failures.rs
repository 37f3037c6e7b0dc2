//! Counts failures by cause. The number of causes is bounded, because their texts come from tasks.

use std::collections::HashMap;

use super::cut;
use super::snapshot::{Example, Failures, LONGEST_LINE, LONGEST_NAME, LONGEST_TEXT, MOST_CAUSES};
use crate::message::Task;

/// The maximum number of task names for each cause.
const MOST_NAMES: usize = 5;
/// The name for causes that are counted together.
const OTHER_CAUSES: &str = "other causes";

/// An attempt that failed.
#[derive(Debug, Clone, Copy)]
pub struct Failed<'a> {
    /// The task. `None` if the message is not a task.
    pub task: Option<&'a Task>,
    /// The number of the attempt, from 1.
    pub attempt: u32,
    /// The error.
    pub text: &'a str,
    /// The part that this failure shares with others: the [`cause`](crate::cause) of the text.
    pub cause: &'a str,
    /// The task is rejected.
    pub is_given_up: bool,
}

impl Failed<'_> {
    fn name(&self) -> &str {
        self.task.map_or("", |task| cut(task.name.as_str(), LONGEST_NAME))
    }

    fn example(&self) -> Example {
        Example {
            name: self.name().to_owned(),
            id: self.task.map(|task| task.id.to_string()).unwrap_or_default(),
            attempt: self.attempt,
            text: cut(self.text.lines().next().unwrap_or_default(), LONGEST_TEXT).to_owned(),
        }
    }
}

/// The failures by cause.
#[derive(Debug, Default)]
pub(super) struct FailuresByCause {
    known: HashMap<String, Failures>,
    others: Option<Failures>,
}

impl FailuresByCause {
    pub(super) fn add(&mut self, failed: &Failed<'_>, time: f64) {
        let cause = cut(failed.cause, LONGEST_LINE).to_owned();
        let first = |cause| Failures {
            cause,
            first: time,
            example: Some(failed.example()),
            ..Failures::default()
        };
        // One entry is reserved for the other causes.
        let is_full = self.known.len() >= MOST_CAUSES - 1 && !self.known.contains_key(&cause);
        let failures = match is_full {
            true => self.others.get_or_insert_with(|| first(OTHER_CAUSES.to_owned())),
            false => self.known.entry(cause.clone()).or_insert_with(|| first(cause)),
        };
        failures.count += 1;
        failures.given_up += u64::from(failed.is_given_up);
        failures.last = time;
        let (name, names) = (failed.name(), &mut failures.names);
        if names.len() < MOST_NAMES && !name.is_empty() && !names.iter().any(|known| known == name)
        {
            names.push(name.to_owned());
        }
    }

    pub(super) fn sorted(&self) -> Vec<Failures> {
        let mut all: Vec<Failures> = self.known.values().cloned().collect();
        all.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.cause.cmp(&b.cause)));
        all.extend(self.others.clone());
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fail(failures: &mut FailuresByCause, text: &str, is_given_up: bool, time: f64) {
        let cause = &crate::cause::fingerprint(text);
        failures.add(&Failed { task: None, attempt: 2, text, cause, is_given_up }, time);
    }

    #[test]
    fn ten_thousand_failures_of_twelve_causes_are_twelve_lines() {
        let causes = "cheese music paper glass wood stone sand water salt wool iron gold";
        let mut failures = FailuresByCause::default();
        for n in 0..10_000 {
            let what = causes.split(' ').nth(n % 12).unwrap();
            let text = format!("execute: out of {what} at tile {n} of /inputs/{n}.png\nand more");
            fail(&mut failures, &text, n >= 5_000, n as f64);
        }
        let all = failures.sorted();
        assert_eq!(all.len(), 12, "{all:#?}");
        assert_eq!(all.iter().map(|failures| failures.count).sum::<u64>(), 10_000);
        assert_eq!(all.iter().map(|failures| failures.given_up).sum::<u64>(), 5_000);
        let cheese = all.iter().find(|failures| failures.cause.contains("cheese")).unwrap();
        assert_eq!((cheese.first, cheese.last), (0.0, 9996.0));
        let example = cheese.example.as_ref().unwrap();
        assert_eq!(example.text, "execute: out of cheese at tile 0 of /inputs/0.png");
        assert_eq!(example.attempt, 2);
    }

    #[test]
    fn more_causes_than_there_is_room_for_are_counted_together() {
        let mut failures = FailuresByCause::default();
        // The texts differ by letters, because a cause does not contain numbers.
        let word = |n: u32| -> String {
            [n / 26, n % 26].map(|n| char::from(b'a' + n as u8)).iter().collect()
        };
        for n in 0..500 {
            let long = "long ".repeat(1000);
            fail(&mut failures, &format!("no {} here {long}", word(n)), false, 1.0);
        }
        let all = failures.sorted();
        assert_eq!(all.len(), MOST_CAUSES);
        assert_eq!(all.iter().map(|failures| failures.count).sum::<u64>(), 500);
        assert_eq!(all[MOST_CAUSES - 1].cause, OTHER_CAUSES);
        for failures in &all {
            assert!(failures.cause.len() <= LONGEST_LINE);
            assert!(failures.example.as_ref().unwrap().text.len() <= LONGEST_TEXT);
        }
    }
}
