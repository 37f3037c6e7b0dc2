//! Parses the output of `squeue` about the elements of a fleet's arrays.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::super::{Counts, Reason, Trouble, reasons};

/// The elements of a fleet.
pub(super) struct Queue(Vec<Element>);

/// One element of an array.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Element {
    array: u64,
    /// The element's number in the array. `None` if the line stands for several elements that were
    /// cancelled together.
    number: Option<u32>,
    state: String,
    /// The exit status in the format of the system call `wait`.
    status: u32,
    submitted: Option<SystemTime>,
    has_started: bool,
    /// The number of elements of this array that may run at the same time.
    at_a_time: usize,
    reason: String,
}

/// The arguments of `squeue`, except for the name of the fleet.
pub(super) fn args() -> Vec<&'static str> {
    vec![
        "--noheader",
        "--array",
        "--states=all",
        "--Format=ArrayJobID:|,ArrayTaskID:|,State:|,exit_code:|,SubmitTime:|,NodeList:|,Comment:|,Reason:|",
    ]
}

impl Queue {
    /// # Errors
    /// The first line that can't be parsed.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        let elements = lines.map(|line| Element::parse(line).ok_or_else(|| line.to_owned()));
        Ok(Self(elements.collect::<Result<_, _>>()?))
    }

    /// The numbers of the arrays, without duplicates.
    pub(super) fn arrays(&self) -> impl Iterator<Item = u64> {
        self.0.iter().map(|element| element.array).collect::<BTreeSet<_>>().into_iter()
    }

    /// The numbers of the arrays with waiting elements.
    pub(super) fn arrays_that_wait(&self) -> impl Iterator<Item = u64> {
        let waiting = self.0.iter().filter(|element| element.waits());
        waiting.map(|element| element.array).collect::<BTreeSet<_>>().into_iter()
    }

    /// The running elements of the selected arrays, as `ARRAY_ELEMENT` for `scancel`. Job ids are
    /// not used: one element has the job id of its array, and that id stands for the whole array.
    pub(super) fn running(&self, is_meant: impl Fn(u64) -> bool) -> impl Iterator<Item = String> {
        let running =
            self.0.iter().filter(move |one| one.state == "RUNNING" && is_meant(one.array));
        running.filter_map(|one| Some(format!("{}_{}", one.array, one.number?)))
    }

    /// When the oldest known array was submitted.
    pub(super) fn since(&self) -> Option<SystemTime> {
        self.0.iter().filter_map(|element| element.submitted).min()
    }

    /// Whether an element runs or will run.
    pub(super) fn is_alive(&self) -> bool {
        let (counts, _) = self.counts(|_, _| None);
        counts.alive() > 0
    }

    /// The number of workers by state, and the reasons. `words` finds the last error or line of an
    /// element's log.
    pub(super) fn counts(
        &self,
        words: impl Fn(u64, u32) -> Option<String>,
    ) -> (Counts, Vec<Reason>) {
        let mut asked = 0;
        let mut counts = Counts::default();
        let mut all = Vec::new();
        let mut arrays = BTreeMap::<u64, Vec<&Element>>::new();
        for element in &self.0 {
            arrays.entry(element.array).or_default().push(element);
        }
        for elements in arrays.values() {
            let count = |is: fn(&Element) -> bool| elements.iter().filter(|one| is(one)).count();
            let running = count(Element::runs);
            // The other waiting elements replace running ones later. They are not additional
            // workers.
            let at_a_time = elements.iter().map(|one| one.at_a_time).max().unwrap_or(0);
            let waiting = count(Element::waits).min(at_a_time.saturating_sub(running));
            counts.running += u32::try_from(running).unwrap_or(u32::MAX);
            counts.waiting += u32::try_from(waiting).unwrap_or(u32::MAX);
            let mut why: Vec<&str> =
                elements.iter().filter(|one| one.waits()).map(|one| &*one.reason).collect();
            // An element that waits because of its own array's limit says nothing about the
            // cluster.
            why.sort_by_key(|reason| [OWN_LIMIT, UNKNOWN].contains(reason));
            let said = why.into_iter().take(waiting).map(|reason| match reason {
                UNKNOWN => "Slurm has not processed it yet",
                reason => reason,
            });
            all.extend(said.map(|reason| (Trouble::Waiting, reason.to_owned())));
            for element in elements.iter().filter(|one| one.has_ended()) {
                match element.failure() {
                    None => counts.ended += 1,
                    Some(mut reason) => {
                        counts.failed += 1;
                        let said = element.number.filter(|_| asked < ASKED);
                        if let Some(words) = said.and_then(|number| words(element.array, number)) {
                            asked += 1;
                            reason = format!("{reason}: {words}");
                        }
                        all.push((Trouble::Failed, reason));
                    }
                }
            }
        }
        (counts, reasons(all))
    }
}

/// The number of failed elements whose logs are read.
const ASKED: usize = 3;
/// The reason of an element that waits for others of its array.
const OWN_LIMIT: &str = "JobArrayTaskLimit";
/// The reason before Slurm has set one.
const UNKNOWN: &str = "None";

impl Element {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split('|');
        let mut next = || fields.next().map(str::trim);
        let (array, number) = (next()?.parse().ok()?, next()?.parse().ok());
        let (state, status) = (next()?.to_owned(), next()?);
        let (submitted, nodes, comment) = (next()?, next()?, next()?);
        let time = |text: &str| Some(UNIX_EPOCH + Duration::from_secs(text.parse().ok()?));
        Some(Self {
            array,
            number,
            state,
            status: status.parse().ok()?,
            submitted: time(submitted),
            has_started: !nodes.is_empty(),
            at_a_time: comment.rsplit(' ').next().and_then(|n| n.parse().ok()).unwrap_or(1),
            reason: next()?.to_owned(),
        })
    }

    fn waits(&self) -> bool {
        ["PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"]
            .contains(&&*self.state)
    }

    fn runs(&self) -> bool {
        ["RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING"]
            .contains(&&*self.state)
            || self.state == "STAGE_OUT"
    }

    /// Whether the element has started and ended. An element that was cancelled before its start
    /// does not count as a worker.
    fn has_ended(&self) -> bool {
        !self.waits() && !self.runs() && (self.state != "CANCELLED" || self.has_started)
    }

    /// Why the element failed. `None` if it completed.
    fn failure(&self) -> Option<String> {
        let (code, signal) = (self.status >> 8, self.status & 127);
        match (&*self.state, code, signal) {
            ("COMPLETED", ..) => None,
            ("FAILED", code @ 1.., _) => Some(format!("exit code {code}")),
            ("FAILED", _, signal @ 1..) => Some(format!("killed by signal {signal}")),
            (state, ..) => Some(state.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(lines: &[&str]) -> Queue {
        Queue::parse(&lines.join("\n")).unwrap()
    }

    fn told(lines: &[&str]) -> (Counts, Vec<(u32, String)>) {
        let (counts, reasons) =
            queue(lines).counts(|_, number| (number == 9).then(|| "error: no".to_owned()));
        (counts, reasons.into_iter().map(|why| (why.workers, why.reason)).collect())
    }

    #[test]
    fn elements_that_take_over_later_are_not_workers_that_wait() {
        let lines = [
            "7|0|COMPLETED|0|100|node1|task-host d 2|None|",
            "7|1|RUNNING|0|100|node1|task-host d 2|None|",
            "7|2|RUNNING|0|100|node1|task-host d 2|None|",
            "7|3|PENDING|0|100||task-host d 2|JobArrayTaskLimit|",
            "7|4|PENDING|0|100||task-host d 2|JobArrayTaskLimit|",
        ];
        let counts = Counts { running: 2, ended: 1, ..Counts::default() };
        assert_eq!(told(&lines), (counts, vec![]));
        assert_eq!(queue(&lines).since(), Some(UNIX_EPOCH + Duration::from_secs(100)));
    }

    #[test]
    fn those_that_wait_say_why() {
        let waiting = "7|0|PENDING|0|100||task-host d 2|Resources|";
        let counts = Counts { waiting: 2, ..Counts::default() };
        let reasons = vec![(2, "Resources".to_owned())];
        assert_eq!(told(&[waiting, waiting, waiting, waiting]), (counts, reasons));
        let new = "8|0|PENDING|0|100||task-host d 1|None|";
        let counts = Counts { waiting: 1, ..Counts::default() };
        let reasons = vec![(1, "Slurm has not processed it yet".to_owned())];
        assert_eq!(told(&[new]), (counts, reasons));
    }

    #[test]
    fn an_end_that_is_not_good_has_its_reason() {
        let ends = [
            ("FAILED|768", "exit code 3"),
            ("FAILED|9", "killed by signal 9"),
            ("TIMEOUT|0", "TIMEOUT"),
            ("NODE_FAIL|0", "NODE_FAIL"),
            ("CANCELLED|15", "CANCELLED"),
        ];
        for (end, reason) in ends {
            let line = format!("7|1|{end}|100|node1|task-host d 1|None|");
            let counts = Counts { failed: 1, ..Counts::default() };
            assert_eq!(told(&[&line]), (counts, vec![(1, reason.to_owned())]));
        }
        let last = told(&["7|9|FAILED|256|100|node1|task-host d 1|None|"]);
        assert_eq!(last.1, [(1, "exit code 1: error: no".to_owned())]);
        let cancelled = "7|N/A|CANCELLED|0|100||task-host d 1|None|";
        assert_eq!(told(&[cancelled]), (Counts::default(), vec![]));
    }

    #[test]
    fn a_line_of_something_else_is_an_error() {
        assert_eq!(
            Queue::parse("slurm_load_jobs error").map(drop),
            Err("slurm_load_jobs error".into())
        );
    }
}
