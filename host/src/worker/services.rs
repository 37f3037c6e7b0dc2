//! What a worker needs of services that it can't reach: it asks, waits, and says what is wrong.

use std::time::Duration;

use super::Worker;

impl Worker {
    /// What keeps the host from working; nothing if it can.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = self.outages.problems();
        if self.draining.is_cancelled() {
            problems.push("the host is stopping".to_owned());
        }
        problems
    }

    /// After a failure that may be a bucket's: asks whether one can't be reached at all, so
    /// that no task could be worked on.
    pub(crate) async fn is_bucket_out(&self) -> bool {
        for bucket in [&self.inputs.bucket, &self.bucket] {
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
    /// fail where leasing does not.
    pub(crate) fn settling(&self) -> impl std::fmt::Display {
        format!("settling messages of {}", self.queue)
    }

    /// Waits until what can't be reached answers again: whoever leases tasks that can't be
    /// worked on only keeps them from others. The task queue is asked by leasing.
    pub(super) async fn wait_for_services(&self) {
        for bucket in [&self.inputs.bucket, &self.bucket] {
            let mut wait = Duration::from_secs(1);
            while self.outages.is_out(bucket) {
                tokio::time::sleep(wait).await;
                match bucket.check().await {
                    Ok(()) => self.outages.ends(bucket),
                    Err(error) => wait = self.outages.begins(bucket, &error),
                }
            }
        }
        if self.outages.is_out(&self.settling()) {
            tokio::time::sleep(self.outages.pause(&self.settling())).await;
        }
        for queue in std::iter::once(&self.error_queue).chain(&self.done_queue) {
            let mut wait = Duration::from_secs(1);
            while self.outages.is_out(queue) {
                tokio::time::sleep(wait).await;
                match queue.counts().await {
                    Ok(_) => self.outages.ends(queue),
                    Err(error) => wait = self.outages.begins(queue, &error),
                }
            }
        }
    }
}
