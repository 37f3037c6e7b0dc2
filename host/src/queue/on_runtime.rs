//! A queue whose operations run on a separate runtime.
//!
//! The runtime that opens a connection also drives it. A file operation that hangs blocks a thread
//! of the tasks' runtime, and the connections that the thread drives. Leases must still be renewed,
//! so connections are driven by another runtime.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::{Counts, Message, Queue, QueueError, Receipt, Release, Requests};

/// A queue, and the runtime that its operations run on.
pub(super) struct OnRuntime {
    queue: Arc<dyn Queue>,
    runtime: Handle,
}

impl OnRuntime {
    pub(super) fn new(queue: Arc<dyn Queue>, runtime: Handle) -> Self {
        Self { queue, runtime }
    }

    /// Runs an operation on the runtime. It is aborted if the caller is dropped.
    async fn call<T, F>(
        &self,
        doing: &str,
        call: impl FnOnce(Arc<dyn Queue>) -> F,
    ) -> Result<T, QueueError>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let called = AbortOnDropHandle::new(self.runtime.spawn(call(self.queue.clone()))).await;
        called.map_err(|stopped| QueueError::Unavailable {
            queue: self.queue.to_string(),
            doing: doing.to_owned(),
            source: Box::new(stopped),
        })
    }
}

/// Messages on their way to the caller. They are released if the caller does not take them.
struct Leased {
    messages: Vec<Message>,
    queue: Arc<dyn Queue>,
    runtime: Handle,
}

impl Leased {
    fn take(mut self) -> Vec<Message> {
        std::mem::take(&mut self.messages)
    }
}

impl Drop for Leased {
    fn drop(&mut self) {
        let (messages, queue) = (std::mem::take(&mut self.messages), self.queue.clone());
        if messages.is_empty() {
            return;
        }
        self.runtime.spawn(async move {
            for message in messages {
                let none = Duration::ZERO;
                if let Err(error) = queue.release(&message.receipt, none, Release::Uncounted).await
                {
                    tracing::debug!("{error}");
                }
            }
        });
    }
}

/// An owned [`Release`].
enum Why {
    Uncounted,
    Failed(String),
}

#[async_trait]
impl Queue for OnRuntime {
    async fn lease(
        &self,
        max: usize,
        duration: Duration,
        wait: Duration,
    ) -> Result<Vec<Message>, QueueError> {
        let runtime = self.runtime.clone();
        let call = |queue: Arc<dyn Queue>| async move {
            let messages = queue.lease(max, duration, wait).await?;
            Ok(Leased { messages, queue, runtime })
        };
        let leased: Result<Leased, QueueError> = self.call("leasing messages", call).await?;
        Ok(leased?.take())
    }

    async fn start(&self, receipt: &Receipt) -> Result<(), QueueError> {
        let receipt = receipt.clone();
        let call = |queue: Arc<dyn Queue>| async move { queue.start(&receipt).await };
        self.call("starting a message", call).await?
    }

    async fn extend(&self, receipt: &Receipt, duration: Duration) -> Result<Receipt, QueueError> {
        let receipt = receipt.clone();
        let call = |queue: Arc<dyn Queue>| async move { queue.extend(&receipt, duration).await };
        self.call("renewing a lease", call).await?
    }

    async fn ack(&self, receipt: &Receipt) -> Result<(), QueueError> {
        let receipt = receipt.clone();
        let call = |queue: Arc<dyn Queue>| async move { queue.ack(&receipt).await };
        self.call("deleting a message", call).await?
    }

    async fn give_up(&self, receipt: &Receipt) -> Result<(), QueueError> {
        let receipt = receipt.clone();
        let call = |queue: Arc<dyn Queue>| async move { queue.give_up(&receipt).await };
        self.call("deleting a message", call).await?
    }

    async fn disown(&self, receipt: &Receipt) -> Result<(), QueueError> {
        let receipt = receipt.clone();
        let call = |queue: Arc<dyn Queue>| async move { queue.disown(&receipt).await };
        self.call("recording the end of an execution", call).await?
    }

    async fn release(
        &self,
        receipt: &Receipt,
        after: Duration,
        why: Release<'_>,
    ) -> Result<(), QueueError> {
        let receipt = receipt.clone();
        let why = match why {
            Release::Uncounted => Why::Uncounted,
            Release::Failed(reason) => Why::Failed(reason.to_owned()),
        };
        let call = |queue: Arc<dyn Queue>| async move {
            let why = match &why {
                Why::Uncounted => Release::Uncounted,
                Why::Failed(reason) => Release::Failed(reason),
            };
            queue.release(&receipt, after, why).await
        };
        self.call("releasing a message", call).await?
    }

    async fn send(&self, bodies: &[Bytes]) -> Vec<Result<(), QueueError>> {
        let (sent, count) = (bodies.to_vec(), bodies.len());
        let call = |queue: Arc<dyn Queue>| async move { queue.send(&sent).await };
        match self.call("sending messages", call).await {
            Ok(results) => results,
            Err(error) => {
                let failed = |_| {
                    Err(QueueError::Unavailable {
                        queue: self.queue.to_string(),
                        doing: "sending messages".to_owned(),
                        source: error.to_string().into(),
                    })
                };
                (0..count).map(failed).collect()
            }
        }
    }

    async fn counts(&self) -> Result<Counts, QueueError> {
        let call = |queue: Arc<dyn Queue>| async move { queue.counts().await };
        self.call("counting the messages", call).await?
    }

    fn batch(&self) -> usize {
        self.queue.batch()
    }

    fn until(&self, receipt: &Receipt) -> Option<Instant> {
        self.queue.until(receipt)
    }

    fn max_lease(&self) -> Duration {
        self.queue.max_lease()
    }

    fn limits_deliveries(&self) -> bool {
        self.queue.limits_deliveries()
    }

    fn charges_for_holding(&self) -> bool {
        self.queue.charges_for_holding()
    }

    async fn close(&self) {
        let call = |queue: Arc<dyn Queue>| async move { queue.close().await };
        if let Err(error) = self.call("closing", call).await {
            tracing::debug!("{error}");
        }
    }

    fn requests(&self) -> Option<Requests> {
        self.queue.requests()
    }
}

impl fmt::Display for OnRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.queue.fmt(f)
    }
}

impl fmt::Debug for OnRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OnRuntime").field(&self.queue).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::conformance::{Subject, suite};
    use crate::queue::memory::MemoryQueue;

    suite!({
        let queue: Arc<dyn Queue> = Arc::new(MemoryQueue::new());
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let there: Arc<dyn Queue> =
            Arc::new(OnRuntime::new(queue.clone(), runtime.handle().clone()));
        Subject::new(there, queue, Stopped(Some(runtime)))
    });

    /// A runtime that may be dropped inside another runtime.
    struct Stopped(Option<tokio::runtime::Runtime>);

    impl Drop for Stopped {
        fn drop(&mut self) {
            if let Some(runtime) = self.0.take() {
                runtime.shutdown_background();
            }
        }
    }
}
