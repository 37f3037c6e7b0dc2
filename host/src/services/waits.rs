//! Waits for services that do not work, and names them.

use std::fmt;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::time::Instant;

use super::Services;
use crate::bucket::Bucket;
use crate::lease::{self, Lease};
use crate::stats::Gauge;

/// The name of an outage of writing to a bucket.
pub(super) fn writing(bucket: &dyn Bucket) -> impl fmt::Display {
    fmt::from_fn(move |f| write!(f, "writing to {bucket}"))
}

/// The name of an outage of an operation on receipts.
fn receipts(doing: &'static str, bucket: &dyn Bucket) -> impl fmt::Display {
    fmt::from_fn(move |f| write!(f, "{doing} receipts in {bucket}"))
}

/// How often a host in an outage checks whether it can lease again.
const LOOK: Duration = Duration::from_millis(200);

impl Services {
    /// The problems that keep the host from working, as text. Empty if it works.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = self.failing();
        if self.draining.is_cancelled() {
            problems.push("the host is stopping".to_owned());
        }
        problems
    }

    /// The services, operations and components that do not work now, as text.
    pub(super) fn failing(&self) -> Vec<String> {
        let mut problems = self.outages.problems();
        problems.extend(self.catalog.problems());
        problems
    }

    /// The name of an outage of deleting or releasing messages of the task queue, which can fail
    /// while leasing works. The text is formatted only when needed.
    pub(crate) fn settling(&self) -> impl fmt::Display {
        fmt::from_fn(|f| write!(f, "settling messages of {}", self.queue))
    }

    /// The name of an outage of renewing leases.
    pub(crate) fn renewing(&self) -> impl fmt::Display {
        lease::renewing(&*self.queue)
    }

    /// The name of an outage of reading receipts, which may fail while other objects can be read.
    pub(crate) fn reading_receipts(&self) -> impl fmt::Display {
        receipts("reading", &*self.bucket)
    }

    /// The name of an outage of writing receipts.
    pub(crate) fn writing_receipts(&self) -> impl fmt::Display {
        receipts("writing", &*self.bucket)
    }

    /// Waits until the host can execute a task. Otherwise it would only keep tasks from other
    /// hosts. The next task tries an operation that can't be probed; leasing tries the task queue.
    pub(crate) async fn wait_until_usable(&self) {
        while self.outages.any() {
            if self.outages.is_probing() || self.waiting.load(Relaxed) > 0 {
                // Tasks that wait with a result try the operations that can't be probed.
                self.outages.pause_for(LOOK).await;
                continue;
            }
            self.outages.pause_for(self.outages.pause_of_unprobed()).await;
            return;
        }
    }

    /// Waits with outputs until the bucket can be written. False if the time is over, the lease is
    /// lost, or the host stops at once.
    pub(crate) async fn wait_to_write(&self, lease: &Lease, until: Instant) -> bool {
        let name = writing(&*self.bucket);
        while self.outages.is_out(&name) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || !self.wait_with(lease, left.min(LOOK)).await {
                return false;
            }
        }
        true
    }

    /// Waits with a result until a service may be tried again. False if the lease is lost or the
    /// host stops at once.
    pub(crate) async fn wait_with(&self, lease: &Lease, wait: Duration) -> bool {
        let _waiting = Gauge::enter(&self.waiting);
        tokio::select! {
            () = self.outages.pause_for(wait) => lease.is_ours(),
            () = lease.lost().cancelled() => false,
            () = self.killed.cancelled() => false,
        }
    }
}
