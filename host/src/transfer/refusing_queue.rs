//! A queue for tests that refuses some messages and counts concurrent sends.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use crate::queue::memory::MemoryQueue;
use crate::queue::{Counts, Message, Queue, QueueError, Receipt, Release};
use async_trait::async_trait;
use bytes::Bytes;

/// A message with this text is refused.
const TOO_LARGE: &str = "too large";
/// A message with this text can't be sent now.
const UNREACHABLE: &str = "unreachable";
/// A request with this text in one of its messages is refused.
const WHOLE_REQUEST: &str = "whole request";
/// The queue is deleted before a message with this text arrives.
const GONE: &str = "gone";

/// A queue in memory. The text of a message decides how the queue treats the message.
#[derive(Debug, Default)]
pub(super) struct RefusingQueue {
    inner: MemoryQueue,
    under_way: AtomicUsize,
    is_gone: AtomicBool,
    /// The highest number of concurrent sends.
    pub(super) most: AtomicUsize,
}

impl RefusingQueue {
    /// Leases all messages. Returns their bodies.
    pub(super) async fn bodies(&self) -> Vec<String> {
        let all = self.inner.lease(usize::MAX, Duration::from_secs(60), Duration::ZERO).await;
        let text = |message: Message| String::from_utf8_lossy(&message.body).into_owned();
        all.unwrap().into_iter().map(text).collect()
    }

    /// Adds messages without refusing any.
    pub(super) async fn put(&self, bodies: &[Bytes]) -> Vec<Result<(), QueueError>> {
        self.inner.send(bodies).await
    }

    fn gone(&self) -> QueueError {
        let problem = "there is no such queue any more".to_owned();
        QueueError::Invalid { queue: self.to_string(), problem }
    }

    fn judge(&self, body: &Bytes) -> Result<(), QueueError> {
        let text = String::from_utf8_lossy(body);
        let queue = self.to_string();
        if text.contains(TOO_LARGE) {
            return Err(QueueError::Invalid { queue, problem: format!("{text:?} is refused") });
        }
        if text.contains(GONE) {
            self.is_gone.store(true, SeqCst);
            return Err(self.gone());
        }
        if text.contains(UNREACHABLE) {
            let source = "connection refused".into();
            return Err(QueueError::Unavailable { queue, doing: "sending".to_owned(), source });
        }
        Ok(())
    }
}

#[async_trait]
impl Queue for RefusingQueue {
    async fn lease(
        &self,
        max: usize,
        hold: Duration,
        wait: Duration,
    ) -> Result<Vec<Message>, QueueError> {
        self.inner.lease(max, hold, wait).await
    }

    async fn start(&self, receipt: &Receipt) -> Result<(), QueueError> {
        self.inner.start(receipt).await
    }

    async fn extend(&self, receipt: &Receipt, hold: Duration) -> Result<Receipt, QueueError> {
        self.inner.extend(receipt, hold).await
    }

    async fn ack(&self, receipt: &Receipt) -> Result<(), QueueError> {
        self.inner.ack(receipt).await
    }

    async fn release(
        &self,
        receipt: &Receipt,
        after: Duration,
        why: Release<'_>,
    ) -> Result<(), QueueError> {
        self.inner.release(receipt, after, why).await
    }

    async fn send(&self, bodies: &[Bytes]) -> Vec<Result<(), QueueError>> {
        self.most.fetch_max(self.under_way.fetch_add(1, SeqCst) + 1, SeqCst);
        // Lets other sends begin, as a network would.
        tokio::time::sleep(Duration::from_millis(1)).await;
        let mut results = Vec::new();
        let is_whole = |body: &Bytes| String::from_utf8_lossy(body).contains(WHOLE_REQUEST);
        if bodies.iter().any(is_whole) {
            let problem = "the request is refused".to_owned();
            let refused =
                || QueueError::Invalid { queue: self.to_string(), problem: problem.clone() };
            self.under_way.fetch_sub(1, SeqCst);
            return bodies.iter().map(|_| Err(refused())).collect();
        }
        for body in bodies {
            results.push(match self.judge(body) {
                Ok(()) => self.inner.send(std::slice::from_ref(body)).await.remove(0),
                refused => refused,
            });
        }
        self.under_way.fetch_sub(1, SeqCst);
        results
    }

    async fn counts(&self) -> Result<Counts, QueueError> {
        if self.is_gone.load(SeqCst) {
            return Err(self.gone());
        }
        self.inner.counts().await
    }
}

impl fmt::Display for RefusingQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("refusing")
    }
}
