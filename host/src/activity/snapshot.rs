//! The state of one host as JSON: the answer of `/api/host`, the events of the status page, and the
//! content of a heartbeat.
//!
//! Times are seconds since 1970, durations are seconds, sizes are bytes. All texts that come from
//! tasks are untrusted and of limited length. A reader accepts objects with fewer or more fields,
//! because the hosts of a fleet may run different versions.

use serde::{Deserialize, Serialize};

use crate::identity::Identity;

/// The maximum length of a name or an id, in bytes.
pub const LONGEST_NAME: usize = 200;
/// The maximum length of a task's last line and of a cause, in bytes.
pub const LONGEST_LINE: usize = 300;
/// The maximum length of a failure's text, in bytes.
pub const LONGEST_TEXT: usize = 2_000;
/// The maximum number of running tasks in a snapshot. The longest-running tasks are kept.
pub const MOST_RUNNING: usize = 1_000;
/// The maximum number of causes of failures in a snapshot.
pub const MOST_CAUSES: usize = 50;

/// The state of one host: its current work, and its totals since its start.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Snapshot {
    /// The host.
    pub host: About,
    /// When this snapshot was taken.
    pub time: f64,
    /// Whether the host works, idles or stops.
    pub state: State,
    /// Tasks whose guest runs or whose outputs are being published, the longest-running first.
    pub running: Vec<Running>,
    /// Leased tasks that wait for inputs, a component or a slot.
    pub held: u64,
    /// Counters since the host started.
    pub totals: Totals,
    /// How fast the host ends tasks.
    pub rate: Rate,
    /// The last count of the queue. Absent before the first count, or if the queue can't count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<QueueCounts>,
    /// The time until the queue is expected to be empty, in seconds. Absent without an estimate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eta_seconds: Option<f64>,
    /// Tasks by name, the most frequent first.
    pub names: Vec<Name>,
    /// Failures by cause, the most frequent first.
    pub failures: Vec<Failures>,
    /// The current outages, as text.
    pub outages: Vec<String>,
    /// Memory of guests.
    pub memory: Memory,
    /// The cache of inputs.
    pub cache: CacheUse,
}

/// The host that a snapshot describes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct About {
    /// The name of the machine and the process id: `n17.4711`.
    pub id: String,
    /// The name of the machine.
    pub hostname: String,
    /// The process id.
    pub pid: u32,
    /// The version of Task Host.
    pub version: String,
    /// When the host started.
    pub started: f64,
    /// The host's identity in its engine.
    pub worker: Identity,
    /// The URL of the queue.
    pub queue: String,
    /// The URL of the bucket for outputs.
    pub bucket: String,
    /// The number of tasks that the host runs at the same time.
    pub slots: u64,
}

/// Whether a host works, idles or stops.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It holds tasks.
    Working,
    /// It holds no task.
    #[default]
    Idle,
    /// It was told to stop, or has reached its goal.
    Stopping,
}

/// A running task.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Running {
    /// The task's name.
    pub name: String,
    /// The producer's id for the task.
    pub id: String,
    /// The number of the attempt, from 1.
    pub attempt: u32,
    /// The current step.
    pub step: Step,
    /// When the task got its slot.
    pub since: f64,
    /// When the step began.
    pub step_since: f64,
    /// The memory of the guest.
    pub memory: u64,
    /// The last line that the guest printed, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_line: Option<String>,
}

/// A step of a task.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// Its inputs are fetched.
    Fetch,
    /// Its component is looked up.
    Resolve,
    /// It waits for a slot.
    #[default]
    Wait,
    /// Its instance is created, and then the guest's `prepare` runs.
    Prepare,
    /// The guest's `execute` runs.
    Execute,
    /// The guest's `finalize` runs.
    Finalize,
    /// Its outputs are written to the bucket.
    Publish,
    /// Its message is settled.
    Settle,
}

impl Step {
    /// The step as one lower-case word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fetch => "fetch",
            Self::Resolve => "resolve",
            Self::Wait => "wait",
            Self::Prepare => "prepare",
            Self::Execute => "execute",
            Self::Finalize => "finalize",
            Self::Publish => "publish",
            Self::Settle => "settle",
        }
    }
}

/// Counters since the host started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Tasks done.
    pub done: u64,
    /// The number of these tasks that were already done, according to their receipts.
    pub done_before: u64,
    /// Tasks rejected, with a report on the error queue.
    pub failed: u64,
    /// Attempts that failed and will be retried.
    pub retried: u64,
    /// Tasks released for reasons outside the task.
    pub returned: u64,
    /// Leases that were lost.
    pub lost: u64,
    /// Bytes of inputs given to tasks.
    pub bytes_in: u64,
    /// Bytes of outputs published.
    pub bytes_out: u64,
    /// Inputs that were in the cache.
    pub cache_hits: u64,
    /// Inputs that had to be fetched.
    pub cache_misses: u64,
}

/// How fast tasks end. Done and rejected tasks count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rate {
    /// Tasks per second.
    pub per_second: f64,
    /// The period of the measurement.
    pub over_seconds: f64,
}

/// The number of messages in a queue. A field is absent if the queue can't count it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct QueueCounts {
    /// When the messages were counted.
    pub time: f64,
    /// Messages that can be leased now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting: Option<u64>,
    /// Messages that are leased.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held: Option<u64>,
    /// Messages that wait for their next attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retrying: Option<u64>,
}

/// The counts of the tasks of one name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Name {
    /// The name. If there are too many names, the rest are counted together as [`OTHERS`].
    pub name: String,
    /// Tasks done.
    pub done: u64,
    /// Tasks rejected.
    pub failed: u64,
    /// Attempts that failed and will be retried.
    pub retried: u64,
    /// The median duration of executions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p50: Option<f64>,
    /// The 90th percentile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p90: Option<f64>,
    /// The 99th percentile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99: Option<f64>,
}

/// The name for tasks that are counted together, and for messages that are not tasks. No task has
/// this name, because task names can't start with a slash.
pub const OTHERS: &str = "/others";

/// The failures of one cause.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Failures {
    /// The part that the failures share: their text without numbers, ids and paths.
    pub cause: String,
    /// The number of failed attempts.
    pub count: u64,
    /// The number of these attempts after which the task was rejected.
    pub given_up: u64,
    /// A few names of tasks that failed.
    pub names: Vec<String>,
    /// When the first failure happened.
    pub first: f64,
    /// When the last failure happened.
    pub last: f64,
    /// An example.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub example: Option<Example>,
}

/// A failure.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Example {
    /// The name of the task.
    pub name: String,
    /// The producer's id for the task.
    pub id: String,
    /// The number of the attempt, from 1.
    pub attempt: u32,
    /// The whole first line of the error.
    pub text: String,
}

/// The memory of guests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// The memory that all guests together use now.
    pub guests: u64,
    /// The limit for all guests together. Absent if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}

/// The cache of inputs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CacheUse {
    /// The bytes that it holds.
    pub bytes: u64,
    /// The maximum number of bytes.
    pub limit: u64,
}

/// One minute of a host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Minute {
    /// When the minute started.
    pub time: f64,
    /// The duration so far: 60, or less for the current minute.
    pub seconds: f64,
    /// Tasks done in this minute.
    pub done: u64,
    /// Tasks rejected in this minute.
    pub failed: u64,
    /// Attempts that failed in this minute and will be retried.
    pub retried: u64,
    /// The median duration of its executions. Absent without executions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p50: Option<f64>,
    /// The 95th percentile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p95: Option<f64>,
    /// Bytes of inputs.
    pub bytes_in: u64,
    /// Bytes of outputs.
    pub bytes_out: u64,
    /// Messages that waited in the queue at the last count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting: Option<u64>,
}

/// A setting with its current value.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Setting {
    /// Its name.
    pub name: String,
    /// Its value as text.
    pub value: String,
    /// The origin of the value.
    pub source: String,
}

/// The answer of `/api/host`, and the events of a host's status page.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostView {
    /// The current state of the host.
    pub now: Snapshot,
    /// The last minutes, oldest first, at most an hour.
    pub minutes: Vec<Minute>,
    /// The settings.
    pub settings: Vec<Setting>,
}
