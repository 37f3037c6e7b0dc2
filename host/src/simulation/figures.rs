//! The figures of a simulated fleet.

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

use super::machine::Entries;
use super::service::Requests;

/// The figures of a simulated fleet.
#[derive(Debug)]
pub(super) struct Figures {
    pub(super) tasks: usize,
    /// From the start to the end of the last task.
    pub(super) time: Duration,
    /// The same time in the ideal schedule.
    pub(super) ideal: Duration,
    /// From the start until the queue was empty.
    pub(super) emptied: Duration,
    pub(super) requests: Requests,
    pub(super) entries: Entries,
    /// The share of slot time in which a slot was free while another host held a task for it.
    pub(super) free_while_held: f64,
    /// How often the service delivered a message that was already held.
    pub(super) duplicates: u64,
    /// Attempts that were counted for tasks.
    pub(super) charged: u64,
    /// Tasks that were rejected.
    pub(super) given_up: u64,
    /// Leases that were lost.
    pub(super) lost: u64,
    /// Tasks that were released.
    pub(super) released: u64,
}

impl Figures {
    pub(super) fn requests_per_task(&self) -> f64 {
        self.requests.all() as f64 / self.tasks as f64
    }

    /// The time beyond the ideal schedule, as a fraction of that schedule.
    pub(super) fn time_lost(&self) -> f64 {
        self.time.as_secs_f64() / self.ideal.as_secs_f64() - 1.0
    }

    /// All figures, in the format that `cargo xtask bench` reads.
    fn to_json(&self) -> Value {
        let Requests { receive, empty, delete, change, send, other, failed } = self.requests;
        let all = self.requests.all();
        json!({
            "tasks": self.tasks,
            "seconds": self.time.as_secs_f64(),
            "ideal": self.ideal.as_secs_f64(),
            "time_lost": self.time_lost(),
            "emptied": self.emptied.as_secs_f64(),
            "free_while_held": self.free_while_held,
            "requests_per_task": self.requests_per_task(),
            "requests": {
                "all": all, "receive": receive, "empty": empty, "delete": delete,
                "change": change, "send": send, "other": other, "failed": failed,
            },
            "whole": self.entries.whole,
            "again": self.entries.again(),
            "cut": self.entries.cut,
            "cut_seconds": self.entries.cut_time.as_secs_f64(),
            "duplicates": self.duplicates,
            "charged": self.charged,
            "given_up": self.given_up,
            "leases_lost": self.lost,
            "released": self.released,
        })
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_json().fmt(f)
    }
}
