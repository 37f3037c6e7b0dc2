//! The processor time of a guest: the time of the thread that executes it, in the guest's own code
//! and in the host's code that answers its calls.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use crate::system::duration;

/// The processor time of one execution.
pub(super) struct CpuTime {
    limit: Duration,
    /// The processor time that the thread had used before the execution.
    before: Duration,
    /// The earliest time at which the limit can be reached. None if it can't be reached at all.
    earliest: Option<Instant>,
    is_over: bool,
}

impl CpuTime {
    /// Begins to count. Call it on the thread that will execute the guest.
    pub(super) fn start(limit: Duration, now: Instant) -> Self {
        let earliest = now.checked_add(limit);
        Self { limit, before: of_thread(), earliest, is_over: false }
    }

    /// The processor time that this thread has used since the start.
    pub(super) fn used(&self) -> Duration {
        of_thread().saturating_sub(self.before)
    }

    /// Whether the limit is reached. Asks the kernel only if enough time has passed: a thread can't
    /// use more processor time than the time that passes.
    pub(super) fn check(&mut self, now: Instant) -> bool {
        if self.earliest.is_some_and(|earliest| now >= earliest) {
            let left = self.limit.saturating_sub(self.used());
            self.is_over = left.is_zero();
            self.earliest = now.checked_add(left);
        }
        self.is_over
    }

    /// Whether a check found that the limit is reached.
    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }
}

fn of_thread() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    duration(time.tv_sec, time.tv_nsec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_that_passes_is_not_processor_time() {
        let (start, limit) = (Instant::now(), Duration::from_millis(20));
        let mut cpu = CpuTime::start(limit, start);
        // Long after the limit could have been reached for the first time.
        assert!(!cpu.check(start + Duration::from_secs(3600)));
        let mut numbers = 0_u64;
        while cpu.used() < limit {
            numbers = std::hint::black_box(numbers.wrapping_add(1));
        }
        assert!(cpu.check(start + Duration::from_secs(7200)) && cpu.is_over());
    }

    #[test]
    fn the_kernel_is_not_asked_before_the_limit_can_be_reached() {
        let start = Instant::now();
        let mut cpu = CpuTime::start(Duration::from_secs(3600), start);
        assert!(!cpu.check(start + Duration::from_secs(3599)));
        assert_eq!(cpu.earliest, Some(start + Duration::from_secs(3600)));
        let mut endless = CpuTime::start(Duration::MAX, start);
        assert!(!endless.check(start + Duration::from_secs(1 << 40)));
    }
}
