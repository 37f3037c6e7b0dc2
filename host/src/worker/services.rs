//! What a worker needs of services that it can't reach: it asks, waits, and says what is wrong.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::Worker;
use crate::bucket::Bucket;

impl Worker {
    /// What keeps the host from working; nothing if it can.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = self.outages.problems();
        if self.draining.is_cancelled() {
            problems.push("the host is stopping".to_owned());
        }
        problems
    }

    /// The buckets that tasks need, each once.
    fn buckets(&self) -> impl Iterator<Item = &Arc<dyn Bucket>> {
        let (inputs, outputs) = (&self.inputs.bucket, &self.bucket);
        let other = (!Arc::ptr_eq(inputs, outputs)).then_some(outputs);
        std::iter::once(inputs).chain(other)
    }

    /// After a failure that may be a bucket's: asks whether one can't be reached at all, so
    /// that no task could be worked on.
    pub(crate) async fn is_bucket_out(&self) -> bool {
        for bucket in self.buckets() {
            if self.outages.is_out(bucket) {
                return true;
            }
            if let Err(error) = bucket.check().await {
                self.outages.begins(bucket, &error);
                return true;
            }
        }
        false
    }

    /// What outages call deleting messages of the task queue and giving them back, which may
    /// fail where leasing does not. Put into words only when somebody asks.
    pub(crate) fn settling(&self) -> impl fmt::Display {
        fmt::from_fn(|f| write!(f, "settling messages of {}", self.queue))
    }

    /// Waits until what can't be reached answers again: whoever leases tasks that can't be
    /// worked on only keeps them from others. The task queue is asked by leasing.
    pub(super) async fn wait_for_services(&self) {
        for bucket in self.buckets() {
            self.wait_for(bucket, || bucket.check()).await;
        }
        if self.outages.is_out(&self.settling()) {
            tokio::time::sleep(self.outages.pause(&self.settling())).await;
        }
        for queue in std::iter::once(&self.error_queue).chain(&self.done_queue) {
            self.wait_for(queue, || queue.counts()).await;
        }
    }

    /// Asks a service that can't be reached until it answers.
    async fn wait_for<T, E: fmt::Display>(
        &self,
        service: &impl fmt::Display,
        ask: impl AsyncFn() -> Result<T, E>,
    ) {
        let mut wait = Duration::from_secs(1);
        while self.outages.is_out(service) {
            tokio::time::sleep(wait).await;
            match ask().await {
                Ok(_) => self.outages.ends(service),
                Err(error) => wait = self.outages.begins(service, &error),
            }
        }
    }
}
