//! The identity of this host in its fleet: the engine that started it, and its names there.
//!
//! Engines set environment variables. The metadata service of an ECS task adds the log stream.
//! Reports, the log and the summary of a run contain the identity, so that people can find the log
//! of the host that executed a task.

use std::path::Path;
use std::sync::{LazyLock, OnceLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ask::{Question, ask};
use crate::environment::Environment;

/// The variables that `host fleet up` sets for the hosts it starts.
pub const VARIABLES: [&str; 3] = ["HOST_FLEET", "HOST_WORKER", "HOST_WORKER_INDEX"];

/// The time limit for the metadata service of ECS.
const PATIENCE: Duration = Duration::from_secs(5);
/// The maximum length of each name, in bytes.
const LONGEST: usize = 256;

/// An engine that starts and stops hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// AWS Batch.
    Batch,
    /// Amazon ECS.
    Ecs,
    /// Kubernetes.
    K8s,
    /// Slurm.
    Slurm,
    /// Docker, without one of the engines above.
    Docker,
    /// Podman, without one of the engines above.
    Podman,
}

impl Engine {
    /// The default grace period of running tasks after SIGTERM. It is short enough that a host can
    /// release tasks before SIGKILL.
    ///
    /// AWS Batch, ECS, Kubernetes and Slurm kill a worker 30 s after SIGTERM, and GKE takes a spot
    /// node away after 15 s. Docker and Podman kill after 10 s.
    pub fn grace(self) -> Duration {
        match self {
            Self::Batch | Self::Ecs | Self::K8s | Self::Slurm => Duration::from_secs(10),
            Self::Docker | Self::Podman => Duration::from_secs(5),
        }
    }
}

/// The names of one worker. Unknown fields are not serialized.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Identity {
    #[serde(skip_serializing_if = "Option::is_none")]
    engine: Option<Engine>,
    /// The fleet, and the name of this worker in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    fleet: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// The number of this worker, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<u64>,
    /// The job of AWS Batch or Slurm.
    #[serde(skip_serializing_if = "Option::is_none")]
    job: Option<String>,
    /// The number of the job's attempt, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    job_attempt: Option<u64>,
    /// The job queue of AWS Batch.
    #[serde(skip_serializing_if = "Option::is_none")]
    job_queue: Option<String>,
    /// The ARN of the ECS task.
    #[serde(skip_serializing_if = "Option::is_none")]
    task: Option<String>,
    /// The pod of Kubernetes, and its namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    /// The cluster of ECS or Slurm, and the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    /// The log group and log stream in CloudWatch.
    #[serde(skip_serializing_if = "Option::is_none")]
    log_group: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    log_stream: Option<String>,
}

static OF_PROCESS: LazyLock<Identity> =
    LazyLock::new(|| Identity::of(&Environment::of_process(), container()));
/// The identity with the additions of a metadata service.
static LOOKED_UP: OnceLock<Identity> = OnceLock::new();

/// The identity of this process, as far as it is known now.
pub fn of_process() -> &'static Identity {
    LOOKED_UP.get().unwrap_or(&OF_PROCESS)
}

/// Asks the metadata service of ECS, if this process runs in an ECS task. Returns the identity as
/// known then.
pub async fn look_up() -> &'static Identity {
    let environment = Environment::of_process();
    if let Some(url) = environment.get("ECS_CONTAINER_METADATA_URI_V4") {
        match of_ecs(url).await {
            Ok(found) => drop(LOOKED_UP.set(OF_PROCESS.with(found))),
            Err(problem) => {
                tracing::info!("{url}: {problem}; reports do not name the ECS task of this host");
            }
        }
    }
    of_process()
}

/// The relevant part of the answer of ECS.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Container {
    labels: Labels,
    log_options: LogOptions,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Labels {
    #[serde(rename = "com.amazonaws.ecs.cluster")]
    cluster: Option<String>,
    #[serde(rename = "com.amazonaws.ecs.task-arn")]
    task: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct LogOptions {
    #[serde(rename = "awslogs-group")]
    group: Option<String>,
    #[serde(rename = "awslogs-stream")]
    stream: Option<String>,
}

async fn of_ecs(url: &str) -> Result<Container, String> {
    let question = Question { url, ..Question::default() };
    let answer = ask(&question, PATIENCE).await.map_err(|error| error.to_string())?;
    if answer.status != 200 {
        return Err(format!("answers with status {}", answer.status));
    }
    serde_json::from_str(&answer.text).map_err(|error| format!("the answer is not valid: {error}"))
}

/// The container program, if this process is the container's main process: only the main process
/// gets the signals of the container.
fn container() -> Option<Engine> {
    // A small init program such as tini may start the host. It passes signals on.
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let parent = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    if own != 1 && parent != 1 {
        return None;
    }
    let is_there = |file: &str| Path::new(file).exists();
    match (is_there("/.dockerenv"), is_there("/run/.containerenv")) {
        (true, _) => Some(Engine::Docker),
        (_, true) => Some(Engine::Podman),
        _ => None,
    }
}

impl Identity {
    /// The identity according to the variables of a process. `container` is its container program.
    pub fn of(environment: &Environment, container: Option<Engine>) -> Self {
        let name = |variable: &str| environment.get(variable).map(shortened);
        let number = |variable: &str| environment.get(variable)?.trim().parse::<u64>().ok();
        let is_set = |variable: &str| environment.get(variable).is_some();
        let engine = if is_set("AWS_BATCH_JOB_ID") {
            Some(Engine::Batch)
        } else if is_set("KUBERNETES_SERVICE_HOST") {
            Some(Engine::K8s)
        } else if is_set("ECS_CONTAINER_METADATA_URI_V4") {
            Some(Engine::Ecs)
        } else if is_set("SLURM_JOB_ID") {
            Some(Engine::Slurm)
        } else {
            container
        };
        let in_slurm_array = || {
            let task = number("SLURM_ARRAY_TASK_ID")?;
            let first = number("SLURM_ARRAY_TASK_MIN").unwrap_or(0);
            Some((
                format!("{}_{task}", environment.get("SLURM_ARRAY_JOB_ID")?),
                task - first.min(task),
            ))
        };
        let slurm = in_slurm_array();
        let is_pod = is_set("KUBERNETES_SERVICE_HOST");
        Self {
            engine,
            fleet: name("HOST_FLEET"),
            name: name("HOST_WORKER"),
            index: number("HOST_WORKER_INDEX")
                .or_else(|| number("AWS_BATCH_JOB_ARRAY_INDEX"))
                .or_else(|| number("JOB_COMPLETION_INDEX"))
                .or(slurm.as_ref().map(|(_, index)| *index)),
            job: name("AWS_BATCH_JOB_ID")
                .or_else(|| slurm.map(|(job, _)| shortened(&job)))
                .or_else(|| name("SLURM_JOB_ID")),
            job_attempt: number("AWS_BATCH_JOB_ATTEMPT"),
            job_queue: name("AWS_BATCH_JQ_NAME"),
            task: None,
            pod: name("POD_NAME").or_else(|| name("HOSTNAME")).filter(|_| is_pod),
            namespace: name("POD_NAMESPACE").filter(|_| is_pod),
            cluster: name("SLURM_CLUSTER_NAME"),
            node: name("SLURMD_NODENAME"),
            log_group: None,
            log_stream: None,
        }
    }

    /// This identity with the answer of ECS.
    fn with(&self, found: Container) -> Self {
        let name = |name: Option<String>| name.as_deref().map(shortened);
        let Container { labels, log_options } = found;
        Self {
            task: name(labels.task),
            cluster: name(labels.cluster).or_else(|| self.cluster.clone()),
            log_group: name(log_options.group),
            log_stream: name(log_options.stream),
            ..self.clone()
        }
    }

    /// The engine that started this host, if known.
    pub fn engine(&self) -> Option<Engine> {
        self.engine
    }

    /// True if no field is known.
    pub fn is_unknown(&self) -> bool {
        *self == Self::default()
    }

    /// True for the worker with the number 0. A fleet has one such worker.
    pub fn is_first(&self) -> bool {
        self.index == Some(0)
    }

    /// The fields as text, such as `job=4711_3`.
    pub fn words(&self) -> String {
        let value = serde_json::to_value(self).unwrap_or_default();
        let Some(fields) = value.as_object() else { return String::new() };
        let word = |(name, value): (&String, &serde_json::Value)| match value.as_str() {
            Some(text) => format!("{name}={text}"),
            None => format!("{name}={value}"),
        };
        fields.iter().map(word).collect::<Vec<_>>().join(" ")
    }
}

/// A name, cut to [`LONGEST`] bytes.
fn shortened(name: &str) -> String {
    let end = name.char_indices().map(|(at, c)| at + c.len_utf8());
    let end = end.take_while(|end| *end <= LONGEST).last().unwrap_or(0);
    name[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn identity(variables: &[(&str, &str)]) -> Identity {
        Identity::of(&variables.iter().copied().collect(), None)
    }

    #[test]
    fn each_engine_names_its_workers_in_its_own_way() {
        let check = |variables: &[(&str, &str)], want: serde_json::Value| {
            assert_eq!(serde_json::to_value(identity(variables)).unwrap(), want);
        };
        check(&[("HOSTNAME", "laptop"), ("SLURMD_NODENAME", "")], json!({}));
        check(
            &[
                ("AWS_BATCH_JOB_ID", "4f:3"),
                ("AWS_BATCH_JOB_ARRAY_INDEX", "3"),
                ("AWS_BATCH_JOB_ATTEMPT", "2"),
                ("AWS_BATCH_JQ_NAME", "spot"),
                ("ECS_CONTAINER_METADATA_URI_V4", "http://169.254.170.2/v4/x"),
            ],
            json!({"engine": "batch", "index": 3, "job": "4f:3", "job_attempt": 2, "job_queue": "spot"}),
        );
        check(
            &[
                ("KUBERNETES_SERVICE_HOST", "10.0.0.1"),
                ("HOSTNAME", "night-0-x7"),
                ("JOB_COMPLETION_INDEX", "0"),
                ("POD_NAMESPACE", "lab"),
            ],
            json!({"engine": "k8s", "index": 0, "pod": "night-0-x7", "namespace": "lab"}),
        );
        check(
            &[
                ("SLURM_JOB_ID", "4714"),
                ("SLURM_ARRAY_JOB_ID", "4711"),
                ("SLURM_ARRAY_TASK_ID", "12"),
                ("SLURM_ARRAY_TASK_MIN", "10"),
                ("SLURM_CLUSTER_NAME", "lab"),
                ("SLURMD_NODENAME", "n7"),
            ],
            json!({
                "engine": "slurm", "index": 2, "job": "4711_12", "cluster": "lab", "node": "n7",
            }),
        );
        check(&[("SLURM_JOB_ID", "4714")], json!({"engine": "slurm", "job": "4714"}));
        // The launcher's variables take precedence.
        check(
            &[
                ("HOST_FLEET", "night"),
                ("HOST_WORKER", "night-7"),
                ("HOST_WORKER_INDEX", "7"),
                ("AWS_BATCH_JOB_ARRAY_INDEX", "0"),
            ],
            json!({"fleet": "night", "name": "night-7", "index": 7}),
        );
        check(&[("HOST_WORKER_INDEX", "first")], json!({}));
    }

    #[test]
    fn ecs_adds_the_task_and_its_log() {
        let answer = json!({
            "DockerId": "x", "Labels": {
                "com.amazonaws.ecs.cluster": "lab", "com.amazonaws.ecs.task-arn": "arn:aws:ecs:t",
            },
            "LogDriver": "awslogs",
            "LogOptions": {"awslogs-group": "/ecs/host", "awslogs-stream": "host/host/x"},
        });
        let known = identity(&[("ECS_CONTAINER_METADATA_URI_V4", "http://169.254.170.2/v4/x")]);
        let known = known.with(serde_json::from_value(answer).unwrap());
        assert_eq!(
            known.words(),
            "cluster=lab engine=ecs log_group=/ecs/host log_stream=host/host/x task=arn:aws:ecs:t"
        );
        assert_eq!(identity(&[]).with(serde_json::from_str("{}").unwrap()), Identity::default());
    }

    #[test]
    fn the_first_worker_has_the_number_0() {
        let first = |variables: &[(&str, &str)]| identity(variables).is_first();
        assert!(first(&[("AWS_BATCH_JOB_ARRAY_INDEX", "0")]));
        assert!(first(&[("HOST_WORKER_INDEX", "0"), ("JOB_COMPLETION_INDEX", "4")]));
        let slurm = [("SLURM_ARRAY_JOB_ID", "1"), ("SLURM_ARRAY_TASK_MIN", "5")];
        assert!(first(&[slurm[0], slurm[1], ("SLURM_ARRAY_TASK_ID", "5")]));
        assert!(!first(&[slurm[0], slurm[1], ("SLURM_ARRAY_TASK_ID", "6")]));
        assert!(!first(&[]));
    }

    #[test]
    fn a_long_name_is_cut_between_characters() {
        let long = "é".repeat(LONGEST);
        assert_eq!(shortened(&long), "é".repeat(LONGEST / 2));
        assert_eq!(shortened("short"), "short");
    }
}
