//! What one host is doing, as JSON: the answer of `/api/host`, the events of the status page, and the
//! content of a heartbeat.
//!
//! Times are seconds since 1970, durations are seconds, sizes are bytes. Everything that a task named,
//! printed or failed with is untrusted text within a bound. A reader accepts objects with fewer or more
//! fields, because hosts of a fleet may differ in their version.

use serde::{Deserialize, Serialize};

use crate::identity::Identity;

/// The most bytes of a name or an id.
pub const LONGEST_NAME: usize = 200;
/// The most bytes of a task's last line, and of a cause.
pub const LONGEST_LINE: usize = 300;
/// The most bytes of the text of a failure.
pub const LONGEST_TEXT: usize = 2_000;
/// The most running tasks of a snapshot. Those that have run longest are kept.
pub const MOST_RUNNING: usize = 1_000;
/// The most causes of failures of a snapshot.
pub const MOST_CAUSES: usize = 50;

/// What one host is doing now, and what it has done since it started.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Snapshot {
    /// Which host this is.
    pub host: About,
    /// When this snapshot was taken.
    pub time: f64,
    /// Whether the host works.
    pub state: State,
    /// Tasks whose guest runs or whose outputs are being published, the longest-running first.
    pub running: Vec<Running>,
    /// Leased tasks that wait for inputs, a component or a slot.
    pub held: u64,
    /// What the host has done since it started.
    pub totals: Totals,
    /// How fast the host ends tasks.
    pub rate: Rate,
    /// The last count of the queue. Absent before the first count, or if the queue can't count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<QueueCounts>,
    /// When the queue is expected to be empty, in seconds from now. Absent if that can't be estimated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eta_seconds: Option<f64>,
    /// Tasks by name, the most frequent first.
    pub names: Vec<Name>,
    /// Failures by cause, the most frequent first.
    pub failures: Vec<Failures>,
    /// What does not work now, in words.
    pub outages: Vec<String>,
    /// Memory of guests.
    pub memory: Memory,
    /// The cache of inputs.
    pub cache: CacheUse,
}

/// Which host a snapshot is about.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct About {
    /// The name of the machine and the number of the process: `n17.4711`.
    pub id: String,
    /// The name of the machine.
    pub hostname: String,
    /// The number of the process.
    pub pid: u32,
    /// The version of Task Host.
    pub version: String,
    /// When the host started.
    pub started: f64,
    /// What the host's engine calls it.
    pub worker: Identity,
    /// The URL of the queue.
    pub queue: String,
    /// The URL of the bucket for outputs.
    pub bucket: String,
    /// How many tasks the host runs at a time.
    pub slots: u64,
}

/// Whether a host works.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It holds tasks.
    Working,
    /// It holds no task.
    #[default]
    Idle,
    /// It was told to stop, or has done what it was asked for.
    Stopping,
}

/// A task that runs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Running {
    /// The task's name.
    pub name: String,
    /// The producer's number for the task.
    pub id: String,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// What is done for the task now.
    pub step: Step,
    /// When the task got its slot.
    pub since: f64,
    /// When the step began.
    pub step_since: f64,
    /// The memory of the guest.
    pub memory: u64,
    /// The last line that the guest printed, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_line: Option<String>,
}

/// What is done for a task.
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
    /// Its instance is made, and then the guest's call of that name runs.
    Prepare,
    /// The guest's call of that name runs.
    Execute,
    /// The guest's call of that name runs.
    Finalize,
    /// Its outputs are written to the bucket.
    Publish,
    /// Its message is settled.
    Settle,
}

impl Step {
    /// The step in one lower-case word.
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
    /// Of these, tasks that were done before.
    pub done_before: u64,
    /// Tasks rejected, with a report on the error queue.
    pub failed: u64,
    /// Attempts that failed and will be retried.
    pub retried: u64,
    /// Tasks released for reasons outside of the task.
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

/// How fast tasks end: those that are done and those that are rejected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rate {
    /// Tasks per second.
    pub per_second: f64,
    /// The time over which this was measured.
    pub over_seconds: f64,
}

/// How many messages a queue has. What a queue can't count is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct QueueCounts {
    /// When they were counted.
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

/// The tasks of one name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Name {
    /// The name. Beyond a number of names, the others are counted together under [`OTHERS`].
    pub name: String,
    /// Tasks done.
    pub done: u64,
    /// Tasks rejected.
    pub failed: u64,
    /// Attempts that failed and will be retried.
    pub retried: u64,
    /// The time that half of the executions took at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p50: Option<f64>,
    /// The same for nine of ten.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p90: Option<f64>,
    /// The same for 99 of 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99: Option<f64>,
}

/// Stands for the names that are counted together, and for messages that are not tasks. No task has
/// this name, because a name has no slash at its start.
pub const OTHERS: &str = "/others";

/// The failures of one cause.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Failures {
    /// What the failures have in common: their text without numbers, ids and paths.
    pub cause: String,
    /// How many attempts failed.
    pub count: u64,
    /// Of these, how many were the last of their task.
    pub given_up: u64,
    /// Names of tasks that failed, a few at most.
    pub names: Vec<String>,
    /// When the first one was.
    pub first: f64,
    /// When the last one was.
    pub last: f64,
    /// One of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub example: Option<Example>,
}

/// A failure.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Example {
    /// The name of the task.
    pub name: String,
    /// The producer's number for the task.
    pub id: String,
    /// Which attempt failed, from 1.
    pub attempt: u32,
    /// Why: the whole first line.
    pub text: String,
}

/// The memory of guests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// What the guests have together now.
    pub guests: u64,
    /// What they may have together. Absent if there is no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}

/// The cache of inputs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CacheUse {
    /// What it has.
    pub bytes: u64,
    /// What it may have.
    pub limit: u64,
}

/// One minute of a host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Minute {
    /// When the minute began.
    pub time: f64,
    /// How long it has lasted: 60, or less for the last one, which goes on.
    pub seconds: f64,
    /// Tasks done in it.
    pub done: u64,
    /// Tasks rejected in it.
    pub failed: u64,
    /// Attempts that failed in it and will be retried.
    pub retried: u64,
    /// The time that half of its executions took at most. Absent if there were none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p50: Option<f64>,
    /// The same for 95 of 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p95: Option<f64>,
    /// Bytes of inputs.
    pub bytes_in: u64,
    /// Bytes of outputs.
    pub bytes_out: u64,
    /// Messages that waited in the queue, when they were last counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting: Option<u64>,
}

/// A setting in effect.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Setting {
    /// Its name.
    pub name: String,
    /// Its value as text.
    pub value: String,
    /// Where the value is from.
    pub source: String,
}

/// The answer of `/api/host`, and the events of a host's status page.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostView {
    /// The host now.
    pub now: Snapshot,
    /// The last minutes, oldest first: an hour at most.
    pub minutes: Vec<Minute>,
    /// The settings in effect.
    pub settings: Vec<Setting>,
}
