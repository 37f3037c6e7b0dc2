//! Workers as tasks of AWS ECS: one ECS task per worker, from a task definition with the fleet's
//! name.
//!
//! ECS forgets a task an hour after its end. ECS does not queue tasks: it refuses a task that it
//! can't place at once, and the command that requested the worker counts it as failed.

mod request;
mod tasks;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use aws_sdk_ecs::Client;
use aws_sdk_ecs::types::{DesiredStatus, Task, TaskDefinition, TaskDefinitionField};
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt, stream};
use parking_lot::Mutex;
use serde_json::Value;

use super::aws::{self, AT_A_TIME, Aws, STOPPED, logs, sending};
use super::{
    Access, Capacity, Counts, Engine, EngineError, FleetName, Line, Logs, Spec, Status, Stop,
    Times, Trouble, reasons,
};
use crate::digest::Digest;
use request::Request;
use tasks::State;

/// The maximum number of tasks in one describe request.
const DESCRIBED: usize = 100;
/// How long ECS remembers ended tasks, in seconds. ECS remembers a token a bit longer.
const HOUR: u64 = 3600;

/// A cluster of AWS ECS.
pub(super) struct Ecs {
    aws: Aws,
    client: Client,
    cluster: String,
    /// The tasks of the fleet at the last [`Engine::status`]. Other tasks belong to another
    /// launcher.
    seen: Mutex<Vec<Task>>,
    /// The reasons why ECS refused workers of this command. ECS does not remember refused tasks.
    refused: Mutex<Vec<String>>,
}

impl Ecs {
    pub(super) async fn open(
        engine: String,
        cluster: &str,
        access: &Access,
    ) -> Result<Self, EngineError> {
        Ok(Self::of(Aws::connect(engine, access).await?, cluster))
    }

    fn of(aws: Aws, cluster: &str) -> Self {
        let client = Client::new(&aws.config);
        Self {
            aws,
            client,
            cluster: cluster.to_owned(),
            seen: Mutex::default(),
            refused: Mutex::default(),
        }
    }

    fn no_cluster(&self) -> EngineError {
        let Self { aws, cluster, .. } = self;
        aws.unfit(
            format_args!("there is no active cluster {cluster} in {}", aws.region),
            "check name and region; `aws ecs list-clusters` lists the clusters",
        )
    }

    /// Replaces the error for a missing cluster with a clearer one.
    fn failed<E>(&self, doing: &str, error: &aws_sdk_ecs::error::SdkError<E>) -> EngineError
    where
        E: aws_sdk_ecs::error::ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let code = error.as_service_error().and_then(|error| error.code()).unwrap_or_default();
        match code {
            "ClusterNotFoundException" => self.no_cluster(),
            _ => self.aws.failed(doing, error),
        }
    }

    /// The tasks of a fleet, or of the whole cluster, with this desired status.
    async fn listed(
        &self,
        fleet: Option<&FleetName>,
        desired: DesiredStatus,
    ) -> Result<Vec<Task>, EngineError> {
        let ask = self.client.list_tasks().cluster(&self.cluster).desired_status(desired);
        let ask = ask.set_family(fleet.map(aws::name));
        let arns: Result<Vec<String>, _> = ask.into_paginator().items().send().collect().await;
        let arns = arns.map_err(|error| self.failed("listing tasks", &error))?;
        self.described(&arns).await
    }

    async fn described(&self, arns: &[String]) -> Result<Vec<Task>, EngineError> {
        let mut tasks = Vec::new();
        for arns in arns.chunks(DESCRIBED) {
            let ask = self.client.describe_tasks().cluster(&self.cluster);
            let answer = ask.set_tasks(Some(arns.to_vec())).send().await;
            let answer = answer.map_err(|error| self.failed("describing tasks", &error))?;
            tasks.extend(answer.tasks.unwrap_or_default());
        }
        Ok(tasks)
    }

    /// All tasks of a fleet that ECS remembers, the oldest first.
    async fn tasks(&self, fleet: Option<&FleetName>) -> Result<Vec<Task>, EngineError> {
        let mut tasks = self.listed(fleet, DesiredStatus::Running).await?;
        tasks.extend(self.listed(fleet, DesiredStatus::Stopped).await?);
        let key = |task: &Task| (tasks::created(task), tasks::arn(task).to_owned());
        tasks.sort_by_cached_key(key);
        // A task may have been stopped between the two requests.
        tasks.dedup_by(|a, b| a.task_arn() == b.task_arn());
        Ok(tasks)
    }

    /// A task definition and its tags by name. `None` if there is no definition of this name.
    async fn described_definition(
        &self,
        name: &str,
    ) -> Result<Option<(TaskDefinition, BTreeMap<String, String>)>, EngineError> {
        let ask = self.client.describe_task_definition().task_definition(name);
        match ask.include(TaskDefinitionField::Tags).send().await {
            Ok(answer) => {
                let tags = answer.tags.unwrap_or_default().into_iter();
                let tags = tags.filter_map(|tag| Some((tag.key?, tag.value?))).collect();
                Ok(answer.task_definition.map(|definition| (definition, tags)))
            }
            Err(error)
                if error.as_service_error().is_some_and(|error| error.is_client_exception()) =>
            {
                Ok(None)
            }
            Err(error) => Err(self.failed(&format!("looking at task definition {name}"), &error)),
        }
    }

    /// The definition for workers: the latest one if its content is the same, or a new one.
    async fn definition(&self, request: &Request<'_>, spec: &Spec) -> Result<String, EngineError> {
        let definition = request.definition()?;
        let family = aws::name(&spec.fleet);
        let says = definition["tags"].as_array().into_iter().flatten();
        let mut says = says.filter(|tag| tag["key"] == aws::DEFINITION);
        let says = says.next().and_then(|tag| tag["value"].as_str());
        if let Some((there, tags)) = self.described_definition(&family).await?
            && tags.get(aws::DEFINITION).map(String::as_str) == says
            && let Some(arn) = there.task_definition_arn()
        {
            return Ok(arn.to_owned());
        }
        let register = self.client.register_task_definition().customize();
        let answer = register.mutate_request(sending(&definition)).send().await;
        let doing = format!("registering task definition {family}");
        let answer = answer.map_err(|error| self.failed(&doing, &error))?;
        let arn = answer.task_definition.and_then(|definition| definition.task_definition_arn);
        Ok(arn.unwrap_or(family))
    }

    /// Creates the log group. If this program lacks the permission, someone else must create the
    /// group.
    async fn make_log_group(&self, group: &str) {
        let logs = aws_sdk_cloudwatchlogs::Client::new(&self.aws.config);
        if let Err(error) = logs.create_log_group().log_group_name(group).send().await
            && !error
                .as_service_error()
                .is_some_and(|error| error.is_resource_already_exists_exception())
        {
            let error = self.aws.failed(&format!("creating the log group {group}"), &error);
            tracing::info!("{error}");
        }
    }

    /// Starts a worker. Returns the reason if ECS refuses it.
    async fn run(&self, mut task: Value, token: String) -> Result<Option<String>, EngineError> {
        task["clientToken"] = token.into();
        let run = self.client.run_task().customize().mutate_request(sending(&task));
        let answer = run.send().await.map_err(|error| self.failed("starting a task", &error))?;
        if !answer.tasks().is_empty() {
            return Ok(None);
        }
        let failure = answer.failures().first();
        let reason = failure.and_then(|it| it.reason()).unwrap_or("ECS gives no reason");
        let detail = failure.and_then(|it| it.detail()).filter(|it| !it.is_empty());
        Ok(Some(match detail {
            Some(detail) => format!("{reason}: {detail}"),
            None => reason.to_owned(),
        }))
    }

    async fn stop_task(&self, arn: &str) -> Result<(), EngineError> {
        let ask = self.client.stop_task().cluster(&self.cluster).task(arn).reason(STOPPED);
        match ask.send().await {
            // The task has ended meanwhile.
            Err(error)
                if error
                    .as_service_error()
                    .is_some_and(|error| error.is_invalid_parameter_exception()) =>
            {
                Ok(())
            }
            answer => answer
                .map(drop)
                .map_err(|error| self.failed(&format!("stopping task {arn}"), &error)),
        }
    }

    async fn stop_tasks(&self, arns: Vec<String>) -> Result<(), EngineError> {
        let stops = arns.into_iter().map(|arn| async move { self.stop_task(&arn).await });
        stream::iter(stops).buffer_unordered(AT_A_TIME).try_collect().await
    }

    /// Stops duplicates of workers that another launcher started at the same time. Both launchers
    /// choose the same duplicates. Returns their number.
    async fn stop_doubles(&self, fleet: &FleetName) -> Result<usize, EngineError> {
        let mut tasks = self.listed(Some(fleet), DesiredStatus::Running).await?;
        tasks.sort_by(|a, b| a.task_arn().cmp(&b.task_arn()));
        let mut first = BTreeSet::new();
        let is_double = |task: &&Task| tasks::worker(task).is_some_and(|n| !first.insert(n));
        let doubles: Vec<String> =
            tasks.iter().filter(is_double).map(|task| tasks::arn(task).to_owned()).collect();
        let count = doubles.len();
        self.stop_tasks(doubles).await?;
        Ok(count)
    }
}

/// A token with which ECS starts a worker only once, even if two launchers request it. The token
/// changes when an earlier task with this number appears or is forgotten.
fn token(spec: &Spec, worker: u32, earlier: &[Task], now: SystemTime) -> String {
    let earlier = earlier.iter().filter(|task| tasks::worker(task) == Some(worker));
    let earlier: Vec<&str> = earlier.map(tasks::arn).collect();
    let hour = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() / HOUR;
    let (fleet, digest) = (&spec.fleet, spec.digest());
    let text = format!("{fleet} {digest} {worker} {hour} {}", earlier.join(" "));
    Digest::of(text.as_bytes()).to_string()[..64].to_owned()
}

/// Whether a task runs or will run.
fn is_alive(task: &Task) -> bool {
    let is_wanted = task.desired_status() != Some("STOPPED");
    is_wanted && matches!(tasks::state(task), State::Waiting(_) | State::Running)
}

#[async_trait]
impl Engine for Ecs {
    fn times(&self) -> Times {
        Times { stop: Some(Duration::from_secs(120)), start: Duration::from_secs(10 * 60) }
    }

    async fn check(&self, spec: &Spec) -> Result<Option<Capacity>, EngineError> {
        Request::new(&self.aws, spec)?.definition()?;
        let answer = self.client.describe_clusters().clusters(&self.cluster).send().await;
        let answer = answer.map_err(|error| self.failed("looking at the cluster", &error))?;
        let is_active = answer.clusters().iter().any(|cluster| cluster.status() == Some("ACTIVE"));
        if is_active { Ok(None) } else { Err(self.no_cluster()) }
    }

    fn render(&self, spec: &Spec, workers: u32) -> Result<String, EngineError> {
        let request = Request::new(&self.aws, spec)?;
        let register = "ecs register-task-definition";
        let mut script = self.aws.command(register, &request.definition()?);
        let definition = aws::name(&spec.fleet);
        for worker in 0..workers {
            let task = request.task(&self.cluster, &definition, worker)?;
            script += &self.aws.command("ecs run-task", &task);
        }
        Ok(script)
    }

    async fn start(&self, spec: &Spec, workers: u32) -> Result<String, EngineError> {
        let request = Request::new(&self.aws, spec)?;
        let definition = self.definition(&request, spec).await?;
        if let Some(group) = request.own_log_group() {
            self.make_log_group(&group).await;
        }
        // Use the tasks of the last look, not the current ones: two launchers that saw the same
        // tasks then request the same workers.
        let there = self.seen.lock().clone();
        let taken: BTreeSet<u32> =
            there.iter().filter(|task| is_alive(task)).filter_map(tasks::worker).collect();
        let free = (0..).filter(|worker| !taken.contains(worker)).take(workers as usize);
        let now = SystemTime::now();
        let mut asks = Vec::new();
        for worker in free {
            let task = request.task(&self.cluster, &definition, worker)?;
            asks.push((task, token(spec, worker, &there, now)));
        }
        let runs = asks.into_iter().map(|(task, token)| self.run(task, token));
        let ran: Vec<_> = stream::iter(runs).buffer_unordered(AT_A_TIME).collect().await;
        let (mut started, mut refused, mut failure) = (0, Vec::new(), None);
        for run in ran {
            match run {
                Ok(None) => started += 1,
                Ok(Some(reason)) => refused.push(reason),
                Err(error) => {
                    refused.push(error.to_string());
                    failure = Some(error);
                }
            }
        }
        if let Some(error) = failure.filter(|_| started == 0) {
            return Err(error);
        }
        let doubles = self.stop_doubles(&spec.fleet).await?;
        let plural = if started == 1 { "" } else { "s" };
        let mut said = format!("{started} task{plural}");
        if doubles > 0 {
            said += &format!(", of which another launcher has just started {doubles} as well");
        }
        if let Some(reason) = refused.first() {
            said += &format!("; {} refused: {reason}", refused.len());
        }
        self.refused.lock().extend(refused);
        Ok(said)
    }

    async fn status(&self, fleet: &FleetName) -> Result<Option<Status>, EngineError> {
        let tasks = self.tasks(Some(fleet)).await?;
        self.seen.lock().clone_from(&tasks);
        let refused = self.refused.lock().clone();
        let Some(newest) = tasks.last() else {
            let failed = u32::try_from(refused.len()).unwrap_or(u32::MAX);
            let counts = Counts { failed, ..Counts::default() };
            let reasons = reasons(refused.into_iter().map(|reason| (Trouble::Failed, reason)));
            return Ok((failed > 0).then(|| Status { counts, reasons, ..Status::default() }));
        };
        let mut counts = Counts::default();
        let mut said = Vec::new();
        for task in &tasks {
            match tasks::state(task) {
                State::Running => counts.running += 1,
                State::Ended => counts.ended += 1,
                State::Waiting(reason) => {
                    counts.waiting += 1;
                    said.push((Trouble::Waiting, reason));
                }
                State::Failed(reason) => {
                    counts.failed += 1;
                    said.push((Trouble::Failed, reason));
                }
            }
        }
        counts.failed += u32::try_from(refused.len()).unwrap_or(u32::MAX);
        said.extend(refused.into_iter().map(|reason| (Trouble::Failed, reason)));
        let name = newest.task_definition_arn().unwrap_or_default();
        let definition = self.described_definition(name).await?;
        let containers = definition.iter().flat_map(|(it, _)| it.container_definitions());
        let variables = containers.flat_map(|container| container.environment());
        let variables = variables.filter_map(|it| Some((it.name.clone()?, it.value.clone()?)));
        let digest = newest.started_by().and_then(request::digest_of);
        let first = tasks.iter().find(|task| is_alive(task)).unwrap_or(newest);
        Ok(Some(Status {
            counts,
            reasons: reasons(said),
            since: tasks::created(first),
            digest: digest.unwrap_or_default().to_owned(),
            environment: variables.filter(|(name, _)| name.starts_with("HOST_")).collect(),
        }))
    }

    async fn fleets(&self) -> Result<BTreeSet<FleetName>, EngineError> {
        let tasks = self.tasks(None).await?;
        let family = |task: &Task| {
            let name = task.task_definition_arn()?.rsplit('/').next()?.to_owned();
            aws::fleet(name.split(':').next()?)
        };
        Ok(tasks.iter().filter_map(family).collect())
    }

    async fn logs(
        &self,
        fleet: &FleetName,
        wanted: &Logs,
    ) -> Result<BoxStream<'static, Result<Line, EngineError>>, EngineError> {
        let tasks = self.tasks(Some(fleet)).await?;
        let names: BTreeSet<&str> =
            tasks.iter().filter_map(|it| it.task_definition_arn()).collect();
        let mut definitions = BTreeMap::new();
        for name in names {
            if let Some((definition, _)) = self.described_definition(name).await? {
                definitions.insert(name.to_owned(), definition);
            }
        }
        let worker = |task: &Task| {
            let id = tasks::arn(task).to_owned();
            tasks::worker(task).map(|number| logs::Worker { number, id })
        };
        let mut workers: Vec<logs::Worker> = tasks.iter().filter_map(worker).collect();
        workers.sort_by_key(|worker| worker.number);
        let (ecs, definitions) =
            (Arc::new(Self::of(self.aws.clone(), &self.cluster)), Arc::new(definitions));
        let find: logs::Find = Arc::new(move |arn| {
            let (ecs, definitions) = (ecs.clone(), definitions.clone());
            Box::pin(async move {
                let tasks = ecs.described(&[arn]).await?;
                let found = tasks.first().and_then(|task| {
                    Some(tasks::found(task, definitions.get(task.task_definition_arn()?)?))
                });
                Ok(found.unwrap_or(logs::Found { place: None, has_ended: true }))
            })
        });
        Ok(logs::lines(&self.aws, workers, wanted, &find))
    }

    async fn stop(&self, fleet: &FleetName, which: Stop) -> Result<(), EngineError> {
        let tasks = self.listed(Some(fleet), DesiredStatus::Running).await?;
        let is_chosen = |task: &&Task| match tasks::state(task) {
            State::Waiting(_) => true,
            State::Running => which == Stop::All,
            State::Ended | State::Failed(_) => false,
        };
        let chosen = tasks.iter().filter(is_chosen).map(|task| tasks::arn(task).to_owned());
        self.stop_tasks(chosen.collect()).await
    }
}
