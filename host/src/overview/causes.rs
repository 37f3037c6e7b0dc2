//! Groups the failures of many hosts and of the reports in an error queue by cause.

use std::collections::BTreeMap;

use super::HostRow;
use crate::activity::snapshot::{Failures, LONGEST_LINE, LONGEST_NAME, LONGEST_TEXT};

/// The maximum number of causes to show.
const MOST: usize = 200;
/// The maximum number of task names to show for one cause.
const NAMES: usize = 5;

/// The failures of these hosts and reports, the most frequent causes first.
///
/// A rejected task is counted by its host and also has a report. Hosts end and reports are sent
/// back, so neither number is complete, and the larger one counts.
pub(super) fn of(hosts: &[HostRow], reports: &[Failures]) -> Vec<Failures> {
    let mut all: BTreeMap<String, Failures> = BTreeMap::new();
    for failures in hosts.iter().flat_map(|host| &host.snapshot.failures) {
        add(&mut all, failures);
    }
    let mut reported = BTreeMap::new();
    for failures in reports {
        add(&mut reported, failures);
    }
    for (cause, reported) in reported {
        let own =
            all.entry(cause.clone()).or_insert_with(|| Failures { cause, ..reported.clone() });
        let (count, given_up) = (own.count, own.given_up.max(reported.given_up));
        join(own, &reported);
        (own.count, own.given_up) = (count.max(given_up), given_up);
    }
    let mut all: Vec<Failures> = all.into_values().collect();
    all.sort_by_key(|failures| std::cmp::Reverse((failures.given_up, failures.count)));
    all.truncate(MOST);
    all
}

/// Adds failures to the entry of their cause.
fn add(all: &mut BTreeMap<String, Failures>, failures: &Failures) {
    let mut cause = failures.cause.clone();
    cut(&mut cause, LONGEST_LINE);
    let known = all.entry(cause.clone()).or_insert_with(|| Failures {
        cause,
        first: failures.first,
        ..Failures::default()
    });
    known.count = known.count.saturating_add(failures.count);
    known.given_up = known.given_up.saturating_add(failures.given_up);
    join(known, failures);
}

/// Merges names, times, and the later example.
fn join(known: &mut Failures, failures: &Failures) {
    for name in &failures.names {
        if known.names.len() < NAMES && !known.names.contains(name) {
            let mut name = name.clone();
            cut(&mut name, LONGEST_NAME);
            known.names.push(name);
        }
    }
    // Some reports have no time.
    if failures.first > 0.0 && (failures.first < known.first || known.first <= 0.0) {
        known.first = failures.first;
    }
    if known.example.is_none() || failures.last > known.last {
        known.example = failures.example.clone().or(known.example.take());
        if let Some(example) = &mut known.example {
            cut(&mut example.name, LONGEST_NAME);
            cut(&mut example.id, LONGEST_NAME);
            cut(&mut example.text, LONGEST_TEXT);
        }
    }
    known.last = known.last.max(failures.last);
}

fn cut(text: &mut String, most: usize) {
    text.truncate(text.floor_char_boundary(most));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activity::snapshot::{Example, Snapshot};

    fn failures(cause: &str, count: u64, given_up: u64, name: &str, time: f64) -> Failures {
        let example = Example { name: name.into(), text: cause.into(), ..Example::default() };
        Failures {
            cause: cause.into(),
            count,
            given_up,
            names: vec![name.into()],
            first: time,
            last: time + 1.0,
            example: Some(example),
        }
    }

    fn host(failures: Vec<Failures>) -> HostRow {
        let snapshot = Snapshot { failures, ..Snapshot::default() };
        HostRow { age_seconds: 0.0, is_silent: false, snapshot }
    }

    #[test]
    fn the_failures_of_hosts_and_reports_are_counted_once() {
        let hosts = [
            host(vec![failures("no file", 6, 2, "blur", 10.0), failures("slow", 1, 0, "a", 5.0)]),
            host(vec![failures("no file", 4, 1, "sharpen", 20.0)]),
        ];
        let reports = [failures("no file", 2, 2, "blur", 30.0), failures("gone", 7, 7, "old", 1.0)];
        let all = of(&hosts, &reports);
        let shown: Vec<_> = all.iter().map(|f| (&*f.cause, f.count, f.given_up)).collect();
        // Two of the three tasks that the hosts rejected have been sent back.
        assert_eq!(shown, [("gone", 7, 7), ("no file", 10, 3), ("slow", 1, 0)]);
        assert_eq!(all[1].names, ["blur", "sharpen"]);
        assert_eq!((all[1].first, all[1].last), (10.0, 31.0));
        assert_eq!(all[1].example.as_ref().unwrap().name, "blur", "the last one");
        // Reports of hosts that have ended count too.
        assert_eq!(of(&[], &reports)[1].count, 2);
        let more = [failures("no file", 50, 50, "blur", 0.0)];
        assert_eq!((of(&hosts, &more)[0].count, of(&hosts, &more)[0].given_up), (50, 50));
    }

    #[test]
    fn what_is_shown_is_bounded_whatever_a_heartbeat_has() {
        let long = "é".repeat(10_000);
        let many = (0..1000).map(|n| failures(&format!("{n} {long}"), 1, 0, &long, 1.0)).collect();
        let all = of(&[host(many)], &[]);
        assert_eq!(all.len(), MOST);
        for failures in all {
            let example = failures.example.unwrap();
            assert!(
                failures.cause.len() <= LONGEST_LINE && failures.names[0].len() <= LONGEST_NAME
            );
            assert!(example.text.len() <= LONGEST_TEXT && example.name.len() <= LONGEST_NAME);
        }
    }
}
