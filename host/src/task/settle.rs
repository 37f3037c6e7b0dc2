//! Settles a task: sends its report, settles its message, and counts and logs its end.
//!
//! A message is deleted only after its result is stored elsewhere: outputs in the bucket, or a
//! report in a queue. If a queue does not take a report or a deletion, the host keeps the result,
//! renews the lease and repeats the request. Running the task again would cost more and might end
//! differently.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;

use super::Attempt;
use crate::activity::{End as Ended, Failed};
use crate::cause;
use crate::failure::Failure;
use crate::fault::{self, Step as Reached};
use crate::key::TaskName;
use crate::lease::{Lease, Settlement, Unsettled};
use crate::publish::Published;
use crate::queue::{Queue, QueueError, Release};
use crate::report::{self, DoneReport, ErrorReport, Took};
use crate::services::Services;
use crate::services::undeleted::End;
use crate::shortage;
use crate::stats::Step;
use crate::telemetry::Attempted;
use crate::verdict::{self, Verdict};

/// How long to wait for a message that another process has locked.
const LOCKED: Duration = Duration::from_millis(500);

impl Attempt {
    /// Sends the report that the verdict calls for, settles the message, and counts and logs the
    /// end of the attempt.
    pub(super) async fn settle(
        mut self,
        services: &Services,
        lease: Lease,
        end: &Result<Published, Failure>,
        verdict: Verdict,
    ) {
        if let Some(shown) = &self.shown {
            shown.settles();
        }
        self.store_log(services, &lease, &verdict).await;
        let reason = end.as_ref().err().map(ToString::to_string).unwrap_or_default();
        let verdict = match self.report(services, &lease, end, &verdict).await {
            Ok(()) => verdict,
            Err(instead) => instead,
        };
        fault::point(Reached::ReportSent);
        let attempt = lease.attempt();
        let settled = settle_as(services, lease, &verdict, &reason).await;
        self.steps.done(Step::Settle);
        services.stats.add_steps(&self.steps);
        let ended = ended(&verdict, &settled);
        let reason = Reason::of(reason, ended);
        self.count(services, attempt, ended, &reason);
        let is_known =
            matches!(end, Err(Failure::Outage(_) | Failure::NotYet { .. } | Failure::SlotsBusy));
        self.log(services, &verdict, settled, &reason, is_known);
    }

    /// Settles a message that was delivered again although its task has ended.
    pub(super) async fn settle_again(self, services: &Services, lease: Lease, end: End) {
        let (id, body) = (lease.message().id.clone(), lease.message().body.clone());
        let settlement = match &end {
            End::Published(published) => {
                if self.report_done(services, &lease, published).await.is_err() {
                    return;
                }
                services.undeleted.remember(&id, &body, End::Done);
                Settlement::Ack
            }
            End::Done => Settlement::Ack,
            End::Rejected => Settlement::Reject,
        };
        match settle(services, lease, &settlement).await {
            Ok(()) => {
                services.undeleted.forget(&id, &body);
                if !matches!(settlement, Settlement::Reject) {
                    services.stats.done.fetch_add(1, Relaxed);
                    services.activity.ends(self.name(), Ended::Done, &self.steps);
                }
                tracing::info!(
                    "the message was delivered again after its task had ended; it is deleted"
                );
            }
            Err(error) => tracing::debug!("{error}"),
        }
    }

    /// Sends the report that the verdict calls for.
    ///
    /// # Errors
    /// The verdict to follow instead, if the report could not be sent.
    async fn report(
        &self,
        services: &Services,
        lease: &Lease,
        end: &Result<Published, Failure>,
        verdict: &Verdict,
    ) -> Result<(), Verdict> {
        match (verdict, end) {
            (Verdict::Done, Ok(published)) => {
                let reported = self.report_done(services, lease, published).await;
                if reported.is_err() {
                    let (id, body) = (&lease.message().id, &lease.message().body);
                    services.undeleted.remember(id, body, End::Published(published.clone()));
                }
                reported
            }
            (Verdict::Reject, Err(failure)) => self.report_error(services, lease, failure).await,
            _ => Ok(()),
        }
    }

    /// Counts how the attempt ended. `reason` says why it failed.
    fn count(&self, services: &Services, attempt: u32, ended: Ended, reason: &Reason) {
        let stats = &services.stats;
        let counter = match ended {
            Ended::Done => &stats.done,
            Ended::Rejected => &stats.failed,
            Ended::Retried => &stats.retried,
            Ended::Returned => &stats.returned,
            Ended::Lost => &stats.lost,
        };
        counter.fetch_add(1, Relaxed);
        let is_known = services.activity.ends(self.name(), ended, &self.steps);
        if let Some(telemetry) = services.telemetry.get() {
            let (task, steps) = (self.task.as_deref(), &self.steps);
            let reason = &reason.text;
            telemetry.ended(&Attempted { task, is_known, attempt, end: ended, reason, steps });
        }
        if is_failure(ended) {
            let (task, Reason { text, cause }) = (self.task.as_deref(), reason);
            let is_given_up = ended == Ended::Rejected;
            services.activity.fails(&Failed { task, attempt, text, cause, is_given_up });
        }
    }

    fn name(&self) -> Option<&TaskName> {
        self.task.as_ref().map(|task| &task.name)
    }

    /// Logs how the attempt ended. If `is_known`, the reason was already logged for all tasks, or
    /// is not worth a line at level INFO.
    fn log(
        &self,
        services: &Services,
        verdict: &Verdict,
        settled: Result<(), QueueError>,
        reason: &Reason,
        is_known: bool,
    ) {
        let Reason { text: reason, cause } = reason;
        match (verdict, settled) {
            (_, Err(QueueError::LeaseLost { .. })) | (Verdict::Abandon, _) => {
                tracing::warn!("the lease was lost; another host may have leased the task");
            }
            (_, Err(error)) => {
                if shortage::is_locked(&error) {
                    tracing::warn!("{error}");
                } else {
                    services.outages.begins(&services.settling(), &error);
                }
                tracing::info!("the message is delivered again when its lease expires");
            }
            (Verdict::Done, Ok(())) => self.log_steps("done"),
            (Verdict::Reject, Ok(())) => {
                tracing::error!(cause, "rejected: {reason}");
                self.log_steps("the steps of the rejected task");
            }
            (Verdict::Retry { after }, Ok(())) => {
                let retry_seconds = after.as_secs_f64();
                let after = humantime::format_duration(rounded(*after));
                tracing::warn!(cause, retry_seconds, "failed, retry in {after}: {reason}");
                self.log_steps("the steps of the failed attempt");
            }
            (Verdict::Return { .. }, Ok(())) if is_known => tracing::debug!("released: {reason}"),
            (Verdict::Return { .. }, Ok(())) => tracing::info!("released: {reason}"),
        }
    }

    /// Logs how many seconds each step took.
    fn log_steps(&self, message: &str) {
        let seconds = |step: Step| self.steps.spent(step).as_secs_f64();
        tracing::debug!(
            decode = seconds(Step::Decode),
            fetch = seconds(Step::Fetch),
            resolve = seconds(Step::Resolve),
            wait = seconds(Step::Wait),
            instantiate = seconds(Step::Instantiate),
            run = seconds(Step::Run),
            publish = seconds(Step::Publish),
            settle = seconds(Step::Settle),
            cpu = self.cpu_time.map(|time| time.as_secs_f64()),
            memory_bytes = Some(self.memory).filter(|memory| *memory > 0),
            "{message}"
        );
    }

    fn took(&self) -> Took<'_> {
        Took { steps: &self.steps, cpu_time: self.cpu_time, memory: self.memory }
    }

    async fn report_done(
        &self,
        services: &Services,
        lease: &Lease,
        published: &Published,
    ) -> Result<(), Verdict> {
        let Some(queue) = &services.done_queue else { return Ok(()) };
        let report = DoneReport {
            message: &lease.message().body,
            outputs: &published.keys,
            attempt: lease.attempt(),
            component: self.component,
            took: self.took(),
        };
        match send(services, lease, queue, || report.versions(), Duty::MayBeRefused).await {
            // The task is done, even if the queue refuses its report.
            Err(Unsent::Refused(error)) => {
                tracing::error!("the task is done, but its report could not be sent: {error}");
                Ok(())
            }
            sent => sent.map_err(Unsent::verdict),
        }
    }

    async fn report_error(
        &self,
        services: &Services,
        lease: &Lease,
        failure: &Failure,
    ) -> Result<(), Verdict> {
        let trace = self.trace.as_ref().map(|trace| trace.show(None));
        let report = ErrorReport {
            message: &lease.message().body,
            exception: failure.to_string(),
            trace: trace.as_deref(),
            failed_call: self.failed_call.as_deref(),
            attempt: match failure {
                Failure::Deaths { deaths } => *deaths,
                Failure::Unaccounted { deliveries } => *deliveries,
                _ => lease.attempt(),
            },
            earlier: &lease.message().failures,
            phase: failure.phase(),
            component: self.component,
            log: Some(&self.log.text),
            took: self.took(),
        };
        send(services, lease, &services.error_queue, || report.versions(), Duty::MustArrive)
            .await
            .map_err(Unsent::verdict)
    }
}

/// Settles a message according to the verdict, and remembers a message that could not be deleted.
async fn settle_as(
    services: &Services,
    lease: Lease,
    verdict: &Verdict,
    reason: &str,
) -> Result<(), QueueError> {
    let (settlement, end) = match verdict {
        Verdict::Done => (Settlement::Ack, Some(End::Done)),
        Verdict::Reject => (Settlement::Reject, Some(End::Rejected)),
        // A failure before the guest started counts too, or the task would be retried forever.
        Verdict::Retry { after } => (Settlement::Release(*after, Release::Failed(reason)), None),
        Verdict::Return { after } => (Settlement::Release(*after, Release::Uncounted), None),
        Verdict::Abandon => {
            lease.disown().await;
            return Ok(());
        }
    };
    let (id, body) = (lease.message().id.clone(), lease.message().body.clone());
    let settled = settle(services, lease, &settlement).await;
    if let (Err(_), Some(end)) = (&settled, end) {
        services.undeleted.remember(&id, &body, end);
    }
    settled
}

/// Whether such an end counts as a failure of the task.
fn is_failure(ended: Ended) -> bool {
    matches!(ended, Ended::Rejected | Ended::Retried)
}

/// Why an attempt did not succeed.
struct Reason {
    text: String,
    /// The cause of the failure. Empty if the attempt did not fail.
    cause: String,
}

impl Reason {
    fn of(text: String, ended: Ended) -> Self {
        let cause = if is_failure(ended) { cause::fingerprint(&text) } else { String::new() };
        Self { text, cause }
    }
}

/// How an attempt ended.
fn ended(verdict: &Verdict, settled: &Result<(), QueueError>) -> Ended {
    match (verdict, settled) {
        (_, Err(QueueError::LeaseLost { .. })) | (Verdict::Abandon, _) => Ended::Lost,
        (_, Err(_)) | (Verdict::Return { .. }, Ok(())) => Ended::Returned,
        (Verdict::Done, Ok(())) => Ended::Done,
        (Verdict::Reject, Ok(())) => Ended::Rejected,
        (Verdict::Retry { .. }, Ok(())) => Ended::Retried,
    }
}

/// What a refused report means for its task.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Duty {
    /// The task ends without the report.
    MayBeRefused,
    /// The task can't end without the report: the refusal is an outage of the queue.
    MustArrive,
}

/// Why a report was not sent.
enum Unsent {
    /// The queue refused the shortest version of the report.
    Refused(QueueError),
    /// The lease was lost first.
    Lost,
    /// The host stopped first.
    Stopping,
}

impl Unsent {
    /// The verdict to follow because the report was not sent.
    fn verdict(self) -> Verdict {
        match self {
            Self::Lost => Verdict::Abandon,
            Self::Refused(_) | Self::Stopping => verdict::unsettled(),
        }
    }
}

/// Sends the first version of a report that the queue takes. If the queue takes none, repeats this
/// for as long as the lease lasts.
async fn send<V: Iterator<Item = Bytes> + Send>(
    services: &Services,
    lease: &Lease,
    queue: &Arc<dyn Queue>,
    versions: impl Fn() -> V,
    duty: Duty,
) -> Result<(), Unsent> {
    // After a suspension, another host may have the task by now.
    if lease.confirm().await.is_err() {
        return Err(Unsent::Lost);
    }
    loop {
        let error = match report::send(&**queue, versions()).await {
            Ok(()) => {
                services.outages.ends(queue);
                return sync_report(services, lease, queue).await;
            }
            Err(error @ QueueError::Invalid { .. }) if duty == Duty::MayBeRefused => {
                return Err(Unsent::Refused(error));
            }
            Err(error) => error,
        };
        let wait = services.outages.begins(queue, &error);
        wait_with(services, lease, wait).await?;
    }
}

async fn wait_with(services: &Services, lease: &Lease, wait: Duration) -> Result<(), Unsent> {
    match services.wait_with(lease, wait).await {
        true => Ok(()),
        false => Err(if lease.is_ours() { Unsent::Stopping } else { Unsent::Lost }),
    }
}

/// With `--durable`, syncs the disk of a directory queue after a report was sent to it.
async fn sync_report(
    services: &Services,
    lease: &Lease,
    queue: &Arc<dyn Queue>,
) -> Result<(), Unsent> {
    let Some(disk) = services.report_disks.get(&queue.to_string()) else { return Ok(()) };
    let name = format!("syncing reports of {queue}");
    while let Err(error) = disk.sync().await {
        let wait = services.outages.begins(&name, &format!("{name} failed: {error}"));
        wait_with(services, lease, wait).await?;
    }
    services.outages.ends(&name);
    Ok(())
}

/// Settles a lease. Repeats a settlement that failed for as long as the lease lasts.
async fn settle(
    services: &Services,
    mut lease: Lease,
    settlement: &Settlement<'_>,
) -> Result<(), QueueError> {
    loop {
        let Unsettled { error, lease: back } = match lease.settle(settlement).await {
            Ok(()) => {
                services.outages.ends(&services.settling());
                fault::point(match settlement {
                    Settlement::Ack | Settlement::Reject => Reached::Acknowledged,
                    Settlement::Release(..) => Reached::Released,
                });
                return Ok(());
            }
            Err(unsettled) => unsettled,
        };
        lease = match (back, settlement) {
            (Some(back), Settlement::Ack | Settlement::Reject) => back,
            // A stopping host does not retry: the message is delivered again when its lease
            // expires.
            (Some(back), Settlement::Release(..)) if !services.draining.is_cancelled() => back,
            _ => return Err(error),
        };
        // If another process has locked this message, the queue itself may still work.
        let wait = match shortage::is_locked(&error) {
            true => LOCKED,
            false => services.outages.begins(&services.settling(), &error),
        };
        if !services.wait_with(&lease, wait).await {
            return Err(error);
        }
    }
}

/// Rounds a time for people: to seconds, or to milliseconds if it is less than a second.
fn rounded(time: Duration) -> Duration {
    match time.as_secs() {
        0 => Duration::from_millis(u64::from(time.subsec_millis())),
        _ => Duration::from_secs(time.as_secs_f64().round() as u64),
    }
}
