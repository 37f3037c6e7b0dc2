//! How a task's end becomes known: a report where one is due, then the message.
//!
//! A message is deleted only after what is known of its task is somewhere else. A queue that
//! does not take a report or a deletion is waited for here, with the result in hand and the
//! lease renewed: running the task again would cost more, and might end otherwise.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;

use super::ended::End;
use super::{Attempt, Failure};
use crate::lease::{Lease, Settlement, Unsettled};
use crate::publish::Published;
use crate::queue::{Queue, QueueError, Release};
use crate::report::{self, DoneReport, ErrorReport};
use crate::shortage;
use crate::stats::Step;
use crate::verdict::{self, Verdict};
use crate::worker::Worker;

/// How long to wait for a message that another process has locked.
const LOCKED: Duration = Duration::from_millis(500);

impl Attempt {
    /// Tells the queues what became of the task.
    pub(super) async fn settle(
        mut self,
        worker: &Worker,
        lease: Lease,
        end: &Result<Published, Failure>,
        verdict: Verdict,
    ) {
        for line in self.log.text.lines() {
            tracing::debug!(target: "guest", "{line}");
        }
        let reason = end.as_ref().err().map(ToString::to_string).unwrap_or_default();
        let reported = match (&verdict, end) {
            (Verdict::Done, Ok(published)) => self.report_done(worker, &lease, published).await,
            (Verdict::Reject, Err(failure)) => self.report_error(worker, &lease, failure).await,
            _ => Ok(()),
        };
        let verdict = match reported {
            Ok(()) => verdict,
            Err(instead) => {
                if let Ok(published) = end {
                    let end = End::Published(published.clone());
                    worker.ended.remember(&lease.message().id, &lease.message().body, end);
                }
                instead
            }
        };
        let (id, body) = (lease.message().id.clone(), lease.message().body.clone());
        let settled = match &verdict {
            Verdict::Done => settle(worker, lease, &Settlement::Ack).await,
            Verdict::Reject => settle(worker, lease, &Settlement::GiveUp).await,
            Verdict::Retry { after, counts: true } => {
                // What failed before the guest ran counts as well, or it would go on for ever.
                let why = Release::Failed(&reason);
                settle(worker, lease, &Settlement::Release(*after, why)).await
            }
            Verdict::Retry { after, counts: false } => {
                settle(worker, lease, &Settlement::Release(*after, Release::Uncounted)).await
            }
            Verdict::Abandon => {
                lease.disown().await;
                Ok(())
            }
        };
        match (&verdict, &settled) {
            (Verdict::Done, Err(_)) => worker.ended.remember(&id, &body, End::Done),
            (Verdict::Reject, Err(_)) => worker.ended.remember(&id, &body, End::GivenUp),
            _ => {}
        }
        self.steps.done(Step::Settle);
        let is_told = matches!(end, Err(Failure::Outage(_) | Failure::NotYet { .. }));
        self.account(worker, &verdict, settled, &reason, is_told);
    }

    /// Settles a message that came again although its task has ended.
    pub(super) async fn settle_again(self, worker: &Worker, lease: Lease, end: End) {
        let (id, body) = (lease.message().id.clone(), lease.message().body.clone());
        let settlement = match &end {
            End::Published(published) => {
                if self.report_done(worker, &lease, published).await.is_err() {
                    return;
                }
                worker.ended.remember(&id, &body, End::Done);
                Settlement::Ack
            }
            End::Done => Settlement::Ack,
            End::GivenUp => Settlement::GiveUp,
        };
        match settle(worker, lease, &settlement).await {
            Ok(()) => {
                worker.ended.forget(&id, &body);
                if !matches!(settlement, Settlement::GiveUp) {
                    worker.stats.done.fetch_add(1, Relaxed);
                }
                tracing::info!("the message came again after its task had ended; it is deleted");
            }
            Err(error) => tracing::debug!("{error}"),
        }
    }

    /// Counts and logs how the attempt ended.
    fn account(
        &self,
        worker: &Worker,
        verdict: &Verdict,
        settled: Result<(), QueueError>,
        reason: &str,
        is_told: bool,
    ) {
        let (stats, steps) = (&worker.stats, &self.steps);
        stats.add_steps(steps);
        match (verdict, settled) {
            (_, Err(QueueError::LeaseLost { .. })) | (Verdict::Abandon, _) => {
                stats.lost.fetch_add(1, Relaxed);
                tracing::warn!("the lease was lost; the task is left to whoever has it now");
            }
            (_, Err(error)) => {
                stats.returned.fetch_add(1, Relaxed);
                if shortage::is_locked(&error) {
                    tracing::warn!("{error}");
                } else {
                    worker.outages.begins(&worker.settling(), &error);
                }
                tracing::info!("the message comes back when its lease runs out");
            }
            (Verdict::Done, Ok(())) => {
                stats.done.fetch_add(1, Relaxed);
                tracing::debug!(%steps, "done");
            }
            (Verdict::Reject, Ok(())) => {
                stats.failed.fetch_add(1, Relaxed);
                tracing::error!(%steps, "given up: {reason}");
            }
            (Verdict::Retry { after, counts: true }, Ok(())) => {
                stats.retried.fetch_add(1, Relaxed);
                let after = humantime::format_duration(Duration::from_millis(
                    u64::try_from(after.as_millis()).unwrap_or(u64::MAX),
                ));
                tracing::warn!(%steps, "failed, again in {after}: {reason}");
            }
            (Verdict::Retry { counts: false, .. }, Ok(())) => {
                stats.returned.fetch_add(1, Relaxed);
                // An outage is logged when it begins, a slow component when it is compiled, and not
                // once for each task.
                match is_told {
                    true => tracing::debug!("released: {reason}"),
                    false => tracing::info!("released: {reason}"),
                }
            }
        }
    }

    async fn report_done(
        &self,
        worker: &Worker,
        lease: &Lease,
        published: &Published,
    ) -> Result<(), Verdict> {
        let Some(queue) = &worker.done_queue else { return Ok(()) };
        let report = DoneReport {
            message: &lease.message().body,
            outputs: &published.keys,
            attempt: lease.attempt(),
            component: self.component,
            elapsed: self.steps.worked(),
        };
        match send(worker, lease, queue, || report.versions(), Duty::MayBeRefused).await {
            // Whatever the queue has against it: the task is finished, and stays finished.
            Err(Unsent::Refused(error)) => {
                tracing::error!("the task is done, and there is no report of it: {error}");
                Ok(())
            }
            sent => sent.map_err(Unsent::verdict),
        }
    }

    async fn report_error(
        &self,
        worker: &Worker,
        lease: &Lease,
        failure: &Failure,
    ) -> Result<(), Verdict> {
        let report = ErrorReport {
            message: &lease.message().body,
            exception: failure.to_string(),
            attempt: match failure {
                Failure::Deaths { deaths } => *deaths,
                Failure::Unaccounted { deliveries } => *deliveries,
                _ => lease.attempt(),
            },
            earlier: &lease.message().failures,
            phase: failure.phase(),
            component: self.component,
            log: Some(&self.log.text),
            elapsed: self.steps.worked(),
        };
        send(worker, lease, &worker.error_queue, || report.versions(), Duty::MustArrive)
            .await
            .map_err(Unsent::verdict)
    }
}

/// What happens to a report that the queue refuses.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Duty {
    /// The task ends without it.
    MayBeRefused,
    /// The task can't end without it: the refusal is a failure of the queue.
    MustArrive,
}

/// Why a report is not in its queue.
enum Unsent {
    /// The queue refused its shortest version.
    Refused(QueueError),
    /// The lease was lost before the queue took it.
    Lost,
    /// The host stops before the queue took it.
    Stopping,
}

impl Unsent {
    /// What is done with the message instead.
    fn verdict(self) -> Verdict {
        match self {
            Self::Lost => Verdict::Abandon,
            Self::Refused(_) | Self::Stopping => verdict::unsettled(),
        }
    }
}

/// Sends the first of a report's versions that the queue takes, and waits for a queue that
/// takes none, as long as the lease lasts.
async fn send<V: Iterator<Item = Bytes> + Send>(
    worker: &Worker,
    lease: &Lease,
    queue: &Arc<dyn Queue>,
    versions: impl Fn() -> V,
    duty: Duty,
) -> Result<(), Unsent> {
    // A host that was stopped for a while must not report on a task that another one has.
    if lease.confirm().await.is_err() {
        return Err(Unsent::Lost);
    }
    loop {
        let error = match report::send(&**queue, versions()).await {
            Ok(()) => {
                worker.outages.ends(queue);
                return sync_report(worker, lease, queue).await;
            }
            Err(error @ QueueError::Invalid { .. }) if duty == Duty::MayBeRefused => {
                return Err(Unsent::Refused(error));
            }
            Err(error) => error,
        };
        let wait = worker.outages.begins(queue, &error);
        wait_with(worker, lease, wait).await?;
    }
}

async fn wait_with(worker: &Worker, lease: &Lease, wait: Duration) -> Result<(), Unsent> {
    match worker.wait_with(lease, wait).await {
        true => Ok(()),
        false => Err(if lease.is_ours() { Unsent::Stopping } else { Unsent::Lost }),
    }
}

/// Waits until a report is on the disk, where outputs have to be there as well.
async fn sync_report(worker: &Worker, lease: &Lease, queue: &Arc<dyn Queue>) -> Result<(), Unsent> {
    let Some(disk) = worker.report_disks.get(&queue.to_string()) else { return Ok(()) };
    let name = format!("syncing reports of {queue}");
    while let Err(error) = disk.sync().await {
        let wait = worker.outages.begins(&name, &format!("{name} failed: {error}"));
        wait_with(worker, lease, wait).await?;
    }
    worker.outages.ends(&name);
    Ok(())
}

/// Ends a lease. What fails is tried again for as long as the lease lasts.
async fn settle(
    worker: &Worker,
    mut lease: Lease,
    settlement: &Settlement<'_>,
) -> Result<(), QueueError> {
    loop {
        let Unsettled { error, lease: back } = match lease.settle(settlement).await {
            Ok(()) => {
                worker.outages.ends(&worker.settling());
                return Ok(());
            }
            Err(unsettled) => unsettled,
        };
        lease = match (back, settlement) {
            (Some(back), Settlement::Ack | Settlement::GiveUp) => back,
            // A host that stops leaves it to the end of the lease.
            (Some(back), Settlement::Release(..)) if !worker.draining.is_cancelled() => back,
            _ => return Err(error),
        };
        // Another process has this one message: that says nothing of the others.
        let wait = match shortage::is_locked(&error) {
            true => LOCKED,
            false => worker.outages.begins(&worker.settling(), &error),
        };
        if !worker.wait_with(&lease, wait).await {
            return Err(error);
        }
    }
}
