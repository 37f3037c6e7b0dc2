//! Counters and durations of a host since its start.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// The steps of a task, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Step {
    /// Reading the message.
    Decode,
    /// Fetching the inputs.
    Fetch,
    /// Finding the component.
    Resolve,
    /// Waiting for a free slot.
    Wait,
    /// Instantiating the component.
    Instantiate,
    /// The guest's three calls.
    Run,
    /// Publishing the outputs.
    Publish,
    /// Settling the message.
    Settle,
}

impl Step {
    /// All steps, in their order.
    pub const ALL: [Self; 8] = [
        Self::Decode,
        Self::Fetch,
        Self::Resolve,
        Self::Wait,
        Self::Instantiate,
        Self::Run,
        Self::Publish,
        Self::Settle,
    ];

    /// The step as one lower-case word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Decode => "decode",
            Self::Fetch => "fetch",
            Self::Resolve => "resolve",
            Self::Wait => "wait",
            Self::Instantiate => "instantiate",
            Self::Run => "run",
            Self::Publish => "publish",
            Self::Settle => "settle",
        }
    }
}

/// The time that one task spent in each step.
#[derive(Debug)]
pub struct Steps {
    last: Instant,
    spent: [Duration; Step::ALL.len()],
}

impl Steps {
    /// Starts the measurement.
    pub fn start() -> Self {
        let now = Instant::now();
        Self { last: now, spent: [Duration::ZERO; Step::ALL.len()] }
    }

    /// Adds the time since the last call, or since the start, to `step`.
    pub fn done(&mut self, step: Step) {
        let now = Instant::now();
        self.spent[step as usize] += now - self.last;
        self.last = now;
    }

    /// Moves `part` of the time of `from` to `step`.
    pub fn move_from(&mut self, from: Step, step: Step, part: Duration) {
        let part = part.min(self.spent[from as usize]);
        self.spent[from as usize] -= part;
        self.spent[step as usize] += part;
    }

    /// The time spent on the task, without the wait for a free slot.
    pub fn worked(&self) -> Duration {
        self.spent.iter().sum::<Duration>() - self.spent(Step::Wait) + self.last.elapsed()
    }

    /// The time spent on `step`.
    pub fn spent(&self, step: Step) -> Duration {
        self.spent[step as usize]
    }
}

/// Counters of one host. All but `in_flight` and `running` only grow.
#[derive(Debug, Default)]
pub struct Stats {
    /// Tasks done.
    pub done: AtomicU64,
    /// The number of these tasks that were already done, according to their receipts.
    pub done_before: AtomicU64,
    /// Tasks rejected, with a report on the error queue.
    pub failed: AtomicU64,
    /// Attempts that failed and will be retried.
    pub retried: AtomicU64,
    /// Tasks released before they started, or for reasons outside the task.
    pub returned: AtomicU64,
    /// Leases that were lost.
    pub lost: AtomicU64,
    /// Tasks between lease and settlement.
    pub in_flight: AtomicU64,
    /// Tasks whose guest is running.
    pub running: AtomicU64,
    /// Bytes of inputs given to tasks.
    pub bytes_in: AtomicU64,
    /// Bytes of outputs published.
    pub bytes_out: AtomicU64,
    /// Inputs that were in the cache.
    pub cache_hits: AtomicU64,
    /// Inputs that had to be fetched.
    pub cache_misses: AtomicU64,
    nanoseconds: [AtomicU64; Step::ALL.len()],
}

impl Stats {
    /// Adds the times of an ended task.
    pub fn add_steps(&self, steps: &Steps) {
        for (sum, spent) in self.nanoseconds.iter().zip(steps.spent) {
            sum.fetch_add(u64::try_from(spent.as_nanos()).unwrap_or(u64::MAX), Relaxed);
        }
    }

    /// The time that all tasks together spent on `step`.
    pub fn spent(&self, step: Step) -> Duration {
        Duration::from_nanos(self.nanoseconds[step as usize].load(Relaxed))
    }
}

/// Increments a counter, and decrements it when dropped.
pub struct Gauge<'a>(&'a AtomicU64);

impl<'a> Gauge<'a> {
    /// Increments `count`.
    pub fn enter(count: &'a AtomicU64) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count)
    }
}

impl Drop for Gauge<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
