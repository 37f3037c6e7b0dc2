//! The summary of a host that stopped: for people, and as JSON.

use std::io::Write;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use indicatif::HumanCount;
use serde::Serialize;
use task_host::activity::snapshot::Failures;
use task_host::identity::{self, Identity};
use task_host::queue::{Counts, Requests};
use task_host::services::Services;
use task_host::shell;
use task_host::stats::Step;
use task_host::worker::{Goal, Stopped};

use super::super::output;

/// The maximum number of causes of failures that are shown, and of characters of each.
const CAUSES: usize = 10;
const CAUSE: usize = 100;

/// The summary of a host, with the fields of `--json`.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    stopped: &'static str,
    /// The reason why the host stopped: `empty`, `idle`, `max-tasks` or `for` if it finished by
    /// itself, or else `signal` or `notice`.
    cause: Option<&'static str>,
    /// Which worker of a fleet this host is, if it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    worker: Option<&'static Identity>,
    done: u64,
    /// Of these, tasks that were done before, according to their receipts.
    done_before: u64,
    failed: u64,
    retried: u64,
    returned: u64,
    lost: u64,
    seconds: f64,
    tasks_per_second: f64,
    bytes_in: u64,
    bytes_out: u64,
    cache_hits: u64,
    cache_misses: u64,
    /// The total seconds of all tasks in each step.
    steps: serde_json::Map<String, serde_json::Value>,
    queue: String,
    /// The messages in the queue now; null if they could not be counted.
    queue_counts: Option<Counts>,
    /// Requests to the queue; null if they cost nothing.
    queue_requests: Option<Requests>,
    error_queue: String,
    bucket: String,
    /// Failed attempts by cause, the most frequent first.
    failures: Vec<Failures>,
    #[serde(skip)]
    elapsed: Duration,
    #[serde(skip)]
    is_hurried: bool,
}

/// Why a host stopped.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ending {
    pub(crate) stopped: Stopped,
    /// The condition that was met, if the host ended by itself.
    pub(crate) goal: Option<Goal>,
    /// The kind of request that made the host stop: `signal` or `notice`.
    pub(crate) cause: Option<&'static str>,
    /// A second signal requested the release of all tasks.
    pub(crate) is_hurried: bool,
}

impl Ending {
    fn cause(self) -> Option<&'static str> {
        match self.goal {
            None => self.cause,
            Some(Goal::Empty) => Some("empty"),
            Some(Goal::Idle) => Some("idle"),
            Some(Goal::Tasks) => Some("max-tasks"),
            Some(Goal::Time) => Some("for"),
        }
    }
}

impl Summary {
    pub(crate) fn new(
        services: &Services,
        elapsed: Duration,
        ending: Ending,
        queue_counts: Option<Counts>,
    ) -> Self {
        let (config, stats) = (services.config(), services.stats());
        let steps = Step::ALL
            .into_iter()
            .map(|step| (step.name().to_owned(), stats.spent(step).as_secs_f64().into()))
            .collect();
        let (done, failed) = (stats.done.load(Relaxed), stats.failed.load(Relaxed));
        Self {
            is_hurried: ending.is_hurried,
            stopped: match ending.stopped {
                Stopped::Finished => "finished",
                Stopped::Drained => "drained",
                Stopped::Killed => "killed",
            },
            cause: ending.cause(),
            worker: Some(identity::of_process()).filter(|worker| !worker.is_unknown()),
            done,
            done_before: stats.done_before.load(Relaxed),
            failed,
            retried: stats.retried.load(Relaxed),
            returned: stats.returned.load(Relaxed),
            lost: stats.lost.load(Relaxed),
            seconds: elapsed.as_secs_f64(),
            tasks_per_second: output::rate(done + failed, elapsed),
            bytes_in: stats.bytes_in.load(Relaxed),
            bytes_out: stats.bytes_out.load(Relaxed),
            cache_hits: stats.cache_hits.load(Relaxed),
            cache_misses: stats.cache_misses.load(Relaxed),
            steps,
            queue: config.queue.to_string(),
            queue_counts,
            queue_requests: services.queue().requests(),
            error_queue: config.error_queue.to_string(),
            bucket: config.data.bucket.to_string(),
            failures: services.activity().failures(),
            elapsed,
        }
    }

    /// True if a task was rejected.
    pub(crate) fn has_failures(&self) -> bool {
        self.failed > 0
    }

    /// Prints the summary for people.
    pub(crate) fn print(&self, mut out: impl Write) -> std::io::Result<()> {
        let stopped = match (self.stopped, self.cause) {
            ("finished", Some("idle")) => "finished: no task could be leased for a while",
            ("finished", _) => "finished",
            ("drained", Some("notice")) => {
                "stopped because of a notice; running tasks were finished"
            }
            ("drained", _) if self.is_hurried => {
                "stopped as requested; tasks that were not done were released"
            }
            ("drained", _) => "stopped as requested; running tasks were finished",
            _ => "stopped; running tasks were released",
        };
        writeln!(out, "{stopped}")?;
        let mut rows: Vec<Vec<String>> = Vec::new();
        let mut row = |name: &str, value: String| {
            rows.push(vec![String::new(), name.to_owned(), value]);
        };
        let done = HumanCount(self.done);
        let mut tasks = vec![match self.done_before {
            0 => format!("{done} done"),
            n => format!("{done} done, {} of them before", HumanCount(n)),
        }];
        for (n, words) in [
            (self.failed, "rejected"),
            (self.retried, "failed and retried"),
            (self.returned, "released"),
            (self.lost, "lost to other hosts"),
        ] {
            if n > 0 {
                tasks.push(format!("{} {words}", HumanCount(n)));
            }
        }
        row("tasks", tasks.join(", "));
        row(
            "time",
            format!(
                "{}, {:.1} tasks per second",
                output::time(self.elapsed),
                self.tasks_per_second
            ),
        );
        row("inputs", self.inputs());
        row("outputs", format!("{} in {}", output::bytes(self.bytes_out), self.bucket));
        if let Some(left) = self.queue_counts.and_then(|counts| counts.enqueued) {
            row("queue", format!("{}: {} left", self.queue, output::count(left, "task")));
        }
        if let Some(requests) = self.queue_requests {
            let total = requests.total();
            let each = match self.done + self.failed {
                0 => String::new(),
                ended => format!(", {:.2} per task", total as f64 / ended as f64),
            };
            row("requests", format!("{}{each}", HumanCount(total)));
        }
        if self.failed > 0 {
            row(
                "errors",
                format!("{} in {}", output::count(self.failed, "report"), self.error_queue),
            );
        }
        for (n, failures) in self.failures.iter().take(CAUSES).enumerate() {
            let name = if n == 0 { "failures" } else { "" };
            let Failures { cause, count, given_up, .. } = failures;
            let rejected = match given_up {
                0 => String::new(),
                n => format!(" ({} rejected)", HumanCount(*n)),
            };
            let cause = output::cut(cause, CAUSE);
            rows.push(vec![
                String::new(),
                name.to_owned(),
                format!("{} × {cause}{rejected}", HumanCount(*count)),
            ]);
        }
        output::table(&mut out, &rows)?;
        if self.failed > 0 {
            let (queue, errors) = (shell::word(&self.queue), &self.error_queue);
            let from = match *errors == format!("{}-errors", self.queue) {
                true => String::new(),
                false => format!(" --from {}", shell::word(errors)),
            };
            writeln!(out, "to see the errors:          host queue errors {queue}{from}")?;
            writeln!(out, "after fixing, send back:    host queue redrive {queue}{from}")?;
        }
        Ok(())
    }

    fn inputs(&self) -> String {
        let bytes = output::bytes(self.bytes_in);
        match self.cache_hits + self.cache_misses {
            0 => format!("{bytes}"),
            all => format!(
                "{bytes} in {}, {}% from the cache",
                output::count(all, "file"),
                self.cache_hits * 100 / all
            ),
        }
    }
}
