//! How far a command is that goes through many messages: a live line on a terminal, a plain
//! one every ten seconds elsewhere.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use task_host::plain;

use super::console::Console;
use super::output;

/// Between two looks of a person.
const FRAME: Duration = Duration::from_millis(100);
/// Between two plain lines.
const LINE: Duration = Duration::from_secs(10);

/// Counts what is done. What it shows is gone when it is dropped.
pub(crate) struct ProgressLine {
    screen: Console,
    bar: Option<ProgressBar>,
    /// What is counted, and what is done to it: `tasks`, `sent`.
    noun: &'static str,
    verb: &'static str,
    start: Instant,
    shown: Instant,
}

impl ProgressLine {
    /// `whole` is where the progress that [`at`](Self::at) is told ends, if that is known.
    pub(crate) fn new(
        screen: &Console,
        noun: &'static str,
        verb: &'static str,
        whole: Option<u64>,
    ) -> Self {
        let bar = screen.live().map(|bars| {
            let bar = match whole {
                Some(whole) => bars.add(ProgressBar::new(whole)),
                None => bars.add(ProgressBar::no_length()),
            };
            let template = match whole {
                Some(_) => "{spinner} {bar:24} {percent:>3}%  {msg}, {eta} left",
                None => "{spinner} {msg}, {elapsed}",
            };
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.set_message(format!("0 {noun} {verb}"));
            bar.enable_steady_tick(FRAME);
            bar
        });
        let now = Instant::now();
        Self { screen: screen.clone(), bar, noun, verb, start: now, shown: now }
    }

    /// For one long step: shows that it is under way.
    pub(crate) fn busy(screen: &Console, doing: String) -> Self {
        let meter = Self::new(screen, "", "", None);
        if let Some(bar) = &meter.bar {
            bar.set_message(plain::escape(&doing).into_owned());
        }
        meter
    }

    /// So many are done, and the work is at `position` of its whole.
    pub(crate) fn at(&mut self, done: u64, position: u64) {
        let since = self.shown.elapsed();
        let pause = if self.bar.is_some() { FRAME } else { LINE };
        if since < pause {
            return;
        }
        self.shown = Instant::now();
        let rate = output::number(output::rate(done, self.start.elapsed()).round() as u64);
        let line = format!("{} {} {}, {rate}/s", output::number(done), self.noun, self.verb);
        match &self.bar {
            Some(bar) => {
                bar.set_position(position);
                bar.set_message(line);
            }
            None if self.screen.wants_lines() => self.screen.tell(line),
            None => {}
        }
    }

    /// Shows nothing any more.
    pub(crate) fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        self.end();
    }
}
