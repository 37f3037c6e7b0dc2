//! The life of one task, from top to bottom. How it is settled is in `task/settle.rs`.

mod ended;
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
use crate::key::BucketKey;
use crate::lease::Lease;
use crate::message::{DecodeError, Task};
use crate::prefetch::PrefetchError;
use crate::publish::{self, PublishError, Published};
use crate::queue::{Message, QueueError};
use crate::sandbox::{Execution, Job, Log, Phase, RunError};
use crate::shortage;
use crate::stats::{Gauge, Step, Steps};
use crate::turns::Turns;
use crate::verdict::{self, Verdict};
use crate::words;
use crate::worker::Worker;
use crate::workspace::{Workspace, WorkspaceError};

pub(crate) use ended::Ended;

/// Why an attempt at a task did not end with its outputs in the bucket.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The message is no task.
    #[error("the message is not a task: {0}")]
    Decode(#[from] DecodeError),
    /// Too many of its executions did not end: their hosts were killed or lost.
    #[error(
        "{deaths} executions of the task did not end: each time the host was killed or lost; \
         the task may be the cause (memory?)"
    )]
    Deaths {
        /// Executions that were started and whose end was not recorded.
        deaths: u32,
    },
    /// The message was delivered too often without a word of how that ended.
    #[error(
        "the message was delivered {deliveries} times, and nobody told how that ended: each time \
         the host was killed or lost, or its lease ran out; the task may be the cause (memory?)"
    )]
    Unaccounted {
        /// Deliveries.
        deliveries: u32,
    },
    /// The inputs are not there.
    #[error(transparent)]
    Prefetch(#[from] PrefetchError),
    /// There are no directories for it.
    #[error(transparent)]
    Workspace(#[from] WorkspaceError),
    /// There is no component for it.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// Its component is not ready, and others can work meanwhile.
    #[error("{source}")]
    NotYet {
        /// What it waits for.
        source: CatalogError,
        /// When it may be.
        after: Duration,
    },
    /// The queue did not take note of its start.
    #[error("the start of the task could not be recorded: {0}")]
    Start(#[source] QueueError),
    /// The guest did not do it.
    #[error(transparent)]
    Run(#[from] RunError),
    /// Its outputs could not be published.
    #[error("publishing the outputs failed: {0}")]
    Publish(#[from] PublishError),
    /// The guest named an output that it did not leave.
    #[error("the guest listed the output {0:?}, and there is no such file in /outputs")]
    Missing(String),
    /// It failed because of a service that no task could work with now.
    #[error("{0}")]
    Outage(String),
    /// Its directories were removed before its outputs were published.
    #[error("the work directory was removed while the task used it")]
    Homeless,
    /// The host is stopping and the task had not begun.
    #[error("the host is stopping")]
    Draining,
    /// The lease is lost.
    #[error("the lease was lost")]
    LeaseLost,
}

/// Larger messages, in bytes, are decoded on a thread that may block.
const DECODED_INLINE: usize = 256 << 10;

/// Bytes that are kept of the name of an output that is not there.
const MAX_LISTED: usize = 300;

/// How long a task waits at least, and at most, for a bucket that does not take its outputs.
const LEAST_PATIENCE: Duration = Duration::from_secs(5);
const MOST_PATIENCE: Duration = Duration::from_secs(600);

/// What is known of an attempt while it is under way, for whoever has to report on it.
struct Attempt {
    steps: Steps,
    task: Option<Arc<Task>>,
    component: Option<Digest>,
    log: Log,
    /// A file call of the guest failed, perhaps because of the host's disk.
    io_failed: bool,
    /// The task's directories were removed while it used them.
    is_homeless: bool,
}

/// What a task needs to run.
struct Prepared<'w> {
    workspace: Workspace,
    component: Ready,
    /// Some until others may run.
    slots: Option<SemaphorePermit<'w>>,
    /// No other task runs or publishes meanwhile.
    alone: bool,
}

/// Takes a leased message to its end. The permit is given back as soon as the task needs no
/// place among those that wait and run any more.
pub async fn run(worker: Arc<Worker>, mut lease: Lease, permit: OwnedSemaphorePermit) {
    let _in_flight = Gauge::enter(&worker.stats.in_flight);
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
        let mut end = match worker.ended.recall(&lease.message().id, &lease.message().body) {
            // Its message came again because it could not be deleted.
            Some(ended) => return attempt.settle_again(&worker, lease, ended).await,
            None => attempt.make(&worker, &mut lease, permit).await,
        };
        if let Err(failure) = end {
            let (task, io_failed) = (attempt.task.as_deref(), attempt.io_failed);
            end = Err(match attempt.is_homeless {
                true => worker.find_home(failure),
                false => worker.diagnose(failure, task, since, io_failed).await,
            });
        }
        let verdict = match &end {
            Ok(_) => Verdict::Done,
            Err(failure) => verdict::judge(failure, lease.attempt(), &worker.policy),
        };
        attempt.settle(&worker, lease, &end, verdict).await;
    }
    .instrument(span)
    .await;
}

impl Attempt {
    /// From the message to published outputs.
    async fn make(
        &mut self,
        worker: &Worker,
        lease: &mut Lease,
        permit: OwnedSemaphorePermit,
    ) -> Result<Published, Failure> {
        let mut permit = Some(permit);
        let task = Arc::new(decode(lease.message()).await?);
        tracing::Span::current().record("id", task.id).record("task_name", task.name.as_str());
        self.task = Some(task.clone());
        self.steps.done(Step::Decode);
        let limits_deliveries = worker.queue().limits_deliveries();
        verdict::may_start(lease.message(), &worker.policy, limits_deliveries)?;
        let alone = verdict::is_suspect(lease.message());
        let is_trial = worker.outages.any();
        if worker.outages.is_out(&worker.renewing()) {
            // The first thing to try: without that nothing can be finished.
            lease.renew().await;
            if worker.outages.is_out(&worker.renewing()) {
                return Err(Failure::Outage("leases can't be renewed".to_owned()));
            }
        }

        // Nothing has begun that could not be begun elsewhere: a drain ends it at once, and so
        // does an outage, unless this task is to try whether that is over.
        let lost = lease.lost().clone();
        let mut prepared = tokio::select! {
            ready = self.get_ready(worker, &task, alone, &mut permit) => ready?,
            () = lost.cancelled() => return Err(Failure::LeaseLost),
            () = worker.draining.cancelled() => return Err(Failure::Draining),
            () = worker.outages.begun(), if !is_trial => {
                return Err(Failure::Outage(
                    "the host can't work at the moment; it releases what it has not begun"
                        .to_owned(),
                ));
            }
        };

        let ended = self.run_and_publish(worker, lease, &task, &mut prepared, permit).await;
        // Whatever it ended with: without its directories it can have left nothing.
        if prepared.workspace.was_removed(ended.is_err()) {
            self.is_homeless = true;
            return Err(ended.err().unwrap_or(Failure::Homeless));
        }
        prepared.workspace.recycle();
        ended
    }

    /// Everything under a recorded start.
    async fn run_and_publish(
        &mut self,
        worker: &Worker,
        lease: &mut Lease,
        task: &Arc<Task>,
        prepared: &mut Prepared<'_>,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Result<Published, Failure> {
        let lost = lease.lost().clone();
        let Prepared { workspace, component, slots, alone } = prepared;
        lease.start().await.map_err(Failure::Start)?;
        let execution = self.execute(worker, lease, task, workspace, component).await;
        if !*alone {
            // A task that may kill its host keeps others out until its outputs are published.
            *slots = None;
        }
        self.io_failed = execution.io_failed;
        self.log = execution.log;
        let listed = match execution.result {
            Err(RunError::Cancelled) if lost.is_cancelled() => return Err(Failure::LeaseLost),
            result => result?,
        };

        let _publishing = worker.publishing.acquire().await;
        drop(permit);
        check_listed(workspace, &listed).await?;
        lease.confirm().await.map_err(|_| Failure::LeaseLost)?;
        let published = tokio::select! {
            published = self.publish(worker, lease, task, workspace) => published?,
            () = lost.cancelled() => return Err(Failure::LeaseLost),
            () = worker.killed.cancelled() => return Err(RunError::Cancelled.into()),
        };
        worker.stats.bytes_out.fetch_add(published.bytes, Relaxed);
        self.steps.done(Step::Publish);
        Ok(published)
    }

    /// Puts the outputs into the bucket. A bucket that does not take them is waited for with the
    /// outputs in hand, for as long as the execution took: to run it again would take longer.
    async fn publish(
        &self,
        worker: &Worker,
        lease: &Lease,
        task: &Task,
        workspace: &Workspace,
    ) -> Result<Published, Failure> {
        let bucket = &*worker.bucket;
        let protected = worker.components.as_ref();
        let mut outputs = publish::Outputs::find(
            &workspace.outputs,
            &task.base_directory,
            protected,
            bucket,
            worker.publish_limits,
        )
        .await?;
        let patience = self.steps.spent(Step::Run).clamp(LEAST_PATIENCE, MOST_PATIENCE);
        let until = Instant::now() + patience;
        let may_put = || lease.is_ours();
        let mut since = Instant::now();
        while let Err(error) = outputs.put(&workspace.outputs, bucket, &may_put).await {
            let failure = worker.diagnose(error.into(), Some(task), since, false).await;
            let is_outage = matches!(failure, Failure::Outage(_));
            if !is_outage || !worker.wait_to_write(lease, until).await {
                return Err(failure);
            }
            since = Instant::now();
        }
        if worker.config().data.durable {
            publish::sync(bucket).await?;
        }
        let published = outputs.published();
        if let Some(key) = published.keys.last() {
            worker.was_put(key.clone());
        }
        Ok(published)
    }

    /// Everything that can be done before the guest runs: inputs, component, and a slot.
    async fn get_ready<'w>(
        &mut self,
        worker: &'w Worker,
        task: &Task,
        alone: bool,
        permit: &mut Option<OwnedSemaphorePermit>,
    ) -> Result<Prepared<'w>, Failure> {
        if let Some(error) = worker.catalog.is_slow(&task.name).await {
            return Err(failed_to_find(worker, error));
        }
        let workspace = worker.workspace()?;
        let (fetched, mut ahead) =
            worker.inputs.bring(&task.base_directory, &task.inputs, &workspace).await?;
        if let Some(input) = task.inputs.last() {
            worker.was_read(task.base_directory.join(input));
        }
        worker.stats.bytes_in.fetch_add(fetched.bytes, Relaxed);
        worker.stats.cache_hits.fetch_add(fetched.hits.into(), Relaxed);
        worker.stats.cache_misses.fetch_add(fetched.misses.into(), Relaxed);
        self.steps.done(Step::Fetch);

        let component = self
            .find_component(worker, task, || {
                ahead = None;
                *permit = None;
            })
            .await?;
        if permit.is_none() {
            *permit = Some(worker.readmit().await);
        }

        // The semaphore is never closed.
        let needed = if alone { worker.parallel() } else { 1 };
        let slots = worker.slots.acquire_many(needed).await.map_err(|_| Failure::Draining)?;
        if alone {
            // Those that ran before may still be publishing.
            let most = worker.most_publishing();
            drop(worker.publishing.acquire_many(most).await.map_err(|_| Failure::Draining)?);
        }
        self.steps.done(Step::Wait);
        Ok(Prepared { workspace, component, slots: Some(slots), alone })
    }

    /// The task's component. While one that takes long to compile is waited for, others have what
    /// `make_room` gives back.
    async fn find_component(
        &mut self,
        worker: &Worker,
        task: &Task,
        make_room: impl FnOnce(),
    ) -> Result<Ready, Failure> {
        let takes_long = Notify::new();
        let mut resolving = std::pin::pin!(worker.catalog.resolve(&task.name, &takes_long));
        let found = tokio::select! {
            biased;
            found = &mut resolving => found,
            () = takes_long.notified() => {
                make_room();
                resolving.await
            }
        };
        self.steps.done(Step::Resolve);
        let component = found.map_err(|error| failed_to_find(worker, error))?;
        self.component = Some(component.digest);
        worker.was_resolved(worker.catalog.key(&task.name));
        Ok(component)
    }

    async fn execute(
        &mut self,
        worker: &Worker,
        lease: &Lease,
        task: &Arc<Task>,
        workspace: &Workspace,
        component: &Ready,
    ) -> Execution {
        let _running = Gauge::enter(&worker.stats.running);
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
                let mut running = std::pin::pin!(worker.sandbox.run(job));
                tokio::select! {
                    execution = &mut running => execution,
                    () = worker.killed.cancelled() => {
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

/// Decodes a message, a large one on a thread that may block.
async fn decode(message: &Message) -> Result<Task, DecodeError> {
    if message.body.len() <= DECODED_INLINE {
        return message.task();
    }
    let message = message.clone();
    bucket::blocking(move || message.task()).await
}

fn failed_to_find(worker: &Worker, error: CatalogError) -> Failure {
    match error {
        CatalogError::NotYet { since, .. } => {
            let limits_deliveries = worker.queue().limits_deliveries();
            let after = verdict::until_compiled(since, limits_deliveries);
            Failure::NotYet { source: error, after }
        }
        error => error.into(),
    }
}

/// Checks that what a guest says it left is there.
///
/// # Errors
/// Names the first that is not.
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

impl Failure {
    /// The guest's call during which it happened.
    fn phase(&self) -> Option<Phase> {
        match self {
            Self::Run(error) => error.phase(),
            _ => None,
        }
    }
}
