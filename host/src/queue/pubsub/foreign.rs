//! Parsers of the data that other programs send to a Pub/Sub topic, for the fuzz targets.

use std::collections::HashMap;
use std::time::Duration;

use gcloud_googleapis::pubsub::v1::{PubsubMessage, ReceivedMessage};

use super::envelope;

/// A parsed message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    /// The id of the first copy.
    pub id: String,
    /// The number of executions that failed.
    pub attempts: u32,
    /// Why they failed.
    pub failures: Vec<String>,
    /// The body and the attributes of the copy that replaces the message after another failure with
    /// the given reason.
    pub again: (Vec<u8>, HashMap<String, String>),
}

/// Parses a message with the id `copy`.
pub fn parse(
    copy: &str,
    body: &[u8],
    attributes: HashMap<String, String>,
    after: Duration,
    reason: &str,
) -> Parsed {
    let message = PubsubMessage {
        data: body.to_vec(),
        attributes,
        message_id: copy.to_owned(),
        ..PubsubMessage::default()
    };
    let received = ReceivedMessage { message: Some(message), ..ReceivedMessage::default() };
    let (_, envelope) = envelope::open(received);
    let again = envelope.again(after, Some(reason));
    Parsed {
        id: envelope.id,
        attempts: envelope.attempts,
        failures: envelope.failures,
        again: (again.data, again.attributes),
    }
}
