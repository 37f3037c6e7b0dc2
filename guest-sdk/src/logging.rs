//! Lines in the task's log, which is the guest's standard error.
//!
//! The host shows it at `--log-level debug` and in the report of a task that failed, up to a
//! bound; a panic's message is there too.

use std::fmt;
use std::io::Write;

/// Writes a line to the task's log; the arguments are those of [`format!`].
///
/// ```
/// task_host_sdk::info!("{} tiles, the largest {} bytes", 12, 4096);
/// ```
#[macro_export]
macro_rules! info {
    ($($arg:tt)+) => { $crate::line("INFO", ::core::format_args!($($arg)+)) };
}

/// Writes a line to the task's log that says that something is odd. As [`info!`](crate::info).
#[macro_export]
macro_rules! warn {
    ($($arg:tt)+) => { $crate::line("WARN", ::core::format_args!($($arg)+)) };
}

/// Writes a line to the task's log that says that something is wrong. As [`info!`](crate::info).
/// It does not end the task: return an [`Error`](crate::Error) for that.
#[macro_export]
macro_rules! error {
    ($($arg:tt)+) => { $crate::line("ERROR", ::core::format_args!($($arg)+)) };
}

/// Writes a line of detail to the task's log. As [`info!`](crate::info).
#[macro_export]
macro_rules! debug {
    ($($arg:tt)+) => { $crate::line("DEBUG", ::core::format_args!($($arg)+)) };
}

/// One write for one line: standard error is not buffered, and each write is a call of the host.
/// A log that can't be written (the host's bound is reached) is no reason for a task to fail.
#[doc(hidden)]
pub fn line(level: &str, message: fmt::Arguments<'_>) {
    let line = format!("{level} {message}\n");
    // In a unit test `eprint!` is captured with the test's output; in a guest it would panic when
    // the write fails.
    if cfg!(target_family = "wasm") {
        let _ = std::io::stderr().write_all(line.as_bytes());
    } else {
        eprint!("{line}");
    }
}

/// With the feature `log`, what goes through the `log` crate's macros is written too.
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

    // A guest that set its own logger keeps it.
    if log::set_logger(&TaskLog).is_ok() {
        log::set_max_level(log::LevelFilter::Debug);
    }
}

#[cfg(not(feature = "log"))]
pub(crate) fn install() {}
