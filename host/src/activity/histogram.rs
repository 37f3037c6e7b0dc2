//! A histogram of durations.
//!
//! The bounds of the buckets are decimal, so that the bounds for Prometheus are among them exactly.
//! The buckets of `hdrhistogram` are binary: for a bound such as 0.1 s, their counts would be
//! estimates.

use std::time::Duration;

/// The bounds of one decade, in units of 100 ns. Each is about a quarter larger than the previous
/// one.
const PER_DECADE: [u64; 10] = [100, 125, 160, 200, 250, 315, 400, 500, 630, 800];
/// The decades go from 10 µs to 100,000 s, which is more than a day.
const DECADES: usize = 10;
const BUCKETS: usize = PER_DECADE.len() * DECADES + 1;
/// The upper bounds of the buckets, in nanoseconds. One more bucket counts longer durations.
const BOUNDS: [u64; BUCKETS] = bounds();
/// The buckets for Prometheus: 1, 2.5 and 5 of each decade, from 1 ms to 10,000 s.
const SHOWN: std::ops::RangeInclusive<usize> = 2 * PER_DECADE.len()..=9 * PER_DECADE.len();
const SHOWN_OF_DECADE: [usize; 3] = [0, 4, 7];

const fn bounds() -> [u64; BUCKETS] {
    let mut bounds = [0; BUCKETS];
    let (mut i, mut scale) = (0, 100);
    while i < BUCKETS {
        bounds[i] = PER_DECADE[i % PER_DECADE.len()] * scale;
        i += 1;
        if i % PER_DECADE.len() == 0 {
            scale *= 10;
        }
    }
    bounds
}

/// The upper bounds of the buckets for Prometheus, in seconds.
pub fn bounds_in_seconds() -> Vec<f64> {
    shown().map(|bucket| BOUNDS[bucket] as f64 / 1e9).collect()
}

/// The buckets for Prometheus.
fn shown() -> impl Iterator<Item = usize> {
    SHOWN.filter(|bucket| SHOWN_OF_DECADE.contains(&(bucket % PER_DECADE.len())))
}

/// A histogram of durations.
#[derive(Debug, Clone)]
pub struct Histogram {
    counts: [u64; BUCKETS + 1],
    sum: Duration,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: [0; BUCKETS + 1], sum: Duration::ZERO }
    }
}

impl Histogram {
    /// Counts a duration.
    pub fn add(&mut self, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.counts[BOUNDS.partition_point(|bound| *bound < nanoseconds)] += 1;
        self.sum = self.sum.saturating_add(time);
    }

    /// The number of durations.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The sum of all durations.
    pub fn sum(&self) -> Duration {
        self.sum
    }

    /// The duration that a fraction `part` of all durations does not exceed: 0.5 for the median.
    /// The result is accurate within a quarter. `None` if there are no durations.
    pub fn quantile(&self, part: f64) -> Option<Duration> {
        let count = self.count();
        let rank = ((count as f64 * part).ceil() as u64).clamp(1, count.max(1));
        let mut before = 0;
        for (i, in_bucket) in self.counts.iter().enumerate() {
            if before + in_bucket >= rank {
                let lower = i.checked_sub(1).map_or(0, |below| BOUNDS[below]);
                let upper = BOUNDS.get(i).copied().unwrap_or(lower);
                let share = (rank - before) as f64 / *in_bucket as f64;
                return Some(Duration::from_nanos(lower + ((upper - lower) as f64 * share) as u64));
            }
            before += in_bucket;
        }
        None
    }

    /// Upper bounds in seconds and the number of durations in each bucket, for Prometheus.
    /// Durations beyond the last bound are only in [`Histogram::count`].
    pub fn buckets(&self) -> Vec<(f64, u64)> {
        let mut next = 0;
        let counts = shown().map(|last| {
            let count = self.counts[next..=last].iter().sum();
            next = last + 1;
            count
        });
        bounds_in_seconds().into_iter().zip(counts).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(milliseconds: impl IntoIterator<Item = u64>) -> Histogram {
        let mut histogram = Histogram::default();
        milliseconds.into_iter().for_each(|time| histogram.add(Duration::from_millis(time)));
        histogram
    }

    #[test]
    fn a_quantile_is_right_within_a_quarter() {
        let check = |histogram: &Histogram, part: f64, want: f64| {
            let found = histogram.quantile(part).unwrap().as_secs_f64();
            assert!(found >= want * 0.8 && found <= want * 1.25, "{part}: {found}, not {want}");
        };
        let even = of(1..=1000);
        for part in [0.01, 0.5, 0.9, 0.99, 1.0] {
            check(&even, part, part);
        }
        let two = of(std::iter::repeat_n(2, 95).chain(std::iter::repeat_n(60_000, 5)));
        check(&two, 0.5, 0.002);
        check(&two, 0.95, 0.002);
        check(&two, 0.99, 60.0);
        assert_eq!(Histogram::default().quantile(0.5), None);
    }

    #[test]
    fn the_shortest_and_the_longest_times_are_counted() {
        let mut histogram = Histogram::default();
        for time in [Duration::ZERO, Duration::from_nanos(1), Duration::MAX] {
            histogram.add(time);
        }
        assert_eq!(histogram.count(), 3);
        assert_eq!(histogram.quantile(1.0), Some(Duration::from_secs(100_000)));
        assert_eq!(histogram.sum(), Duration::MAX);
        assert!(histogram.quantile(0.1).unwrap() <= Duration::from_micros(10));
    }

    #[test]
    fn the_bounds_that_prometheus_sees_are_round_and_exact() {
        let histogram = of([1, 2, 100, 101, 20_000_000]);
        let buckets = histogram.buckets();
        let bounds: Vec<f64> = buckets.iter().map(|(bound, _)| *bound).collect();
        assert_eq!(bounds[..5], [0.001, 0.0025, 0.005, 0.01, 0.025]);
        assert_eq!((bounds.len(), bounds[bounds.len() - 1]), (22, 10_000.0));
        let up_to = |most: f64| -> u64 {
            buckets.iter().filter(|(bound, _)| *bound <= most).map(|(_, count)| count).sum()
        };
        assert_eq!([up_to(0.001), up_to(0.1), up_to(0.25), up_to(10_000.0)], [1, 3, 4, 4]);
        assert_eq!(histogram.count(), 5);
    }
}
