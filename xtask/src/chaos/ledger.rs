//! The results of a chaos run.

use std::fmt;

use serde_json::{Value, json};

/// Numbers of tasks, unless noted.
#[derive(Default)]
pub(super) struct Ledger {
    pub(super) seed: u64,
    pub(super) tasks: usize,
    /// Finished, with the whole output.
    pub(super) done: usize,
    /// On the error queue.
    pub(super) rejected: usize,
    /// Still in the queue.
    pub(super) left: usize,
    /// Neither finished, nor in a queue.
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
    /// With a part of their output.
    pub(super) half: usize,
    /// Temporary files that remained.
    pub(super) left_behind: Vec<String>,
    pub(super) kills: u64,
    pub(super) stops: u64,
    pub(super) leases_lost: usize,
    pub(super) bad_ends: Vec<String>,
    pub(super) seconds: f64,
    /// The largest of all hosts.
    pub(super) peak_mib: f64,
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
            "outputs_half": self.half,
            "left_behind": self.left_behind,
            "kills": self.kills,
            "stops": self.stops,
            "leases_lost": self.leases_lost,
            "bad_ends": self.bad_ends,
            "seconds": self.seconds,
            "tasks_per_second": self.tasks as f64 / self.seconds,
            "peak_mib": self.peak_mib,
        })
    }

    /// The results that must not occur, for people.
    pub(super) fn problems(&self) -> Vec<String> {
        let counts = [
            (self.lost, "lost"),
            (self.rejected, "rejected"),
            (self.left, "left in the queue"),
            (self.missing, "without an output"),
            (self.wrong, "with a wrong output"),
            (self.half, "with a partial output"),
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
        row("temporary files left behind", self.left_behind.len().to_string())?;
        row("executions that published", self.executions.to_string())?;
        row("of these by Python", self.by_python.to_string())?;
        row("tasks published more than once", self.repeated.to_string())?;
        row("hosts killed", self.kills.to_string())?;
        row("hosts stopped and continued", self.stops.to_string())?;
        row("leases lost", self.leases_lost.to_string())?;
        row("hosts that did not stop as told", self.bad_ends.len().to_string())?;
        row("seconds", format!("{:.0}", self.seconds))?;
        row("tasks per second", format!("{:.0}", self.tasks as f64 / self.seconds))?;
        row("peak memory of a host, MiB", format!("{:.0}", self.peak_mib))
    }
}
