//! Messages of SQS and Pub/Sub: attributes that record attempts, and pointers to large bodies.
//!
//! An input consists of attributes as lines such as `name: value`, an empty line, and the body.

mod pubsub;
mod sqs;

use super::headers;

pub(crate) fn check(input: &[u8]) {
    let (attributes, body) = headers(input);
    if let Ok(text) = std::str::from_utf8(body) {
        sqs::check(&attributes, text);
    }
    pubsub::check(&attributes, body);
}

/// Whether a text is an id that the host gives to a message.
fn is_id(text: &str) -> bool {
    let is_safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    text.chars().all(is_safe) && (1..=128).contains(&text.len())
}
