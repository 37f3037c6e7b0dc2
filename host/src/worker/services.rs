//! What a worker needs of services that don't work: it waits, and says what is wrong.

use std::fmt;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::Worker;
use crate::lease::{self, Lease};
use crate::stats::Gauge;

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
            self.outages.probe().await;
            if self.waiting.load(Relaxed) > 0 {
                // Tasks that have their results in hand try it themselves.
                self.outages.pause_for(LOOK).await;
                continue;
            }
            self.outages.pause_for(self.outages.pause_of_unprobed()).await;
            return;
        }
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
