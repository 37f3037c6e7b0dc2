//! `host queue status`: counts the tasks that wait, are held, wait for a retry, are done, or have
//! failed.

use std::io::Write;

use serde::Serialize;
use task_host::queue::{self, Address, Counts};
use task_host::transfer::errors::ErrorCauses;

use super::super::exit_code::Exit;
use super::super::output;
use super::super::settings::Settings;
use super::{Which, load};

/// The maximum number of reports that are read to tell failed tasks from done tasks.
const REPORTS: u64 = 1000;

/// The figures of a queue, with the fields of `--json`.
#[derive(Debug, Serialize)]
struct Status {
    queue: String,
    #[serde(flatten)]
    counts: Counts,
    /// Messages that can be leased now.
    waiting: Option<u64>,
    /// Messages that a worker holds.
    held: Option<u64>,
    #[serde(flatten)]
    errors: Errors,
}

/// The contents of the error queue.
#[derive(Debug, Default, Serialize)]
struct Errors {
    /// The queue's error queue, if there is one.
    error_queue: Option<String>,
    /// The reports in it, without the reports of done tasks that were read.
    failed: Option<u64>,
    /// Reports of done tasks that were read. The error queue may be the done queue too.
    #[serde(skip)]
    done: u64,
    /// There are more reports than were read.
    #[serde(skip)]
    is_part: bool,
}

pub(super) async fn show(queue: &Which, json: bool) -> anyhow::Result<Exit> {
    let (settings, _) = load(&queue.flags)?;
    let address = queue.address(&settings)?;
    let counts = queue::admin(&address, &settings.queue_access()?).await?.counts().await?;
    let errors = errors(&settings, &address).await.unwrap_or_default();
    let (waiting, held) = (counts.waiting(), counts.held());
    let status = Status { queue: address.to_string(), counts, waiting, held, errors };
    if json {
        output::json(&status)?;
        return Ok(Exit::Done);
    }
    let mut out = output::out();
    for line in status.lines() {
        writeln!(out, "{line}")?;
    }
    Ok(Exit::Done)
}

/// The contents of the error queue. None if there is no error queue or it does not answer. The
/// figures of the queue itself are shown anyway.
async fn errors(settings: &Settings, address: &Address) -> Option<Errors> {
    let errors = settings.error_queue(address).ok()?;
    if errors.directory().is_some_and(|dir| !dir.exists()) {
        return None;
    }
    let admin = queue::admin(&errors, &settings.queue_access().ok()?).await.ok()?;
    let reports = admin.counts().await.ok()?.enqueued;
    // Reading a report in a service's queue takes a lease.
    let read = match errors.is_remote() {
        true => ErrorCauses::default(),
        false => ErrorCauses::of(&*admin, REPORTS).await.unwrap_or_default(),
    };
    Some(Errors {
        error_queue: Some(errors.to_string()),
        failed: reports.map(|n| n.saturating_sub(read.done)),
        done: read.done,
        is_part: read.read == REPORTS,
    })
}

impl Status {
    /// The four figures of `ptq status` in the format of `ptq`, and then further ones.
    fn lines(&self) -> Vec<String> {
        let share = |part: Option<u64>, whole: Option<u64>| match (part, whole) {
            (Some(part), Some(whole @ 1..)) => {
                format!("{:.1}%", part as f64 / whole as f64 * 100.0)
            }
            _ => "--%".to_owned(),
        };
        let line = |name: &str, n: Option<u64>, rest: String| match n {
            Some(n) => format!("{name}: {n}{rest}"),
            None => format!("{name}: can't be counted"),
        };
        let Counts { enqueued, leased, retrying, inserted, completed } = self.counts;
        let mut lines = vec![
            line("Inserted", inserted, String::new()),
            line("Enqueued", enqueued, format!(" ({} left)", share(enqueued, inserted))),
            line("Completed", completed, format!(" ({})", share(completed, inserted))),
            line("Leased", leased, format!(" ({} of queue)", share(leased, enqueued))),
            line("Waiting", self.waiting, String::new()),
        ];
        lines.push(match retrying {
            Some(_) => line("Held by workers", self.held, String::new()),
            None => line("Held by workers or waiting for a retry", self.held, String::new()),
        });
        if retrying.is_some() {
            lines.push(line("Waiting for a retry", retrying, String::new()));
        }
        let Errors { error_queue, failed, done, is_part } = &self.errors;
        if let Some(errors) = error_queue {
            let others = match (*done, *is_part) {
                (0, _) => String::new(),
                (_, true) => ", some of tasks that are done".to_owned(),
                (n, false) => format!(", without {} of done tasks", output::count(n, "report")),
            };
            lines.push(line("Failed", *failed, format!(" (reports in {errors}{others})")));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(counts: Counts, failed: Option<u64>) -> Vec<String> {
        let error_queue = failed.map(|_| "fq://./q-errors".to_owned());
        lines_with(counts, Errors { error_queue, failed, ..Errors::default() })
    }

    fn lines_with(counts: Counts, errors: Errors) -> Vec<String> {
        let (waiting, held) = (counts.waiting(), counts.held());
        Status { queue: "fq://./q".to_owned(), counts, waiting, held, errors }.lines()
    }

    #[test]
    fn reports_of_done_tasks_are_not_failures() {
        let check = |done, is_part, want: &str| {
            let error_queue = Some("fq://./q-errors".to_owned());
            let errors = Errors { error_queue, failed: Some(3), done, is_part };
            let lines = lines_with(Counts::default(), errors);
            assert_eq!(
                lines.last().unwrap(),
                &format!("Failed: 3 (reports in fq://./q-errors{want})")
            );
        };
        check(0, false, "");
        check(0, true, "");
        check(2, false, ", without 2 reports of done tasks");
        check(2, true, ", some of tasks that are done");
    }

    #[test]
    fn the_first_figures_read_as_those_of_ptq() {
        let counts = Counts {
            inserted: Some(8),
            enqueued: Some(4),
            completed: Some(3),
            leased: Some(3),
            retrying: Some(1),
        };
        assert_eq!(
            lines(counts, Some(1)),
            [
                "Inserted: 8",
                "Enqueued: 4 (50.0% left)",
                "Completed: 3 (37.5%)",
                "Leased: 3 (75.0% of queue)",
                "Waiting: 1",
                "Held by workers: 2",
                "Waiting for a retry: 1",
                "Failed: 1 (reports in fq://./q-errors)",
            ]
        );
        let nothing = Some(0);
        let counts = Counts {
            inserted: nothing,
            enqueued: nothing,
            completed: nothing,
            leased: nothing,
            retrying: nothing,
        };
        assert_eq!(
            lines(counts, None)[..4],
            [
                "Inserted: 0",
                "Enqueued: 0 (--% left)",
                "Completed: 0 (--%)",
                "Leased: 0 (--% of queue)",
            ]
        );
        assert_eq!(
            lines(Counts { enqueued: Some(3), leased: Some(1), ..Counts::default() }, None),
            [
                "Inserted: can't be counted",
                "Enqueued: 3 (--% left)",
                "Completed: can't be counted",
                "Leased: 1 (33.3% of queue)",
                "Waiting: 2",
                "Held by workers or waiting for a retry: 1",
            ]
        );
    }
}
