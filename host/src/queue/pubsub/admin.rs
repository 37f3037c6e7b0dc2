//! Inspects and repairs a Pub/Sub queue.
//!
//! A message must be leased to be listed. The leases of other processes cannot be ended. Messages
//! can only be deleted together: all that were published before a given time.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use gcloud_googleapis::pubsub::v1::seek_request::Target;
use gcloud_googleapis::pubsub::v1::{SeekRequest, Subscription};
use tokio::time::Instant;

use super::client::{ANSWER, Client, RequestKind, routed};
use super::envelope::{self, Envelope};
use super::{IDS, MAX_LEASE, PubSubQueue, Shared, pull, send, setup};
use crate::queue::address::PubSub;
use crate::queue::{self, Access, Counts, Facts, Listed, Queue as _, QueueError};

/// The number of messages that are requested at a time.
const LOOK: usize = 100;
/// How long the last pull waits after one that found nothing.
const LAST_LOOK: Duration = Duration::from_secs(3);

/// A Pub/Sub queue for operators.
#[derive(Debug)]
pub struct Admin {
    pub(super) queue: PubSubQueue,
    at: PubSub,
}

impl Admin {
    /// Opens an existing queue.
    pub async fn open(at: &PubSub, access: &Access) -> Result<Self, QueueError> {
        Self::with(Client::connect(at, access).await?, at, access).await
    }

    pub(super) async fn with(
        client: Client,
        at: &PubSub,
        access: &Access,
    ) -> Result<Self, QueueError> {
        let access = Access { create: false, ..access.clone() };
        let queue = PubSubQueue::with(client, at, &access).await?;
        Ok(Self { queue, at: at.clone() })
    }
}

#[async_trait]
impl queue::Admin for Admin {
    async fn counts(&self) -> Result<Counts, QueueError> {
        queue::Queue::counts(&self.queue).await
    }

    fn messages(&self) -> BoxStream<'_, Result<Listed, QueueError>> {
        let listing = Listing {
            shared: self.queue.shared.clone(),
            seen: VecDeque::new(),
            held: Vec::new(),
            has_ended: false,
        };
        let next = |mut listing: Listing| async {
            let next = listing.next().await?;
            Some((next, listing))
        };
        stream::unfold(listing, next).boxed()
    }

    async fn release_all(&self) -> Result<u64, QueueError> {
        Err(self.queue.shared.client.invalid(
            "Pub/Sub can't end the leases of other processes; a lease expires after at most 600 \
             seconds unless its holder renews it",
        ))
    }

    async fn rezero(&self) -> Result<(), QueueError> {
        Err(self
            .queue
            .shared
            .client
            .invalid("Pub/Sub has no counters of sent and completed messages"))
    }

    async fn purge(&self) -> Result<Option<u64>, QueueError> {
        let shared = &*self.queue.shared;
        let subscription = shared.subscription()?;
        let request = SeekRequest {
            subscription: subscription.to_owned(),
            target: Some(Target::Time(SystemTime::now().into())),
        };
        let seek = || async {
            let request = routed("subscription", subscription, request.clone());
            shared.client.subscriber().seek(request).await
        };
        let sought = shared.client.tried(RequestKind::Other, ANSWER, seek).await;
        sought.map_err(|error| shared.client.error("deleting all messages", &error))?;
        Ok(None)
    }

    async fn close(&self) {
        self.queue.close().await;
    }

    async fn facts(&self) -> Result<Facts, QueueError> {
        // A deadline can be extended any number of times, so `max_lease` is not set.
        let facts = Facts { longest_message: Some(send::BYTES as u64), ..Facts::default() };
        let client = &self.queue.shared.client;
        if self.at.subscription.is_none() {
            return Ok(facts);
        }
        let found = setup::look_up(client, &self.at).await;
        let found = found.map_err(|e| client.error("looking for the subscription", &e))?;
        let mut facts = of(&found, facts);
        facts.notes.extend(client.clock.complaint());
        Ok(facts)
    }
}

/// The settings of a subscription.
fn of(found: &Subscription, facts: Facts) -> Facts {
    let mut notes = Vec::new();
    let policy = found.dead_letter_policy.as_ref();
    if policy.is_some() {
        notes.push(
            match found.enable_message_ordering {
                true => {
                    "every delivery counts for the dead-letter policy, including those after \
                     which the message is released or that are only listed"
                }
                false => {
                    "a delivery counts for the dead-letter policy if the host was killed or lost, \
                     or if it is only listed"
                }
            }
            .to_owned(),
        );
    } else {
        notes.push(
            "there is no dead-letter policy, so a task that kills its host is retried forever"
                .to_owned(),
        );
    }
    if found.enable_exactly_once_delivery {
        notes.push("delivery is exactly once".to_owned());
    }
    if !found.filter.is_empty() {
        notes.push(format!("only messages that match this filter are delivered: {}", found.filter));
    }
    if let Some(retry) = &found.retry_policy {
        let least = retry.minimum_backoff.and_then(|d| Duration::try_from(d).ok());
        let most = retry.maximum_backoff.and_then(|d| Duration::try_from(d).ok());
        notes.push(format!(
            "the service delays a released message by another {:?} to {:?}",
            least.unwrap_or(Duration::from_secs(10)),
            most.unwrap_or(Duration::from_secs(600))
        ));
    }
    if let Some(time) = found.expiration_policy.as_ref().and_then(|policy| policy.ttl) {
        let time = Duration::try_from(time).unwrap_or_default();
        notes.push(format!("the service deletes the subscription after {time:?} without activity"));
    }
    Facts {
        visibility: u64::try_from(found.ack_deadline_seconds).ok().map(Duration::from_secs),
        receive_limit: policy.and_then(|policy| u32::try_from(policy.max_delivery_attempts).ok()),
        every_delivery_counts: found.enable_message_ordering,
        dead_letter_queue: policy.map(|policy| format!("pubsub://{}", policy.dead_letter_topic)),
        retention: found.message_retention_duration.and_then(|d| Duration::try_from(d).ok()),
        is_ordered: found.enable_message_ordering,
        notes,
        ..facts
    }
}

/// A listing of the messages. They are leased until it ends.
struct Listing {
    shared: Arc<Shared>,
    /// Messages that are leased but not yet listed.
    seen: VecDeque<Envelope>,
    /// The acknowledgement ids of all leased messages, and when their leases end.
    held: Vec<(Instant, Vec<String>)>,
    has_ended: bool,
}

impl Listing {
    async fn next(&mut self) -> Option<Result<Listed, QueueError>> {
        if self.seen.is_empty() && !self.has_ended {
            match self.look().await {
                Ok(()) => self.has_ended = self.seen.is_empty(),
                Err(error) => {
                    self.has_ended = true;
                    return Some(Err(error));
                }
            }
        }
        let Some(envelope) = self.seen.pop_front() else {
            let ids = self.ids();
            self.shared.give_back(ids).await;
            return None;
        };
        let since_1970 = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).ok();
        let rest = envelope.rest(self.shared.client.clock.now());
        Some(Ok(Listed {
            due: (!rest.is_zero()).then(|| since_1970(SystemTime::now() + rest)).flatten(),
            sent: envelope.published.and_then(since_1970),
            id: envelope.id,
            body: envelope.body,
            unread: None,
        }))
    }

    /// Leases more messages, and extends the leases that will end soon.
    async fn look(&mut self) -> Result<(), QueueError> {
        let shared = self.shared.clone();
        let failed = |error| shared.client.error("leasing messages", &error);
        for (until, ids) in &mut self.held {
            if until.saturating_duration_since(Instant::now()) < MAX_LEASE / 2 {
                *until = Instant::now() + MAX_LEASE;
                shared.set_deadline(ids.clone(), MAX_LEASE).await.map_err(failed)?;
            }
        }
        let mut received = pull::pull(&shared, LOOK, None).await?;
        if received.is_empty() {
            received = pull::pull(&shared, LOOK, Some(LAST_LOOK)).await?;
        }
        let opened: Vec<_> = received.into_iter().map(envelope::open).collect();
        let ids: Vec<String> = opened.iter().map(|(id, _)| id.clone()).collect();
        if ids.is_empty() {
            return Ok(());
        }
        let until = Instant::now() + MAX_LEASE;
        match self.held.last_mut() {
            // Leases that end at about the same time are extended with one request.
            Some((last, all)) if until - *last < LAST_LOOK && all.len() + ids.len() <= IDS => {
                all.extend(ids.iter().cloned());
            }
            _ => self.held.push((until, ids.clone())),
        }
        shared.set_deadline(ids, MAX_LEASE).await.map_err(failed)?;
        self.seen.extend(opened.into_iter().map(|(_, envelope)| envelope));
        Ok(())
    }

    fn ids(&mut self) -> Vec<String> {
        std::mem::take(&mut self.held).into_iter().flat_map(|(_, ids)| ids).collect()
    }
}

impl Drop for Listing {
    fn drop(&mut self) {
        let ids = self.ids();
        if ids.is_empty() {
            return;
        }
        // The listing was dropped before its end.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let shared = self.shared.clone();
            let giving_back = async move { shared.give_back(ids).await };
            self.shared.under_way.spawn_on(giving_back, &runtime);
        }
    }
}

impl fmt::Display for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.queue.fmt(f)
    }
}
