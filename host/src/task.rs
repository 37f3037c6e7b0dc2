//! The life of one task, from top to bottom. `task/settle.rs` settles it.

mod settle;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, SemaphorePermit};
use tokio::time::Instant;
use tracing::Instrument;

use crate::bucket;
use crate::catalog::{CatalogError, Ready};
use crate::digest::Digest;
use crate::failure::Failure;
use crate::key::BucketKey;
use crate::lease::Lease;
use crate::message::{DecodeError, Task};
use crate::publish::{self, Published};
use crate::queue::Message;
use crate::sandbox::{Execution, Job, Log, RunError};
use crate::services::Services;
use crate::shortage;
use crate::stats::{Gauge, Step, Steps};
use crate::turns::Turns;
use crate::verdict::{self, Verdict};
use crate::words;
use crate::workspace::Workspace;

/// Messages of more bytes are decoded on a thread that may block.
const DECODED_INLINE: usize = 256 << 10;

/// Bytes that an error quotes of the name of a missing output.
const MAX_LISTED: usize = 300;

/// How long a task waits for a bucket that does not take its outputs: at least and at most.
const MIN_PATIENCE: Duration = Duration::from_secs(5);
const MAX_PATIENCE: Duration = Duration::from_secs(600);

/// What an attempt has found out so far, for its report.
struct Attempt {
    steps: Steps,
    task: Option<Arc<Task>>,
    component: Option<Digest>,
    log: Log,
    /// One of the guest's file calls failed, perhaps because of the host's disk.
    io_failed: bool,
    /// The task's directories were removed during the attempt.
    is_homeless: bool,
}

/// What a task needs to run, ready.
struct Prepared<'w> {
    workspace: Workspace,
    component: Ready,
    /// Held until other tasks may run.
    slots: Option<SemaphorePermit<'w>>,
    /// Whether no other task may run or publish meanwhile.
    alone: bool,
}

/// Runs the task of a leased message and settles the message. `permit` is dropped as soon as the
/// task neither waits nor runs.
pub async fn run(services: &Services, mut lease: Lease, permit: OwnedSemaphorePermit) {
    let _in_flight = Gauge::enter(&services.stats.in_flight);
    let span = tracing::info_span!(
        "task",
        message_id = lease.message().id,
        attempt = lease.attempt(),
        id = tracing::field::Empty,
        task_name = tracing::field::Empty,
    );
    async {
        let since = Instant::now();
        let mut attempt = Attempt {
            steps: Steps::start(),
            task: None,
            component: None,
            log: Log::default(),
            io_failed: false,
            is_homeless: false,
        };
        let mut end = match services.undeleted.recall(&lease.message().id, &lease.message().body) {
            // The message came again because it could not be deleted.
            Some(ended) => return attempt.settle_again(services, lease, ended).await,
            None => attempt.make(services, &mut lease, permit).await,
        };
        if let Err(failure) = end {
            let (task, io_failed) = (attempt.task.as_deref(), attempt.io_failed);
            end = Err(match attempt.is_homeless {
                true => services.find_home(failure),
                false => services.diagnose(failure, task, since, io_failed).await,
            });
        }
        let verdict = match &end {
            Ok(_) => Verdict::Done,
            Err(failure) => verdict::judge(failure, lease.attempt(), &services.policy),
        };
        attempt.settle(services, lease, &end, verdict).await;
    }
    .instrument(span)
    .await;
}

impl Attempt {
    /// From the message to published outputs.
    async fn make(
        &mut self,
        services: &Services,
        lease: &mut Lease,
        permit: OwnedSemaphorePermit,
    ) -> Result<Published, Failure> {
        let mut permit = Some(permit);
        let task = Arc::new(decode(lease.message()).await?);
        tracing::Span::current().record("id", task.id).record("task_name", task.name.as_str());
        self.task = Some(task.clone());
        self.steps.done(Step::Decode);
        let limits_deliveries = services.queue.limits_deliveries();
        verdict::may_start(lease.message(), &services.policy, limits_deliveries)?;
        let alone = verdict::is_suspect(lease.message());
        let is_trial = services.outages.any();
        if services.outages.is_out(&services.renewing()) {
            // Without renewals no task can finish, so try that first.
            lease.renew().await;
            if services.outages.is_out(&services.renewing()) {
                return Err(Failure::Outage("leases can't be renewed".to_owned()));
            }
        }

        // The guest has not started, so the task can go to another host: a drain ends the attempt
        // at once. So does an outage, unless this task tries whether the outage is over.
        let lost = lease.lost().clone();
        let mut prepared = tokio::select! {
            ready = self.get_ready(services, &task, alone, &mut permit) => ready?,
            () = lost.cancelled() => return Err(Failure::LeaseLost),
            () = services.draining.cancelled() => return Err(Failure::Draining),
            () = services.outages.begun(), if !is_trial => {
                return Err(Failure::Outage(
                    "the host can't work now and releases tasks that have not started"
                        .to_owned(),
                ));
            }
        };

        let ended = self.run_and_publish(services, lease, &task, &mut prepared, permit).await;
        // Without its directories the task can have left no outputs, whatever its result.
        if prepared.workspace.was_removed(ended.is_err()) {
            self.is_homeless = true;
            return Err(ended.err().unwrap_or(Failure::Homeless));
        }
        prepared.workspace.recycle();
        ended
    }

    /// Everything after the recorded start.
    async fn run_and_publish(
        &mut self,
        services: &Services,
        lease: &mut Lease,
        task: &Arc<Task>,
        prepared: &mut Prepared<'_>,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Result<Published, Failure> {
        let lost = lease.lost().clone();
        let Prepared { workspace, component, slots, alone } = prepared;
        lease.start().await.map_err(Failure::Start)?;
        let execution = self.execute(services, lease, task, workspace, component).await;
        if !*alone {
            // A task that may kill its host runs alone until its outputs are published.
            *slots = None;
        }
        self.io_failed = execution.io_failed;
        self.log = execution.log;
        let listed = match execution.result {
            Err(RunError::Cancelled) if lost.is_cancelled() => return Err(Failure::LeaseLost),
            result => result?,
        };

        let _publishing = services.publishing.acquire().await;
        drop(permit);
        check_listed(workspace, &listed).await?;
        lease.confirm().await.map_err(|_| Failure::LeaseLost)?;
        let published = tokio::select! {
            published = self.publish(services, lease, task, workspace) => published?,
            () = lost.cancelled() => return Err(Failure::LeaseLost),
            () = services.killed.cancelled() => return Err(RunError::Cancelled.into()),
        };
        services.stats.bytes_out.fetch_add(published.bytes, Relaxed);
        self.steps.done(Step::Publish);
        Ok(published)
    }

    /// Writes the outputs to the bucket. Waits for a bucket that does not take them for as long as
    /// the execution took, because running the task again would take longer.
    async fn publish(
        &self,
        services: &Services,
        lease: &Lease,
        task: &Task,
        workspace: &Workspace,
    ) -> Result<Published, Failure> {
        let bucket = &*services.bucket;
        let protected = services.components.as_ref();
        let mut outputs = publish::Outputs::find(
            &workspace.outputs,
            &task.base_directory,
            protected,
            bucket,
            services.publish_limits,
        )
        .await?;
        let patience = self.steps.spent(Step::Run).clamp(MIN_PATIENCE, MAX_PATIENCE);
        let until = Instant::now() + patience;
        let may_put = || lease.is_ours();
        let mut since = Instant::now();
        while let Err(error) = outputs.put(&workspace.outputs, bucket, &may_put).await {
            let failure = services.diagnose(error.into(), Some(task), since, false).await;
            let is_outage = matches!(failure, Failure::Outage(_));
            if !is_outage || !services.wait_to_write(lease, until).await {
                return Err(failure);
            }
            since = Instant::now();
        }
        if services.config.data.durable {
            publish::sync(bucket).await?;
        }
        let published = outputs.published();
        if let Some(key) = published.keys.last() {
            services.was_put(key.clone());
        }
        Ok(published)
    }

    /// Everything that comes before the guest: inputs, component, slot.
    async fn get_ready<'w>(
        &mut self,
        services: &'w Services,
        task: &Task,
        alone: bool,
        permit: &mut Option<OwnedSemaphorePermit>,
    ) -> Result<Prepared<'w>, Failure> {
        if let Some(error) = services.catalog.is_slow(&task.name).await {
            return Err(not_found(services, error));
        }
        let workspace = services.workspace()?;
        let (fetched, mut ahead) =
            services.inputs.bring(&task.base_directory, &task.inputs, &workspace).await?;
        if let Some(input) = task.inputs.last() {
            services.was_read(task.base_directory.join(input));
        }
        services.stats.bytes_in.fetch_add(fetched.bytes, Relaxed);
        services.stats.cache_hits.fetch_add(fetched.hits.into(), Relaxed);
        services.stats.cache_misses.fetch_add(fetched.misses.into(), Relaxed);
        self.steps.done(Step::Fetch);

        let admitted = permit.as_ref().map(|permit| permit.semaphore().clone());
        let component = self
            .find_component(services, task, || {
                ahead = None;
                *permit = None;
            })
            .await?;
        if let (None, Some(admitted)) = (&permit, admitted) {
            *permit = Some(admitted.acquire_owned().await.map_err(|_| Failure::Draining)?);
        }

        // The semaphore is never closed.
        let needed = if alone { services.parallel() } else { 1 };
        let slots = services.slots.acquire_many(needed).await.map_err(|_| Failure::Draining)?;
        if alone {
            // Tasks that ran before may still be publishing.
            let most = services.max_publishing();
            drop(services.publishing.acquire_many(most).await.map_err(|_| Failure::Draining)?);
        }
        self.steps.done(Step::Wait);
        Ok(Prepared { workspace, component, slots: Some(slots), alone })
    }

    /// The task's component. `make_room` is called if it takes long to compile, and returns what
    /// other tasks can use meanwhile.
    async fn find_component(
        &mut self,
        services: &Services,
        task: &Task,
        make_room: impl FnOnce(),
    ) -> Result<Ready, Failure> {
        let takes_long = Notify::new();
        let mut resolving = std::pin::pin!(services.catalog.resolve(&task.name, &takes_long));
        let found = tokio::select! {
            biased;
            found = &mut resolving => found,
            () = takes_long.notified() => {
                make_room();
                resolving.await
            }
        };
        self.steps.done(Step::Resolve);
        let component = found.map_err(|error| not_found(services, error))?;
        self.component = Some(component.digest);
        services.was_resolved(services.catalog.key(&task.name));
        Ok(component)
    }

    async fn execute(
        &mut self,
        services: &Services,
        lease: &Lease,
        task: &Arc<Task>,
        workspace: &Workspace,
        component: &Ready,
    ) -> Execution {
        let _running = Gauge::enter(&services.stats.running);
        let cancelled = lease.lost().child_token();
        let job = workspace.directories().map(|directories| Job {
            guest: component.guest.clone(),
            task: task.clone(),
            attempt: lease.attempt(),
            directories,
            cancelled: cancelled.clone(),
            tee: None,
        });
        let execution = match job {
            Ok(job) => {
                let mut running = std::pin::pin!(services.sandbox.run(job));
                tokio::select! {
                    execution = &mut running => execution,
                    () = services.killed.cancelled() => {
                        cancelled.cancel();
                        running.await
                    }
                }
            }
            Err(error) => Execution::not_begun(match shortage::errno(&error) {
                Some(errno) => RunError::Shortage { errno, written: 0 },
                None => RunError::Host(format!("opening its directories: {error}")),
            }),
        };
        self.steps.done(Step::Run);
        self.steps.move_from(Step::Run, Step::Instantiate, execution.instantiate);
        execution
    }
}

/// Decodes a message; a large one on a thread that may block.
async fn decode(message: &Message) -> Result<Task, DecodeError> {
    if message.body.len() <= DECODED_INLINE {
        return message.task();
    }
    let message = message.clone();
    bucket::blocking(move || message.task()).await
}

fn not_found(services: &Services, error: CatalogError) -> Failure {
    match error {
        CatalogError::NotYet { since, .. } => {
            let limits_deliveries = services.queue.limits_deliveries();
            let after = verdict::until_compiled(since, limits_deliveries);
            Failure::NotYet { source: error, after }
        }
        error => error.into(),
    }
}

/// Checks that every output that the guest listed exists.
///
/// # Errors
/// Names the first that does not.
pub async fn check_listed(workspace: &Workspace, listed: &[String]) -> Result<(), Failure> {
    let mut turns = Turns::begin();
    for path in listed {
        turns.pass().await;
        let there = BucketKey::new(path)
            .is_ok_and(|key| workspace.outputs.symlink_metadata(key.as_path()).is_ok());
        if !there {
            return Err(Failure::Missing(words::cut(path, MAX_LISTED).into_owned()));
        }
    }
    Ok(())
}
