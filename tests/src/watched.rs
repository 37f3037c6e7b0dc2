//! A host that answers probes and logs in JSON, to watch how it fares in trouble.

use rustix::process::Signal;
use serde_json::Value;

use crate::http;
use crate::process::{Finished, Running};
use task_host_test_network::wait::eventually;

/// A host whose state can be asked for.
#[derive(Debug)]
pub struct Watched {
    host: Running,
    address: String,
}

impl Watched {
    /// What a host is told so that it can be watched.
    pub const FLAGS: [&str; 7] =
        ["--listen", "127.0.0.1:0", "--log-format", "json", "--log-level", "debug", "--json"];

    /// A host that was started with [`FLAGS`](Self::FLAGS), when it answers. It may have met trouble
    /// already.
    #[track_caller]
    pub fn new(mut host: Running) -> Self {
        let address = eventually("a host that listens", || {
            assert!(!host.has_ended(), "the host ended: {}", host.stderr());
            let said = host.stderr();
            let rest = said.split("listening at http://").nth(1)?;
            rest.split('/').next().map(str::to_owned)
        });
        Self { host, address }
    }

    /// The host itself.
    pub fn host(&self) -> &Running {
        &self.host
    }

    /// Where it answers.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Stops the host, does something, and lets it go on: it sees all of that at once.
    pub fn in_one_moment(&self, act: impl FnOnce()) {
        self.host.signal(Signal::STOP);
        act();
        self.host.signal(Signal::CONT);
    }

    /// What it answers there: the status, and the text.
    pub fn ask(&self, path: &str) -> (u16, String) {
        let answer = http::send(&self.address, "GET", path, &[], b"");
        (answer.status, String::from_utf8_lossy(&answer.body).into_owned())
    }

    /// What `/readyz` says: the status, and the problems.
    pub fn ready(&self) -> (u16, String) {
        self.ask("/readyz")
    }

    /// Waits until the host says that it is not ready because of this, and insists that it
    /// lives nevertheless.
    #[track_caller]
    pub fn is_out(&self, words: &str) {
        let what = format!("a host that is not ready because of {words:?}");
        eventually(&what, || {
            let (status, problems) = self.ready();
            (status == 503 && problems.contains(words)).then_some(())
        });
        assert_eq!(self.ask("/healthz").0, 200);
    }

    /// Waits until what is out has been tried this many times.
    #[track_caller]
    pub fn has_tried(&self, times: u32) {
        let tries = format!("\"tries\":{times}");
        eventually(&tries, || self.host.stderr().contains(&tries).then_some(()));
    }

    /// Waits until the host says that it is ready.
    #[track_caller]
    pub fn is_ready_again(&self) {
        eventually("a host that is ready", || (self.ready().0 == 200).then_some(()));
    }

    /// The lines of that level in the log.
    pub fn lines(&self, level: &str) -> Vec<String> {
        lines(&self.host.stderr(), level)
    }

    /// Stops the host, which has nothing to do, and returns its summary.
    #[track_caller]
    pub fn stop(self) -> Value {
        self.host.signal(Signal::TERM);
        summary(&self.host.wait())
    }

    /// Insists that trouble cost no task an attempt, and was told of in a few lines. Stops the
    /// host.
    #[track_caller]
    pub fn did_without_harm(self, tasks: usize) -> Value {
        self.is_ready_again();
        let errors = self.lines("ERROR");
        // A disk may be met by more than one of the things that are on it.
        assert!(errors.len() <= 4, "{} lines: {errors:#?}", errors.len());
        let said = self.host.stderr();
        let summary = self.stop();
        let ends = ["done", "failed", "retried"].map(|name| summary[name].as_u64());
        assert_eq!(ends, [Some(tasks as u64), Some(0), Some(0)], "{summary:#}\n{said}");
        summary
    }

    /// The host, no longer watched.
    pub fn into_host(self) -> Running {
        self.host
    }
}

/// The lines of that level in a log.
fn lines(log: &str, level: &str) -> Vec<String> {
    let is_of = |line: &&str| line.contains(&format!("\"level\":\"{level}\""));
    log.lines().filter(is_of).map(str::to_owned).collect()
}

/// What a host that has ended says it did.
#[track_caller]
fn summary(finished: &Finished) -> Value {
    assert_eq!(finished.status.code(), Some(0), "{}\n{}", finished.what, finished.stderr);
    serde_json::from_str(&finished.stdout).expect("a summary that is JSON")
}
