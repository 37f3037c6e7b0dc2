//! What a worker needs of services that don't work: it waits, and says what is wrong.

use std::fmt;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::time::Instant;

use super::Worker;
use crate::bucket::Bucket;
use crate::lease::{self, Lease};
use crate::stats::Gauge;

/// What an outage of putting objects into a bucket is called.
pub(super) fn writing(bucket: &dyn Bucket) -> impl fmt::Display {
    fmt::from_fn(move |f| write!(f, "writing to {bucket}"))
}

/// How often a host that leases nothing looks whether it may again.
const LOOK: Duration = Duration::from_millis(200);

impl Worker {
    /// What keeps the host from working; nothing if it can.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = self.outages.problems();
        if self.draining.is_cancelled() {
            problems.push("the host is stopping".to_owned());
        }
        problems
    }

    /// What outages call deleting messages of the task queue and releasing them, which may
    /// fail where leasing does not. Put into words only when somebody asks.
    pub(crate) fn settling(&self) -> impl fmt::Display {
        fmt::from_fn(|f| write!(f, "settling messages of {}", self.queue))
    }

    /// What outages call renewing leases.
    pub(crate) fn renewing(&self) -> impl fmt::Display {
        lease::renewing(&*self.queue)
    }

    /// Waits until it is worth while to lease a task: a host that can't work on tasks only
    /// keeps them from others. What can't be probed is tried by the next task; the task queue
    /// itself, by leasing.
    pub(super) async fn wait_for_services(&self) {
        while self.outages.any() {
            if self.outages.is_probing() || self.waiting.load(Relaxed) > 0 {
                // Tasks that have their results in hand try what can't be probed.
                self.outages.pause_for(LOOK).await;
                continue;
            }
            self.outages.pause_for(self.outages.pause_of_unprobed()).await;
            return;
        }
    }

    /// Waits with outputs in hand until the bucket can be written, and until a time at most.
    /// False when it is not worth while to wait longer.
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

    /// Waits with a result in hand until a service may be tried again. False when the wait is
    /// over for good: the lease is lost, or the host stops at once.
    pub(crate) async fn wait_with(&self, lease: &Lease, wait: Duration) -> bool {
        let _waiting = Gauge::enter(&self.waiting);
        tokio::select! {
            () = self.outages.pause_for(wait) => lease.is_ours(),
            () = lease.lost().cancelled() => false,
            () = self.killed.cancelled() => false,
        }
    }
}
