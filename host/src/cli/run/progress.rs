//! The progress of a host: a live line on a terminal, and a plain line every ten seconds elsewhere.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use task_host::services::Services;
use task_host::stats::Stats;

use super::super::console::Console;
use super::super::output;

/// Time between two updates of a live line.
const FRAME: Duration = Duration::from_millis(120);
/// Time between two plain lines.
const LINE: Duration = Duration::from_secs(10);
/// The time over which the rate is measured.
const WINDOW: Duration = Duration::from_secs(10);

/// Shows the progress of a host.
pub(crate) struct Progress {
    console: Console,
    services: Arc<Services>,
    /// The host stops when the queue is empty, so a bar can show the remaining messages as the
    /// rest.
    has_end: bool,
}

impl Progress {
    pub(crate) fn new(console: Console, services: Arc<Services>) -> Self {
        let has_end = services.config().stop.exit_when_empty;
        Self { console, services, has_end }
    }

    /// Shows progress until the returned value is dropped.
    pub(crate) fn start(self) -> Shown {
        let bar = self.console.live().map(|bars| {
            let bar = bars.add(ProgressBar::no_length());
            bar.set_style(style(self.has_end));
            bar
        });
        if bar.is_none() && !self.console.wants_lines() {
            return Shown { drawing: None, bar: None };
        }
        let shown = bar.clone();
        let drawing = tokio::spawn(async move {
            let mut rate = Rate::default();
            let mut ticks = tokio::time::interval(if shown.is_some() { FRAME } else { LINE });
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
            ticks.tick().await;
            loop {
                ticks.tick().await;
                let stats = self.services.stats();
                let ended = ended(stats);
                let left = self.services.activity().left(stats);
                let per_second = rate.at(ended);
                match &shown {
                    Some(bar) => self.draw(bar, ended, per_second, left),
                    None => self.tell(ended, per_second, left),
                }
            }
        });
        Shown { drawing: Some(drawing), bar }
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
        if self.console.is_json {
            let stats = self.services.stats();
            tracing::info!(
                done = stats.done.load(Relaxed),
                failed = stats.failed.load(Relaxed),
                retried = stats.retried.load(Relaxed),
                running = stats.running.load(Relaxed),
                tasks_per_second = per_second,
                bytes_in = stats.bytes_in.load(Relaxed),
                bytes_out = stats.bytes_out.load(Relaxed),
                left,
                eta_seconds = self.services.activity().eta(stats).map(|eta| eta.as_secs_f64()),
                "progress"
            );
        } else {
            self.console.tell(format_args!(
                "{}, {}",
                output::count(ended, "task"),
                self.line(per_second, left)
            ));
        }
    }

    fn line(&self, per_second: f64, left: Option<u64>) -> String {
        let stats = self.services.stats();
        let mut parts =
            vec![format!("{per_second:.1}/s"), format!("{} running", stats.running.load(Relaxed))];
        for (count, word) in [(&stats.failed, "failed"), (&stats.retried, "retried")] {
            let n = count.load(Relaxed);
            if n > 0 {
                parts.push(format!("{} {word}", HumanCount(n)));
            }
        }
        parts.push(format!("{} in", output::bytes(stats.bytes_in.load(Relaxed))));
        parts.push(format!("{} out", output::bytes(stats.bytes_out.load(Relaxed))));
        let (hits, misses) = (stats.cache_hits.load(Relaxed), stats.cache_misses.load(Relaxed));
        if let Some(percent) = (hits * 100).checked_div(hits + misses) {
            parts.push(format!("cache {percent}%"));
        }
        if let Some(left) = left {
            parts.push(format!("{} left", HumanCount(left)));
        }
        if let Some(eta) = self.services.activity().eta(stats).filter(|eta| !eta.is_zero()) {
            let eta = Duration::from_secs(eta.as_secs().max(1));
            parts.push(format!("about {} to go", output::time(eta)));
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

fn ended(stats: &Stats) -> u64 {
    stats.done.load(Relaxed) + stats.failed.load(Relaxed)
}

/// A progress display. It is removed on drop.
pub(crate) struct Shown {
    drawing: Option<tokio::task::JoinHandle<()>>,
    bar: Option<ProgressBar>,
}

impl Drop for Shown {
    fn drop(&mut self) {
        if let Some(drawing) = &self.drawing {
            drawing.abort();
        }
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Measures tasks per second over the last seconds.
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
