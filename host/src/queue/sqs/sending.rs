//! Sends messages in as few requests as possible.

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};

use super::attempts::Sent;
use super::batch::{MAX_ENTRIES, MAX_REQUESTS};
use super::requests::Outgoing;
use super::{Inner, SHORT_LINGER};
use crate::queue::QueueError;

impl Inner {
    /// Sends messages. Returns one result for each body, in the same order.
    pub(super) async fn send(&self, bodies: &[Bytes]) -> Vec<Result<(), QueueError>> {
        // If messages are ordered, requests are sent one after another.
        let is_ordered = self.settings.is_fifo && self.group.is_some();
        let requests = if is_ordered { 1 } else { MAX_REQUESTS };
        let sent: Vec<_> =
            self.parts(bodies).into_iter().map(|part| self.send_some(part)).collect();
        stream::iter(sent).buffered(requests).concat().await
    }

    /// Creates a message from a body. The error says why SQS cannot carry it.
    async fn outgoing(&self, body: &Bytes) -> Result<Outgoing, QueueError> {
        check_text(body).map_err(|problem| self.invalid(problem))?;
        let mut message = Sent { body: body.clone(), ..Sent::default() };
        let limit = self.settings.limit;
        if message.size() > limit {
            let Some(large_bodies) = &self.large_bodies else {
                return Err(self.invalid(format!(
                    "a message of {} bytes is too large: the queue's limit is {limit}; set \
                     --message-bucket, or move large data into an input",
                    message.size()
                )));
            };
            large_bodies.put(&mut message).await.map_err(|failure| {
                failure.of_queue(&self.name, "storing a large message in the bucket")
            })?;
        }
        let unique = || uuid::Uuid::new_v4().to_string();
        let is_fifo = self.settings.is_fifo;
        // Without a group, each message gets its own group, so that no message waits for another.
        message.group = self.group.clone().or_else(|| is_fifo.then(unique));
        let deduplication = is_fifo.then(unique);
        Ok(Outgoing { message, delay: None, deduplication, until: None })
    }

    /// Sends the messages of one request.
    async fn send_some(&self, bodies: &[Bytes]) -> Vec<Result<(), QueueError>> {
        let made = join_all(bodies.iter().map(|body| self.outgoing(body))).await;
        let (mut ready, mut results) = (Vec::new(), Vec::new());
        for made in made {
            results.push(made.map(|outgoing| ready.push(outgoing)));
        }
        // A full batch does not wait for other callers.
        let sent = if ready.len() >= MAX_ENTRIES {
            self.sends.call_all(ready).await
        } else {
            join_all(ready.into_iter().map(|outgoing| self.sends.call(outgoing, SHORT_LINGER)))
                .await
        };
        let mut sent = sent.into_iter();
        for result in &mut results {
            if result.is_ok()
                && let Some(Err(failure)) = sent.next()
            {
                *result = Err(failure.of_queue(&self.name, "sending a message"));
            }
        }
        results
    }

    /// Splits the bodies into requests.
    fn parts<'a>(&self, bodies: &'a [Bytes]) -> Vec<&'a [Bytes]> {
        let most = self.settings.limit;
        let (mut parts, mut start, mut size) = (Vec::new(), 0, 0);
        for (n, body) in bodies.iter().enumerate() {
            // A pointer to a large body is small.
            let bytes = if body.len() > most { 1024 } else { body.len() };
            if n - start >= MAX_ENTRIES || (n > start && size + bytes > most) {
                parts.push(&bodies[start..n]);
                (start, size) = (n, 0);
            }
            size += bytes;
        }
        if start < bodies.len() {
            parts.push(&bodies[start..]);
        }
        parts
    }
}

/// Checks that SQS can carry a body: non-empty text that contains only characters of XML 1.0.
fn check_text(body: &[u8]) -> Result<(), String> {
    if body.is_empty() {
        return Err("SQS can't carry an empty message".to_owned());
    }
    let text = std::str::from_utf8(body)
        .map_err(|error| format!("SQS can't carry a message that is not UTF-8 text: {error}"))?;
    let is_barred = |c: char| match c {
        '\t' | '\n' | '\r' => false,
        '\u{fffe}' | '\u{ffff}' => true,
        c => c < ' ',
    };
    match text.char_indices().find(|(_, c)| is_barred(*c)) {
        None => Ok(()),
        Some((at, c)) => Err(format!(
            "SQS can't carry the character U+{:04X} at byte {at}; in JSON, write it as \\u{:04x}",
            c as u32, c as u32
        )),
    }
}
