//! The life of one task, from top to bottom.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tracing::Instrument;

use crate::catalog::{CatalogError, Ready};
use crate::digest::Digest;
use crate::key::BucketKey;
use crate::lease::{Lease, Settlement};
use crate::message::{self, DecodeError, Task};
use crate::prefetch::PrefetchError;
use crate::publish::{self, PublishError, Published};
use crate::queue::{Queue, QueueError, Release};
use crate::report::{self, DoneReport, ErrorReport};
use crate::sandbox::{Execution, Job, Log, Phase, RunError};
use crate::stats::{Gauge, Step, Steps};
use crate::verdict::{self, Verdict};
use crate::worker::Worker;
use crate::workspace::{Workspace, WorkspaceError};

/// Why an attempt at a task did not end with its outputs in the bucket.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The message is no task.
    #[error("the message is not a task: {0}")]
    Decode(#[from] DecodeError),
    /// It was started as often as it may be, and none of the executions came to an end that
    /// was judged: their hosts were killed, perhaps by the task.
    #[error(
        "the task was started {started} times, and its hosts did not live to see its end; \
         it may be what kills them"
    )]
    UsedUp {
        /// Executions that count.
        started: u32,
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
    /// The host is stopping and the task had not begun.
    #[error("the host is stopping")]
    Draining,
    /// The lease is lost.
    #[error("the lease was lost")]
    LeaseLost,
}

/// What is known of an attempt while it is under way, for whoever has to report on it.
struct Attempt {
    steps: Steps,
    task: Option<Arc<Task>>,
    component: Option<Digest>,
    log: Log,
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
        let mut attempt =
            Attempt { steps: Steps::start(), task: None, component: None, log: Log::default() };
        let mut end = attempt.make(&worker, &mut lease, permit).await;
        if let Err(failure) = &end
            && failure.is_of_a_bucket()
            && worker.is_bucket_out().await
        {
            end = Err(Failure::Outage(failure.to_string()));
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
        let task = Arc::new(message::decode(&lease.message().body)?);
        tracing::Span::current().record("id", task.id).record("task_name", task.name.as_str());
        self.task = Some(task.clone());
        self.steps.done(Step::Decode);
        let started = lease.message().attempts;
        if !verdict::may_start(started, &worker.policy) {
            return Err(Failure::UsedUp { started });
        }

        // Nothing has begun that could not be begun elsewhere: a drain ends it at once.
        let lost = lease.lost().clone();
        let (workspace, component, slot) = tokio::select! {
            ready = self.get_ready(worker, &task) => ready?,
            () = lost.cancelled() => return Err(Failure::LeaseLost),
            () = worker.draining.cancelled() => return Err(Failure::Draining),
        };

        lease.start().await.map_err(Failure::Start)?;
        let execution = self.execute(worker, lease, &task, &workspace, &component).await;
        drop(slot);
        self.log = execution.log;
        let listed = match execution.result {
            Err(RunError::Cancelled) if lost.is_cancelled() => return Err(Failure::LeaseLost),
            result => result?,
        };

        let _publishing = worker.publishing.acquire().await;
        drop(permit);
        check_listed(&workspace, &listed)?;
        lease.confirm().await.map_err(|_| Failure::LeaseLost)?;
        let published = tokio::select! {
            published = publish::outputs(
                &workspace.outputs,
                &task.base_directory,
                worker.components.as_ref(),
                &*worker.bucket,
                worker.publish_limits,
            ) => published?,
            () = lost.cancelled() => return Err(Failure::LeaseLost),
            () = worker.killed.cancelled() => return Err(RunError::Cancelled.into()),
        };
        worker.stats.bytes_out.fetch_add(published.bytes, Relaxed);
        workspace.recycle();
        self.steps.done(Step::Publish);
        Ok(published)
    }

    /// Everything that can be done before the guest runs: inputs, component, and a slot.
    async fn get_ready<'w>(
        &mut self,
        worker: &'w Worker,
        task: &Task,
    ) -> Result<(Workspace, Ready, tokio::sync::SemaphorePermit<'w>), Failure> {
        let workspace = worker.workspaces.acquire()?;
        let (fetched, _ahead) =
            worker.inputs.bring(&task.base_directory, &task.inputs, &workspace).await?;
        worker.stats.bytes_in.fetch_add(fetched.bytes, Relaxed);
        worker.stats.cache_hits.fetch_add(fetched.hits.into(), Relaxed);
        worker.stats.cache_misses.fetch_add(fetched.misses.into(), Relaxed);
        self.steps.done(Step::Fetch);

        let component = worker.catalog.resolve(&task.name).await?;
        self.component = Some(component.digest);
        self.steps.done(Step::Resolve);

        // The semaphore is never closed.
        let slot = worker.slots.acquire().await.map_err(|_| Failure::Draining)?;
        self.steps.done(Step::Wait);
        Ok((workspace, component, slot))
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
            Err(error) => Execution::not_begun(format!("its directories: {error}")),
        };
        self.steps.done(Step::Run);
        self.steps.move_from(Step::Run, Step::Instantiate, execution.instantiate);
        execution
    }

    /// Tells the queues what became of it. A message is deleted only after what is to be
    /// known of it is somewhere else.
    async fn settle(
        mut self,
        worker: &Worker,
        mut lease: Lease,
        end: &Result<Published, Failure>,
        verdict: Verdict,
    ) {
        let stats = &worker.stats;
        let reason = end.as_ref().err().map(ToString::to_string).unwrap_or_default();
        for line in self.log.text.lines() {
            tracing::debug!(target: "guest", "{line}");
        }
        let reported = match (&verdict, end) {
            (Verdict::Done, Ok(published)) => self.report_done(worker, &lease, published).await,
            (Verdict::Reject, Err(failure)) => self.report_error(worker, &lease, failure).await,
            _ => Ok(()),
        };
        let verdict = match reported {
            Ok(()) => verdict,
            Err((_, error @ QueueError::Invalid { .. })) => {
                tracing::error!("the task is kept in its queue: its report was refused: {error}");
                verdict::unreported()
            }
            Err((queue, error)) => {
                worker.outages.begins(&queue, &error);
                tracing::info!("the task is kept in its queue: its report was not taken");
                verdict::unreported()
            }
        };
        let settled = match &verdict {
            Verdict::Done | Verdict::Reject => lease.settle(Settlement::Ack).await,
            Verdict::Retry { after, counts: true } => {
                // What failed before the guest ran counts as well, or it would go on for ever.
                let recorded = if lease.started() { Ok(()) } else { lease.start().await };
                match recorded {
                    Ok(()) => {
                        lease.settle(Settlement::Release(*after, Release::Failed(&reason))).await
                    }
                    Err(error) => Err(error),
                }
            }
            Verdict::Retry { after, counts: false } => {
                lease.settle(Settlement::Release(*after, Release::Uncounted)).await
            }
            Verdict::Abandon => Ok(()),
        };
        self.steps.done(Step::Settle);
        stats.add_steps(&self.steps);
        if settled.is_ok() && verdict != Verdict::Abandon {
            worker.outages.ends(&worker.settling());
        }

        match (&verdict, settled) {
            (_, Err(QueueError::LeaseLost { .. })) | (Verdict::Abandon, _) => {
                stats.lost.fetch_add(1, Relaxed);
                tracing::warn!("the lease was lost; the task is left to whoever has it now");
            }
            (_, Err(error)) => {
                stats.returned.fetch_add(1, Relaxed);
                worker.outages.begins(&worker.settling(), &error);
                tracing::info!("the message comes back when its lease runs out");
            }
            (Verdict::Done, Ok(())) => {
                stats.done.fetch_add(1, Relaxed);
                tracing::debug!(steps = %self.steps, "done");
            }
            (Verdict::Reject, Ok(())) => {
                stats.failed.fetch_add(1, Relaxed);
                tracing::error!(steps = %self.steps, "given up: {reason}");
            }
            (Verdict::Retry { after, counts: true }, Ok(())) => {
                stats.retried.fetch_add(1, Relaxed);
                let after = humantime::format_duration(Duration::from_millis(
                    u64::try_from(after.as_millis()).unwrap_or(u64::MAX),
                ));
                tracing::warn!(steps = %self.steps, "failed, again in {after}: {reason}");
            }
            (Verdict::Retry { counts: false, .. }, Ok(())) => {
                stats.returned.fetch_add(1, Relaxed);
                tracing::info!("given back: {reason}");
            }
        }
    }

    async fn report_done(
        &self,
        worker: &Worker,
        lease: &Lease,
        published: &Published,
    ) -> Result<(), Untaken> {
        let Some(queue) = &worker.done_queue else { return Ok(()) };
        let report = DoneReport {
            message: &lease.message().body,
            outputs: &published.keys,
            attempt: lease.attempt(),
            component: self.component,
            elapsed: self.steps.elapsed(),
        };
        match report::send(&**queue, report.versions()).await {
            // The outputs are in the bucket: running the task again would not shorten its report.
            Err(error @ QueueError::Invalid { .. }) => {
                tracing::error!("the task is done, and there is no report of it: {error}");
                Ok(())
            }
            sent => sent.map_err(|error| (queue.clone(), error)),
        }
    }

    async fn report_error(
        &self,
        worker: &Worker,
        lease: &Lease,
        failure: &Failure,
    ) -> Result<(), Untaken> {
        let report = ErrorReport {
            message: &lease.message().body,
            exception: failure.to_string(),
            attempt: match failure {
                Failure::UsedUp { started } => *started,
                _ => lease.attempt(),
            },
            earlier: &lease.message().failures,
            phase: failure.phase(),
            component: self.component,
            log: Some(&self.log.text),
            elapsed: self.steps.elapsed(),
        };
        let queue = &worker.error_queue;
        let sent = report::send(&**queue, report.versions()).await;
        sent.map_err(|error| (queue.clone(), error))
    }
}

/// A queue that did not take a report, and why.
type Untaken = (Arc<dyn Queue>, QueueError);

/// Checks that what a guest says it left is there.
pub fn check_listed(workspace: &Workspace, listed: &[String]) -> Result<(), Failure> {
    for path in listed {
        let there = BucketKey::new(path)
            .is_ok_and(|key| workspace.outputs.symlink_metadata(key.as_path()).is_ok());
        if !there {
            return Err(Failure::Missing(path.clone()));
        }
    }
    Ok(())
}

impl Failure {
    /// True for what a bucket that can't be reached leads to, though not for that alone.
    fn is_of_a_bucket(&self) -> bool {
        matches!(
            self,
            Self::Prefetch(PrefetchError::Unavailable { .. })
                | Self::Catalog(CatalogError::Unavailable { .. })
                | Self::Publish(PublishError::Unavailable { .. })
        )
    }

    /// The guest's call during which it happened.
    fn phase(&self) -> Option<Phase> {
        match self {
            Self::Run(error) => error.phase(),
            _ => None,
        }
    }
}
