//! A task's message in Pub/Sub's format.
//!
//! Pub/Sub cannot change a message. Failed executions are therefore recorded in the attributes of a
//! copy, which replaces the message. The service counts deliveries for a dead-letter policy, but
//! its count does not say how many executions there were, and the count of a copy starts at zero.
//!
//! ```text
//! task-host-id           the id of the first copy
//! task-host-attempts     executions that failed
//! task-host-failure-N    why the last of them failed, oldest first
//! task-host-delay-ms     how long after its publication the copy may be leased
//! task-host-empty        set because a message must not be empty
//! ```

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use gcloud_googleapis::pubsub::v1::{PubsubMessage, ReceivedMessage};

use crate::queue::is_id;

const ID: &str = "task-host-id";
const ATTEMPTS: &str = "task-host-attempts";
const FAILURE: &str = "task-host-failure-";
const DELAY: &str = "task-host-delay-ms";
const EMPTY: &str = "task-host-empty";
/// The number of most recent failures that are kept.
const REASONS: usize = 10;
/// The service's limit for the size of an attribute's value in bytes.
const LONGEST_VALUE: usize = 1024;
/// The maximum delay. This program never writes a longer one.
const LONGEST_DELAY: Duration = Duration::from_secs(31 * 24 * 3600);

/// A received message.
#[derive(Debug, Clone)]
pub(super) struct Envelope {
    pub(super) id: String,
    /// The service's id of this copy.
    pub(super) copy: String,
    pub(super) body: Bytes,
    pub(super) attempts: u32,
    pub(super) failures: Vec<String>,
    /// Whether the service counts deliveries, for its dead-letter policy.
    pub(super) is_counted: bool,
    pub(super) published: Option<SystemTime>,
    delay: Duration,
    ordering_key: String,
    /// The producer's attributes.
    attributes: HashMap<String, String>,
}

/// Decodes a received message into its acknowledgement id and the rest.
pub(super) fn open(received: ReceivedMessage) -> (String, Envelope) {
    let message = received.message.unwrap_or_default();
    let (ours, attributes): (HashMap<_, _>, HashMap<_, _>) =
        message.attributes.into_iter().partition(|(name, _)| name.starts_with("task-host-"));
    let number = |name: &str| ours.get(name).and_then(|text| text.parse::<u64>().ok());
    let envelope = Envelope {
        id: ours.get(ID).filter(|id| is_id(id)).unwrap_or(&message.message_id).clone(),
        copy: message.message_id,
        body: message.data.into(),
        attempts: number(ATTEMPTS).map_or(0, |n| u32::try_from(n).unwrap_or(u32::MAX)),
        failures: (1..=REASONS)
            .map_while(|n| ours.get(&format!("{FAILURE}{n}")).cloned())
            .collect(),
        is_counted: received.delivery_attempt > 0,
        published: message.publish_time.and_then(|time| SystemTime::try_from(time).ok()),
        delay: Duration::from_millis(number(DELAY).unwrap_or(0)).min(LONGEST_DELAY),
        ordering_key: message.ordering_key,
        attributes,
    };
    (received.ack_id, envelope)
}

/// The first copy of a message.
pub(super) fn first(body: &Bytes, group: Option<&str>) -> PubsubMessage {
    let mut message = PubsubMessage { data: body.to_vec(), ..PubsubMessage::default() };
    message.ordering_key = group.unwrap_or_default().to_owned();
    mark_empty(&mut message);
    message
}

/// The size of a message in a request in bytes, rounded up a little.
pub(super) fn size(message: &PubsubMessage) -> usize {
    let attributes = message.attributes.iter().map(|(name, value)| name.len() + value.len() + 16);
    message.data.len() + message.ordering_key.len() + attributes.sum::<usize>() + 32
}

impl Envelope {
    /// The remaining delay of the message at `now`, by the service's clock. Zero if the message is
    /// due.
    pub(super) fn rest(&self, now: SystemTime) -> Duration {
        let due = self.published.and_then(|published| published.checked_add(self.delay));
        due.and_then(|due| due.duration_since(now).ok()).unwrap_or_default().min(self.delay)
    }

    /// Adds attempts that are not recorded in the message.
    pub(super) fn knowing(mut self, attempts: u32, failures: Vec<String>) -> Self {
        self.attempts = self.attempts.saturating_add(attempts);
        self.failures.extend(failures);
        self
    }

    /// Whether messages with the same key are delivered in order.
    pub(super) fn is_ordered(&self) -> bool {
        !self.ordering_key.is_empty()
    }

    /// The copy that replaces the message. A `reason` adds one failed attempt.
    pub(super) fn again(&self, after: Duration, reason: Option<&str>) -> PubsubMessage {
        let mut attributes = self.attributes.clone();
        attributes.insert(ID.to_owned(), self.id.clone());
        let attempts = self.attempts.saturating_add(u32::from(reason.is_some()));
        attributes.insert(ATTEMPTS.to_owned(), attempts.to_string());
        if !after.is_zero() {
            attributes.insert(DELAY.to_owned(), after.as_millis().to_string());
        }
        let reasons: Vec<&str> =
            self.failures.iter().map(String::as_str).chain(reason.map(shortened)).collect();
        let kept = &reasons[reasons.len().saturating_sub(REASONS)..];
        for (n, reason) in (1..).zip(kept) {
            attributes.insert(format!("{FAILURE}{n}"), (*reason).to_owned());
        }
        let mut message = PubsubMessage {
            data: self.body.to_vec(),
            attributes,
            ordering_key: self.ordering_key.clone(),
            ..PubsubMessage::default()
        };
        mark_empty(&mut message);
        message
    }
}

fn mark_empty(message: &mut PubsubMessage) {
    if message.data.is_empty() {
        message.attributes.insert(EMPTY.to_owned(), "1".to_owned());
    }
}

/// A text, cut to the size limit of an attribute.
fn shortened(text: &str) -> &str {
    &text[..text.floor_char_boundary(LONGEST_VALUE)]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The message as the service delivers it.
    fn delivered(message: PubsubMessage, delivery_attempt: i32) -> Envelope {
        let message = Some(PubsubMessage {
            message_id: "new".to_owned(),
            publish_time: Some(SystemTime::UNIX_EPOCH.into()),
            ..message
        });
        open(ReceivedMessage { ack_id: "a".to_owned(), message, delivery_attempt }).1
    }

    #[test]
    fn a_copy_keeps_what_the_producer_sent_and_counts_one_more() {
        let mut sent = first(&Bytes::from_static(b"{}"), Some("group"));
        sent.attributes.insert("colour".to_owned(), "red".to_owned());
        sent.message_id = "old".to_owned();
        let received = ReceivedMessage { message: Some(sent), ..ReceivedMessage::default() };
        let (_, before) = open(received);
        let copy = before.again(Duration::ZERO, Some("line\n\"ü\""));
        assert_eq!(copy.attributes["colour"], "red");
        assert_eq!(copy.ordering_key, "group");
        let after = delivered(copy, 0);
        assert_eq!((&*after.id, &*after.body, after.attempts), ("old", &b"{}"[..], 1));
        assert_eq!(after.failures, ["line\n\"ü\""]);
        let last = delivered(after.again(Duration::ZERO, Some("b")), 0);
        assert_eq!((&*last.id, last.attempts, last.failures.len()), ("old", 2, 2));
        let same = delivered(last.again(Duration::ZERO, None), 0);
        assert_eq!((&*same.id, &*same.copy, same.attempts), ("old", "new", 2));
        assert_eq!(same.failures, last.failures);
    }

    #[test]
    fn no_more_is_written_than_the_service_takes() {
        let mut message = delivered(first(&Bytes::new(), None), 0);
        assert!(message.body.is_empty());
        for n in 0..30 {
            let reason = format!("{n} {}", "é".repeat(2000));
            let copy = message.again(Duration::from_secs(1), Some(&reason));
            assert!(copy.attributes.len() <= 20, "{}", copy.attributes.len());
            assert!(copy.attributes.values().all(|value| value.len() <= LONGEST_VALUE));
            message = delivered(copy, 0);
        }
        assert_eq!((message.attempts, message.failures.len()), (30, REASONS));
        assert!(message.failures[0].starts_with("20 "), "{}", &message.failures[0][..9]);
    }

    #[test]
    fn a_copy_waits_from_when_it_was_published() {
        let second = Duration::from_secs(1);
        let now = SystemTime::UNIX_EPOCH + 60 * second;
        let plain = delivered(first(&Bytes::from_static(b"x"), None), 0);
        assert_eq!(plain.rest(now), Duration::ZERO);
        let copy = delivered(plain.again(100 * second, Some("x")), 0);
        assert_eq!(copy.rest(now), 40 * second);
        assert_eq!(copy.rest(now + 50 * second), Duration::ZERO);
        // The message waits for one second even if this clock is a day behind.
        let copy = delivered(plain.again(second, Some("x")), 0);
        assert_eq!(copy.rest(SystemTime::UNIX_EPOCH - 24 * 3600 * second), second);
    }

    #[test]
    fn deliveries_are_no_executions() {
        let message = delivered(first(&Bytes::from_static(b"x"), None), 30);
        assert_eq!((message.attempts, message.is_counted), (0, true));
        assert!(!delivered(first(&Bytes::from_static(b"x"), None), 0).is_counted);
    }
}
