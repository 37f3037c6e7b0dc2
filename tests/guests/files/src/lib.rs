//! A guest that checks whether files behave as a Rust program expects of the standard library's
//! `fs` and `io`. Leaves `report.txt`: the number of checks, and the name of each failed check.

mod changes;
mod reading;

use std::fmt::Debug;
use std::fs;
use std::io::{self, ErrorKind};

use task_host_sdk::{Context, Guest, Ignored, Outcome, Result, Task};

/// The results of the checks so far.
#[derive(Default)]
pub(crate) struct Checks {
    count: usize,
    failed: Vec<String>,
}

impl Checks {
    pub(crate) fn that(&mut self, name: &str, holds: bool) {
        self.count += 1;
        if !holds {
            self.failed.push(name.to_owned());
        }
    }

    /// Checks that the value is `want`.
    pub(crate) fn is<T: Debug + PartialEq>(&mut self, name: &str, got: T, want: T) {
        self.count += 1;
        if got != want {
            self.failed.push(format!("{name}: {got:?}, not {want:?}"));
        }
    }

    /// Checks that the call fails with `want`.
    pub(crate) fn fails<T>(&mut self, name: &str, want: ErrorKind, call: io::Result<T>) {
        self.count += 1;
        match call {
            Ok(_) => self.failed.push(format!("{name}: worked, and should fail: {want}")),
            Err(error) if error.kind() == want => {}
            Err(error) => self.failed.push(format!("{name}: {error}, not {want}")),
        }
    }
}

/// The error number of WASI's C library, for errors that have no `ErrorKind` on WASI.
pub(crate) fn number<T>(call: io::Result<T>) -> Option<i32> {
    call.err().and_then(|error| error.raw_os_error())
}

#[derive(Default)]
struct Files;

impl Guest for Files {
    type Payload = Ignored;

    fn execute(&mut self, task: &Task) -> Result<Outcome> {
        let mut checks = Checks::default();
        for (name, check) in reading::ALL.iter().chain(changes::ALL) {
            if let Err(error) = check(&mut checks) {
                checks.failed.push(format!("{name}: {error}"));
            }
        }
        checks.failed.insert(0, checks.count.to_string());
        fs::write("/outputs/report.txt", checks.failed.join("\n")).context("the report")?;
        Ok(task.done())
    }
}

/// A group of checks. Returns early if a call fails whose failure is not itself a check.
pub(crate) type Check = fn(&mut Checks) -> io::Result<()>;

task_host_sdk::export!(Files);
