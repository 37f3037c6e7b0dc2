//! The results of a soak run.

use std::fmt;

use serde_json::{Value, json};

/// Results of a soak run. Numbers are numbers of tasks, unless noted.
#[derive(Default)]
pub(super) struct Ledger {
    pub(super) seed: u64,
    pub(super) tasks: usize,
    /// Finished, with a complete output.
    pub(super) done: usize,
    /// On the error queue.
    pub(super) rejected: usize,
    /// Still in the queue.
    pub(super) left: usize,
    /// Neither finished nor in a queue.
    pub(super) lost: usize,
    /// Published by more than one execution.
    pub(super) repeated: usize,
    /// Executions that published their outputs.
    pub(super) executions: usize,
    /// Executions by Python.
    pub(super) by_python: usize,
    /// Finished without an output.
    pub(super) missing: usize,
    /// With an output that differs from the input.
    pub(super) wrong: usize,
    /// With only a part of their outputs.
    pub(super) half: usize,
    /// Temporary files that remained.
    pub(super) left_behind: Vec<String>,
    /// Without a receipt, or with outputs that differ from their receipt. None if the run has no
    /// receipts.
    pub(super) unproven: Option<u64>,
    /// Hosts killed with SIGKILL.
    pub(super) kills: u64,
    /// Hosts stopped and continued.
    pub(super) stops: u64,
    /// Hosts that ended because a fault kept them from starting.
    pub(super) not_started: u64,
    /// Faults of the network.
    pub(super) network_faults: u64,
    /// Number of times that a disk was full.
    pub(super) disk_faults: u64,
    pub(super) leases_lost: usize,
    pub(super) bad_ends: Vec<String>,
    pub(super) seconds: f64,
    /// The highest peak memory of a host.
    pub(super) peak_bytes: u64,
}

impl Ledger {
    pub(super) fn to_json(&self) -> Value {
        json!({
            "seed": self.seed,
            "tasks": self.tasks,
            "done": self.done,
            "rejected": self.rejected,
            "left": self.left,
            "lost": self.lost,
            "repeated": self.repeated,
            "executions": self.executions,
            "by_python": self.by_python,
            "outputs_missing": self.missing,
            "outputs_wrong": self.wrong,
            "outputs_partial": self.half,
            "not_as_in_their_receipt": self.unproven,
            "left_behind": self.left_behind,
            "kills": self.kills,
            "stops": self.stops,
            "hosts_not_started": self.not_started,
            "network_faults": self.network_faults,
            "disk_faults": self.disk_faults,
            "leases_lost": self.leases_lost,
            "bad_ends": self.bad_ends,
            "seconds": self.seconds,
            "tasks_per_second": self.tasks as f64 / self.seconds,
            "peak_mib": self.peak_mib(),
        })
    }

    /// The results that must not occur, as text for people.
    pub(super) fn problems(&self) -> Vec<String> {
        let unproven = self.unproven.unwrap_or_default();
        let counts = [
            (self.lost, "lost"),
            (self.rejected, "rejected"),
            (self.left, "left in the queue"),
            (self.missing, "without an output"),
            (self.wrong, "with a wrong output"),
            (self.half, "with a partial output"),
            (usize::try_from(unproven).unwrap_or(usize::MAX), "not as in their receipt"),
        ];
        let tasks = counts.iter().filter(|(count, _)| *count > 0);
        let mut problems: Vec<String> =
            tasks.map(|(count, what)| format!("tasks {what}: {count}")).collect();
        if let Some(first) = self.left_behind.first() {
            let count = self.left_behind.len();
            problems.push(format!("temporary files left behind: {count}, such as {first}"));
        }
        problems.extend(self.bad_ends.iter().cloned());
        problems
    }

    fn peak_mib(&self) -> f64 {
        self.peak_bytes as f64 / f64::from(1 << 20)
    }
}

impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n| --seed {} | |\n|---|---:|", self.seed)?;
        let mut row = |name: &str, value: String| writeln!(f, "| {name} | {value} |");
        row("tasks submitted", self.tasks.to_string())?;
        row("done", self.done.to_string())?;
        row("rejected", self.rejected.to_string())?;
        row("left in the queue", self.left.to_string())?;
        row("lost", self.lost.to_string())?;
        row("outputs missing", self.missing.to_string())?;
        row("outputs wrong", self.wrong.to_string())?;
        row("outputs partial", self.half.to_string())?;
        if let Some(unproven) = self.unproven {
            row("tasks that are not as in their receipt", unproven.to_string())?;
        }
        row("temporary files left behind", self.left_behind.len().to_string())?;
        row("executions that published", self.executions.to_string())?;
        row("of these by Python", self.by_python.to_string())?;
        row("tasks published more than once", self.repeated.to_string())?;
        row("hosts killed", self.kills.to_string())?;
        row("hosts stopped and continued", self.stops.to_string())?;
        row("faults of the network", self.network_faults.to_string())?;
        row("times a disk was full", self.disk_faults.to_string())?;
        row("hosts that a fault kept from starting", self.not_started.to_string())?;
        row("leases lost", self.leases_lost.to_string())?;
        row("hosts that did not stop as told", self.bad_ends.len().to_string())?;
        row("seconds", format!("{:.0}", self.seconds))?;
        row("tasks per second", format!("{:.0}", self.tasks as f64 / self.seconds))?;
        row("peak memory of a host, MiB", format!("{:.0}", self.peak_mib()))
    }
}
