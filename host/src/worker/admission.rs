//! How many tasks a host holds: those that run, and those whose inputs are prefetched.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::Config;
use crate::queue::Queue;
use crate::services::Services;

/// Messages that one lease call asks for at most: what one SQS request brings.
const MAX_BATCH: usize = 10;
/// How often the pace of tasks is measured.
const INTERVAL: Duration = Duration::from_millis(200);
/// The weight of the newest measurement in the pace, which is a moving average.
const NEWEST: f64 = 0.3;
/// How many seconds of work the host prefetches at its pace.
const SECONDS_AHEAD: f64 = 5.0;
/// The most batches that are prefetched because tasks are short.
const BATCHES_AHEAD: usize = 4;

/// The permits of tasks between their lease and the end of their guest.
pub(super) struct Admission {
    permits: Arc<Semaphore>,
    /// How many permits exist beyond one per slot.
    prefetch: AtomicUsize,
}

impl Admission {
    pub(super) fn new(config: &Config, queue: &dyn Queue) -> Self {
        // A queue that counts deliveries may count one for a message that was only held.
        let prefetch = if queue.charges_for_holding() { 0 } else { config.least_prefetch() };
        Self {
            permits: Arc::new(Semaphore::new(config.work.parallel + prefetch)),
            prefetch: AtomicUsize::new(prefetch),
        }
    }

    /// Waits until enough permits are free to be worth a request, and takes up to one batch.
    /// Half of the prefetched tasks are left to work on meanwhile. At most `wanted` permits.
    pub(super) async fn admit(
        &self,
        services: &Services,
        wanted: u64,
    ) -> Vec<OwnedSemaphorePermit> {
        // During an outage that can't be probed, one task at a time tries the operation.
        let at_once = if services.outages.any() { 1 } else { MAX_BATCH as u64 };
        let most = wanted.min(at_once).max(1);
        let worth = services.queue.batch().min(self.prefetch.load(Relaxed) / 2);
        let least = (worth as u64).min(most).max(1);
        let mut permits = Vec::with_capacity(MAX_BATCH);
        // The semaphore is never closed.
        if let Ok(mut many) = self.permits.clone().acquire_many_owned(least as u32).await {
            while let Some(permit) = many.split(1) {
                permits.push(permit);
            }
        }
        while (permits.len() as u64) < most {
            match self.permits.clone().try_acquire_owned() {
                Ok(permit) => permits.push(permit),
                Err(_) => break,
            }
        }
        permits
    }

    /// Adapts the number of prefetched tasks to their pace, for a queue that is asked in batches.
    /// While tasks are short the host holds more, so that each request brings many. While they
    /// are long it holds few, so that none waits here although another host is free.
    pub(super) async fn follow_pace(&self, services: &Services) -> Infallible {
        let Services { config, queue, .. } = services;
        let batch = queue.batch();
        let is_fixed = config.work.prefetch.is_some() || queue.charges_for_holding();
        if batch <= 1 || is_fixed {
            return std::future::pending().await;
        }
        let least = config.least_prefetch();
        let mut before = services.ended();
        // Tasks per second.
        let mut pace = 0.0;
        loop {
            tokio::time::sleep(INTERVAL).await;
            let ended = services.ended();
            let newest = (ended - before) as f64 / INTERVAL.as_secs_f64();
            pace = NEWEST * newest + (1.0 - NEWEST) * pace;
            before = ended;
            let wanted = (pace * SECONDS_AHEAD) as usize;
            let wanted = wanted.clamp(least, least + BATCHES_AHEAD * batch);
            let now = self.prefetch.load(Relaxed);
            if wanted > now {
                self.permits.add_permits(wanted - now);
                self.prefetch.store(wanted, Relaxed);
            } else {
                let forgotten = self.permits.forget_permits(now - wanted);
                self.prefetch.store(now - forgotten, Relaxed);
            }
        }
    }
}
