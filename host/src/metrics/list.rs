//! The list of metrics: for each a description and a function that reads its values.

use super::{Kind, Metric, Sample, Seen, Unit, Value};
use crate::activity::{End, Histogram, Named};
use crate::stats::Step;

/// Reads the values of a metric.
pub(super) type Find = fn(&Seen<'_>) -> Vec<Sample>;

/// All metrics, by topic.
pub(super) static METRICS: &[(Metric, Find)] = &[
    (
        counter("taskhost_tasks", &["task_name", "verdict"], "Tasks that ended: done or rejected."),
        |seen| by_end(seen, &[End::Done, End::Rejected]),
    ),
    (
        counter(
            "taskhost_attempts",
            &["task_name", "verdict"],
            "Attempts that ended: done, rejected, retried, released or lost.",
        ),
        |seen| by_end(seen, &End::ALL),
    ),
    (
        counter(
            "taskhost_tasks_done_before",
            &[],
            "Tasks that were done before, by their receipts.",
        ),
        |seen| one(seen.now.totals.done_before),
    ),
    (
        counter(
            "taskhost_slow_tasks",
            &[],
            "Tasks with a warning in the log because they ran for long.",
        ),
        |seen| one(seen.services.activity().slow_tasks()),
    ),
    (
        times("taskhost_step_duration", &["step"], "Time of an attempt in each of its steps."),
        |seen| {
            let sample = |(step, times): &(Step, Histogram)| Sample {
                labels: vec![step.name().to_owned()],
                value: Value::Times(Box::new(times.clone())),
            };
            seen.steps.iter().map(sample).collect()
        },
    ),
    (
        times(
            "taskhost_execution_duration",
            &["task_name"],
            "Time of an execution, from making the instance to its end.",
        ),
        |seen| {
            let sample = |named: &Named| Sample {
                labels: vec![named.name.clone()],
                value: Value::Times(Box::new(named.counts.executions.clone())),
            };
            seen.names.iter().map(sample).collect()
        },
    ),
    (
        gauge(
            "taskhost_running_tasks",
            None,
            &[],
            "Tasks whose guest runs or whose outputs are published.",
        ),
        |seen| one(seen.services.activity().running_count()),
    ),
    (
        gauge("taskhost_held_tasks", None, &[], "Leased tasks that wait for inputs or a slot."),
        |seen| one(seen.now.held),
    ),
    (
        gauge("taskhost_slots", None, &[], "Maximum number of tasks that run at the same time."),
        |seen| one(seen.now.host.slots),
    ),
    (
        gauge("taskhost_guest_memory", Some(Unit::Bytes), &[], "Memory that guests use now."),
        |seen| one(seen.now.memory.guests),
    ),
    (
        gauge(
            "taskhost_guest_memory_limit",
            Some(Unit::Bytes),
            &[],
            "Maximum memory of all guests together. Absent without a limit.",
        ),
        |seen| one(seen.now.memory.limit),
    ),
    (bytes_of("taskhost_input", "Bytes of inputs given to tasks."), |seen| {
        one(seen.now.totals.bytes_in)
    }),
    (bytes_of("taskhost_output", "Bytes of outputs published."), |seen| {
        one(seen.now.totals.bytes_out)
    }),
    (counter("taskhost_cache_hits", &[], "Inputs that were in the cache."), |seen| {
        one(seen.now.totals.cache_hits)
    }),
    (counter("taskhost_cache_misses", &[], "Inputs that had to be fetched."), |seen| {
        one(seen.now.totals.cache_misses)
    }),
    (gauge("taskhost_cache", Some(Unit::Bytes), &[], "Bytes of inputs in the cache."), |seen| {
        one(seen.now.cache.bytes)
    }),
    (gauge("taskhost_cache_limit", Some(Unit::Bytes), &[], "Maximum size of the cache."), |seen| {
        one(seen.now.cache.limit)
    }),
    (
        gauge(
            "taskhost_queue_messages",
            None,
            &["state"],
            "Messages in the queue when it was last counted: waiting, held or retrying. Absent if \
             the queue can't count them.",
        ),
        |seen| {
            let Some(queue) = seen.now.queue else { return Vec::new() };
            let counts =
                [("waiting", queue.waiting), ("held", queue.held), ("retrying", queue.retrying)];
            let sample = |(state, count): (&str, Option<u64>)| Some(labelled(state, count?));
            counts.into_iter().filter_map(sample).collect()
        },
    ),
    (
        gauge(
            "taskhost_queue_counted_timestamp",
            Some(Unit::Seconds),
            &[],
            "When the queue was last counted, since 1970.",
        ),
        |seen| seen.now.queue.map(|queue| number(queue.time)).into_iter().collect(),
    ),
    (
        gauge(
            "taskhost_queue_eta",
            Some(Unit::Seconds),
            &[],
            "Time until the queue is expected to be empty. Absent while it does not shrink.",
        ),
        |seen| seen.now.eta_seconds.map(number).into_iter().collect(),
    ),
    (
        counter(
            "taskhost_queue_requests",
            &["request"],
            "Requests to the service of the queue. Absent for a directory.",
        ),
        |seen| {
            let Some(requests) = seen.services.queue().requests() else { return Vec::new() };
            let counts = [
                ("receive", requests.receive),
                ("send", requests.send),
                ("delete", requests.delete),
                ("extend", requests.extend),
                ("other", requests.other),
            ];
            counts.into_iter().map(|(request, count)| labelled(request, count)).collect()
        },
    ),
    (
        gauge("taskhost_outages", None, &[], "Services and operations that do not work now."),
        |seen| one(seen.services.outages().count() as u64),
    ),
    (counter("taskhost_outages_begun", &[], "Outages that have begun."), |seen| {
        one(seen.services.outages().begun_count())
    }),
    (
        gauge("taskhost_build_info", None, &["version"], "Always 1; the label tells the version."),
        |seen| vec![labelled(&seen.now.host.version, 1)],
    ),
    (
        gauge("process_start_time", Some(Unit::Seconds), &[], "When the host started, since 1970."),
        |seen| vec![number(seen.now.host.started)],
    ),
];

const fn counter(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric { name, kind: Kind::Counter, unit: None, labels, help }
}

const fn bytes_of(name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: Kind::Counter, unit: Some(Unit::Bytes), labels: &[], help }
}

const fn gauge(
    name: &'static str,
    unit: Option<Unit>,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric { name, kind: Kind::Gauge, unit, labels, help }
}

const fn times(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: Kind::Histogram, unit: Some(Unit::Seconds), labels, help }
}

/// The only series of a metric without labels, if it has a value.
fn one(count: impl Into<Option<u64>>) -> Vec<Sample> {
    let sample = |count: u64| Sample { labels: Vec::new(), value: count.into() };
    count.into().map(sample).into_iter().collect()
}

fn number(value: f64) -> Sample {
    Sample { labels: Vec::new(), value: Value::Number(value) }
}

fn labelled(label: &str, count: u64) -> Sample {
    Sample { labels: vec![label.to_owned()], value: count.into() }
}

/// The number of attempts for each task name and each of these ends.
fn by_end(seen: &Seen<'_>, ends: &[End]) -> Vec<Sample> {
    let samples = seen.names.iter().flat_map(|named| {
        ends.iter().map(|end| Sample {
            labels: vec![named.name.clone(), end.name().to_owned()],
            value: named.counts.count(*end).into(),
        })
    });
    samples.collect()
}
