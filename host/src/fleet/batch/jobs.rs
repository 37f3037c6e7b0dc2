//! Derives the states of workers from jobs of AWS Batch.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_sdk_batch::types::{JobDetail, JobStatus, JobSummary};

use crate::fleet::Counts;
use crate::fleet::aws::logs::Found;
use crate::fleet::aws::{exit, whole};

/// The default log group of Batch.
const LOG_GROUP: &str = "/aws/batch/job";
/// The states in which a job waits.
const WAITING: [JobStatus; 4] =
    [JobStatus::Submitted, JobStatus::Pending, JobStatus::Runnable, JobStatus::Starting];

pub(super) fn id(job: &JobSummary) -> &str {
    job.job_id().unwrap_or_default()
}

/// The job's id, if it is an array.
pub(super) fn array(job: &JobDetail) -> Option<&str> {
    job.array_properties().filter(|array| array.size().is_some())?;
    job.job_id()
}

/// The ids of a job's workers.
pub(super) fn ids(job: &JobDetail) -> Vec<String> {
    let own = job.job_id().unwrap_or_default();
    match job.array_properties().and_then(|array| array.size()) {
        None => vec![own.to_owned()],
        Some(size) => (0..size).map(|index| format!("{own}:{index}")).collect(),
    }
}

/// The number of a job's workers in each state.
fn states(job: &JobDetail) -> BTreeMap<&str, u32> {
    let own = job.status().map_or("SUBMITTED", JobStatus::as_str);
    let Some(array) = job.array_properties().filter(|array| array.size().is_some()) else {
        return [(own, 1)].into();
    };
    let known = array.status_summary().into_iter().flatten();
    let mut states: BTreeMap<&str, u32> =
        known.map(|(state, count)| (state.as_str(), whole(*count))).collect();
    // Batch creates the jobs of a new array one by one.
    let missing = whole(array.size().unwrap_or(0)).saturating_sub(states.values().sum());
    let state = if own == "FAILED" { own } else { "SUBMITTED" };
    *states.entry(state).or_default() += missing;
    states
}

/// The number of a job's workers by state.
pub(super) fn counts(job: &JobDetail) -> Counts {
    let mut counts = Counts::default();
    for (state, count) in states(job) {
        match state {
            "RUNNING" => counts.running += count,
            "SUCCEEDED" => counts.ended += count,
            "FAILED" => counts.failed += count,
            _ => counts.waiting += count,
        }
    }
    counts
}

pub(super) fn sum(a: Counts, b: Counts) -> Counts {
    Counts {
        waiting: a.waiting + b.waiting,
        running: a.running + b.running,
        ended: a.ended + b.ended,
        failed: a.failed + b.failed,
    }
}

/// How many of a job's workers wait, by state.
pub(super) fn waiting(job: &JobDetail) -> Vec<(JobStatus, u32)> {
    let states = states(job);
    let count = |status: &JobStatus| states.get(status.as_str()).copied().unwrap_or(0);
    let all = WAITING.into_iter().map(|status| (status.clone(), count(&status)));
    all.filter(|(_, count)| *count > 0).collect()
}

/// The reason why a job waits in this state, if Batch gives none.
pub(super) fn usual(status: &JobStatus) -> &'static str {
    match status {
        JobStatus::Runnable => "RUNNABLE: the compute environments have no room for it yet",
        JobStatus::Starting => "STARTING: its container is being started",
        JobStatus::Pending => "PENDING: the scheduler has not processed it yet",
        _ => "SUBMITTED: the scheduler has not processed it yet",
    }
}

/// Why a job of an array failed.
pub(super) fn failure(job: &JobSummary) -> String {
    let container = job.container();
    let code = container.and_then(|it| it.exit_code());
    failed(code, container.and_then(|it| it.reason()), job.status_reason())
}

/// Why a job failed.
pub(super) fn failure_of(job: &JobDetail) -> String {
    let container = job.container();
    let code = container.and_then(|it| it.exit_code());
    failed(code, container.and_then(|it| it.reason()), job.status_reason())
}

fn failed(code: Option<i32>, reason: Option<&str>, status: Option<&str>) -> String {
    // This text adds nothing to the exit code.
    let status = status.filter(|it| !it.is_empty() && *it != "Essential container in task exited");
    let code = code.map(exit);
    let parts = [code.as_deref(), reason.filter(|it| !it.is_empty()), status];
    let parts: Vec<&str> = parts.into_iter().flatten().collect();
    if parts.is_empty() {
        "it failed, and AWS gives no reason".to_owned()
    } else {
        parts.join(": ")
    }
}

/// When a job was submitted.
pub(super) fn created(job: &JobDetail) -> Option<SystemTime> {
    let milliseconds = u64::try_from(job.created_at()?).ok()?;
    Some(UNIX_EPOCH + Duration::from_millis(milliseconds))
}

/// The `HOST_*` variables of a job's workers.
pub(super) fn environment(job: &JobDetail) -> BTreeMap<String, String> {
    let all = job.container().map(|container| container.environment()).unwrap_or_default();
    let pairs = all.iter().filter_map(|pair| Some((pair.name()?, pair.value()?)));
    let settings = pairs.filter(|(name, _)| name.starts_with("HOST_"));
    settings.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// The vCPUs of a worker.
pub(super) fn vcpus(job: &JobDetail) -> Option<u32> {
    let container = job.container()?;
    let needs = container.resource_requirements();
    let value = needs.iter().find(|it| it.r#type().is_some_and(|it| it.as_str() == "VCPU"));
    let value = value.and_then(|it| it.value()?.parse::<u32>().ok());
    value.or(container.vcpus().map(whole)).filter(|vcpus| *vcpus > 0)
}

/// The log stream of a job.
pub(super) fn found(job: &JobDetail) -> Found {
    let has_ended = matches!(job.status(), Some(JobStatus::Succeeded | JobStatus::Failed));
    let container = job.container();
    let stream = container.and_then(|it| it.log_stream_name()).filter(|it| !it.is_empty());
    let options = container.and_then(|it| it.log_configuration()?.options());
    let group = options.and_then(|options| options.get("awslogs-group"));
    let group = group.map_or(LOG_GROUP, String::as_str);
    Found { place: stream.map(|stream| (group.to_owned(), stream.to_owned())), has_ended }
}
