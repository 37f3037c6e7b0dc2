//! Parsers of the data that other programs send to an SQS queue, for the fuzz targets.

use std::collections::HashMap;
use std::sync::Arc;

use aws_sdk_sqs::types::{Message, MessageAttributeValue};
use object_store::memory::InMemory;

use super::attempts::{History, Received, Sent};
use super::large_bodies::{BodyLocation, LargeBodies};
use crate::queue::Access;

/// A parsed message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    /// The id of the first copy.
    pub id: String,
    /// The number of executions that failed.
    pub attempts: u32,
    /// Why they failed.
    pub failures: Vec<String>,
    /// The number of receives whose outcome is unknown.
    pub unaccounted: u32,
    /// The key of the body's object, or why the pointer is not followed. `None` if the body is in
    /// the message.
    pub pointer: Option<Result<String, String>>,
    /// The attributes of the copy that replaces the message after another failure with the given
    /// reason. `None` if the copy would be too large.
    pub again: Option<Vec<(String, String)>>,
}

/// Parses a message with the id `copy`. `bodies` is the URL of the bucket for large bodies.
pub fn parse(
    copy: &str,
    body: &str,
    attributes: &[(&str, &str)],
    bodies: &str,
    reason: &str,
    limit: usize,
) -> Parsed {
    let attribute = |text: &str| {
        MessageAttributeValue::builder().data_type("String").string_value(text).build().ok()
    };
    let attributes: HashMap<String, MessageAttributeValue> = attributes
        .iter()
        .filter_map(|(name, value)| Some(((*name).to_owned(), attribute(value)?)))
        .collect();
    let message = Message::builder().message_id(copy).body(body);
    let message = message.set_message_attributes(Some(attributes)).build();
    let Received { id, history, sent, .. } = Received::of(message);
    let store = Arc::new(InMemory::new());
    let bodies = LargeBodies::of("sqs://queue", bodies, &Access::default(), store).ok();
    let pointer = match LargeBodies::locate(bodies.as_ref(), &sent) {
        BodyLocation::Inline => None,
        BodyLocation::Stored(path) => Some(Ok(path.to_string())),
        BodyLocation::Refused(problem) => Some(Err(problem)),
    };
    let again = sent.remembering(&id, &history.failed(reason), limit).map(texts);
    let History { attempts, failures, unaccounted } = history;
    Parsed { id, attempts, failures, unaccounted, pointer, again }
}

fn texts(sent: Sent) -> Vec<(String, String)> {
    let text = |value: MessageAttributeValue| value.string_value.unwrap_or_default();
    sent.attributes.into_iter().map(|(name, value)| (name, text(value))).collect()
}
