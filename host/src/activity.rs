//! The activity of a host, now and in the past, kept in memory.
//!
//! Recording must be cheap, because every task pays for it: a few stores while the task runs, and
//! one lock without an allocation when it ends. Texts are formatted only when they are read. All
//! data that come from tasks are bounded: names, causes, texts.

mod failures;
mod histogram;
mod history;
mod names;
mod running;
mod slow;
pub mod snapshot;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

use crate::key::TaskName;
use crate::message::Task;
use crate::queue::Counts;
use crate::stats::{Stats, Step, Steps};
pub use failures::Failed;
use failures::FailuresByCause;
pub use histogram::{Histogram, bounds_in_seconds};
use history::History;
use names::Names;
pub use names::{NameCounts, Named};
use running::Places;
pub use running::Shown;
pub use slow::SlowRule;
use snapshot::{Failures, Minute, QueueCounts, Rate, Running, Totals};

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The task is done.
    Done,
    /// The task is rejected.
    Rejected,
    /// The attempt failed, and the task will be retried.
    Retried,
    /// The task was released for a reason outside the task.
    Returned,
    /// The lease was lost.
    Lost,
}

impl End {
    /// All ends, in the order of [`NameCounts::ends`].
    pub const ALL: [Self; 5] =
        [Self::Done, Self::Rejected, Self::Retried, Self::Returned, Self::Lost];

    /// The end as one lower-case word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Rejected => "rejected",
            Self::Retried => "retried",
            Self::Returned => "released",
            Self::Lost => "lost",
        }
    }
}

/// The activity of a host.
#[derive(Debug)]
pub struct Activity {
    started: SystemTime,
    places: Arc<Places>,
    ended: Mutex<Ended>,
    failures: Mutex<FailuresByCause>,
    history: Mutex<History>,
    slow_tasks: AtomicU64,
}

/// The durations of ended attempts.
#[derive(Debug, Default)]
struct Ended {
    names: Names,
    steps: [Histogram; Step::ALL.len()],
    /// The executions of the current minute.
    minute: Histogram,
}

impl Default for Activity {
    fn default() -> Self {
        let started = SystemTime::now();
        Self {
            started,
            places: Arc::default(),
            ended: Mutex::default(),
            failures: Mutex::default(),
            history: Mutex::new(History::since(Instant::now(), unix(started))),
            slow_tasks: AtomicU64::new(0),
        }
    }
}

impl Activity {
    /// Shows a task as running until the returned value is dropped.
    pub fn runs(&self, task: &Arc<Task>, attempt: u32) -> Shown {
        Places::take(&self.places, task.clone(), attempt)
    }

    /// Counts the end of an attempt. `name` is the task's name; it is `None` if the message is not
    /// a task. Returns whether the name has its own counts.
    pub fn ends(&self, name: Option<&TaskName>, end: End, steps: &Steps) -> bool {
        let ended = &mut *self.ended.lock();
        for (histogram, step) in ended.steps.iter_mut().zip(Step::ALL) {
            let spent = steps.spent(step);
            if !spent.is_zero() {
                histogram.add(spent);
            }
        }
        let ran = steps.spent(Step::Instantiate) + steps.spent(Step::Run);
        let ran = Some(ran).filter(|ran| !ran.is_zero());
        if let Some(ran) = ran {
            ended.minute.add(ran);
        }
        ended.names.add(name, end, ran)
    }

    /// Counts a failure by its cause.
    pub fn fails(&self, failed: &Failed<'_>) {
        self.failures.lock().add(failed, unix(SystemTime::now()));
    }

    /// Records a count of the queue.
    pub fn counted(&self, counts: &Counts, stats: &Stats) {
        let all = counts.enqueued;
        let counts = QueueCounts {
            time: unix(SystemTime::now()),
            waiting: counts.waiting(),
            held: counts.held(),
            retrying: counts.retrying,
        };
        self.history.lock().counted(Instant::now(), counts, all, &Totals::of(stats));
    }

    /// Does the work of each second: measures the rate, ends minutes, and warns of slow tasks.
    pub fn tick(&self, stats: &Stats, rule: SlowRule) {
        let (now, totals) = (Instant::now(), Totals::of(stats));
        let mut history = self.history.lock();
        history.measure(now, &totals);
        if history.is_over(now) {
            let times = std::mem::take(&mut self.ended.lock().minute);
            history.end_minute(now, unix(SystemTime::now()), &totals, &times);
        }
        drop(history);
        let warned = slow::warn(&self.places, rule, now, |name| self.usual(name));
        self.slow_tasks.fetch_add(warned, Relaxed);
    }

    /// The median time of the executions of a name, and the number of executions.
    fn usual(&self, name: &TaskName) -> Option<(Duration, u64)> {
        let ended = self.ended.lock();
        let times = &ended.names.get(name)?.executions;
        Some((times.quantile(0.5)?, times.count()))
    }

    /// When the host started.
    pub fn started(&self) -> SystemTime {
        self.started
    }

    /// The running tasks, the longest-running first, at most [`snapshot::MOST_RUNNING`].
    pub fn running(&self) -> Vec<Running> {
        self.places.running()
    }

    /// The number of running tasks.
    pub fn running_count(&self) -> u64 {
        self.places.running_count()
    }

    /// The counts of each name, the most frequent first.
    pub fn names(&self) -> Vec<Named> {
        self.ended.lock().names.sorted()
    }

    /// The durations of each step.
    pub fn steps(&self) -> Vec<(Step, Histogram)> {
        Step::ALL.into_iter().zip(self.ended.lock().steps.clone()).collect()
    }

    /// The failures by cause, the most frequent first.
    pub fn failures(&self) -> Vec<Failures> {
        self.failures.lock().sorted()
    }

    /// The number of tasks with a warning because they ran for long.
    pub fn slow_tasks(&self) -> u64 {
        self.slow_tasks.load(Relaxed)
    }

    /// How fast tasks end.
    pub fn rate(&self) -> Rate {
        self.history.lock().rate()
    }

    /// The last count of the queue.
    pub fn queue(&self) -> Option<QueueCounts> {
        self.history.lock().queue()
    }

    /// The current number of messages in the queue, as far as this host can tell.
    pub fn left(&self, stats: &Stats) -> Option<u64> {
        self.history.lock().left(&Totals::of(stats))
    }

    /// The expected time until the queue is empty.
    pub fn eta(&self, stats: &Stats) -> Option<Duration> {
        self.history.lock().eta(&Totals::of(stats))
    }

    /// The last hour, by minutes. The last entry is the current minute.
    pub fn minutes(&self, stats: &Stats) -> Vec<Minute> {
        let history = self.history.lock();
        let times = self.ended.lock().minute.clone();
        history.minutes(Instant::now(), &Totals::of(stats), &times)
    }
}

impl Totals {
    /// The counts so far.
    pub fn of(stats: &Stats) -> Self {
        Self {
            done: stats.done.load(Relaxed),
            done_before: stats.done_before.load(Relaxed),
            failed: stats.failed.load(Relaxed),
            retried: stats.retried.load(Relaxed),
            returned: stats.returned.load(Relaxed),
            lost: stats.lost.load(Relaxed),
            bytes_in: stats.bytes_in.load(Relaxed),
            bytes_out: stats.bytes_out.load(Relaxed),
            cache_hits: stats.cache_hits.load(Relaxed),
            cache_misses: stats.cache_misses.load(Relaxed),
        }
    }

    /// The number of ended tasks.
    fn ended(&self) -> u64 {
        self.done + self.failed
    }
}

/// A time as seconds since 1970.
pub fn unix(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// The text, cut to at most `most` bytes.
fn cut(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}
