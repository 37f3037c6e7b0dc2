//! Lays out the lines of `host top`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use indicatif::HumanCount;
use task_host::activity::snapshot::{Failures, Running, State};
use task_host::overview::{HostRow, Overview};

use super::super::output;
use super::super::screen::{Line, Tone, fitted, width};

/// The maximum width in columns of a cell that is not the last in its row.
const WIDEST: usize = 40;
/// The number of rows that each part gets if it needs them, even on a small screen.
const LEAST: usize = 2;

/// The maximum rate that is shown. No host is faster.
const FAST: f64 = 1e9;
/// Longer times are shown as `very long`. No host runs that long.
const LONG: Duration = Duration::from_secs(1000 * 24 * 3600);

/// The lines for a screen of `columns` and `rows`. Without `rows`, all lines. Control characters in
/// texts from outside are escaped.
pub(super) fn lines(overview: &Overview, columns: usize, rows: Option<usize>) -> Vec<Line> {
    let mut lines = head(overview);
    let parts = [hosts(overview), running(overview), failures(overview)];
    let parts: Vec<Table> = parts.into_iter().filter(|part| !part.rows.is_empty()).collect();
    let most = match rows {
        // A part has an empty line and a heading besides its rows.
        Some(rows) => shares(&parts, rows.saturating_sub(lines.len() + 2 * parts.len())),
        None => parts.iter().map(|part| part.rows.len()).collect(),
    };
    for (part, most) in parts.iter().zip(most) {
        lines.push(plain(String::new()));
        lines.extend(part.lines(most, columns));
    }
    for line in &mut lines {
        line.text = fitted(&line.text, columns);
    }
    lines
}

fn plain(text: String) -> Line {
    Line { text, tone: Tone::Plain }
}

/// The first lines: the queue, a summary of all hosts, and problems.
fn head(overview: &Overview) -> Vec<Line> {
    let Overview { queue, hosts, rate, eta_seconds, problems, .. } = overview;
    let number = |n: Option<u64>, what: &str| Some(format!("{} {what}", HumanCount(n?)));
    let counts = [
        number(queue.waiting, "waiting"),
        number(queue.held, "held"),
        number(queue.retrying, "waiting for a retry"),
        number(queue.errors, "in the error queue"),
    ];
    let counts: Vec<String> = counts.into_iter().flatten().collect();
    let count = |is_counted: &dyn Fn(&&HostRow) -> bool| hosts.iter().filter(is_counted).count();
    let silent = count(&|host| host.is_silent);
    let working = count(&|host| !host.is_silent && host.snapshot.state != State::Idle);
    let idle = hosts.len() - silent - working;
    let mut all = vec![output::count(hosts.len() as u64, "host")];
    let some = [(working, "working"), (idle, "idle"), (silent, "silent")];
    all.extend(some.iter().filter(|(n, _)| *n > 0).map(|(n, state)| format!("{n} {state}")));
    let eta = match eta_seconds {
        Some(0.0) => "the queue is empty".to_owned(),
        Some(left) => format!("empty in about {}", duration(*left)),
        None if queue.waiting == Some(0) && queue.held > Some(0) => {
            "only running tasks are left".to_owned()
        }
        None => "no estimate of the end".to_owned(),
    };
    let mut lines = vec![
        Line { text: format!("{}: {}", queue.url, counts.join(", ")), tone: Tone::Title },
        plain(format!("{}; {}; {eta}", all.join(", "), per_second(rate.per_second))),
    ];
    let problem = |text: &String| Line { text: text.clone(), tone: Tone::Bad };
    lines.extend(problems.iter().map(problem));
    lines
}

fn hosts(overview: &Overview) -> Table {
    let row = |host: &HostRow| {
        let HostRow { snapshot, age_seconds, is_silent } = host;
        let state = match (is_silent, snapshot.state) {
            (true, _) => format!("silent for {}", duration(*age_seconds)),
            (_, State::Working) => "working".to_owned(),
            (_, State::Idle) => "idle".to_owned(),
            (_, State::Stopping) => "stopping".to_owned(),
        };
        let count = |n: u64| HumanCount(n).to_string();
        let mut notes = vec![snapshot.host.worker.words()];
        notes.extend(snapshot.outages.first().cloned());
        notes.retain(|note| !note.is_empty());
        let cells = vec![
            snapshot.host.id.clone(),
            state,
            format!("{}/{}", snapshot.running.len(), snapshot.host.slots),
            per_second(snapshot.rate.per_second),
            count(snapshot.totals.done),
            count(snapshot.totals.failed),
            output::bytes(snapshot.memory.guests).to_string(),
            notes.join("; "),
        ];
        let is_bad = *is_silent || !snapshot.outages.is_empty();
        (cells, if is_bad { Tone::Bad } else { Tone::Plain })
    };
    Table {
        titles: &["HOST", "STATE", "TASKS", "RATE", "DONE", "FAILED", "MEMORY", "WORKER"],
        rows: overview.hosts.iter().map(row).collect(),
        noun: "more host",
    }
}

/// The running tasks of all hosts, the longest-running first.
fn running(overview: &Overview) -> Table {
    let tasks = |host: &HostRow| -> Vec<(f64, Running, String, bool)> {
        let HostRow { snapshot, age_seconds, is_silent } = host;
        let since = |since: f64| snapshot.time - since + age_seconds;
        let task = |task: &Running| {
            (since(task.since), task.clone(), snapshot.host.id.clone(), *is_silent)
        };
        snapshot.running.iter().map(task).collect()
    };
    let mut all: Vec<_> = overview.hosts.iter().flat_map(tasks).collect();
    all.sort_by(|a, b| b.0.total_cmp(&a.0));
    let row = |(runs, task, host, is_silent): (f64, Running, String, bool)| {
        let attempt = match task.attempt {
            0 | 1 => String::new(),
            n => format!(" (attempt {n})"),
        };
        let cells = vec![
            format!("{} {}{attempt}", task.name, task.id),
            duration(runs),
            task.step.name().to_owned(),
            output::bytes(task.memory).to_string(),
            if is_silent { format!("{host} (silent)") } else { host },
            task.last_line.unwrap_or_default(),
        ];
        (cells, if is_silent { Tone::Bad } else { Tone::Plain })
    };
    Table {
        titles: &["TASK", "RUNS FOR", "STEP", "MEMORY", "HOST", "LAST LINE"],
        rows: all.into_iter().map(row).collect(),
        noun: "more running task",
    }
}

fn failures(overview: &Overview) -> Table {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let row = |failures: &Failures| {
        let example = failures.example.as_ref();
        let example = example.map_or(String::new(), |e| format!("{} {}", e.name, e.id));
        let cells = vec![
            HumanCount(failures.count).to_string(),
            HumanCount(failures.given_up).to_string(),
            match failures.last > 0.0 {
                true => format!("{} ago", duration(now - failures.last)),
                false => "unknown".to_owned(),
            },
            failures.names.join(", "),
            example,
            failures.cause.clone(),
        ];
        (cells, Tone::Plain)
    };
    Table {
        titles: &["FAILED", "REJECTED", "LAST", "NAMES", "EXAMPLE", "CAUSE"],
        rows: overview.failures.iter().map(row).collect(),
        noun: "more cause",
    }
}

/// A part of the screen.
struct Table {
    titles: &'static [&'static str],
    rows: Vec<(Vec<String>, Tone)>,
    /// The noun for rows that are not shown.
    noun: &'static str,
}

impl Table {
    /// The heading and at most `most` rows. If there are more rows, the last line shows their
    /// number.
    fn lines(&self, most: usize, columns: usize) -> Vec<Line> {
        let shown = if self.rows.len() > most { most.saturating_sub(1) } else { self.rows.len() };
        let last = self.titles.len() - 1;
        let cell = |(n, text): (usize, &str)| fitted(text, if n < last { WIDEST } else { columns });
        let titles: Vec<String> = self.titles.iter().map(|title| (*title).to_owned()).collect();
        let cells = |row: &[String]| -> Vec<String> {
            row.iter().map(String::as_str).enumerate().map(cell).collect()
        };
        let mut rows = vec![(titles, Tone::Title)];
        rows.extend(self.rows[..shown].iter().map(|(row, tone)| (cells(row), *tone)));
        let widest = |n: usize| rows.iter().map(|(row, _)| width(&row[n])).max().unwrap_or(0);
        let widths: Vec<usize> = (0..last).map(widest).collect();
        let line = |(row, tone): &(Vec<String>, Tone)| {
            let mut text = String::new();
            for (cell, wide) in row.iter().zip(&widths) {
                text.push_str(cell);
                text.push_str(&" ".repeat(wide + 2 - width(cell)));
            }
            text.push_str(&row[last]);
            Line { text: text.trim_end().to_owned(), tone: *tone }
        };
        let mut lines: Vec<Line> = rows.iter().map(line).collect();
        let more = self.rows.len() - shown;
        if more > 0 {
            lines.push(plain(format!("… {}", output::count(more as u64, self.noun))));
        }
        lines
    }
}

/// Divides `rows` among the parts. Each gets a fair share, and rows that one part does not need go
/// to the others.
fn shares(parts: &[Table], rows: usize) -> Vec<usize> {
    let mut given: Vec<usize> = parts.iter().map(|part| part.rows.len().min(LEAST)).collect();
    let mut left = rows.saturating_sub(given.iter().sum());
    while left > 0 {
        let mut wanting = given.iter_mut().zip(parts).filter(|(n, part)| **n < part.rows.len());
        let Some((least, _)) = wanting.by_ref().min_by_key(|(n, _)| **n) else { break };
        *least += 1;
        left -= 1;
    }
    given
}

/// Formats a time from a heartbeat, which may be any number.
fn duration(seconds: f64) -> String {
    match Duration::try_from_secs_f64(seconds.max(0.0)) {
        Ok(time) if time < LONG => {
            humantime::format_duration(Duration::from_secs(time.as_secs())).to_string()
        }
        _ => "very long".to_owned(),
    }
}

/// Formats a rate from a heartbeat, which may be any number.
fn per_second(rate: f64) -> String {
    let rate = rate.min(FAST);
    if rate >= 100.0 {
        format!("{}/s", HumanCount(rate as u64))
    } else if rate >= 0.1 || rate == 0.0 {
        format!("{rate:.1}/s")
    } else {
        format!("{:.1}/h", rate * 3600.0)
    }
}

#[cfg(test)]
mod tests {
    use task_host::activity::snapshot::{About, Example, Rate, Snapshot, Step, Totals};
    use task_host::overview::QueueView;

    use super::*;

    fn host(id: &str, tasks: usize, is_silent: bool) -> HostRow {
        let running = |n: usize| Running {
            name: "blur".into(),
            id: n.to_string(),
            attempt: 1 + (n % 2) as u32,
            step: Step::Execute,
            since: 900.0 - n as f64,
            memory: 8 << 20,
            last_line: Some(format!("tile {n} of 9")),
            ..Running::default()
        };
        let snapshot = Snapshot {
            host: About { id: id.into(), slots: 32, ..About::default() },
            time: 1000.0,
            state: State::Working,
            running: (0..tasks).map(running).collect(),
            totals: Totals { done: 1204, failed: 3, ..Totals::default() },
            rate: Rate { per_second: 4.25, over_seconds: 60.0 },
            ..Snapshot::default()
        };
        HostRow { age_seconds: if is_silent { 192.0 } else { 5.0 }, is_silent, snapshot }
    }

    fn cause(cause: &str, count: u64) -> Failures {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        let example = Example { name: "blur".into(), id: "53".into(), ..Example::default() };
        Failures {
            cause: cause.into(),
            count,
            given_up: 1,
            names: vec!["blur".into()],
            last: now - 60.5,
            example: Some(example),
            ..Failures::default()
        }
    }

    fn overview(hosts: usize, tasks: usize, causes: usize) -> Overview {
        let mut hosts: Vec<_> =
            (0..hosts).map(|n| host(&format!("n{n}.4711"), tasks, n == 0)).collect();
        hosts.iter_mut().skip(2).for_each(|host| host.snapshot.state = State::Idle);
        Overview {
            queue: QueueView {
                url: "sqs://my-tasks".into(),
                waiting: Some(12_040),
                held: Some(96),
                retrying: None,
                errors: Some(12),
                time: 0.0,
            },
            eta_seconds: Some(96.4),
            rate: Rate { per_second: 12.5, over_seconds: 60.0 },
            hosts,
            failures: (0..causes).map(|n| cause(&format!("no such file {n}"), 5)).collect(),
            problems: Vec::new(),
        }
    }

    fn shown(overview: &Overview, columns: usize, rows: Option<usize>) -> String {
        let lines = lines(overview, columns, rows);
        let text: Vec<&str> = lines.iter().map(|line| &*line.text).collect();
        text.join("\n")
    }

    #[test]
    fn the_hosts_their_tasks_and_the_causes_are_shown() {
        insta::assert_snapshot!(shown(&overview(3, 1, 2), 120, None), @r"
        sqs://my-tasks: 12,040 waiting, 96 held, 12 in the error queue
        3 hosts, 1 working, 1 idle, 1 silent; 12.5/s; empty in about 1m 36s

        HOST     STATE              TASKS  RATE   DONE   FAILED  MEMORY  WORKER
        n0.4711  silent for 3m 12s  1/32   4.2/s  1,204  3       0 B
        n1.4711  working            1/32   4.2/s  1,204  3       0 B
        n2.4711  idle               1/32   4.2/s  1,204  3       0 B

        TASK    RUNS FOR  STEP     MEMORY   HOST              LAST LINE
        blur 0  4m 52s    execute  8.0 MiB  n0.4711 (silent)  tile 0 of 9
        blur 0  1m 45s    execute  8.0 MiB  n1.4711           tile 0 of 9
        blur 0  1m 45s    execute  8.0 MiB  n2.4711           tile 0 of 9

        FAILED  REJECTED  LAST    NAMES  EXAMPLE  CAUSE
        5       1         1m ago  blur   blur 53  no such file 0
        5       1         1m ago  blur   blur 53  no such file 1
        ");
    }

    #[test]
    fn a_small_screen_shows_some_of_each_part_and_how_many_more() {
        insta::assert_snapshot!(shown(&overview(40, 3, 30), 60, Some(24)), @r"
        sqs://my-tasks: 12,040 waiting, 96 held, 12 in the error qu…
        40 hosts, 1 working, 38 idle, 1 silent; 12.5/s; empty in ab…

        HOST     STATE              TASKS  RATE   DONE   FAILED  ME…
        n0.4711  silent for 3m 12s  3/32   4.2/s  1,204  3       0 B
        n1.4711  working            3/32   4.2/s  1,204  3       0 B
        n2.4711  idle               3/32   4.2/s  1,204  3       0 B
        n3.4711  idle               3/32   4.2/s  1,204  3       0 B
        n4.4711  idle               3/32   4.2/s  1,204  3       0 B
        … 35 more hosts

        TASK                RUNS FOR  STEP     MEMORY   HOST       …
        blur 2              4m 54s    execute  8.0 MiB  n0.4711 (si…
        blur 1 (attempt 2)  4m 53s    execute  8.0 MiB  n0.4711 (si…
        blur 0              4m 52s    execute  8.0 MiB  n0.4711 (si…
        blur 2              1m 47s    execute  8.0 MiB  n1.4711    …
        … 116 more running tasks

        FAILED  REJECTED  LAST    NAMES  EXAMPLE  CAUSE
        5       1         1m ago  blur   blur 53  no such file 0
        5       1         1m ago  blur   blur 53  no such file 1
        5       1         1m ago  blur   blur 53  no such file 2
        5       1         1m ago  blur   blur 53  no such file 3
        … 26 more causes
        ");
        for (columns, rows) in [(80, 24), (20, 10), (200, 60), (1, 1)] {
            let lines = lines(&overview(40, 3, 30), columns, Some(rows));
            assert!(lines.len() <= rows.max(14), "{} lines for {rows}", lines.len());
            assert!(lines.iter().all(|line| width(&line.text) <= columns), "{columns}");
        }
        // No part is cut if there is room for all.
        let whole = shown(&overview(3, 1, 2), 80, Some(60));
        assert!(!whole.contains("more"), "{whole}");
    }

    #[test]
    fn an_empty_queue_without_hosts_says_so() {
        let overview = Overview {
            queue: QueueView {
                url: "fq://./queue".into(),
                waiting: Some(0),
                ..QueueView::default()
            },
            eta_seconds: Some(0.0),
            problems: vec!["the heartbeats of hosts can't be read: no".into()],
            ..Overview::default()
        };
        insta::assert_snapshot!(shown(&overview, 80, Some(24)), @r"
        fq://./queue: 0 waiting
        0 hosts; 0.0/s; the queue is empty
        the heartbeats of hosts can't be read: no
        ");
    }

    #[test]
    fn nothing_that_a_task_wrote_reaches_the_terminal_as_it_is() {
        let odd = "a\u{1b}[2J\u{7}\u{202e}\u{9b}31m\r\nHOST b";
        let mut overview = overview(1, 1, 1);
        let row = &mut overview.hosts[0].snapshot;
        row.host.id = odd.into();
        row.outages = vec![odd.into()];
        let task = &mut row.running[0];
        (task.name, task.id, task.last_line) = (odd.into(), odd.into(), Some(odd.into()));
        let failures = &mut overview.failures[0];
        (failures.cause, failures.names) = (odd.into(), vec![odd.into()]);
        failures.example.as_mut().unwrap().id = odd.into();
        overview.problems = vec![odd.into()];
        overview.queue.url = odd.into();
        let lines = lines(&overview, 500, None);
        for line in &lines {
            assert_eq!(task_host::plain::first_odd(&line.text), None, "{}", line.text);
        }
        let text = lines.iter().map(|line| line.text.clone()).collect::<Vec<_>>().join("\n");
        assert!(text.matches("\\u{1b}[2J").count() >= 6, "{text}");
        assert_eq!(lines.len(), 12, "no line feed made a line: {text}");
    }

    #[test]
    fn times_and_rates_from_heartbeats_may_be_anything() {
        assert_eq!(duration(192.7), "3m 12s");
        assert_eq!(duration(-5.0), "0s");
        assert_eq!(duration(f64::NAN), "0s");
        assert_eq!(duration(f64::INFINITY), "very long");
        assert_eq!(duration(1e300), "very long");
        assert_eq!(per_second(1234.5), "1,234/s");
        assert_eq!(per_second(12.345), "12.3/s");
        assert_eq!(per_second(0.0), "0.0/s");
        assert_eq!(per_second(0.01), "36.0/h");
        for odd in [f64::NAN, f64::INFINITY, 1e300] {
            assert_eq!(per_second(odd), "1,000,000,000/s");
        }
    }
}
