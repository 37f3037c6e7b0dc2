//! The time and resources of one execution, in a line and as JSON.

use std::time::Duration;

use serde::Serialize;
use task_host::sandbox::{CallTimes, Execution, FileUse, Phase};

use super::super::output;

/// The time and resources of an execution.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Figures {
    /// The time from the creation of the instance to its end.
    elapsed_seconds: f64,
    instantiate_seconds: f64,
    prepare_seconds: f64,
    execute_seconds: f64,
    finalize_seconds: f64,
    cpu_seconds: f64,
    /// The maximum memory of the task, in bytes.
    memory: u64,
    /// The bytes that the task read from files and wrote to files.
    read: u64,
    written: u64,
    file_calls: u64,
    #[serde(skip)]
    times: CallTimes,
    #[serde(skip)]
    pub(super) sought_inputs: bool,
}

impl Figures {
    pub(super) fn of(execution: &Execution) -> Self {
        let Execution { memory, cpu_time, elapsed, times, files, .. } = execution;
        let FileUse { calls, read, written, sought_inputs } = *files;
        let seconds = |phase| times.of(phase).as_secs_f64();
        Self {
            elapsed_seconds: elapsed.as_secs_f64(),
            instantiate_seconds: seconds(Phase::Instantiate),
            prepare_seconds: seconds(Phase::Prepare),
            execute_seconds: seconds(Phase::Execute),
            finalize_seconds: seconds(Phase::Finalize),
            cpu_seconds: cpu_time.unwrap_or_default().as_secs_f64(),
            memory: *memory,
            read,
            written,
            file_calls: calls,
            times: *times,
            sought_inputs,
        }
    }

    /// `12 ms (prepare 8 µs, execute 11 ms, finalize 3 µs, processor 10 ms), …`
    pub(super) fn line(&self) -> String {
        let calls = [Phase::Prepare, Phase::Execute, Phase::Finalize].into_iter();
        let calls: Vec<String> = calls
            .map(|phase| (phase, self.times.of(phase)))
            .filter(|(_, time)| !time.is_zero())
            .map(|(phase, time)| format!("{phase} {}", output::time(time)))
            .chain([format!("processor {}", output::time(duration(self.cpu_seconds)))])
            .collect();
        format!(
            "{} ({}), {} of memory, {} read and {} written in {}",
            output::time(duration(self.elapsed_seconds)),
            calls.join(", "),
            output::bytes(self.memory),
            output::bytes(self.read),
            output::bytes(self.written),
            output::count(self.file_calls, "file call"),
        )
    }
}

fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}
