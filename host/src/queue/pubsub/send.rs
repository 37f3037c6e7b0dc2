//! Sends messages: many in one request, and several requests at a time.

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use gcloud_gax::grpc::Status;
use gcloud_googleapis::pubsub::v1::{PublishRequest, PubsubMessage};

use super::client::{ANSWER, RequestKind, routed};
use super::{Shared, envelope, status};
use crate::fault::{self, Step};
use crate::queue::QueueError;

/// The limits of a request in messages and bytes. A message has the same limit in bytes as a
/// request.
const MESSAGES: usize = 1000;
pub(super) const BYTES: usize = 10_000_000 - 4096;
/// The maximum number of concurrent requests.
const AT_ONCE: usize = 8;

impl Shared {
    /// Sends messages. Returns one result for each body, in the same order.
    pub(super) async fn send(&self, bodies: &[Bytes]) -> Vec<Result<(), QueueError>> {
        let batches = batches(bodies.iter().map(Bytes::len));
        // Messages with an ordering key must be published in the order in which they are sent.
        let at_once = if self.group.is_some() { 1 } else { AT_ONCE };
        let sent = stream::iter(batches).map(|batch| async {
            let bodies = &bodies[batch];
            match bodies {
                [body] if body.len() > BYTES => vec![Err(self.client.invalid(format!(
                    "a message of {} bytes is too large: the limit of Pub/Sub is {BYTES}",
                    body.len()
                )))],
                _ => self.send_some(bodies).await,
            }
        });
        sent.buffered(at_once).concat().await
    }

    /// Sends messages that fit into one request. If the service rejects the request, it is split in
    /// two, so that one invalid message does not block the others.
    async fn send_some(&self, bodies: &[Bytes]) -> Vec<Result<(), QueueError>> {
        let one = |body| envelope::first(body, self.group.as_deref());
        let Err(status) = self.publish(bodies.iter().map(one).collect()).await else {
            return bodies.iter().map(|_| Ok(())).collect();
        };
        let error = || self.client.error("sending messages", &status);
        if bodies.len() > 1 && matches!(error(), QueueError::Invalid { .. }) {
            let (first, second) = bodies.split_at(bodies.len() / 2);
            let mut sent = Box::pin(self.send_some(first)).await;
            sent.extend(Box::pin(self.send_some(second)).await);
            return sent;
        }
        // Each message needs its own error.
        bodies.iter().map(|_| Err(error())).collect()
    }

    /// Sends messages that fit into one request.
    pub(super) async fn publish(&self, messages: Vec<PubsubMessage>) -> Result<(), Status> {
        let request = PublishRequest { topic: self.topic.clone(), messages };
        let publish = || async {
            fault::shortage(Step::PubSubPublish).map_err(status::starved)?;
            let request = routed("topic", &self.topic, request.clone());
            self.client.publisher().publish(request).await
        };
        self.client.tried(RequestKind::Send, ANSWER, publish).await?;
        fault::point(Step::PubSubPublished);
        Ok(())
    }
}

/// Splits messages of these lengths into requests. A message that is too large gets its own
/// request.
fn batches(lengths: impl Iterator<Item = usize>) -> Vec<std::ops::Range<usize>> {
    let overhead = envelope::size(&PubsubMessage::default()) + 300;
    let mut batches: Vec<std::ops::Range<usize>> = Vec::new();
    let mut room = 0;
    for (n, length) in lengths.enumerate() {
        let size = length + overhead;
        match batches.last_mut() {
            Some(batch) if size <= room && batch.len() < MESSAGES => {
                batch.end = n + 1;
                room -= size;
            }
            _ => {
                batches.push(n..n + 1);
                room = BYTES.saturating_sub(size);
            }
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_holds_as_much_as_the_service_takes() {
        let sizes = |lengths: &[usize]| -> Vec<usize> {
            batches(lengths.iter().copied()).into_iter().map(|batch| batch.len()).collect()
        };
        assert_eq!(sizes(&[]), [0; 0]);
        assert_eq!(sizes(&[100; 2500]), [1000, 1000, 500]);
        assert_eq!(sizes(&[4_000_000; 5]), [2, 2, 1]);
        assert_eq!(sizes(&[1, 20_000_000, 1, 1]), [1, 1, 2]);
        assert_eq!(sizes(&[BYTES, 1]), [1, 1]);
    }
}
