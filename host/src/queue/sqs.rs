//! SQS queues: `sqs://NAME`, a queue URL, or an ARN.
//!
//! ```text
//! client.rs     region, endpoint, credentials; counts requests
//! opening.rs    finds or creates the queue
//! settings.rs   the queue's settings
//! sending.rs    sends messages
//! receive.rs    leases messages
//! polls.rs      receive requests that outlive their callers
//! pace.rs       when a receive request asks for ten messages
//! leases.rs     receipts, and when leases end
//! settling.rs   extends leases; deletes and releases messages
//! attempts.rs   how attempts are counted
//! large_bodies.rs  bodies that are too large for SQS
//! batch.rs      puts ten operations into one request
//! requests.rs   the requests
//! failure.rs    the meaning of the service's errors
//! admin.rs      inspects and repairs a queue
//! ```
//! Limits of SQS: it sometimes delivers a message twice. It counts receives, but cannot record that
//! an execution starts. A message of a FIFO queue cannot be sent again, so only the host that ran a
//! task knows how many of its executions failed. Counts are approximate. A host can hold a message
//! for at most 12 hours.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_sqs::types::QueueAttributeName as Name;
use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use self::batch::{Batcher, MAX_ENTRIES};
use self::client::Tally;
use self::failure::Failure;
use self::large_bodies::LargeBodies;
use self::leases::{SqsLease, SqsLeases};
use self::pace::Pace;
use self::polls::Polls;
use self::requests::{Changes, Deletes, Sends, Service};
use self::settings::Settings;
use super::copies::Copies;
use super::denial::Denial;
use super::{Access, Counts, Message, Queue, QueueError, Receipt, Release, Requests};

pub use admin::Admin;
pub use large_bodies::check_body_bucket;

mod admin;
mod attempts;
mod batch;
mod client;
mod failure;
#[doc(hidden)]
pub mod foreign;
mod large_bodies;
mod leases;
mod opening;
mod pace;
mod polls;
mod receive;
mod requests;
mod sending;
mod settings;
mod settling;

#[cfg(test)]
pub(crate) mod tests;

/// How long an urgent operation waits for other operations to share its request.
const SHORT_LINGER: Duration = Duration::from_millis(20);
/// The maximum time that SQS lets a message be held after its receive, including all extensions.
const MAX_LEASE: Duration = Duration::from_secs(12 * 3600);

/// An SQS queue.
pub struct SqsQueue {
    inner: Arc<Inner>,
    _watch: DropGuard,
}

struct Inner {
    /// The address as the user wrote it.
    name: String,
    service: Service,
    settings: Settings,
    requests: Arc<Tally>,
    group: Option<String>,
    large_bodies: Option<LargeBodies>,
    polls: Arc<Polls>,
    leases: SqsLeases,
    pace: Pace,
    deletes: Batcher<Deletes>,
    changes: Batcher<Changes>,
    sends: Batcher<Sends>,
    /// Operations with several steps that must complete.
    work: TaskTracker,
    copies: Copies,
    /// Set if this process is not allowed to send to the queue, so that messages cannot be sent
    /// again.
    resend_denied: Denial,
    max_lease: Duration,
    said_full: receive::SaidFull,
}

impl Inner {
    fn new(
        name: String,
        service: Service,
        settings: Settings,
        requests: Arc<Tally>,
        access: &Access,
        large_bodies: Option<LargeBodies>,
    ) -> Self {
        let sends = Sends { service: service.clone(), limit: settings.limit };
        Self {
            name,
            requests,
            group: access.group.clone(),
            large_bodies,
            polls: Arc::default(),
            leases: SqsLeases::new(),
            pace: Pace::default(),
            deletes: Batcher::new(Deletes(service.clone())),
            changes: Batcher::new(Changes(service.clone())),
            sends: Batcher::new(sends),
            work: TaskTracker::new(),
            copies: Copies::default(),
            resend_denied: Denial::default(),
            max_lease: MAX_LEASE,
            said_full: receive::SaidFull::default(),
            service,
            settings,
        }
    }

    fn row(&self, receipt: &Receipt) -> Result<SqsLease, QueueError> {
        self.leases.get(receipt).ok_or_else(|| self.lost(leases::id(receipt)))
    }

    fn lost(&self, id: &str) -> QueueError {
        Failure::Lost.of_message(&self.name, "", id)
    }

    fn invalid(&self, problem: String) -> QueueError {
        QueueError::Invalid { queue: self.name.clone(), problem }
    }

    fn charges_for_holding(&self) -> bool {
        self.settings.redrive.is_some() && !self.remembers()
    }

    async fn close(&self) {
        self.polls.given_up(false).await;
        let kept = self.polls.take(usize::MAX);
        self.give_back_fresh(kept).await;
        // Operations may wait for a batch to fill.
        let flush = async {
            loop {
                tokio::join!(self.deletes.flush(), self.changes.flush(), self.sends.flush());
                tokio::time::sleep(SHORT_LINGER).await;
            }
        };
        self.work.close();
        tokio::select! {
            () = self.work.wait() => {}
            () = flush => {}
        }
        self.work.reopen();
        tokio::join!(self.deletes.flush(), self.changes.flush(), self.sends.flush());
    }

    async fn counts(&self) -> Result<Counts, QueueError> {
        let names = [
            Name::ApproximateNumberOfMessages,
            Name::ApproximateNumberOfMessagesNotVisible,
            Name::ApproximateNumberOfMessagesDelayed,
        ];
        let found = self.service.attributes(&names).await;
        let found = found.map_err(|failure| {
            failure.needing("sqs:GetQueueAttributes").of_queue(&self.name, "counting the messages")
        })?;
        let [visible, leased, delayed] =
            names.map(|name| found.get(&name).and_then(|text| text.parse::<u64>().ok()));
        let sum = |a: Option<u64>, b: Option<u64>| Some(a? + b?);
        let leased = sum(leased, delayed);
        Ok(Counts { enqueued: sum(visible, leased), leased, ..Counts::default() })
    }
}

#[async_trait]
impl Queue for SqsQueue {
    async fn lease(
        &self,
        max: usize,
        duration: Duration,
        wait: Duration,
    ) -> Result<Vec<Message>, QueueError> {
        self.inner.lease(max, duration, wait).await
    }

    /// Only checks the lease. SQS cannot record a start: see `attempts.rs`.
    async fn start(&self, receipt: &Receipt) -> Result<(), QueueError> {
        self.inner.row(receipt).map(drop)
    }

    async fn extend(&self, receipt: &Receipt, duration: Duration) -> Result<Receipt, QueueError> {
        self.inner.extend(receipt, duration).await
    }

    async fn ack(&self, receipt: &Receipt) -> Result<(), QueueError> {
        let row = self.inner.row(receipt)?;
        let inner = self.inner.clone();
        let result = self.see_through(async move { inner.delete(row).await }).await;
        self.settled(receipt, result, "deleting")
    }

    async fn release(
        &self,
        receipt: &Receipt,
        after: Duration,
        why: Release<'_>,
    ) -> Result<(), QueueError> {
        let row = self.inner.row(receipt)?;
        let inner = self.inner.clone();
        let reason = match why {
            Release::Failed(reason) => Some(reason.to_owned()),
            Release::Uncounted => None,
        };
        let result = self
            .see_through(async move { inner.give_back(row, after, reason.as_deref()).await })
            .await;
        self.settled(receipt, result, "releasing")
    }

    async fn send(&self, bodies: &[Bytes]) -> Vec<Result<(), QueueError>> {
        self.inner.send(bodies).await
    }

    async fn counts(&self) -> Result<Counts, QueueError> {
        self.inner.counts().await
    }

    fn batch(&self) -> usize {
        MAX_ENTRIES
    }

    fn until(&self, receipt: &Receipt) -> Option<Instant> {
        self.inner.leases.get(receipt).map(|row| row.until)
    }

    fn limits_deliveries(&self) -> bool {
        self.inner.settings.redrive.is_some()
    }

    fn charges_for_holding(&self) -> bool {
        self.inner.charges_for_holding()
    }

    async fn close(&self) {
        self.inner.close().await;
    }

    fn requests(&self) -> Option<Requests> {
        Some(self.inner.requests.requests())
    }
}

impl SqsQueue {
    /// Must be called within a runtime.
    fn of(inner: Inner) -> Self {
        let inner = Arc::new(inner);
        let stop = CancellationToken::new();
        let watch = receive::watch_kept(inner.polls.clone(), Arc::downgrade(&inner), stop.clone());
        tokio::spawn(watch);
        Self { inner, _watch: stop.drop_guard() }
    }

    /// Completes an operation with several steps even if its caller is dropped.
    async fn see_through(
        &self,
        work: impl Future<Output = Result<(), Failure>> + Send + 'static,
    ) -> Result<(), Failure> {
        let ended = self.inner.work.spawn(work).await;
        ended.unwrap_or_else(|error| Err(Failure::Unavailable(error.to_string())))
    }

    /// Removes the lease if its message is settled or lost.
    fn settled(
        &self,
        receipt: &Receipt,
        result: Result<(), Failure>,
        doing: &str,
    ) -> Result<(), QueueError> {
        if matches!(result, Ok(()) | Err(Failure::Lost)) {
            self.inner.leases.remove(receipt);
            self.inner.send_last_deletes();
        }
        let id = leases::id(receipt);
        result.map_err(|failure| failure.of_message(&self.inner.name, doing, id))
    }
}

impl fmt::Display for SqsQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.inner.name)
    }
}

impl fmt::Debug for SqsQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SqsQueue").field(&self.inner.name).finish()
    }
}
