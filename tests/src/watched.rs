//! A host that answers probes and logs in JSON, so that tests can watch its state during faults.

use rustix::process::Signal;
use serde_json::Value;

use crate::http;
use crate::process::{Finished, Running};
use task_host_test_network::wait::eventually;

/// A host whose state a test can query.
#[derive(Debug)]
pub struct Watched {
    host: Running,
    address: String,
}

impl Watched {
    /// The flags with which a watched host must be started.
    pub const FLAGS: [&str; 7] =
        ["--listen", "127.0.0.1:0", "--log-format", "json", "--log-level", "debug", "--json"];

    /// Takes a host that was started with [`FLAGS`](Self::FLAGS), and waits until it answers. The
    /// host may already have problems.
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

    /// The running host.
    pub fn host(&self) -> &Running {
        &self.host
    }

    /// The address of its status page.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Stops the host, calls `act`, and continues the host, so that it sees all changes at once.
    pub fn in_one_moment(&self, act: impl FnOnce()) {
        self.host.signal(Signal::STOP);
        act();
        self.host.signal(Signal::CONT);
    }

    /// The answer to a request for this path: the status, and the text.
    pub fn ask(&self, path: &str) -> (u16, String) {
        let answer = http::send(&self.address, "GET", path, &[], b"");
        (answer.status, String::from_utf8_lossy(&answer.body).into_owned())
    }

    /// The answer of `/readyz`: the status, and the problems.
    pub fn ready(&self) -> (u16, String) {
        self.ask("/readyz")
    }

    /// Waits until the host is not ready because of a problem with these words, and checks that it
    /// still answers `/healthz`.
    #[track_caller]
    pub fn is_out(&self, words: &str) {
        let what = format!("a host that is not ready because of {words:?}");
        eventually(&what, || {
            let (status, problems) = self.ready();
            (status == 503 && problems.contains(words)).then_some(())
        });
        assert_eq!(self.ask("/healthz").0, 200);
    }

    /// Waits until the host has tried an unavailable service or disk this many times.
    #[track_caller]
    pub fn has_tried(&self, times: u32) {
        let tries = format!("\"tries\":{times}");
        eventually(&tries, || self.host.stderr().contains(&tries).then_some(()));
    }

    /// Waits until the host is ready.
    #[track_caller]
    pub fn is_ready_again(&self) {
        eventually("a host that is ready", || (self.ready().0 == 200).then_some(()));
    }

    /// The log lines with this level.
    pub fn lines(&self, level: &str) -> Vec<String> {
        lines(&self.host.stderr(), level)
    }

    /// Stops an idle host, and returns its summary.
    #[track_caller]
    pub fn stop(self) -> Value {
        self.host.signal(Signal::TERM);
        summary(&self.host.wait())
    }

    /// Checks that the fault cost no attempt and that the log has few errors. Stops the host, and
    /// returns its summary.
    #[track_caller]
    pub fn did_without_harm(self, tasks: usize) -> Value {
        self.is_ready_again();
        let errors = self.lines("ERROR");
        // Several users of one disk may each report its fault.
        assert!(errors.len() <= 4, "{} lines: {errors:#?}", errors.len());
        let said = self.host.stderr();
        let summary = self.stop();
        let ends = ["done", "failed", "retried"].map(|name| summary[name].as_u64());
        assert_eq!(ends, [Some(tasks as u64), Some(0), Some(0)], "{summary:#}\n{said}");
        summary
    }

    /// The running host, without this wrapper.
    pub fn into_host(self) -> Running {
        self.host
    }
}

/// The lines of a log with this level.
fn lines(log: &str, level: &str) -> Vec<String> {
    let is_of = |line: &&str| line.contains(&format!("\"level\":\"{level}\""));
    log.lines().filter(is_of).map(str::to_owned).collect()
}

/// The summary of a host that has ended.
#[track_caller]
fn summary(finished: &Finished) -> Value {
    assert_eq!(finished.status.code(), Some(0), "{}\n{}", finished.what, finished.stderr);
    serde_json::from_str(&finished.stdout).expect("a summary that is JSON")
}
