//! Decides which tasks may start: one for each guest thread, and twice as many while tasks are
//! short.
//!
//! A thread that waits for the start of the next task idles for about as long as a short task runs.
//! Therefore the next tasks start ahead. Each waits only briefly for a thread; if none becomes
//! free, its start is undone, because a started task can't go to another host.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::{AcquireError, OwnedRwLockReadGuard, OwnedSemaphorePermit, RwLock, Semaphore};

/// Tasks are short if they run for less than this on average.
const SHORT: Duration = Duration::from_millis(2);
/// How long a task that started ahead waits for a thread.
pub(crate) const PATIENCE: Duration = Duration::from_millis(20);
/// The average before the first guest has run.
const UNKNOWN: Duration = Duration::from_secs(1);
/// The average moves by the difference to the last duration, divided by this.
const SMOOTHING: u64 = 8;

/// The permits to start tasks.
#[derive(Debug)]
pub(crate) struct Slots {
    threads: Arc<Semaphore>,
    ahead: Arc<Semaphore>,
    /// The permit for plans: one, because there is one thread for them.
    plans: Arc<Semaphore>,
    /// Read-locked by each task that has begun and is not settled.
    begun: Arc<RwLock<()>>,
    count: u32,
    /// The moving average of guests' durations, in nanoseconds.
    average: AtomicU64,
}

/// Held by a task from its recorded start until its message is settled. If the host died in this
/// time, the start would count as a death of the task.
#[derive(Debug)]
pub(crate) struct Begun {
    _guard: OwnedRwLockReadGuard<()>,
}

/// The permit to start a task.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) permit: OwnedSemaphorePermit,
    /// Possibly no thread is free.
    pub(crate) is_ahead: bool,
}

impl Slots {
    /// Permits for this number of threads.
    pub(crate) fn new(threads: usize) -> Self {
        let permits = || Arc::new(Semaphore::new(threads));
        Self {
            threads: permits(),
            ahead: permits(),
            plans: Arc::new(Semaphore::new(1)),
            begun: Arc::default(),
            count: u32::try_from(threads).unwrap_or(u32::MAX),
            average: AtomicU64::new(nanoseconds(UNKNOWN)),
        }
    }

    /// Waits for a permit.
    ///
    /// # Errors
    /// Never: the semaphores are not closed.
    pub(crate) async fn take(&self) -> Result<Slot, AcquireError> {
        let threads = self.take_thread();
        if self.average.load(Relaxed) >= nanoseconds(SHORT) {
            return threads.await;
        }
        tokio::select! {
            biased;
            slot = threads => slot,
            permit = self.ahead.clone().acquire_owned() => {
                Ok(Slot { permit: permit?, is_ahead: true })
            }
        }
    }

    /// Waits for a permit that includes a free thread.
    ///
    /// # Errors
    /// As [`Slots::take`].
    pub(crate) async fn take_thread(&self) -> Result<Slot, AcquireError> {
        let permit = self.threads.clone().acquire_owned().await?;
        Ok(Slot { permit, is_ahead: false })
    }

    /// Waits for the permit to call a plan.
    ///
    /// # Errors
    /// As [`Slots::take`].
    pub(crate) async fn take_plan(&self) -> Result<OwnedSemaphorePermit, AcquireError> {
        self.plans.clone().acquire_owned().await
    }

    /// Records that a task begins. The task must hold its slot until it has run. Without the slot,
    /// it could wait for a task that runs alone, while that task waits for it.
    pub(crate) async fn begin(&self) -> Begun {
        Begun { _guard: self.begun.clone().read_owned().await }
    }

    /// Waits until no other task runs or plans and all tasks that have begun are settled. No task
    /// can start until all permits are dropped.
    ///
    /// # Errors
    /// As [`Slots::take`].
    pub(crate) async fn take_all(&self) -> Result<[OwnedSemaphorePermit; 3], AcquireError> {
        let ahead = self.ahead.clone().acquire_many_owned(self.count).await?;
        let threads = self.threads.clone().acquire_many_owned(self.count).await?;
        let plans = self.take_plan().await?;
        drop(self.begun.write().await);
        Ok([threads, ahead, plans])
    }

    /// Records how long a guest ran.
    pub(crate) fn ran(&self, time: Duration) {
        let time = nanoseconds(time);
        let average = self.average.load(Relaxed);
        // A concurrent update by another thread may be lost.
        self.average.store(average - average / SMOOTHING + time / SMOOTHING, Relaxed);
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX / SMOOTHING)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn take(slots: &Slots) -> Option<Slot> {
        slots.take().now_or_never().map(Result::unwrap)
    }

    #[tokio::test]
    async fn tasks_start_ahead_only_while_they_are_short() {
        let slots = Slots::new(2);
        let (first, second) = (take(&slots).unwrap(), take(&slots).unwrap());
        assert!(!first.is_ahead && !second.is_ahead);
        assert!(take(&slots).is_none(), "nobody knows yet how long tasks run");

        (0..1000).for_each(|_| slots.ran(Duration::from_micros(50)));
        let ahead = [take(&slots).unwrap(), take(&slots).unwrap()];
        assert!(ahead.iter().all(|slot| slot.is_ahead));
        assert!(take(&slots).is_none());
        drop(first);
        assert!(!take(&slots).unwrap().is_ahead);

        drop(ahead);
        slots.ran(Duration::from_secs(1));
        let held = take(&slots).unwrap();
        assert!(!held.is_ahead && take(&slots).is_none());
    }

    #[tokio::test]
    async fn a_task_that_runs_alone_waits_for_those_that_were_started_ahead() {
        let slots = Slots::new(1);
        (0..1000).for_each(|_| slots.ran(Duration::from_micros(50)));
        let (thread, ahead) = (take(&slots).unwrap(), take(&slots).unwrap());
        drop(thread);
        assert!(slots.take_all().now_or_never().is_none());
        drop(ahead);
        let all = slots.take_all().now_or_never().unwrap().unwrap();
        assert!(take(&slots).is_none());
        drop(all);
        assert!(take(&slots).is_some());
    }

    #[tokio::test]
    async fn a_task_that_runs_alone_waits_until_others_are_settled() {
        let slots = Slots::new(2);
        let slot = take(&slots).unwrap();
        let begun = slots.begin().await;
        // The task has run and publishes its outputs.
        drop(slot);
        assert!(slots.take_all().now_or_never().is_none());
        drop(begun);
        assert!(slots.take_all().now_or_never().is_some());
    }
}
