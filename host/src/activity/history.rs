//! The last hour of a host by minutes, its rate of ended tasks, and an estimate of when the queue
//! will be empty.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::histogram::Histogram;
use super::snapshot::{Minute, QueueCounts, Rate, Totals};

/// The period over which the rate is measured.
const RATE_WINDOW: Duration = Duration::from_secs(60);
/// The period over which the shrinking of the queue is measured.
const QUEUE_WINDOW: Duration = Duration::from_secs(600);
/// The minimum period for this measurement.
const LEAST_QUEUE_WINDOW: Duration = Duration::from_secs(30);
const MINUTE: Duration = Duration::from_secs(60);
/// The number of minutes to keep, including the current one.
const MINUTES: usize = 60;

/// The history of a host.
#[derive(Debug)]
pub(super) struct History {
    /// The number of ended tasks at times within the window, oldest first. Never empty.
    ended: VecDeque<(Instant, u64)>,
    /// Counts of the queue within the window, oldest first.
    counted: VecDeque<Counted>,
    /// Completed minutes, oldest first.
    minutes: VecDeque<Minute>,
    /// The start of the current minute.
    began: Instant,
    /// The same time, in seconds since 1970.
    began_unix: f64,
    /// The totals at that time.
    before: Totals,
}

/// A count of the queue.
#[derive(Debug, Clone, Copy)]
struct Counted {
    at: Instant,
    counts: QueueCounts,
    /// All messages in the queue, if they could be counted.
    all: Option<u64>,
    /// The number of tasks that this host had ended at that time.
    ended: u64,
}

impl History {
    /// The history of a host that starts now. `unix` is the same time, in seconds since 1970.
    pub(super) fn since(now: Instant, unix: f64) -> Self {
        Self {
            ended: VecDeque::from([(now, 0)]),
            counted: VecDeque::new(),
            minutes: VecDeque::new(),
            began: now,
            began_unix: unix,
            before: Totals::default(),
        }
    }

    /// Records the number of ended tasks.
    pub(super) fn measure(&mut self, now: Instant, totals: &Totals) {
        self.ended.push_back((now, totals.ended()));
        // The oldest entry stays at the window's edge or before it.
        while self.ended.len() > 2 && now - self.ended[1].0 >= RATE_WINDOW {
            self.ended.pop_front();
        }
    }

    pub(super) fn rate(&self) -> Rate {
        let ((then, before), (last, ended)) = match (self.ended.front(), self.ended.back()) {
            (Some(first), Some(last)) => (*first, *last),
            _ => return Rate::default(),
        };
        let over = (last - then).as_secs_f64();
        let per_second = if over > 0.0 { (ended - before) as f64 / over } else { 0.0 };
        Rate { per_second, over_seconds: over }
    }

    /// Whether the current minute is over.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.began) >= MINUTE
    }

    /// Ends the current minute. `times`: the durations of its executions.
    pub(super) fn end_minute(
        &mut self,
        now: Instant,
        unix: f64,
        totals: &Totals,
        times: &Histogram,
    ) {
        let minute = self.minute(now, totals, times);
        self.minutes.push_back(minute);
        if self.minutes.len() >= MINUTES {
            self.minutes.pop_front();
        }
        (self.began, self.began_unix, self.before) = (now, unix, *totals);
    }

    /// The current minute.
    fn minute(&self, now: Instant, totals: &Totals, times: &Histogram) -> Minute {
        let quantile = |part| times.quantile(part).map(|time| time.as_secs_f64());
        Minute {
            time: self.began_unix,
            seconds: now.saturating_duration_since(self.began).as_secs_f64(),
            done: totals.done.saturating_sub(self.before.done),
            failed: totals.failed.saturating_sub(self.before.failed),
            retried: totals.retried.saturating_sub(self.before.retried),
            p50: quantile(0.5),
            p95: quantile(0.95),
            bytes_in: totals.bytes_in.saturating_sub(self.before.bytes_in),
            bytes_out: totals.bytes_out.saturating_sub(self.before.bytes_out),
            waiting: self.queue().and_then(|counts| counts.waiting),
        }
    }

    /// All minutes, oldest first. The last entry is the current minute.
    pub(super) fn minutes(&self, now: Instant, totals: &Totals, times: &Histogram) -> Vec<Minute> {
        let last = self.minute(now, totals, times);
        self.minutes.iter().copied().chain([last]).collect()
    }

    /// Records a count of the queue, and the number of all its messages.
    pub(super) fn counted(
        &mut self,
        now: Instant,
        counts: QueueCounts,
        all: Option<u64>,
        totals: &Totals,
    ) {
        self.counted.push_back(Counted { at: now, counts, all, ended: totals.ended() });
        while self.counted.len() > 2 && now - self.counted[1].at >= QUEUE_WINDOW {
            self.counted.pop_front();
        }
    }

    /// The last count of the queue.
    pub(super) fn queue(&self) -> Option<QueueCounts> {
        self.counted.back().map(|counted| counted.counts)
    }

    /// An estimate of the current number of messages in the queue: the last count, minus the tasks
    /// that this host has ended since.
    pub(super) fn left(&self, totals: &Totals) -> Option<u64> {
        let last = self.counted.back()?;
        Some(last.all?.saturating_sub(totals.ended().saturating_sub(last.ended)))
    }

    /// The expected time until the queue is empty. If other hosts also work on the queue, it
    /// shrinks faster than this host ends tasks. `None` while the queue does not shrink.
    pub(super) fn eta(&self, totals: &Totals) -> Option<Duration> {
        let (first, last) = (self.counted.front()?, self.counted.back()?);
        let left = self.left(totals)?;
        if left == 0 {
            return Some(Duration::ZERO);
        }
        let own = self.rate().per_second;
        let over = last.at - first.at;
        let rate = match first.all {
            Some(before) if over >= LEAST_QUEUE_WINDOW => {
                let gone = before.checked_sub(last.all?).filter(|gone| *gone > 0)?;
                own.max(gone as f64 / over.as_secs_f64())
            }
            _ => own,
        };
        Duration::try_from_secs_f64(left as f64 / rate).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(done: u64) -> Totals {
        Totals { done, ..Totals::default() }
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn counts(waiting: u64) -> QueueCounts {
        QueueCounts { waiting: Some(waiting), ..QueueCounts::default() }
    }

    #[test]
    fn the_rate_is_that_of_the_last_minute() {
        let start = Instant::now();
        let mut history = History::since(start, 0.0);
        for second in 1..=10 {
            history.measure(start + seconds(second), &ended(second * 5));
        }
        let rate = history.rate();
        assert_eq!((rate.per_second, rate.over_seconds), (5.0, 10.0));
        for second in 11..=200 {
            history.measure(start + seconds(second), &ended(50));
        }
        let rate = history.rate();
        assert_eq!(rate.per_second, 0.0);
        assert!((60.0..=61.0).contains(&rate.over_seconds), "{rate:?}");
    }

    #[test]
    fn an_hour_is_kept_by_minutes_and_the_last_one_goes_on() {
        let start = Instant::now();
        let mut history = History::since(start, 1000.0);
        let times = |time| {
            let mut times = Histogram::default();
            times.add(seconds(time));
            times
        };
        assert!(!history.is_over(start + seconds(59)));
        for minute in 1..=100 {
            let now = start + seconds(60 * minute);
            assert!(history.is_over(now));
            history.end_minute(now, 1000.0 + 60.0 * minute as f64, &ended(10 * minute), &times(1));
        }
        let now = start + seconds(60 * 100 + 30);
        let minutes = history.minutes(now, &ended(1003), &times(2));
        assert_eq!(minutes.len(), MINUTES);
        assert!(minutes[..59].iter().all(|minute| minute.done == 10 && minute.seconds == 60.0));
        let last = minutes[59];
        assert_eq!((last.done, last.seconds, last.time), (3, 30.0, 7000.0));
        assert!(last.p50.unwrap() > minutes[58].p50.unwrap());
        assert_eq!(minutes[58].time, 7000.0 - 60.0);
    }

    #[test]
    fn the_end_is_estimated_from_this_host_and_from_the_queue() {
        let start = Instant::now();
        let at = |second| start + seconds(second);
        let mut history = History::since(start, 0.0);
        assert_eq!(history.eta(&ended(0)), None);
        history.counted(at(10), counts(90), Some(100), &ended(10));
        history.measure(at(10), &ended(10));
        // This host has ended 10 more of the 100 tasks since the count.
        assert_eq!(history.eta(&ended(20)), Some(seconds(90)));
        // Other hosts also work on the queue.
        history.counted(at(50), counts(10), Some(20), &ended(50));
        history.measure(at(50), &ended(50));
        assert_eq!(history.eta(&ended(50)), Some(seconds(10)));
        assert_eq!(history.eta(&ended(100)), Some(Duration::ZERO));
        // Producers send more tasks than hosts end.
        history.counted(at(100), counts(1000), Some(1010), &ended(60));
        assert_eq!(history.eta(&ended(60)), None);
        assert_eq!(history.queue().unwrap().waiting, Some(1000));
    }

    #[test]
    fn a_queue_that_can_not_count_has_no_estimate() {
        let mut history = History::since(Instant::now(), 0.0);
        history.counted(Instant::now(), QueueCounts::default(), None, &ended(1));
        assert_eq!(history.eta(&ended(1)), None);
    }
}
