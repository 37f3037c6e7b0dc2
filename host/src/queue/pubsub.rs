//! `pubsub://projects/P/topics/T/subscriptions/S`: a queue of Google Pub/Sub.
//!
//! A lease is an acknowledgement deadline, which ends after 600 seconds at the latest and is
//! made longer in time. The service can't count messages, and can't write on one what
//! happened to it: a task that failed goes back as a copy that says so (`envelope.rs`), and
//! an execution that ended with its host is not counted. Where the subscription has a dead
//! letter policy the service counts the deliveries, and messages are given back as they are.
//!
//! Who holds what, until when, is kept in `held.rs`; how messages come in is in `pull.rs`.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use gcloud_gax::grpc::Status;
use gcloud_googleapis::pubsub::v1::{AcknowledgeRequest, ModifyAckDeadlineRequest};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::client::{ANSWER, Client, Kind, routed};
use self::held::{Held, Table};
use super::address::PubSub;
use super::{Access, Counts, Message, Queue, QueueError, Receipt, Release, Requests};

pub use admin::Admin;

mod admin;
mod client;
mod envelope;
mod held;
mod pull;
mod send;
mod setup;
mod status;

#[cfg(test)]
mod documented;
#[cfg(test)]
mod fake;
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
    held: Table,
    /// Pulls, and what they bring for nobody: each is seen to its end.
    under_way: TaskTracker,
    /// Cancelled when no message is wanted any more.
    closing: CancellationToken,
    said_uncountable: std::sync::Once,
}

impl PubSubQueue {
    /// Opens the queue; makes its topic and its subscription, if they are missing and
    /// `access` says so.
    pub async fn open(url: &str, at: &PubSub, access: &Access) -> Result<Self, QueueError> {
        Self::with(Client::connect(url).await?, at, access).await
    }

    async fn with(client: Client, at: &PubSub, access: &Access) -> Result<Self, QueueError> {
        setup::check(&client, at, access.create).await?;
        let shared = Shared {
            client,
            topic: setup::topic(at),
            subscription: setup::subscription(at),
            group: access.group.clone(),
            held: Table::default(),
            under_way: TaskTracker::new(),
            closing: CancellationToken::new(),
            said_uncountable: std::sync::Once::new(),
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
        self.shared.held(receipt).map(drop)
    }

    async fn extend(&self, receipt: &Receipt, hold: Duration) -> Result<Receipt, QueueError> {
        let shared = &*self.shared;
        let held = shared.held(receipt)?;
        let hold = hold.min(LONGEST_HOLD);
        let until = Instant::now() + hold;
        let changed = shared.set_deadline(vec![held.ack_id.clone()], hold).await;
        changed.map_err(|status| shared.failed(receipt, "extending a lease", &status))?;
        Ok(shared.held.replace(receipt, Held { until, ..held }))
    }

    async fn ack(&self, receipt: &Receipt) -> Result<(), QueueError> {
        let shared = &*self.shared;
        let held = shared.held(receipt)?;
        let done = shared.acknowledge(vec![held.ack_id]).await;
        done.map_err(|status| shared.failed(receipt, "acknowledging a message", &status))?;
        shared.held.end(receipt);
        Ok(())
    }

    async fn release(
        &self,
        receipt: &Receipt,
        after: Duration,
        why: Release<'_>,
    ) -> Result<(), QueueError> {
        let shared = &*self.shared;
        let held = shared.held(receipt)?;
        match why {
            Release::Failed(reason) if !held.envelope.is_counted => {
                match shared.publish(vec![held.envelope.again(after, reason)]).await {
                    // If this fails there are two of it, which is better than none.
                    Ok(()) => return self.ack(receipt).await,
                    Err(error @ QueueError::Invalid { .. }) => {
                        shared.said_uncountable.call_once(|| {
                            tracing::warn!(
                                "failed attempts are not counted, and tasks that fail are tried \
                                 without end: what is to be tried again can't be sent with their \
                                 number. {error}"
                            );
                        });
                    }
                    Err(error) => return Err(error),
                }
            }
            Release::Failed(_) | Release::Uncounted => {}
        }
        // The lease ends by itself when the message is to come back.
        let changed = shared.set_deadline(vec![held.ack_id], after.min(LONGEST_HOLD)).await;
        changed.map_err(|status| shared.failed(receipt, "giving back a message", &status))?;
        shared.held.end(receipt);
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
        self.shared.held.get(receipt).map(|held| held.until)
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

    fn held(&self, receipt: &Receipt) -> Result<Held, QueueError> {
        self.held.get(receipt).ok_or_else(|| self.lost(receipt))
    }

    fn lost(&self, receipt: &Receipt) -> QueueError {
        QueueError::LeaseLost { queue: self.client.queue.clone(), id: held::id(receipt).to_owned() }
    }

    /// What it means that a request under a lease failed. A lease that the service says has
    /// ended is ended here, too.
    fn failed(&self, receipt: &Receipt, doing: &str, status: &Status) -> QueueError {
        if status::lost(status).is_empty() {
            return self.client.error(doing, status);
        }
        self.held.end(receipt);
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
        self.client.tried(Kind::Extend, ANSWER, modify).await
    }

    async fn acknowledge(&self, ack_ids: Vec<String>) -> Result<(), Status> {
        let subscription = self.subscription.as_deref().unwrap_or_default();
        let request = AcknowledgeRequest { subscription: subscription.to_owned(), ack_ids };
        let acknowledge = || async {
            let request = routed("subscription", subscription, request.clone());
            self.client.subscriber().acknowledge(request).await
        };
        self.client.tried(Kind::Delete, ANSWER, acknowledge).await
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
