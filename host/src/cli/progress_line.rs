//! The progress of a command that counts messages or files: a live line on a terminal, and a plain
//! line every ten seconds elsewhere.

use std::time::{Duration, Instant};

use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use task_host::plain;

use super::console::Console;
use super::output;

/// Time between two updates of a live line.
const FRAME: Duration = Duration::from_millis(100);
/// Time between two plain lines.
const LINE: Duration = Duration::from_secs(10);

/// Shows a count and a rate, until it is dropped.
pub(crate) struct ProgressLine {
    console: Console,
    bar: Option<ProgressBar>,
    /// The counted things and the action, such as `tasks` and `sent`.
    noun: &'static str,
    verb: &'static str,
    start: Instant,
    shown: Instant,
}

impl ProgressLine {
    /// `whole` is the final position for [`at`](Self::at), if it is known.
    pub(crate) fn new(
        console: &Console,
        noun: &'static str,
        verb: &'static str,
        whole: Option<u64>,
    ) -> Self {
        Self::start(console, noun, verb, whole, format!("0 {noun} {verb}"))
    }

    fn start(
        console: &Console,
        noun: &'static str,
        verb: &'static str,
        whole: Option<u64>,
        message: String,
    ) -> Self {
        let bar = console.live().map(|bars| {
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
            bar.set_message(message);
            bar.enable_steady_tick(FRAME);
            bar
        });
        let now = Instant::now();
        Self { console: console.clone(), bar, noun, verb, start: now, shown: now }
    }

    /// Shows that one long step is running.
    pub(crate) fn busy(console: &Console, doing: String) -> Self {
        Self::start(console, "", "", None, plain::escape(&doing).into_owned())
    }

    /// Shows that `done` messages or files are done, and that the work has reached `position`.
    pub(crate) fn at(&mut self, done: u64, position: u64) {
        let since = self.shown.elapsed();
        let pause = if self.bar.is_some() { FRAME } else { LINE };
        if since < pause {
            return;
        }
        self.shown = Instant::now();
        let rate = HumanCount(output::rate(done, self.start.elapsed()).round() as u64);
        let line = format!("{} {} {}, {rate}/s", HumanCount(done), self.noun, self.verb);
        match &self.bar {
            Some(bar) => {
                bar.set_position(position);
                bar.set_message(line);
            }
            None if self.console.wants_lines() => self.console.tell(line),
            None => {}
        }
    }

    /// Removes the line.
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
