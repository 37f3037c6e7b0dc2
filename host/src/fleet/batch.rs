//! Workers as jobs of AWS Batch: one array of jobs for each `fleet up`, with the fleet's name.
//!
//! Batch keeps ended jobs for at least a week. The status of an array itself is ignored, because it
//! does not describe the jobs of the array.

mod jobs;
mod request;
mod room;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_batch::Client;
use aws_sdk_batch::types::{JobDetail, JobStatus, JobSummary, KeyValuesPair};
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt, stream};
use parking_lot::Mutex;

use super::aws::{self, AT_A_TIME, Aws, STOPPED, logs, sending};
use super::{
    Access, Capacity, Counts, Engine, EngineError, FleetName, Line, Logs, Reason, Spec, Status,
    Stop, Times, Trouble, reasons,
};
use request::{Platform, Request};
use room::Room;

/// The maximum number of jobs in an array.
const LONGEST_ARRAY: u32 = 10_000;
/// The maximum number of jobs in one describe request.
const DESCRIBED: usize = 100;
/// The number of pages of failed jobs that are read for their reasons.
const PAGES: usize = 10;
/// The states of jobs that have not ended.
const ALIVE: [JobStatus; 5] = [
    JobStatus::Submitted,
    JobStatus::Pending,
    JobStatus::Runnable,
    JobStatus::Starting,
    JobStatus::Running,
];

/// A job queue of AWS Batch.
pub(super) struct Batch {
    aws: Aws,
    client: Client,
    queue: String,
    /// The jobs of the fleet at the last [`Engine::status`]. Other jobs belong to another launcher.
    seen: Mutex<BTreeSet<String>>,
}

impl Batch {
    pub(super) async fn open(
        engine: String,
        queue: &str,
        access: &Access,
    ) -> Result<Self, EngineError> {
        Ok(Self::of(Aws::connect(engine, access).await?, queue))
    }

    fn of(aws: Aws, queue: &str) -> Self {
        let client = Client::new(&aws.config);
        Self { aws, client, queue: queue.to_owned(), seen: Mutex::default() }
    }

    /// The jobs with this name in all states. The name may end with `*`. An array counts as one
    /// job.
    async fn named(&self, name: &str) -> Result<Vec<JobSummary>, EngineError> {
        let filter = KeyValuesPair::builder().name("JOB_NAME").values(name).build();
        let ask = self.client.list_jobs().job_queue(&self.queue).filters(filter);
        let jobs: Result<Vec<JobSummary>, _> = ask.into_paginator().items().send().collect().await;
        let mut jobs = jobs.map_err(|error| self.of_queue("listing jobs", &error))?;
        jobs.retain(|job| !jobs::id(job).contains(':'));
        Ok(jobs)
    }

    /// Replaces the error for a missing queue with a clearer one.
    fn of_queue<E>(&self, doing: &str, error: &aws_sdk_batch::error::SdkError<E>) -> EngineError
    where
        E: aws_sdk_batch::error::ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let message = error.as_service_error().and_then(|error| error.message());
        match message {
            Some(message) if message.contains("does not exist") => self.no_queue(),
            _ => self.aws.failed(doing, error),
        }
    }

    fn no_queue(&self) -> EngineError {
        let Self { aws, queue, .. } = self;
        aws.unfit(
            format_args!("there is no job queue {queue} in {}", aws.region),
            "check name and region; `aws batch describe-job-queues` lists the queues",
        )
    }

    /// The jobs of a fleet, the oldest first. An array counts as one job.
    async fn jobs(&self, fleet: &FleetName) -> Result<Vec<JobDetail>, EngineError> {
        let summaries = self.named(&aws::name(fleet)).await?;
        let ids: Vec<&str> = summaries.iter().map(jobs::id).collect();
        let mut jobs = self.described(&ids).await?;
        jobs.sort_by_key(|job| (job.created_at(), job.job_id().map(str::to_owned)));
        Ok(jobs)
    }

    async fn described(&self, ids: &[&str]) -> Result<Vec<JobDetail>, EngineError> {
        let mut jobs = Vec::new();
        for ids in ids.chunks(DESCRIBED) {
            let ids = ids.iter().map(|id| (*id).to_owned()).collect();
            let answer = self.client.describe_jobs().set_jobs(Some(ids)).send().await;
            let answer = answer.map_err(|error| self.aws.failed("describing jobs", &error))?;
            jobs.extend(answer.jobs.unwrap_or_default());
        }
        Ok(jobs)
    }

    /// The jobs of an array that are in this state, from at most `pages` pages.
    async fn elements(
        &self,
        array: &str,
        status: JobStatus,
        pages: usize,
    ) -> Result<Vec<JobSummary>, EngineError> {
        let ask = self.client.list_jobs().array_job_id(array).job_status(status);
        let mut answers = ask.into_paginator().send();
        let mut jobs = Vec::new();
        for _ in 0..pages {
            let Some(page) = answers.next().await else { break };
            let page =
                page.map_err(|error| self.aws.failed("listing the jobs of an array", &error))?;
            jobs.extend(page.job_summary_list.unwrap_or_default());
        }
        Ok(jobs)
    }

    /// The queue's room for workers.
    async fn room(&self) -> Result<Room, EngineError> {
        let doing = "looking at the job queue";
        let answer = self.client.describe_job_queues().job_queues(&self.queue).send().await;
        let answer = answer.map_err(|error| self.aws.failed(doing, &error))?;
        let queue = answer.job_queues().first().ok_or_else(|| self.no_queue())?;
        let order = queue.compute_environment_order();
        let names: Vec<String> =
            order.iter().filter_map(|it| it.compute_environment.clone()).collect();
        if names.is_empty() {
            return Ok(Room::new(queue, &[]));
        }
        let ask = self.client.describe_compute_environments().set_compute_environments(Some(names));
        let environments: Result<Vec<_>, _> = ask.into_paginator().items().send().collect().await;
        let doing = "looking at the compute environments";
        let environments = environments.map_err(|error| self.aws.failed(doing, &error))?;
        Ok(Room::new(queue, &environments))
    }

    /// The requested platform, or else the queue's.
    async fn platform(&self, request: &Request<'_>) -> Result<Platform, EngineError> {
        match request.platform()? {
            Some(platform) => Ok(platform),
            None => Ok(self.room().await?.platform.unwrap_or(Platform::Ec2)),
        }
    }

    /// The vCPUs of a worker that uses the user's own definition.
    async fn own_vcpus(&self, name: &str) -> Result<u32, EngineError> {
        let ask = self.client.describe_job_definitions();
        let ask = match name.contains(':') {
            true => ask.job_definitions(name),
            false => ask.job_definition_name(name),
        };
        let answer = ask.status("ACTIVE").send().await;
        let answer =
            answer.map_err(|error| self.aws.failed("looking at job definitions", &error))?;
        let latest = answer.job_definitions().iter().max_by_key(|it| it.revision());
        let definition = latest.ok_or_else(|| {
            self.aws.unfit(
                format_args!("there is no active job definition {name} in {}", self.aws.region),
                "check its name; `aws batch describe-job-definitions --status ACTIVE` lists them",
            )
        })?;
        let container = definition.container_properties();
        let needs = container.map(|it| it.resource_requirements()).unwrap_or_default();
        let value = needs.iter().find(|it| it.r#type().is_some_and(|it| it.as_str() == "VCPU"));
        let value = value.and_then(|it| it.value()?.parse::<f64>().ok());
        Ok(value.map_or(1, |vcpus| vcpus.ceil().max(1.0) as u32))
    }

    /// The definition for workers: the latest one if its content is the same, or a new one.
    async fn definition(&self, request: &Request<'_>, spec: &Spec) -> Result<String, EngineError> {
        if let Some(own) = request.own_definition() {
            return Ok(own.to_owned());
        }
        let definition = request.definition(self.platform(request).await?)?;
        let name = aws::name(&spec.fleet);
        let ask =
            self.client.describe_job_definitions().job_definition_name(&name).status("ACTIVE");
        let there: Result<Vec<_>, _> = ask.into_paginator().items().send().collect().await;
        let there = there.map_err(|error| self.aws.failed("looking at job definitions", &error))?;
        let latest = there.iter().max_by_key(|it| it.revision());
        let says = latest.and_then(|it| it.tags()?.get(aws::DEFINITION));
        if let Some(arn) = latest.and_then(|it| it.job_definition_arn())
            && says.map(String::as_str) == definition["tags"][aws::DEFINITION].as_str()
        {
            return Ok(arn.to_owned());
        }
        let register = self.client.register_job_definition().customize();
        let answer = register.mutate_request(sending(&definition)).send().await;
        let doing = format!("registering job definition {name}");
        let answer = answer.map_err(|error| self.aws.failed(&doing, &error))?;
        Ok(answer.job_definition_arn.unwrap_or(name))
    }

    async fn submit(&self, job: &serde_json::Value) -> Result<String, EngineError> {
        let submit = self.client.submit_job().customize();
        let answer = submit.mutate_request(sending(job)).send().await;
        let answer = answer.map_err(|error| self.of_queue("submitting jobs", &error))?;
        Ok(answer.job_id.unwrap_or_default())
    }

    async fn cancel(&self, id: &str) -> Result<(), EngineError> {
        let answer = self.client.cancel_job().job_id(id).reason(STOPPED).send().await;
        answer.map(drop).map_err(|error| self.aws.failed(&format!("cancelling job {id}"), &error))
    }

    async fn terminate(&self, id: &str) -> Result<(), EngineError> {
        let answer = self.client.terminate_job().job_id(id).reason(STOPPED).send().await;
        answer.map(drop).map_err(|error| self.aws.failed(&format!("stopping job {id}"), &error))
    }

    /// Stops a job, or all jobs of an array.
    async fn terminate_all(&self, id: &str, is_array: bool) -> Result<(), EngineError> {
        self.terminate(id).await?;
        if !is_array {
            return Ok(());
        }
        // Most jobs of an array end with it, but not those that were being created.
        let mut left = Vec::new();
        for status in ALIVE {
            left.extend(self.elements(id, status, usize::MAX).await?);
        }
        left.retain(|job| job.is_terminated() != Some(true));
        let left: Vec<String> = left.into_iter().filter_map(|job| job.job_id).collect();
        let stops = left.into_iter().map(|id| async move { self.terminate(&id).await });
        stream::iter(stops).buffer_unordered(AT_A_TIME).try_collect().await
    }

    /// The reasons why workers of these jobs wait or have failed.
    async fn reasons(&self, jobs: &[JobDetail], all: Counts) -> Result<Vec<Reason>, EngineError> {
        let mut said = Vec::new();
        if all.waiting > 0 {
            let vcpus = jobs.iter().rev().find_map(jobs::vcpus).unwrap_or(1);
            let general = self.room().await?.why(all.running, vcpus);
            for job in jobs {
                said.extend(self.why_waiting(job, general.as_deref()).await?);
            }
        }
        for job in jobs.iter().filter(|job| jobs::counts(job).failed > 0) {
            match jobs::array(job) {
                None => said.push((Trouble::Failed, jobs::failure_of(job))),
                Some(id) => {
                    let failed = self.elements(id, JobStatus::Failed, PAGES).await?;
                    said.extend(failed.iter().map(|it| (Trouble::Failed, jobs::failure(it))));
                }
            }
        }
        Ok(reasons(said))
    }

    /// One reason for each waiting worker of a job.
    async fn why_waiting(
        &self,
        job: &JobDetail,
        general: Option<&str>,
    ) -> Result<Vec<(Trouble, String)>, EngineError> {
        let mut said = Vec::new();
        for (status, count) in jobs::waiting(job) {
            let mut own = Vec::new();
            if let Some(id) = jobs::array(job)
                && status == JobStatus::Runnable
            {
                // The jobs at the head of the queue have the reason that holds up all jobs.
                let page = self.elements(id, status.clone(), 1).await?;
                own.extend(page.into_iter().filter_map(|job| job.status_reason));
            }
            let usual = job.status_reason().filter(|reason| !reason.is_empty());
            let usual = match status {
                JobStatus::Starting => jobs::usual(&status),
                _ => usual.or(general).unwrap_or(jobs::usual(&status)),
            };
            own.truncate(count as usize);
            own.resize(count as usize, usual.to_owned());
            said.extend(own.into_iter().map(|reason| (Trouble::Waiting, reason)));
        }
        Ok(said)
    }
}

#[async_trait]
impl Engine for Batch {
    fn times(&self) -> Times {
        // Batch has a fixed stop time. A machine may take 20 minutes to start.
        Times { stop: Some(Duration::from_secs(30)), start: Duration::from_secs(25 * 60) }
    }

    async fn check(&self, spec: &Spec) -> Result<Option<Capacity>, EngineError> {
        let request = Request::new(&self.aws, spec)?;
        let room = self.room().await?;
        if let Some(trouble) = &room.trouble {
            let cure = "see `aws batch describe-job-queues` and `describe-compute-environments`";
            return Err(self.aws.unfit(trouble, cure));
        }
        let vcpus = match request.own_definition() {
            Some(name) => self.own_vcpus(name).await?,
            None => {
                let asked = request.platform()?;
                let platform = asked.or(room.platform).unwrap_or(Platform::Ec2);
                request.definition(platform)?;
                request.vcpus(platform)?
            }
        };
        Ok(room.vcpus.map(|all| Capacity {
            workers: all / vcpus,
            limit: format!(
                "the compute environments of queue {} have at most {all} vCPUs (maxvCpus), and a \
                 worker needs {vcpus}",
                self.queue
            ),
        }))
    }

    fn render(&self, spec: &Spec, workers: u32) -> Result<String, EngineError> {
        let request = Request::new(&self.aws, spec)?;
        let mut script = String::new();
        let definition = match request.own_definition() {
            Some(own) => own.to_owned(),
            None => {
                let platform = request.platform()?.unwrap_or(Platform::Fargate);
                let definition = request.definition(platform)?;
                script += &self.aws.command("batch register-job-definition", &definition);
                aws::name(&spec.fleet)
            }
        };
        for size in sizes(workers) {
            let job = request.job(&self.queue, &definition, size);
            script += &self.aws.command("batch submit-job", &job);
        }
        Ok(script)
    }

    async fn start(&self, spec: &Spec, workers: u32) -> Result<String, EngineError> {
        let request = Request::new(&self.aws, spec)?;
        let definition = self.definition(&request, spec).await?;
        let before = self.seen.lock().clone();
        let mut ours = BTreeMap::new();
        for size in sizes(workers) {
            let id = self.submit(&request.job(&self.queue, &definition, size)).await?;
            ours.insert(id, size);
        }
        let jobs = self.jobs(&spec.fleet).await?;
        let is_ours = |job: &JobDetail| job.job_id().is_some_and(|id| ours.contains_key(id));
        let is_known = |job: &JobDetail| job.job_id().is_some_and(|id| before.contains(id));
        let first = jobs.iter().position(is_ours).unwrap_or(0);
        // Jobs are sorted by creation time, so both launchers see the same order.
        let older =
            jobs[..first].iter().find(|job| !is_known(job) && jobs::counts(job).alive() > 0);
        if let Some(older) = older {
            for (id, size) in &ours {
                self.terminate_all(id, *size > 1).await?;
            }
            let id = older.job_id().unwrap_or_default();
            return Ok(format!("nothing: another launcher has just submitted job {id}"));
        }
        let shown: Vec<String> = ours
            .iter()
            .map(|(id, size)| match size {
                1 => format!("job {id}"),
                size => format!("array job {id} of {size}"),
            })
            .collect();
        let plural = if workers == 1 { "" } else { "s" };
        Ok(format!("{workers} worker{plural} ({})", shown.join(", ")))
    }

    async fn status(&self, fleet: &FleetName) -> Result<Option<Status>, EngineError> {
        let jobs = self.jobs(fleet).await?;
        *self.seen.lock() = jobs.iter().filter_map(|job| job.job_id.clone()).collect();
        let Some(newest) = jobs.last() else { return Ok(None) };
        let counts = jobs.iter().map(jobs::counts).fold(Counts::default(), jobs::sum);
        let is_alive = |job: &&JobDetail| jobs::counts(job).alive() > 0;
        let first = jobs.iter().find(is_alive).unwrap_or(newest);
        Ok(Some(Status {
            counts,
            reasons: self.reasons(&jobs, counts).await?,
            since: jobs::created(first),
            digest: newest
                .tags()
                .and_then(|tags| tags.get(aws::DIGEST))
                .cloned()
                .unwrap_or_default(),
            environment: jobs::environment(newest),
        }))
    }

    async fn fleets(&self) -> Result<BTreeSet<FleetName>, EngineError> {
        let jobs = self.named(&format!("{}*", aws::PREFIX)).await?;
        Ok(jobs.iter().filter_map(|job| aws::fleet(job.job_name()?)).collect())
    }

    async fn logs(
        &self,
        fleet: &FleetName,
        wanted: &Logs,
    ) -> Result<BoxStream<'static, Result<Line, EngineError>>, EngineError> {
        let jobs = self.jobs(fleet).await?;
        let ids = jobs.iter().flat_map(jobs::ids);
        let workers = (0..).zip(ids).map(|(number, id)| logs::Worker { number, id }).collect();
        let (aws, client) = (self.aws.clone(), self.client.clone());
        let find: logs::Find = Arc::new(move |id| {
            let (aws, client) = (aws.clone(), client.clone());
            Box::pin(async move {
                let answer = client.describe_jobs().jobs(&id).send().await;
                let answer = answer.map_err(|error| aws.failed("describing jobs", &error))?;
                let job = answer.jobs().first();
                Ok(job.map_or(logs::Found { place: None, has_ended: true }, jobs::found))
            })
        });
        Ok(logs::lines(&self.aws, workers, wanted, &find))
    }

    async fn stop(&self, fleet: &FleetName, which: Stop) -> Result<(), EngineError> {
        let jobs = self.jobs(fleet).await?;
        for job in &jobs {
            let (counts, id) = (jobs::counts(job), job.job_id().unwrap_or_default());
            match which {
                // Cancelling does not affect started jobs.
                Stop::Waiting if counts.waiting > 0 => self.cancel(id).await?,
                Stop::All if counts.alive() > 0 => {
                    self.terminate_all(id, jobs::array(job).is_some()).await?;
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The sizes of the arrays for this number of workers.
fn sizes(workers: u32) -> impl Iterator<Item = u32> {
    let starts = (0..workers).step_by(LONGEST_ARRAY as usize);
    starts.map(move |start| LONGEST_ARRAY.min(workers - start))
}
