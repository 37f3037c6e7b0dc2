//! The requests to SQS.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_sqs::Client;
use aws_sdk_sqs::types::{
    BatchResultErrorEntry, ChangeMessageVisibilityBatchRequestEntry,
    DeleteMessageBatchRequestEntry, Message, MessageSystemAttributeName as System,
    QueueAttributeName as Name, SendMessageBatchRequestEntry,
};
use tokio::time::Instant;

use super::attempts::Sent;
use super::batch::{BatchRequest, MAX_ENTRIES};
use super::client::{patient, until};
use super::failure::{Failure, Refusal};
use super::leases::LeasedMessage;
use crate::fault::{self, Step};

/// The number of bytes of messages in one request that every queue accepts.
const LEAST_BATCH: usize = 256 * 1024;
// The permissions that batches need.
const DELETE: &str = "sqs:DeleteMessage";
const CHANGE: &str = "sqs:ChangeMessageVisibility";
const SEND: &str = "sqs:SendMessage";

/// An SQS queue.
#[derive(Clone)]
pub(super) struct Service {
    pub(super) client: Client,
    /// The queue URL.
    pub(super) url: String,
}

impl Service {
    /// Reads attributes of the queue.
    pub(super) async fn attributes(
        &self,
        names: &[Name],
    ) -> Result<HashMap<Name, String>, Failure> {
        let request = self.client.get_queue_attributes().queue_url(&self.url);
        let answer = request.set_attribute_names(Some(names.to_vec())).send().await?;
        Ok(answer.attributes.unwrap_or_default())
    }

    /// Leases up to `max` messages, but at most ten. Waits up to `wait` for the first.
    pub(super) async fn receive(
        &self,
        max: usize,
        visibility: Duration,
        wait: Duration,
        is_fifo: bool,
    ) -> Result<Vec<Message>, Failure> {
        let mut request = self
            .client
            .receive_message()
            .queue_url(&self.url)
            .max_number_of_messages(max.clamp(1, MAX_ENTRIES) as i32)
            .visibility_timeout(seconds(visibility))
            .wait_time_seconds(seconds(wait))
            .message_system_attribute_names(System::ApproximateReceiveCount)
            .message_system_attribute_names(System::SentTimestamp)
            .message_system_attribute_names(System::MessageGroupId)
            .message_attribute_names("All");
        if is_fifo {
            // If the response is lost, the retry gets the same messages.
            request = request.receive_request_attempt_id(uuid::Uuid::new_v4().to_string());
        }
        fault::shortage(Step::SqsReceive)?;
        let answer = request.customize().config_override(patient(wait)).send().await;
        let answer = answer.map_err(|error| Failure::from(error).needing("sqs:ReceiveMessage"))?;
        let messages = answer.messages.unwrap_or_default();
        if !messages.is_empty() {
            fault::point(Step::SqsReceived);
        }
        Ok(messages)
    }

    pub(super) async fn purge(&self) -> Result<(), Failure> {
        self.client.purge_queue().queue_url(&self.url).send().await?;
        Ok(())
    }
}

/// Whole seconds, rounded up, so that no lease is shorter than requested.
pub(super) fn seconds(time: Duration) -> i32 {
    let whole = time.as_secs() + u64::from(time.subsec_nanos() > 0);
    i32::try_from(whole).unwrap_or(i32::MAX)
}

/// Deletes messages.
pub(super) struct Deletes(pub(super) Service);

/// Changes when leases end.
pub(super) struct Changes(pub(super) Service);

/// Sends messages.
pub(super) struct Sends {
    pub(super) service: Service,
    /// The maximum number of bytes of one message.
    pub(super) limit: usize,
}

/// A delete of a leased message.
pub(super) struct Delete {
    pub(super) held: Arc<LeasedMessage>,
    pub(super) until: Instant,
}

/// A change of the end of a lease.
pub(super) struct Change {
    pub(super) held: Arc<LeasedMessage>,
    pub(super) until: Instant,
    /// The new duration in seconds, from the time of the request.
    pub(super) visibility: i32,
}

/// A message to send.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) message: Sent,
    /// In seconds. If `None`, the queue's default applies.
    pub(super) delay: Option<i32>,
    /// The deduplication id, on a FIFO queue.
    pub(super) deduplication: Option<String>,
    /// When the lease of the message that this one replaces ends.
    pub(super) until: Option<Instant>,
}

impl BatchRequest for Deletes {
    type Item = Delete;

    fn until(&self, item: &Delete) -> Option<Instant> {
        Some(item.until)
    }

    async fn request(&self, items: &[&Delete]) -> Result<Vec<Result<(), Refusal>>, Failure> {
        let mut request = self.0.client.delete_message_batch().queue_url(&self.0.url);
        for (n, item) in items.iter().enumerate() {
            let entry = DeleteMessageBatchRequestEntry::builder().id(n.to_string());
            let entry = entry.receipt_handle(&item.held.handle).build().map_err(unbuilt)?;
            request = request.entries(entry);
        }
        // The request is useless after the leases end.
        let latest = items.iter().map(|item| item.until).max();
        let request = request.customize().config_override(until(latest));
        fault::shortage(Step::SqsDelete)?;
        let answer = request.send().await.map_err(|error| denied(error, DELETE))?;
        fault::point(Step::SqsDeleted);
        let done = answer.successful().iter().map(|entry| entry.id());
        Ok(each(items.len(), done, answer.failed(), DELETE))
    }
}

impl BatchRequest for Changes {
    type Item = Change;

    fn until(&self, item: &Change) -> Option<Instant> {
        Some(item.until)
    }

    async fn request(&self, items: &[&Change]) -> Result<Vec<Result<(), Refusal>>, Failure> {
        let mut request = self.0.client.change_message_visibility_batch().queue_url(&self.0.url);
        for (n, item) in items.iter().enumerate() {
            let entry = ChangeMessageVisibilityBatchRequestEntry::builder()
                .id(n.to_string())
                .receipt_handle(&item.held.handle)
                .visibility_timeout(item.visibility);
            request = request.entries(entry.build().map_err(unbuilt)?);
        }
        // The request is useless after the leases end.
        let latest = items.iter().map(|item| item.until).max();
        let request = request.customize().config_override(until(latest));
        fault::shortage(Step::SqsChange)?;
        let answer = request.send().await.map_err(|error| denied(error, CHANGE))?;
        fault::point(Step::SqsChanged);
        let done = answer.successful().iter().map(|entry| entry.id());
        Ok(each(items.len(), done, answer.failed(), CHANGE))
    }
}

impl BatchRequest for Sends {
    type Item = Outgoing;

    fn size(&self, item: &Outgoing) -> usize {
        item.message.size()
    }

    fn most_bytes(&self) -> usize {
        self.limit.max(LEAST_BATCH)
    }

    fn until(&self, item: &Outgoing) -> Option<Instant> {
        item.until
    }

    async fn request(&self, items: &[&Outgoing]) -> Result<Vec<Result<(), Refusal>>, Failure> {
        let mut request = self.service.client.send_message_batch().queue_url(&self.service.url);
        for (n, item) in items.iter().enumerate() {
            let Sent { body, attributes, group } = &item.message;
            let body = String::from_utf8(body.to_vec())
                .map_err(|_| Failure::Invalid("the body is not UTF-8 text".to_owned()))?;
            let attributes = (!attributes.is_empty()).then(|| attributes.clone());
            let entry = SendMessageBatchRequestEntry::builder()
                .id(n.to_string())
                .message_body(body)
                .set_message_attributes(attributes)
                .set_message_group_id(group.clone())
                .set_message_deduplication_id(item.deduplication.clone())
                .set_delay_seconds(item.delay);
            request = request.entries(entry.build().map_err(unbuilt)?);
        }
        fault::shortage(Step::SqsSend)?;
        let answer = request.send().await.map_err(|error| denied(error, SEND))?;
        fault::point(Step::SqsSent);
        let done = answer.successful().iter().map(|entry| entry.id());
        Ok(each(items.len(), done, answer.failed(), SEND))
    }
}

fn denied(error: impl Into<Failure>, action: &str) -> Failure {
    error.into().needing(action)
}

fn unbuilt(error: impl Debug) -> Failure {
    Failure::Invalid(format!("{error:?}"))
}

/// The results of a batch, in the order of its entries.
fn each<'a>(
    asked: usize,
    done: impl Iterator<Item = &'a str>,
    failed: &[BatchResultErrorEntry],
    action: &str,
) -> Vec<Result<(), Refusal>> {
    let unsaid = || {
        let failure = Failure::Unavailable("the answer does not mention this entry".to_owned());
        Err(Refusal { failure, again: true })
    };
    let mut results: Vec<_> = (0..asked).map(|_| unsaid()).collect();
    let done = done.map(|id| (id, Ok(())));
    let failed = failed.iter().map(|entry| {
        let Refusal { failure, again } = Refusal::from(entry);
        (entry.id(), Err(Refusal { failure: failure.needing(action), again }))
    });
    for (id, result) in done.chain(failed) {
        if let Some(place) = id.parse::<usize>().ok().and_then(|n| results.get_mut(n)) {
            *place = result;
        }
    }
    results
}
