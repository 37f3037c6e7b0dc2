//! `pubsub://projects/P/topics/T/subscriptions/S`: a Google Pub/Sub queue.
//!
//! A lease is an acknowledgement deadline of at most 600 seconds, which the host extends in time.
//! Pub/Sub can neither count messages nor change one. A message whose task failed is therefore
//! published again with its attempts as attributes (`envelope.rs`), and the old copy is
//! acknowledged. Executions whose host died are not recorded. If the subscription has a dead-letter
//! policy, Pub/Sub counts deliveries. Then every released message is published again, so that only
//! deliveries with an unknown outcome count.
//!
//! `leases.rs` stores the leases that this host holds, and `pull.rs` receives messages.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use gcloud_gax::grpc::{Code, Status};
use gcloud_googleapis::pubsub::v1::{AcknowledgeRequest, ModifyAckDeadlineRequest};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::client::{ANSWER, Client, RequestKind, routed};
use self::envelope::Envelope;
use self::leases::{PubSubLease, PubSubLeases};
use super::address::PubSub;
use super::copies::Copies;
use super::denial::Denial;
use super::{Access, Counts, Message, Queue, QueueError, Receipt, Release, Requests};
use crate::fault::{self, Step};

pub use admin::Admin;

mod admin;
mod client;
mod envelope;
#[doc(hidden)]
pub mod foreign;
mod leases;
mod pull;
mod send;
mod setup;
mod status;

#[cfg(test)]
mod tests;

/// The maximum acknowledgement deadline.
const MAX_LEASE: Duration = Duration::from_secs(600);
/// The maximum number of acknowledgement ids in one request. A request may have 512 KiB, and an id
/// has about 200 bytes.
const IDS: usize = 1000;
/// How long closing waits for messages that still arrive and must be released.
const CLOSING: Duration = Duration::from_secs(10);

/// A Pub/Sub queue.
pub struct PubSubQueue {
    shared: Arc<Shared>,
}

/// The state that the queue shares with its requests.
struct Shared {
    client: Client,
    /// `projects/P/topics/T`
    topic: String,
    /// `projects/P/subscriptions/S`; `None` for a queue that is only used to send.
    subscription: Option<String>,
    /// The ordering key of sent messages.
    group: Option<String>,
    leases: PubSubLeases,
    /// Pulls, and releases of messages that no caller took. They always run to completion.
    under_way: TaskTracker,
    /// Cancelled when the queue closes.
    closing: CancellationToken,
    /// Whether the service counts deliveries, for a dead-letter policy.
    is_counted: AtomicBool,
    copies: Copies,
    /// Set if this process is not allowed to publish to the topic, so that messages cannot be sent
    /// again.
    resend_denied: Denial,
}

impl PubSubQueue {
    /// Opens the queue. Creates its topic and subscription with [`Access::create`].
    pub async fn open(at: &PubSub, access: &Access) -> Result<Self, QueueError> {
        Self::with(Client::connect(at, access).await?, at, access).await
    }

    async fn with(client: Client, at: &PubSub, access: &Access) -> Result<Self, QueueError> {
        setup::check(&client, at, access.create).await?;
        let shared = Shared {
            client,
            topic: setup::topic(at),
            subscription: setup::subscription(at),
            group: access.group.clone(),
            leases: PubSubLeases::default(),
            under_way: TaskTracker::new(),
            closing: CancellationToken::new(),
            is_counted: AtomicBool::new(false),
            copies: Copies::default(),
            resend_denied: Denial::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }
}

#[async_trait]
impl Queue for PubSubQueue {
    async fn lease(
        &self,
        max: usize,
        duration: Duration,
        wait: Duration,
    ) -> Result<Vec<Message>, QueueError> {
        self.shared.subscription()?;
        if max == 0 {
            return Ok(Vec::new());
        }
        let found = pull::lease(&self.shared, max, duration.min(MAX_LEASE), wait).await?;
        Ok(found.take())
    }

    async fn start(&self, receipt: &Receipt) -> Result<(), QueueError> {
        // Pub/Sub cannot record a start.
        self.shared.lease_of(receipt).map(drop)
    }

    async fn extend(&self, receipt: &Receipt, duration: Duration) -> Result<Receipt, QueueError> {
        let shared = &*self.shared;
        let held = shared.lease_of(receipt)?;
        let duration = duration.min(MAX_LEASE);
        let until = Instant::now() + duration;
        let changed = shared.set_deadline(vec![held.ack_id.clone()], duration).await;
        changed.map_err(|status| {
            shared.failed(receipt, "extending the lease of a message", &status)
        })?;
        Ok(shared.leases.replace(receipt, PubSubLease { until, ..held }))
    }

    async fn ack(&self, receipt: &Receipt) -> Result<(), QueueError> {
        let shared = &*self.shared;
        let held = shared.lease_of(receipt)?;
        let done = shared.acknowledge(vec![held.ack_id.clone()]).await;
        done.map_err(|status| shared.failed(receipt, "acknowledging a message", &status))?;
        shared.copies.forget(&held.envelope.copy);
        shared.leases.end(receipt);
        Ok(())
    }

    async fn release(
        &self,
        receipt: &Receipt,
        after: Duration,
        why: Release<'_>,
    ) -> Result<(), QueueError> {
        let shared = &*self.shared;
        let held = shared.lease_of(receipt)?;
        let envelope = &held.envelope;
        if shared.copies.is_replaced(&envelope.copy) {
            return self.ack(receipt).await;
        }
        let reason = match why {
            Release::Failed(reason) => Some(reason),
            Release::Uncounted => None,
        };
        if shared.wants_copy(envelope, reason) {
            match shared.publish(vec![envelope.again(after, reason)]).await {
                Ok(()) => {
                    shared.resend_denied.clear();
                    // If the acknowledgement fails, there are two copies. In the reverse order,
                    // there could be none.
                    shared.copies.replaced(&envelope.copy);
                    return self.ack(receipt).await;
                }
                Err(status) if status.code() == Code::PermissionDenied => {
                    if shared.resend_denied.record() {
                        let error = shared.client.error("sending a task again", &status);
                        tracing::warn!(
                            "{error}; attempts are counted only by the host that ran them"
                        );
                    }
                }
                Err(status) => match shared.client.error("sending a task again", &status) {
                    error @ QueueError::Invalid { .. } => tracing::warn!(
                        message = envelope.id,
                        "{error}; the attempts of this task are counted only by this host"
                    ),
                    error if reason.is_some() => return Err(error),
                    error => tracing::debug!("{error}"),
                },
            }
        }
        // The message is delivered again when its lease ends.
        let ack_id = held.ack_id.clone();
        let changed = shared.set_deadline(vec![ack_id], after.min(MAX_LEASE)).await;
        changed.map_err(|status| shared.failed(receipt, "releasing a message", &status))?;
        if let Some(reason) = reason {
            shared.copies.failed(&envelope.copy, reason);
        }
        shared.leases.end(receipt);
        Ok(())
    }

    async fn send(&self, bodies: &[Bytes]) -> Vec<Result<(), QueueError>> {
        self.shared.send(bodies).await
    }

    async fn counts(&self) -> Result<Counts, QueueError> {
        // Only Cloud Monitoring counts messages, with a delay of minutes. But the caller learns
        // whether the queue exists. The service is not asked each time, because a project's quota
        // for such requests is small.
        if !self.shared.client.is_well() {
            setup::find_topic(&self.shared.client, &self.shared.topic).await?;
        }
        Ok(Counts::default())
    }

    fn batch(&self) -> usize {
        10
    }

    fn max_lease(&self) -> Duration {
        MAX_LEASE
    }

    fn until(&self, receipt: &Receipt) -> Option<Instant> {
        self.shared.leases.get(receipt).map(|held| held.until)
    }

    fn limits_deliveries(&self) -> bool {
        self.shared.is_counted.load(Relaxed)
    }

    fn charges_for_holding(&self) -> bool {
        self.limits_deliveries() && self.shared.resend_denied.is_recent()
    }

    async fn close(&self) {
        let shared = &*self.shared;
        shared.closing.cancel();
        shared.under_way.close();
        if tokio::time::timeout(CLOSING, shared.under_way.wait()).await.is_err() {
            tracing::warn!(
                "{self} did not answer in time; its last messages come back when their leases \
                 expire"
            );
        }
    }

    fn requests(&self) -> Option<Requests> {
        Some(self.shared.client.requests())
    }
}

impl Shared {
    fn subscription(&self) -> Result<&str, QueueError> {
        self.subscription.as_deref().ok_or_else(|| {
            self.client.invalid(
                "contains no subscription, so messages can only be sent to it; add \
                 /subscriptions/SUBSCRIPTION to lease messages",
            )
        })
    }

    fn lease_of(&self, receipt: &Receipt) -> Result<PubSubLease, QueueError> {
        self.leases.get(receipt).ok_or_else(|| self.lost(receipt))
    }

    fn lost(&self, receipt: &Receipt) -> QueueError {
        QueueError::LeaseLost {
            queue: self.client.queue.clone(),
            id: leases::id(receipt).to_owned(),
        }
    }

    /// Whether a released message is replaced by a copy, either to record a failure or so that the
    /// delivery does not count. An ordered message is replaced only to record a failure, because a
    /// copy loses its place in the order.
    fn wants_copy(&self, envelope: &Envelope, reason: Option<&str>) -> bool {
        let is_told = reason.is_some() || (envelope.is_counted && !envelope.is_ordered());
        is_told && !self.resend_denied.is_recent()
    }

    /// Acknowledges replaced messages that could not be acknowledged before.
    async fn end_replaced(&self, replaced: Vec<(String, Envelope)>) {
        if replaced.is_empty() {
            return;
        }
        let ids = replaced.iter().map(|(ack_id, _)| ack_id.clone()).collect();
        match self.acknowledge(ids).await {
            Ok(()) => replaced.iter().for_each(|(_, e)| self.copies.forget(&e.copy)),
            Err(status) => {
                tracing::debug!("{}", self.client.error("acknowledging a replaced copy", &status));
            }
        }
    }

    /// Reports a publish time in the future to the clock: it shows that this machine's clock is
    /// slow.
    fn look_at_clock(&self, envelope: &Envelope) {
        let now = SystemTime::now();
        if let Some(published) = envelope.published.filter(|published| *published > now) {
            self.client.clock.saw(&self.client.queue, published, now);
        }
    }

    /// The error of a failed request under a lease. Removes the lease if the service reports that
    /// it has expired.
    fn failed(&self, receipt: &Receipt, doing: &str, status: &Status) -> QueueError {
        if status::lost(status).is_empty() {
            return self.client.error(doing, status);
        }
        self.leases.end(receipt);
        self.lost(receipt)
    }

    /// Sets the end of leases to `duration` from now, rounded up to whole seconds. Zero releases
    /// the messages.
    async fn set_deadline(&self, ack_ids: Vec<String>, duration: Duration) -> Result<(), Status> {
        let seconds = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
        let subscription = self.subscription.as_deref().unwrap_or_default();
        let request = ModifyAckDeadlineRequest {
            subscription: subscription.to_owned(),
            ack_ids,
            ack_deadline_seconds: i32::try_from(seconds).unwrap_or(i32::MAX),
        };
        let modify = || async {
            fault::shortage(Step::PubSubModify).map_err(status::starved)?;
            let request = routed("subscription", subscription, request.clone());
            self.client.subscriber().modify_ack_deadline(request).await
        };
        self.client.tried(RequestKind::Extend, ANSWER, modify).await?;
        fault::point(Step::PubSubModified);
        Ok(())
    }

    async fn acknowledge(&self, ack_ids: Vec<String>) -> Result<(), Status> {
        let subscription = self.subscription.as_deref().unwrap_or_default();
        let request = AcknowledgeRequest { subscription: subscription.to_owned(), ack_ids };
        let acknowledge = || async {
            fault::shortage(Step::PubSubAcknowledge).map_err(status::starved)?;
            let request = routed("subscription", subscription, request.clone());
            self.client.subscriber().acknowledge(request).await
        };
        self.client.tried(RequestKind::Delete, ANSWER, acknowledge).await?;
        fault::point(Step::PubSubAcknowledged);
        Ok(())
    }

    /// Releases messages that no caller took. If that fails, they are delivered again when their
    /// leases expire.
    async fn give_back(&self, ack_ids: Vec<String>) {
        for ids in ack_ids.chunks(IDS) {
            if let Err(error) = self.set_deadline(ids.to_vec(), Duration::ZERO).await {
                let error = self.client.error("releasing messages", &error);
                tracing::warn!("{error}; the messages come back when their leases expire");
            }
        }
    }
}

impl fmt::Display for PubSubQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shared.client.queue)
    }
}

impl fmt::Debug for PubSubQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PubSubQueue({self})")
    }
}
