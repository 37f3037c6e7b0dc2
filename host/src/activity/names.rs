//! Counts tasks by name. Names come from messages, so their number is bounded.

use std::collections::HashMap;
use std::time::Duration;

use super::End;
use super::histogram::Histogram;
use super::snapshot::{LONGEST_NAME, Name, OTHERS};
use crate::key::TaskName;

/// The maximum number of names with their own counts.
const MOST_NAMES: usize = 32;
/// The maximum number of names among these of which no task has run. Messages can contain any name,
/// but only tasks with a component run.
const MOST_THAT_NEVER_RAN: usize = 8;

/// The counts of the tasks of one name.
#[derive(Debug, Clone, Default)]
pub struct NameCounts {
    /// Attempts by end, in the order of [`End::ALL`].
    pub ends: [u64; End::ALL.len()],
    /// The durations of executions, from the creation of the instance to its end.
    pub executions: Histogram,
    has_run: bool,
}

impl NameCounts {
    /// The number of attempts with this end.
    pub fn count(&self, end: End) -> u64 {
        self.ends[end as usize]
    }

    fn add(&mut self, end: End, ran: Option<Duration>) {
        self.ends[end as usize] += 1;
        if let Some(ran) = ran {
            self.executions.add(ran);
            self.has_run = true;
        }
    }
}

/// The counts of one name.
#[derive(Debug, Clone)]
pub struct Named {
    /// The name, of at most [`LONGEST_NAME`] bytes; or [`OTHERS`].
    pub name: String,
    /// Its counts.
    pub counts: NameCounts,
}

impl From<&Named> for Name {
    fn from(Named { name, counts }: &Named) -> Self {
        let quantile = |part| counts.executions.quantile(part).map(|time| time.as_secs_f64());
        Self {
            name: name.clone(),
            done: counts.count(End::Done),
            failed: counts.count(End::Rejected),
            retried: counts.count(End::Retried),
            p50: quantile(0.5),
            p90: quantile(0.9),
            p99: quantile(0.99),
        }
    }
}

/// The counts of all names.
#[derive(Debug, Default)]
pub(super) struct Names {
    known: HashMap<TaskName, NameCounts>,
    /// The number of known names of which no task has run.
    never_ran: usize,
    others: NameCounts,
}

impl Names {
    /// Counts an attempt. Returns whether its name has its own counts.
    pub(super) fn add(&mut self, name: Option<&TaskName>, end: End, ran: Option<Duration>) -> bool {
        if let Some(name) = name {
            if let Some(counts) = self.known.get_mut(name) {
                self.never_ran -= usize::from(!counts.has_run && ran.is_some());
                counts.add(end, ran);
                return true;
            }
            if self.has_room_for(name, ran) {
                self.never_ran += usize::from(ran.is_none());
                self.known.entry(name.clone()).or_default().add(end, ran);
                return true;
            }
        }
        self.others.add(end, ran);
        false
    }

    fn has_room_for(&self, name: &TaskName, ran: Option<Duration>) -> bool {
        self.known.len() < MOST_NAMES
            && (ran.is_some() || self.never_ran < MOST_THAT_NEVER_RAN)
            // Longer names may differ only beyond the limit.
            && name.as_str().len() <= LONGEST_NAME
    }

    pub(super) fn get(&self, name: &TaskName) -> Option<&NameCounts> {
        self.known.get(name)
    }

    pub(super) fn sorted(&self) -> Vec<Named> {
        let named = |(name, counts): (&TaskName, &NameCounts)| Named {
            name: name.to_string(),
            counts: counts.clone(),
        };
        let mut all: Vec<Named> = self.known.iter().map(named).collect();
        all.sort_by_cached_key(|named| {
            let count: u64 = named.counts.ends.iter().sum();
            (std::cmp::Reverse(count), named.name.clone())
        });
        if self.others.ends.iter().any(|count| *count > 0) {
            all.push(Named { name: OTHERS.to_owned(), counts: self.others.clone() });
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAN: Option<Duration> = Some(Duration::from_millis(5));

    fn name(text: &str) -> TaskName {
        TaskName::new(text).unwrap()
    }

    fn shown(names: &Names) -> Vec<(String, [u64; 5])> {
        names.sorted().into_iter().map(|named| (named.name, named.counts.ends)).collect()
    }

    #[test]
    fn the_most_frequent_name_comes_first_and_messages_that_are_no_tasks_last() {
        let mut names = Names::default();
        names.add(None, End::Rejected, None);
        names.add(Some(&name("blur")), End::Done, RAN);
        for end in End::ALL {
            names.add(Some(&name("sharpen")), end, RAN);
        }
        let want = [("sharpen", [1; 5]), ("blur", [1, 0, 0, 0, 0]), (OTHERS, [0, 1, 0, 0, 0])];
        assert_eq!(shown(&names), want.map(|(name, ends)| (name.to_owned(), ends)));
        let of_sharpen = Name::from(&names.sorted()[0]);
        assert_eq!((of_sharpen.done, of_sharpen.failed, of_sharpen.retried), (1, 1, 1));
        assert!((0.004..=0.00625).contains(&of_sharpen.p99.unwrap()), "{of_sharpen:?}");
        assert_eq!(Name::from(&names.sorted()[2]).p50, None);
    }

    #[test]
    fn names_that_nobody_has_a_component_for_leave_room_for_others() {
        let mut names = Names::default();
        let bad = |n: u32| name(&format!("no-component-{n}"));
        for n in 0..1000 {
            assert_eq!(
                names.add(Some(&bad(n)), End::Retried, None),
                n < MOST_THAT_NEVER_RAN as u32
            );
        }
        assert_eq!(shown(&names).len(), MOST_THAT_NEVER_RAN + 1);
        // The component now exists, so another name can take its place among those that never ran.
        names.add(Some(&bad(0)), End::Done, RAN);
        names.add(Some(&bad(2000)), End::Retried, None);
        assert_eq!(shown(&names).len(), MOST_THAT_NEVER_RAN + 2);
        for n in 0..1000 {
            names.add(Some(&name(&format!("task-{n}"))), End::Done, RAN);
        }
        let all = shown(&names);
        assert_eq!(all.len(), MOST_NAMES + 1);
        let count: u64 = all.iter().map(|(_, ends)| ends.iter().sum::<u64>()).sum();
        assert_eq!(count, 2002, "each attempt is counted once");
    }

    #[test]
    fn a_name_without_end_is_one_of_the_others() {
        let mut names = Names::default();
        names.add(Some(&name(&"n".repeat(LONGEST_NAME + 1))), End::Done, RAN);
        assert_eq!(shown(&names), [(OTHERS.to_owned(), [1, 0, 0, 0, 0])]);
    }
}
