//! Macros that write lines to the task's log, which is the guest's standard error.
//!
//! The host logs warnings and errors of a task, and everything at `--log-level debug`. It puts the
//! end of the task's log into the error report. Panic messages go to the task's log too.

use std::fmt;
use std::io::Write;

/// Writes a line to the task's log, with the arguments of [`format!`].
///
/// ```
/// task_host_sdk::info!("{} tiles, the largest {} bytes", 12, 4096);
/// ```
#[macro_export]
macro_rules! info {
    ($($arg:tt)+) => { $crate::line("INFO", ::core::format_args!($($arg)+)) };
}

/// Writes a warning to the task's log. Like [`info!`](crate::info).
#[macro_export]
macro_rules! warn {
    ($($arg:tt)+) => { $crate::line("WARN", ::core::format_args!($($arg)+)) };
}

/// Writes an error to the task's log. Like [`info!`](crate::info). To end the task, return an
/// [`Error`](crate::Error).
#[macro_export]
macro_rules! error {
    ($($arg:tt)+) => { $crate::line("ERROR", ::core::format_args!($($arg)+)) };
}

/// Writes a detail to the task's log. Like [`info!`](crate::info).
#[macro_export]
macro_rules! debug {
    ($($arg:tt)+) => { $crate::line("DEBUG", ::core::format_args!($($arg)+)) };
}

/// Writes a line in one call, because standard error is unbuffered and each write calls the host.
/// Ignores errors, because a failed write to the log must not fail the task.
#[doc(hidden)]
pub fn line(level: &str, message: fmt::Arguments<'_>) {
    let line = format!("{level} {message}\n");
    // Unit tests capture `eprint!`. In a guest, `eprint!` would panic if the write fails.
    if cfg!(target_family = "wasm") {
        let _ = std::io::stderr().write_all(line.as_bytes());
    } else {
        eprint!("{line}");
    }
}

/// Writes panics to the task's log in one line, with the cause first. The standard library's message
/// has a hint about an environment variable, which can't be set for a guest.
pub(crate) fn report_panics() {
    // Unit tests keep the message of the standard library.
    if cfg!(target_family = "wasm") {
        std::panic::set_hook(Box::new(|panic| {
            // The text is `panicked at src/lib.rs:10:44:`, with the message on the next line.
            let text = panic.to_string().replacen(":\n", ": ", 1);
            line("ERROR", format_args!("{text}"));
        }));
    }
}

/// With the feature `log`, sends the `log` crate's messages to the task's log.
#[cfg(feature = "log")]
pub(crate) fn install() {
    struct TaskLog;

    impl log::Log for TaskLog {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }

        fn log(&self, record: &log::Record<'_>) {
            line(record.level().as_str(), *record.args());
        }

        fn flush(&self) {}
    }

    // If the guest has set its own logger, this fails and changes nothing.
    if log::set_logger(&TaskLog).is_ok() {
        log::set_max_level(log::LevelFilter::Debug);
    }
}

#[cfg(not(feature = "log"))]
pub(crate) fn install() {}
