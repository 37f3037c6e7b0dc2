//! `host queue status`: how many tasks wait, are held, wait for a retry, are done, and have failed.

use std::io::Write;

use serde::Serialize;
use task_host::queue::{self, Address, Counts};

use super::super::exit_code::Exit;
use super::super::output;
use super::super::settings::Settings;
use super::{Which, load};

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
    /// The queue's error queue, if there is one.
    error_queue: Option<String>,
    /// The reports in it.
    failed: Option<u64>,
}

pub(super) async fn show(queue: &Which, json: bool) -> anyhow::Result<Exit> {
    let (settings, _) = load(&queue.flags)?;
    let address = queue.address(&settings)?;
    let counts = queue::admin(&address, &settings.queue_access()?).await?.counts().await?;
    let errors = errors(&settings, &address).await;
    let (error_queue, failed) = errors.map_or((None, None), |(url, n)| (Some(url), n));
    let (waiting, held) = (counts.waiting(), counts.held());
    let status = Status { queue: address.to_string(), counts, waiting, held, error_queue, failed };
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

/// The error queue and the number of its reports. None if there is none, or it does not answer: the
/// figures of the queue itself are shown all the same.
async fn errors(settings: &Settings, address: &Address) -> Option<(String, Option<u64>)> {
    let errors = settings.error_queue(address).ok()?;
    if errors.directory().is_some_and(|dir| !dir.exists()) {
        return None;
    }
    let admin = queue::admin(&errors, &settings.queue_access().ok()?).await.ok()?;
    Some((errors.to_string(), admin.counts().await.ok()?.enqueued))
}

impl Status {
    /// The four figures of `ptq status` as `ptq` prints them, and then ours.
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
        if let Some(errors) = &self.error_queue {
            lines.push(line("Failed", self.failed, format!(" (reports in {errors})")));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(counts: Counts, errors: Option<u64>) -> Vec<String> {
        let (waiting, held) = (counts.waiting(), counts.held());
        let error_queue = errors.map(|_| "fq://./q-errors".to_owned());
        let queue = "fq://./q".to_owned();
        Status { queue, counts, waiting, held, error_queue, failed: errors }.lines()
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
