//! Copies the messages of a queue to another.

use futures_util::StreamExt;

use super::MessageOrigin;
use super::send::{BulkSend, SendError, Sent};
use crate::queue::{self, Access, Address};

/// Sends the messages of the queue `from`, opened with `access`, to another queue. Changes nothing
/// in `from`.
///
/// # Errors
/// If one of the queues can't be used.
pub async fn copy(from: &Address, access: &Access, to: BulkSend) -> Result<Sent, SendError> {
    let source = queue::admin(from, access).await?;
    let total = source.counts().await?.enqueued;
    let mut sender = to.start(total).await?;
    let mut messages = source.messages();
    let mut unread = None;
    while let Some(message) = messages.next().await {
        let message = match message {
            Ok(message) => message,
            Err(error) => {
                unread = Some(error);
                break;
            }
        };
        let origin = MessageOrigin::message(&message.id);
        if let Some(problem) = &message.unread {
            to.refusals.add(&origin, problem, None);
            continue;
        }
        if !sender.push(message.body, origin).await {
            break;
        }
    }
    // Messages that were read are sent even if the others can't be read.
    let sent = sender.finish().await;
    drop(messages);
    source.close().await;
    match (sent?, unread) {
        (sent, None) => Ok(sent),
        (sent, Some(error)) => Err(SendError::Input { source: Box::new(error), done: Some(sent) }),
    }
}
