//! Shows the progress and the refused messages of a transfer on the console, and stops a transfer
//! at a signal.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering::Relaxed};

use indicatif::HumanCount;
use parking_lot::Mutex;
use task_host::queue::Address;
use task_host::transfer::forward::ForwardError;
use task_host::transfer::send::Sent;
use task_host::transfer::{MessageOrigin, Observer, Rejects, RejectsError};
use task_host::words;
use tokio_util::sync::CancellationToken;

use super::console::Console;
use super::exit_code::{Advice, Exit};
use super::output;
use super::progress_line::ProgressLine;
use super::signals::Signals;

/// The maximum number of refused messages that are shown. Further ones are only counted.
const SHOWN: u64 = 20;
/// The maximum number of bytes of a message that are shown.
const MOST_SHOWN: usize = 4 << 10;

/// Shows a transfer on the console.
pub(crate) struct TransferDisplay {
    console: Console,
    /// The counted things and the action, such as `tasks` and `sent`.
    noun: &'static str,
    verb: &'static str,
    line: Mutex<Option<ProgressLine>>,
    refused: AtomicU64,
    /// Whether the first message of a dry run is shown.
    shows_first: bool,
}

impl TransferDisplay {
    /// A display for a dry run. It shows the first message that would be sent.
    pub(crate) fn of_dry_run(
        console: &Console,
        noun: &'static str,
        verb: &'static str,
    ) -> Arc<Self> {
        Arc::new(Self { shows_first: true, ..Self::following(console, noun, verb) })
    }

    pub(crate) fn new(console: &Console, noun: &'static str, verb: &'static str) -> Arc<Self> {
        Arc::new(Self::following(console, noun, verb))
    }

    fn following(console: &Console, noun: &'static str, verb: &'static str) -> Self {
        Self {
            console: console.clone(),
            noun,
            verb,
            line: Mutex::default(),
            refused: AtomicU64::new(0),
            shows_first: false,
        }
    }

    /// Waits for a transfer, and removes its progress line. Shows the number of refused messages
    /// that were not shown.
    pub(crate) async fn follow<T>(&self, transfer: impl Future<Output = T>) -> T {
        let ended = transfer.await;
        *self.line.lock() = None;
        let hidden = self.refused.load(Relaxed).saturating_sub(SHOWN);
        if hidden > 0 {
            self.console.tell(format_args!("and {} more", HumanCount(hidden)));
        }
        ended
    }
}

impl Observer for TransferDisplay {
    fn created(&self, queue: &Address) {
        self.console.note(format_args!("created {}", output::name(queue)));
    }

    fn begins(&self, total: Option<u64>) {
        *self.line.lock() = Some(ProgressLine::new(&self.console, self.noun, self.verb, total));
    }

    fn progress(&self, done: u64, position: u64) {
        if let Some(line) = &mut *self.line.lock() {
            line.at(done, position);
        }
    }

    fn would_send(&self, body: &[u8]) {
        if self.shows_first {
            let text = String::from_utf8_lossy(body);
            self.console.tell(format_args!("the first message: {}", words::cut(&text, MOST_SHOWN)));
        }
    }

    fn refused(&self, origin: &MessageOrigin, problem: &dyn fmt::Display) {
        if self.refused.fetch_add(1, Relaxed) < SHOWN {
            self.console.tell(format_args!("{}: {problem}", output::name(origin)));
        }
    }
}

/// Creates the file of `--rejects`.
pub(crate) fn create_rejects(path: &Path) -> Result<Rejects, Advice> {
    Rejects::create(path).map_err(|error| match error {
        RejectsError::Exists(_) => {
            Advice::usage(error.to_string()).hint("give --rejects the name of a new file")
        }
        RejectsError::Io { .. } => Advice::failed(error.to_string()),
    })
}

/// Tells the user how many lines are in the file of `--rejects`.
pub(crate) fn tell_kept(console: &Console, sent: &Sent, rejects: Option<&Path>) {
    if let Some(path) = rejects.filter(|_| sent.kept > 0) {
        let lines = output::count(sent.kept, "line");
        console.note(format_args!("{lines} kept in {}", output::path(path)));
    }
}

/// The error of a failed transfer between queues, with the number of messages before it. `verb` is
/// the action, such as `moved`.
pub(crate) fn forward_error(error: &ForwardError, verb: &str) -> Advice {
    let advice = Advice::failed(error.to_string());
    match error {
        ForwardError::Queue(_) => advice,
        ForwardError::Stopped { sent, .. } => {
            advice.hint(format!("{} {verb} before the error", output::count(*sent, "message")))
        }
    }
}

/// Tells a transfer to stop.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stop {
    pub(crate) token: CancellationToken,
    signal: Arc<AtomicI32>,
}

impl Stop {
    /// The exit code of a stopped command: the same as if the signal had ended it.
    pub(crate) fn exit(&self) -> Exit {
        Exit::Killed(self.signal.load(Relaxed))
    }
}

/// Returns a [`Stop`] that Ctrl-C or SIGTERM cancels. A second signal exits at once. Leased
/// messages are then available again when their leases expire.
pub(crate) fn stop_on_signal(console: &Console) -> Stop {
    let stop = Stop::default();
    // Listen before the first message is sent. If the handlers can't be installed, a signal ends
    // the process.
    let Ok(mut signals) = Signals::listen() else { return stop };
    let (console, stopped) = (console.clone(), stop.clone());
    tokio::spawn(async move {
        stopped.signal.store(signals.next().await, Relaxed);
        stopped.token.cancel();
        console.tell("stopping after the current messages; press Ctrl-C again to exit at once");
        std::process::exit(128 + signals.next().await);
    });
    stop
}
