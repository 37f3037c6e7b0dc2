//! `pubsub://projects/P/topics/T/subscriptions/S`: a queue of Google Pub/Sub.
//!
//! A lease is an acknowledgement deadline, which ends after 600 seconds at the latest and is
//! made longer in time. The service can't count messages, and can't write on one what
//! happened to it: a task that failed goes back as a copy that says so (`envelope.rs`), and
//! an execution that ended with its host is not known. Where the subscription has a dead
//! letter policy the service counts deliveries; so that it counts only those of which nobody
//! told the end, what is given back goes as a copy there in any case.
//!
//! Who holds what, until when, is kept in `leases.rs`; how messages come in is in `pull.rs`.

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

pub use admin::Admin;

mod admin;
mod client;
mod envelope;
mod leases;
mod pull;
mod send;
mod setup;
mod status;

#[cfg(test)]
mod tests;

/// The longest acknowledgement deadline.
const LONGEST_HOLD: Duration = Duration::from_secs(600);
/// How many acknowledgement ids are put into one request; of 512 KiB at the most, where an
/// id takes some 200 bytes.
const IDS: usize = 1000;
/// How long closing waits for what comes in and has to be given back.
const CLOSING: Duration = Duration::from_secs(10);

/// A queue of Pub/Sub.
pub struct PubSubQueue {
    shared: Arc<Shared>,
}

/// What the requests under way share with the queue.
struct Shared {
    client: Client,
    /// `projects/P/topics/T`
    topic: String,
    /// `projects/P/subscriptions/S`; None for a queue that is only sent to.
    subscription: Option<String>,
    /// The ordering key of what is sent.
    group: Option<String>,
    leases: PubSubLeases,
    /// Pulls, and what they bring for nobody: each is seen to its end.
    under_way: TaskTracker,
    /// Cancelled when no message is wanted any more.
    closing: CancellationToken,
    /// The service counts deliveries, for a dead letter policy.
    is_counted: AtomicBool,
    copies: Copies,
    /// Messages can't be sent again: we are not allowed to publish to the topic.
    resend_denied: Denial,
}

impl PubSubQueue {
    /// Opens the queue; makes its topic and its subscription, if they are missing and
    /// `access` says so.
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
        hold: Duration,
        wait: Duration,
    ) -> Result<Vec<Message>, QueueError> {
        self.shared.subscription()?;
        if max == 0 {
            return Ok(Vec::new());
        }
        let found = pull::lease(&self.shared, max, hold.min(LONGEST_HOLD), wait).await?;
        Ok(found.take())
    }

    async fn start(&self, receipt: &Receipt) -> Result<(), QueueError> {
        // There is nowhere to write it.
        self.shared.lease_of(receipt).map(drop)
    }

    async fn extend(&self, receipt: &Receipt, hold: Duration) -> Result<Receipt, QueueError> {
        let shared = &*self.shared;
        let held = shared.lease_of(receipt)?;
        let hold = hold.min(LONGEST_HOLD);
        let until = Instant::now() + hold;
        let changed = shared.set_deadline(vec![held.ack_id.clone()], hold).await;
        changed.map_err(|status| shared.failed(receipt, "extending a lease", &status))?;
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
                    // If the next step fails there are two, which is better than none.
                    shared.copies.replaced(&envelope.copy);
                    return self.ack(receipt).await;
                }
                Err(status) if status.code() == Code::PermissionDenied => {
                    if shared.resend_denied.record() {
                        let error = shared.client.error("sending a task again", &status);
                        tracing::warn!(
                            "{error}: how often a task failed is known only to the host that ran it"
                        );
                    }
                }
                Err(status) => match shared.client.error("sending a task again", &status) {
                    error @ QueueError::Invalid { .. } => tracing::warn!(
                        message = envelope.id,
                        "{error}: how often this task failed is known only to this host"
                    ),
                    error if reason.is_some() => return Err(error),
                    error => tracing::debug!("{error}"),
                },
            }
        }
        // The lease ends by itself when the message is to come back.
        let ack_id = held.ack_id.clone();
        let changed = shared.set_deadline(vec![ack_id], after.min(LONGEST_HOLD)).await;
        changed.map_err(|status| shared.failed(receipt, "giving back a message", &status))?;
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
        // Only Cloud Monitoring counts, and minutes later. But who asks learns whether the
        // queue is there. Not each time: such requests are limited for all of a project.
        if !self.shared.client.is_well() {
            setup::find_topic(&self.shared.client, &self.shared.topic).await?;
        }
        Ok(Counts::default())
    }

    fn batch(&self) -> usize {
        10
    }

    fn longest_hold(&self) -> Duration {
        LONGEST_HOLD
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
            tracing::warn!("{self} did not answer in time; what it sent last comes back later");
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
                "names no subscription, so it can only be sent to; \
                 messages are leased from .../subscriptions/SUBSCRIPTION",
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

    /// Whether a message is given back as a copy: to tell that its task failed, or so that a
    /// delivery which came to nothing doesn't count. A copy would lose its place in an order.
    fn wants_copy(&self, envelope: &Envelope, reason: Option<&str>) -> bool {
        let is_told = reason.is_some() || (envelope.is_counted && !envelope.is_ordered());
        is_told && !self.resend_denied.is_recent()
    }

    /// Ends messages in whose place copies were sent and that could not be ended then.
    async fn end_replaced(&self, replaced: Vec<(String, Envelope)>) {
        if replaced.is_empty() {
            return;
        }
        let ids = replaced.iter().map(|(ack_id, _)| ack_id.clone()).collect();
        match self.acknowledge(ids).await {
            Ok(()) => replaced.iter().for_each(|(_, e)| self.copies.forget(&e.copy)),
            Err(status) => {
                tracing::debug!("{}", self.client.error("ending an old copy", &status));
            }
        }
    }

    /// A message that was published in our future says that our clock is slow.
    fn look_at_clock(&self, envelope: &Envelope) {
        let now = SystemTime::now();
        if let Some(published) = envelope.published.filter(|published| *published > now) {
            self.client.clock.saw(&self.client.queue, published, now);
        }
    }

    /// What it means that a request under a lease failed. A lease that the service says has
    /// ended is ended here, too.
    fn failed(&self, receipt: &Receipt, doing: &str, status: &Status) -> QueueError {
        if status::lost(status).is_empty() {
            return self.client.error(doing, status);
        }
        self.leases.end(receipt);
        self.lost(receipt)
    }

    /// Makes leases end so far from now, in whole seconds: no earlier than asked. Zero gives
    /// the messages back.
    async fn set_deadline(&self, ack_ids: Vec<String>, hold: Duration) -> Result<(), Status> {
        let seconds = hold.as_secs() + u64::from(hold.subsec_nanos() > 0);
        let subscription = self.subscription.as_deref().unwrap_or_default();
        let request = ModifyAckDeadlineRequest {
            subscription: subscription.to_owned(),
            ack_ids,
            ack_deadline_seconds: i32::try_from(seconds).unwrap_or(i32::MAX),
        };
        let modify = || async {
            let request = routed("subscription", subscription, request.clone());
            self.client.subscriber().modify_ack_deadline(request).await
        };
        self.client.tried(RequestKind::Extend, ANSWER, modify).await
    }

    async fn acknowledge(&self, ack_ids: Vec<String>) -> Result<(), Status> {
        let subscription = self.subscription.as_deref().unwrap_or_default();
        let request = AcknowledgeRequest { subscription: subscription.to_owned(), ack_ids };
        let acknowledge = || async {
            let request = routed("subscription", subscription, request.clone());
            self.client.subscriber().acknowledge(request).await
        };
        self.client.tried(RequestKind::Delete, ANSWER, acknowledge).await
    }

    /// Gives messages back that nobody here wants. What can't be given back returns when its
    /// lease ends.
    async fn give_back(&self, ack_ids: Vec<String>) {
        for ids in ack_ids.chunks(IDS) {
            if let Err(error) = self.set_deadline(ids.to_vec(), Duration::ZERO).await {
                let error = self.client.error("giving back messages", &error);
                tracing::warn!("{error}; they return when their leases end");
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
