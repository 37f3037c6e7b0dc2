//! How attempts are counted on an SQS queue.
//!
//! SQS counts only receives. A message is therefore released by sending it again with these
//! attributes and deleting the old copy:
//!
//! ```text
//! task-host-attempts     Number   executions that failed
//! task-host-failures     String   why they failed, as a JSON list, oldest first
//! task-host-unaccounted  Number   receives of earlier copies whose outcome is unknown
//! task-host-id           String   the id of the first copy
//! ```
//! The start of an execution cannot be recorded, because that would require sending the message
//! again, and the new copy would not be leased. A receive with an unknown outcome therefore means
//! that the host was killed or lost, or that the lease expired, whether or not the task had
//! started. Such a receive is never an attempt. A host that is killed between the two requests
//! leaves two copies. SQS itself may also deliver a message twice. No message is lost.

use std::collections::HashMap;
use std::time::Duration;

use aws_sdk_sqs::types::{self, MessageAttributeValue, MessageSystemAttributeName as System};
use bytes::Bytes;

use crate::queue::is_id;

const ATTEMPTS: &str = "task-host-attempts";
const FAILURES: &str = "task-host-failures";
const UNACCOUNTED: &str = "task-host-unaccounted";
const ID: &str = "task-host-id";
/// The maximum number of attributes of a message.
const MOST_ATTRIBUTES: usize = 10;
/// The maximum number of bytes of all failures that are kept.
const MOST_FAILURES: usize = 4096;
/// The maximum number of bytes of one failure.
const MOST_FAILURE: usize = 600;

/// A message as it was sent, without the attributes above.
#[derive(Debug, Clone, Default)]
pub(super) struct Sent {
    pub(super) body: Bytes,
    pub(super) attributes: HashMap<String, MessageAttributeValue>,
    pub(super) group: Option<String>,
}

/// What is known about the executions of a task under earlier leases.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct History {
    /// The number of executions that failed.
    pub(super) attempts: u32,
    /// Why they failed, oldest first.
    pub(super) failures: Vec<String>,
    /// The number of receives whose outcome is unknown.
    pub(super) unaccounted: u32,
}

/// A received message, decoded.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) id: String,
    /// SQS's id of this copy.
    pub(super) copy: String,
    pub(super) handle: String,
    pub(super) sent: Sent,
    /// The history when this copy was sent.
    pub(super) history: History,
    /// The number of receives of this copy, including this one.
    pub(super) receives: u32,
    /// When the copy was sent, as a time since 1970.
    pub(super) sent_at: Option<Duration>,
}

impl Received {
    pub(super) fn of(message: types::Message) -> Self {
        let system = message.attributes.unwrap_or_default();
        let number = |name| system.get(&name).and_then(|text: &String| text.parse::<u64>().ok());
        let receives = number(System::ApproximateReceiveCount).unwrap_or(1);
        let mut attributes = message.message_attributes.unwrap_or_default();
        let mut ours = |name| attributes.remove(name).and_then(|value| value.string_value);
        let mut count = |name| ours(name).and_then(|text| text.parse().ok()).unwrap_or(0);
        let (attempts, unaccounted) = (count(ATTEMPTS), count(UNACCOUNTED));
        let failures = ours(FAILURES).and_then(|text| serde_json::from_str(&text).ok());
        let copy = message.message_id.unwrap_or_default();
        Self {
            id: ours(ID).filter(|id| is_id(id)).unwrap_or_else(|| copy.clone()),
            copy,
            handle: message.receipt_handle.unwrap_or_default(),
            history: History { attempts, failures: failures.unwrap_or_default(), unaccounted },
            receives: u32::try_from(receives).unwrap_or(u32::MAX),
            sent_at: number(System::SentTimestamp).map(Duration::from_millis),
            sent: Sent {
                body: message.body.unwrap_or_default().into(),
                attributes,
                group: system.get(&System::MessageGroupId).cloned(),
            },
        }
    }
}

impl History {
    /// The history with another failed execution. This execution ended, so `unaccounted` is reset.
    pub(super) fn failed(&self, reason: &str) -> Self {
        let mut failures = self.failures.clone();
        failures.push(reason.to_owned());
        Self { attempts: self.attempts.saturating_add(1), failures, unaccounted: 0 }
    }
}

impl Sent {
    /// The number of bytes that count towards the queue's size limit.
    pub(super) fn size(&self) -> usize {
        self.body.len() + self.attributes.iter().map(attribute_size).sum::<usize>()
    }

    /// The message with its history as attributes, if that fits into `limit` bytes. If not, the
    /// failures are left out. `None` if the counts do not fit either.
    pub(super) fn remembering(&self, id: &str, history: &History, limit: usize) -> Option<Self> {
        let mut again = self.clone();
        again.put(ATTEMPTS, "Number", history.attempts.to_string());
        again.put(ID, "String", id.to_owned());
        if history.unaccounted > 0 {
            again.put(UNACCOUNTED, "Number", history.unaccounted.to_string());
        }
        if !again.fits(limit) {
            return None;
        }
        if !history.failures.is_empty() {
            let without = again.clone();
            again.put(FAILURES, "String", newest(&history.failures));
            if !again.fits(limit) {
                return Some(without);
            }
        }
        Some(again)
    }

    pub(super) fn put(&mut self, name: &str, kind: &str, value: String) {
        let mut attribute = MessageAttributeValue::builder().string_value(value);
        attribute = attribute.data_type(kind);
        // Building can fail only without a type.
        if let Ok(attribute) = attribute.build() {
            self.attributes.insert(name.to_owned(), attribute);
        }
    }

    fn fits(&self, limit: usize) -> bool {
        self.attributes.len() <= MOST_ATTRIBUTES && self.size() <= limit
    }
}

fn attribute_size((name, value): (&String, &MessageAttributeValue)) -> usize {
    let text = value.string_value().map_or(0, str::len);
    let binary = value.binary_value().map_or(0, |blob| blob.as_ref().len());
    name.len() + value.data_type().len() + text + binary
}

/// The newest failures that fit, as a JSON list.
fn newest(failures: &[String]) -> String {
    let mut kept: Vec<String> = Vec::new();
    let mut room = MOST_FAILURES;
    for failure in failures.iter().rev() {
        let mut end = failure.len().min(MOST_FAILURE);
        while !failure.is_char_boundary(end) {
            end -= 1;
        }
        // SQS accepts only characters of XML 1.0. JSON escapes all other characters except these
        // two.
        let text = failure[..end].replace(['\u{fffe}', '\u{ffff}'], "\u{fffd}");
        let size = serde_json::Value::from(text.as_str()).to_string().len() + 1;
        if size > room {
            break;
        }
        room -= size;
        kept.push(text);
    }
    kept.reverse();
    serde_json::Value::from(kept).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(body: &str) -> Sent {
        Sent { body: body.to_owned().into(), ..Sent::default() }
    }

    #[test]
    fn the_newest_reasons_are_kept_within_bounds() {
        let failures: Vec<String> = (0..100).map(|n| format!("{n} {}", "ü".repeat(200))).collect();
        let kept: Vec<String> = serde_json::from_str(&newest(&failures)).unwrap();
        assert_eq!(kept.last(), failures.last());
        assert!(kept.len() > 3 && kept.len() < 20, "{}", kept.len());
        let escaped = newest(&["\u{1}".repeat(9000)]);
        assert!(escaped.len() > MOST_FAILURE && escaped.len() <= MOST_FAILURES);
        let long: Vec<String> = serde_json::from_str(&newest(&["x".repeat(9000)])).unwrap();
        assert_eq!(long[0].len(), MOST_FAILURE);
        assert!(!newest(&["\u{ffff}".to_owned()]).contains('\u{ffff}'));
    }

    #[test]
    fn what_does_not_fit_is_left_out_and_the_number_last() {
        let history = History { attempts: 3, failures: vec!["why".to_owned()], unaccounted: 0 };
        let check = |limit: usize, expected: Option<usize>| {
            let again = message("0123456789").remembering("id", &history, limit);
            assert_eq!(again.map(|a| a.attributes.len()), expected, "{limit}");
        };
        check(1000, Some(3));
        check(70, Some(2));
        check(20, None);
        let mut full = message("x");
        for n in 0..9 {
            full.put(&n.to_string(), "String", "v".to_owned());
        }
        assert!(full.remembering("id", &History::default(), 1000).is_none());
    }
}
