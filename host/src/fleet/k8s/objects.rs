//! Reads jobs and pods from `kubectl`, and derives the states of workers.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::time::SystemTime;

use serde::Deserialize;

use super::super::{Counts, FleetName, Status, Trouble, reasons};
use super::{CONTAINER, DIGEST, LABEL};

/// The label with the worker's number, on a pod.
pub(super) const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// The label with the job's name, on a pod.
const JOB: &str = "batch.kubernetes.io/job-name";

/// Jobs and pods.
#[derive(Debug, Default)]
pub(super) struct Objects {
    jobs: Vec<Job>,
    pods: Vec<Pod>,
    /// The latest warning for each job.
    warnings: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct List<T> {
    items: Vec<T>,
}

#[derive(Deserialize)]
#[serde(tag = "kind")]
enum Object {
    Job(Job),
    Pod(Pod),
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    name: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    creation_timestamp: String,
    deletion_timestamp: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Job {
    metadata: Metadata,
    spec: JobSpec,
    #[serde(default)]
    status: JobStatus,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct JobSpec {
    #[serde(default)]
    completions: u32,
    template: Template,
}

#[derive(Debug, Deserialize)]
struct Template {
    spec: PodSpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct JobStatus {
    succeeded: u32,
    failed_indexes: String,
    conditions: Vec<Condition>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    reason: String,
    message: String,
}

#[derive(Debug, Deserialize)]
struct Pod {
    metadata: Metadata,
    spec: PodSpec,
    #[serde(default)]
    status: PodStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PodSpec {
    containers: Vec<Container>,
}

#[derive(Debug, Deserialize)]
struct Container {
    name: String,
    #[serde(default)]
    env: Vec<Variable>,
}

#[derive(Debug, Deserialize)]
struct Variable {
    name: String,
    value: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodStatus {
    phase: String,
    reason: String,
    message: String,
    conditions: Vec<Condition>,
    container_statuses: Vec<ContainerStatus>,
}

#[derive(Debug, Deserialize)]
struct ContainerStatus {
    #[serde(default)]
    state: ContainerState,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ContainerState {
    waiting: Option<Cause>,
    terminated: Option<Cause>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Cause {
    reason: String,
    message: String,
    exit_code: Option<i32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Event {
    involved_object: Metadata,
    reason: String,
    message: String,
    last_timestamp: Option<String>,
    event_time: Option<String>,
}

impl Objects {
    /// Reads the answer to `kubectl get jobs,pods`.
    pub(super) fn read(json: &str) -> Result<Self, String> {
        let list: List<Object> = serde_json::from_str(json).map_err(unknown)?;
        let mut objects = Self::default();
        for object in list.items {
            match object {
                Object::Job(job) => objects.jobs.push(job),
                Object::Pod(pod) => objects.pods.push(pod),
            }
        }
        objects.jobs.sort_by(|a, b| a.metadata.age().cmp(&b.metadata.age()));
        objects.pods.sort_by(|a, b| a.metadata.age().cmp(&b.metadata.age()));
        Ok(objects)
    }

    /// Adds the answer to `kubectl get events` about jobs.
    pub(super) fn add_events(&mut self, json: &str) -> Result<(), String> {
        let list: List<Event> = serde_json::from_str(json).map_err(unknown)?;
        let mut events = list.items;
        let time = |event: &Event| event.last_timestamp.clone().or(event.event_time.clone());
        events.sort_by_key(time);
        let known =
            |event: Event| (event.involved_object.name, said(&event.reason, &event.message));
        self.warnings.extend(events.into_iter().map(known));
        Ok(())
    }

    /// Whether a job waits for pods that do not exist.
    pub(super) fn lack_pods(&self) -> bool {
        self.jobs.iter().any(|job| {
            let workers = self.workers(job);
            workers.counts.waiting > workers.pending.len() as u32
        })
    }

    /// The fleets of these objects.
    pub(super) fn fleets(&self) -> impl Iterator<Item = FleetName> {
        self.metadata().filter_map(|metadata| metadata.labels.get(LABEL)?.parse().ok())
    }

    /// Whether there is a job with this name.
    pub(super) fn has_job(&self, name: &str) -> bool {
        self.jobs.iter().any(|job| job.metadata.name == name)
    }

    /// The name of the next job of a fleet. Its number follows the numbers of all existing jobs and
    /// of the jobs of all existing pods.
    pub(super) fn next_job(&self, fleet: &FleetName) -> String {
        let jobs = self.jobs.iter().map(|job| &*job.metadata.name);
        let names = jobs.chain(self.pods.iter().filter_map(Pod::job));
        let number =
            |name: &str| name.strip_prefix(fleet.as_str())?.strip_prefix('-')?.parse::<u32>().ok();
        job(fleet, names.filter_map(number).max().unwrap_or(0).saturating_add(1))
    }

    fn metadata(&self) -> impl Iterator<Item = &Metadata> {
        let jobs = self.jobs.iter().map(|job| &job.metadata);
        jobs.chain(self.pods.iter().map(|pod| &pod.metadata))
    }

    /// The workers. `None` if there are neither jobs nor pods.
    pub(super) fn status(&self) -> Option<Status> {
        let first = self.metadata().map(|metadata| &metadata.creation_timestamp).min()?;
        let mut status = Status { since: parsed(first), ..Status::default() };
        let mut troubles = Vec::new();
        for job in &self.jobs {
            let workers = self.workers(job);
            status.counts = sum(status.counts, workers.counts);
            let missing = workers.counts.waiting as usize - workers.pending.len();
            let warning = self.warnings.get(&job.metadata.name);
            troubles.extend(workers.pending.iter().filter_map(|pod| waiting(pod.why_waiting()?)));
            troubles.extend(warning.into_iter().cycle().take(missing).cloned().filter_map(waiting));
            troubles.extend(workers.failures);
        }
        for pod in self.orphans() {
            match &*pod.status.phase {
                "Running" => status.counts.running += 1,
                "Succeeded" => status.counts.ended += 1,
                "Failed" => {
                    status.counts.failed += 1;
                    troubles.push((Trouble::Failed, pod.why_failed()));
                }
                _ if pod.metadata.is_going() => {}
                _ => {
                    status.counts.waiting += 1;
                    troubles.extend(pod.why_waiting().and_then(waiting));
                }
            }
        }
        status.reasons = reasons(troubles);
        let newest = self.jobs.last().map(|job| (&job.metadata, &job.spec.template.spec));
        let newest = newest.or(self.pods.last().map(|pod| (&pod.metadata, &pod.spec)));
        if let Some((metadata, spec)) = newest {
            status.digest = metadata.annotations.get(DIGEST).cloned().unwrap_or_default();
            status.environment = spec.settings();
        }
        Some(status)
    }

    /// The pods whose job was deleted without them.
    fn orphans(&self) -> impl Iterator<Item = &Pod> {
        let jobs: BTreeSet<&str> = self.jobs.iter().map(|job| &*job.metadata.name).collect();
        self.pods.iter().filter(move |pod| pod.job().is_none_or(|job| !jobs.contains(job)))
    }

    /// The workers of a job.
    fn workers(&self, job: &Job) -> Workers<'_> {
        let pods = || self.pods.iter().filter(|pod| pod.job() == Some(&*job.metadata.name));
        let of = |phase: &'static str| {
            let pods = pods().filter(move |pod| pod.status.phase == phase);
            pods.map(|pod| (pod.index(), pod)).collect::<BTreeMap<_, _>>()
        };
        let count = |phase| number(of(phase).len());
        let (succeeded, running) = (count("Succeeded"), count("Running"));
        let ended = job.status.succeeded.max(succeeded);
        let rest = job.spec.completions.saturating_sub(ended).saturating_sub(running);
        let is = |kind: &str| job.condition(kind).is_some();
        let (has_failed, lost) = (is("Failed") || is("FailureTarget"), job.failed_indexes());
        let failed = match has_failed {
            true => rest,
            false => number(lost.iter().cloned().map(Iterator::count).sum()).min(rest),
        };
        let is_over = job.metadata.is_going() || is("Complete");
        let waiting = if is_over { 0 } else { rest - failed };
        let mut pending: Vec<&Pod> = of("Pending").into_values().collect();
        pending.truncate(waiting as usize);
        let is_lost = |pod: &&Pod| has_failed || lost.iter().any(|range| pod.is_of(range));
        let failures = of("Failed").into_values().filter(is_lost).map(Pod::why_failed);
        let failures: Vec<String> = failures.take(failed as usize).collect();
        let why =
            job.condition("Failed").map(|condition| said(&condition.reason, &condition.message));
        let others = why.into_iter().cycle().take(failed as usize - failures.len());
        let failures = failures.into_iter().chain(others).map(|why| (Trouble::Failed, why));
        Workers {
            counts: Counts { waiting, running, ended, failed },
            pending,
            failures: failures.collect(),
        }
    }
}

/// The workers of one job.
struct Workers<'a> {
    counts: Counts,
    /// The pods of waiting workers.
    pending: Vec<&'a Pod>,
    failures: Vec<(Trouble, String)>,
}

impl Metadata {
    fn age(&self) -> (&str, &str) {
        (&self.creation_timestamp, &self.name)
    }

    /// Whether the object is being deleted.
    fn is_going(&self) -> bool {
        self.deletion_timestamp.is_some()
    }
}

impl Job {
    fn condition(&self, kind: &str) -> Option<&Condition> {
        let conditions = &self.status.conditions;
        conditions.iter().find(|condition| condition.kind == kind && condition.status == "True")
    }

    /// The workers that failed and are not replaced. Kubernetes lists their numbers as `1,3-5,7`.
    fn failed_indexes(&self) -> Vec<RangeInclusive<u32>> {
        let ranges = self.status.failed_indexes.split(',');
        let range = |range: &str| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            Some(first.parse().ok()?..=last.parse().ok()?)
        };
        ranges.filter_map(range).collect()
    }
}

impl Pod {
    fn job(&self) -> Option<&str> {
        self.metadata.labels.get(JOB).map(String::as_str)
    }

    /// The number of the worker. A worker has one pod after the other.
    fn index(&self) -> Option<&str> {
        self.metadata.labels.get(INDEX).map(String::as_str)
    }

    fn is_of(&self, workers: &RangeInclusive<u32>) -> bool {
        let number = self.index().and_then(|index| index.parse().ok());
        number.is_some_and(|number| workers.contains(&number))
    }

    fn causes(&self) -> impl Iterator<Item = &ContainerState> {
        self.status.container_statuses.iter().map(|status| &status.state)
    }

    /// Why the pod does not start, if Kubernetes gives a reason.
    fn why_waiting(&self) -> Option<String> {
        let unscheduled = self
            .status
            .conditions
            .iter()
            .find(|condition| condition.kind == "PodScheduled" && condition.status == "False");
        if let Some(Condition { reason, message, .. }) = unscheduled {
            return Some(said(reason, message));
        }
        let cause = self.causes().find_map(|state| state.waiting.as_ref())?;
        // Every pod begins with one of these.
        let is_usual = matches!(&*cause.reason, "ContainerCreating" | "PodInitializing");
        (!is_usual).then(|| said(&cause.reason, &cause.message))
    }

    /// Why the pod has failed.
    fn why_failed(&self) -> String {
        if !self.status.reason.is_empty() {
            return said(&self.status.reason, &self.status.message);
        }
        let Some(cause) = self.causes().find_map(|state| state.terminated.as_ref()) else {
            return "Kubernetes does not say why".to_owned();
        };
        match (&*cause.reason, cause.exit_code) {
            ("Error" | "", Some(code)) => format!("exit code {code}"),
            (reason, Some(code)) => format!("{reason} (exit code {code})"),
            (reason, None) => said(reason, &cause.message),
        }
    }
}

impl PodSpec {
    /// The `HOST_*` variables.
    fn settings(&self) -> BTreeMap<String, String> {
        let containers = self.containers.iter().filter(|container| container.name == CONTAINER);
        let variables = containers.flat_map(|container| &container.env);
        let settings = variables.filter(|variable| variable.name.starts_with("HOST_"));
        settings
            .filter_map(|variable| {
                // Kubernetes reads `$$` as `$`.
                let value = variable.value.as_ref()?.replace("$$", "$");
                Some((variable.name.clone(), value))
            })
            .collect()
    }
}

/// The name of a job of a fleet.
pub(super) fn job(fleet: &FleetName, number: u32) -> String {
    format!("{fleet}-{number}")
}

fn waiting(why: String) -> Option<(Trouble, String)> {
    Some((Trouble::Waiting, why))
}

fn sum(a: Counts, b: Counts) -> Counts {
    Counts {
        waiting: a.waiting + b.waiting,
        running: a.running + b.running,
        ended: a.ended + b.ended,
        failed: a.failed + b.failed,
    }
}

fn said(reason: &str, message: &str) -> String {
    match (reason, message.trim()) {
        (reason, "") => reason.to_owned(),
        ("", message) => message.to_owned(),
        (reason, message) => format!("{reason}: {message}"),
    }
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn parsed(time: &str) -> Option<SystemTime> {
    humantime::parse_rfc3339(time).ok()
}

fn unknown(error: serde_json::Error) -> String {
    format!("the answer of kubectl is not a list of objects: {error}")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::super::Reason;
    use super::*;

    fn a_job(status: Value) -> Value {
        let env = json!([
            {"name": "HOST_QUEUE", "value": "sqs://tasks"},
            {"name": "HOST_PREFIX", "value": "a$$b"},
            {"name": "HOME", "value": "/"},
            {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        ]);
        json!({
            "kind": "Job",
            "metadata": {
                "name": "night-1", "labels": {LABEL: "night"}, "annotations": {DIGEST: "0123"},
                "creationTimestamp": "2026-11-26T20:00:00Z",
            },
            "spec": {
                "completions": 4,
                "template": {"spec": {"containers": [{"name": "host", "env": env}]}},
            },
            "status": status,
        })
    }

    fn pod(index: u32, phase: &str, status: Value) -> Value {
        let mut pod = json!({
            "kind": "Pod",
            "metadata": {
                "name": format!("night-1-{index}-abcde"),
                "labels": {LABEL: "night", JOB: "night-1", INDEX: index.to_string()},
                "creationTimestamp": "2026-11-26T20:00:01Z",
            },
            "spec": {"containers": [{"name": "host"}]},
            "status": status,
        });
        pod["status"]["phase"] = phase.into();
        pod
    }

    fn ended(reason: &str, code: i32) -> Value {
        json!({"containerStatuses": [{"state": {"terminated": {"reason": reason, "exitCode": code}}}]})
    }

    fn objects(items: &[Value]) -> Objects {
        Objects::read(&json!({"kind": "List", "items": items}).to_string()).unwrap()
    }

    #[track_caller]
    fn check(items: &[Value], counts: [u32; 4], why: &[(Trouble, u32, &str)]) {
        let status = objects(items).status().expect("a fleet");
        let [waiting, running, ended, failed] = counts;
        assert_eq!(status.counts, Counts { waiting, running, ended, failed });
        let why: Vec<Reason> = why
            .iter()
            .map(|&(state, workers, reason)| Reason { state, workers, reason: reason.to_owned() })
            .collect();
        assert_eq!(status.reasons, why);
    }

    #[test]
    fn no_objects_are_no_fleet() {
        assert_eq!(objects(&[]).status(), None);
    }

    #[test]
    fn a_fleet_is_found_with_what_it_was_asked_for() {
        let objects = objects(&[a_job(json!({}))]);
        let status = objects.status().unwrap();
        assert_eq!(status.counts, Counts { waiting: 4, ..Counts::default() });
        assert_eq!(status.digest, "0123");
        let settings = [("HOST_PREFIX", "a$b"), ("HOST_QUEUE", "sqs://tasks")];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(status.environment, settings.into());
        assert_eq!(status.since, parsed("2026-11-26T20:00:00Z"));
        let fleet: FleetName = "night".parse().unwrap();
        assert_eq!(objects.next_job(&fleet), "night-2");
        assert!(objects.has_job("night-1") && !objects.has_job("night-2"));
        let names: Vec<String> = objects.fleets().map(|name| name.to_string()).collect();
        assert_eq!(names, ["night"]);
    }

    #[test]
    fn workers_that_wait_say_why() {
        let unschedulable = json!({"conditions": [{
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
            "message": "0/3 nodes are available: 3 Insufficient cpu.",
        }]});
        let image = json!({"containerStatuses": [
            {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling"}}},
        ]});
        let usual = json!({"containerStatuses": [
            {"state": {"waiting": {"reason": "ContainerCreating"}}},
        ]});
        check(
            &[
                a_job(json!({"active": 4})),
                pod(0, "Pending", unschedulable.clone()),
                pod(1, "Pending", unschedulable),
                pod(2, "Pending", image),
                pod(3, "Pending", usual),
            ],
            [4, 0, 0, 0],
            &[
                (
                    Trouble::Waiting,
                    2,
                    "Unschedulable: 0/3 nodes are available: 3 Insufficient cpu.",
                ),
                (Trouble::Waiting, 1, "ImagePullBackOff: Back-off pulling"),
            ],
        );
    }

    #[test]
    fn a_job_without_pods_says_why() {
        let mut objects = objects(&[a_job(json!({})), pod(0, "Running", json!({}))]);
        assert!(objects.lack_pods());
        let event = |time: &str, message: &str| {
            json!({
                "involvedObject": {"kind": "Job", "name": "night-1"}, "lastTimestamp": time,
                "eventTime": null, "reason": "FailedCreate", "message": message,
            })
        };
        let (old, new) =
            (event("2026-11-26T20:00:02Z", "old"), event("2026-11-26T20:00:03Z", "quota"));
        objects.add_events(&json!({"items": [new, old]}).to_string()).unwrap();
        let reasons = objects.status().unwrap().reasons;
        let reason = "FailedCreate: quota".to_owned();
        assert_eq!(reasons, [Reason { state: Trouble::Waiting, workers: 3, reason }]);
    }

    #[test]
    fn a_worker_that_failed_and_is_replaced_has_not_failed() {
        let items = [
            a_job(json!({"failed": 2, "succeeded": 1, "failedIndexes": "2"})),
            pod(0, "Succeeded", json!({})),
            pod(1, "Failed", ended("Error", 1)),
            pod(2, "Failed", ended("OOMKilled", 137)),
            pod(3, "Running", json!({})),
        ];
        check(&items, [1, 1, 1, 1], &[(Trouble::Failed, 1, "OOMKilled (exit code 137)")]);
    }

    #[test]
    fn a_job_that_failed_says_why() {
        let failed = json!({"succeeded": 1, "failed": 1, "conditions": [{
            "type": "Failed", "status": "True", "reason": "PodFailurePolicy", "message": "exit code 2",
        }]});
        check(
            &[a_job(failed), pod(0, "Succeeded", json!({})), pod(1, "Failed", ended("Error", 2))],
            [0, 0, 1, 3],
            &[
                (Trouble::Failed, 2, "PodFailurePolicy: exit code 2"),
                (Trouble::Failed, 1, "exit code 2"),
            ],
        );
    }

    #[test]
    fn a_job_that_is_deleted_has_only_its_running_pods() {
        let mut going = a_job(json!({"succeeded": 1}));
        going["metadata"]["deletionTimestamp"] = "2026-11-26T21:00:00Z".into();
        check(
            &[going, pod(0, "Succeeded", json!({})), pod(1, "Running", json!({}))],
            [0, 1, 1, 0],
            &[],
        );
    }

    #[test]
    fn jobs_are_numbered() {
        let fleet: FleetName = "night".parse().unwrap();
        assert_eq!(objects(&[]).next_job(&fleet), "night-1");
        // A job that was deleted without its pods, and one of another fleet.
        let mut other = a_job(json!({}));
        other["metadata"]["name"] = "night-shift-7".into();
        assert_eq!(objects(&[pod(0, "Running", json!({})), other]).next_job(&fleet), "night-2");
    }

    #[test]
    fn pods_without_a_job_are_workers_too() {
        let evicted = json!({"reason": "Evicted", "message": "The node was low on memory."});
        check(
            &[
                pod(0, "Succeeded", json!({})),
                pod(1, "Running", json!({})),
                pod(2, "Pending", json!({})),
                pod(3, "Failed", evicted),
            ],
            [1, 1, 1, 1],
            &[(Trouble::Failed, 1, "Evicted: The node was low on memory.")],
        );
    }

    #[test]
    fn failed_indexes_are_read() {
        for (text, want) in [
            ("", [].to_vec()),
            ("3", [3..=3].to_vec()),
            ("1,3-5,7", [1..=1, 3..=5, 7..=7].to_vec()),
        ] {
            let job: Job = serde_json::from_value(a_job(json!({"failedIndexes": text}))).unwrap();
            assert_eq!(job.failed_indexes(), want, "{text}");
        }
    }
}
