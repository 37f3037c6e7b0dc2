//! How far a host is: a live line on a terminal, a plain one every ten seconds elsewhere.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use task_host::queue::Queue;
use task_host::stats::Stats;

use super::super::console::Console;
use super::super::output;

/// Between two looks of a person.
const FRAME: Duration = Duration::from_millis(120);
/// Between two plain lines.
const LINE: Duration = Duration::from_secs(10);
/// Between two counts of the queue; counting may take no more than a part of this.
const COUNT: Duration = Duration::from_secs(3);
/// The same where each count is a request that is paid for.
const PAID_COUNT: Duration = Duration::from_secs(60);
/// The time over which tasks per second are shown.
const WINDOW: Duration = Duration::from_secs(10);

/// What is shown.
pub(crate) struct Progress {
    screen: Console,
    stats: Arc<Stats>,
    queue: Arc<dyn Queue>,
    /// The host is to stop at an empty queue: what is left is what is to do.
    has_end: bool,
}

impl Progress {
    pub(crate) fn new(
        screen: Console,
        stats: Arc<Stats>,
        queue: Arc<dyn Queue>,
        has_end: bool,
    ) -> Self {
        Self { screen, stats, queue, has_end }
    }

    /// Shows progress until the returned value is dropped.
    pub(crate) fn start(self) -> Shown {
        let left = Arc::new(Mutex::new(None));
        let bar = self.screen.live().map(|bars| {
            let bar = bars.add(ProgressBar::no_length());
            bar.set_style(style(self.has_end));
            bar
        });
        if bar.is_none() && !self.screen.wants_lines() {
            return Shown { tasks: Vec::new(), bar: None };
        }
        let counting = tokio::spawn(count(self.queue.clone(), self.stats.clone(), left.clone()));
        let shown = bar.clone();
        let drawing = tokio::spawn(async move {
            let mut rate = Rate::default();
            let mut ticks = tokio::time::interval(if shown.is_some() { FRAME } else { LINE });
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
            ticks.tick().await;
            loop {
                ticks.tick().await;
                let counted = *left.lock().unwrap_or_else(PoisonError::into_inner);
                let ended = ended(&self.stats);
                let left = counted.map(|counted: Counted| counted.left(ended));
                let per_second = rate.at(ended);
                match &shown {
                    Some(bar) => self.draw(bar, ended, per_second, left),
                    None => self.tell(ended, per_second, left),
                }
            }
        });
        Shown { tasks: vec![counting, drawing], bar }
    }

    fn draw(&self, bar: &ProgressBar, ended: u64, per_second: f64, left: Option<u64>) {
        if let Some(left) = left.filter(|_| self.has_end) {
            bar.set_length(ended + left);
        }
        bar.set_position(ended);
        bar.set_message(self.line(per_second, left));
        bar.tick();
    }

    fn tell(&self, ended: u64, per_second: f64, left: Option<u64>) {
        if self.screen.is_json {
            let stats = &self.stats;
            tracing::info!(
                done = stats.done.load(Relaxed),
                failed = stats.failed.load(Relaxed),
                retried = stats.retried.load(Relaxed),
                running = stats.running.load(Relaxed),
                tasks_per_second = per_second,
                bytes_in = stats.bytes_in.load(Relaxed),
                bytes_out = stats.bytes_out.load(Relaxed),
                left,
                "progress"
            );
        } else {
            self.screen.tell(format_args!(
                "{}, {}",
                output::count(ended, "task"),
                self.line(per_second, left)
            ));
        }
    }

    fn line(&self, per_second: f64, left: Option<u64>) -> String {
        let stats = &self.stats;
        let mut parts =
            vec![format!("{per_second:.1}/s"), format!("{} running", stats.running.load(Relaxed))];
        for (count, word) in [(&stats.failed, "failed"), (&stats.retried, "retried")] {
            let n = count.load(Relaxed);
            if n > 0 {
                parts.push(format!("{} {word}", output::number(n)));
            }
        }
        parts.push(format!("{} in", output::bytes(stats.bytes_in.load(Relaxed))));
        parts.push(format!("{} out", output::bytes(stats.bytes_out.load(Relaxed))));
        let (hits, misses) = (stats.cache_hits.load(Relaxed), stats.cache_misses.load(Relaxed));
        if let Some(percent) = (hits * 100).checked_div(hits + misses) {
            parts.push(format!("cache {percent}%"));
        }
        if let Some(left) = left {
            parts.push(format!("{} left", output::number(left)));
        }
        parts.join(", ")
    }
}

fn style(has_end: bool) -> ProgressStyle {
    let template = if has_end {
        "{spinner} {bar:24} {human_pos}/{human_len} tasks, {wide_msg}"
    } else {
        "{spinner} {human_pos} tasks, {wide_msg}"
    };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// What the queue held when it was last counted.
#[derive(Debug, Clone, Copy)]
struct Counted {
    enqueued: u64,
    /// Tasks of this host that had ended by then.
    ended: u64,
}

impl Counted {
    /// What is left by now, as far as this host knows.
    fn left(self, ended: u64) -> u64 {
        self.enqueued.saturating_sub(ended.saturating_sub(self.ended))
    }
}

fn ended(stats: &Stats) -> u64 {
    stats.done.load(Relaxed) + stats.failed.load(Relaxed)
}

/// Counts the queue again and again, as often as that is cheap.
async fn count(queue: Arc<dyn Queue>, stats: Arc<Stats>, left: Arc<Mutex<Option<Counted>>>) {
    let often = if queue.requests().is_some() { PAID_COUNT } else { COUNT };
    loop {
        let start = Instant::now();
        // An error shows where it hurts: when the host leases.
        let counts = queue.counts().await.ok();
        let counted = counts.and_then(|counts| counts.enqueued);
        let counted = counted.map(|enqueued| Counted { enqueued, ended: ended(&stats) });
        *left.lock().unwrap_or_else(PoisonError::into_inner) = counted;
        tokio::time::sleep(often.max(start.elapsed() * 50)).await;
    }
}

/// A progress display; gone when dropped.
pub(crate) struct Shown {
    tasks: Vec<tokio::task::JoinHandle<()>>,
    bar: Option<ProgressBar>,
}

impl Drop for Shown {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Tasks per second over the last while.
struct Rate {
    seen: VecDeque<(Instant, u64)>,
}

impl Default for Rate {
    fn default() -> Self {
        Self { seen: VecDeque::from([(Instant::now(), 0)]) }
    }
}

impl Rate {
    fn at(&mut self, ended: u64) -> f64 {
        let now = Instant::now();
        self.seen.push_back((now, ended));
        while self.seen.len() > 2 && now - self.seen[1].0 > WINDOW {
            self.seen.pop_front();
        }
        let (then, before) = self.seen[0];
        output::rate(ended - before, now - then)
    }
}
