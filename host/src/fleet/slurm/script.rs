//! Writes the batch script of workers. The script is the whole request to Slurm, and also stores
//! the description of its fleet.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::super::{EngineError, FleetName, Spec};
use super::PREFIX;
use crate::shell;

/// The option with the directory of logs. Slurm has no option of this name.
pub(super) const LOGS: &str = "logs";
/// The default of Slurm's MaxArraySize.
pub(super) const USUAL_LONGEST_ARRAY: u32 = 1001;
/// The prefix of the line that describes the fleet.
const ABOUT: &str = "# task-host: ";

/// Options of `sbatch` that the script always sets, and the setting that determines each.
const OURS: &[(&str, &str)] = &[
    ("array", "--workers and --relay"),
    ("chdir", "the directory of the command"),
    ("comment", "the fleet"),
    ("cpus-per-task", "--cpus"),
    ("error", "the option logs=DIRECTORY"),
    ("export", "--pass-env"),
    ("export-file", "--pass-env"),
    ("get-user-env", "--pass-env"),
    ("job-name", "the name of the fleet"),
    ("mem", "--mem"),
    ("mem-per-cpu", "--mem"),
    ("nodes", "--workers"),
    ("ntasks", "--workers"),
    ("open-mode", "the fleet"),
    ("output", "the option logs=DIRECTORY"),
    ("partition", "--on slurm://PARTITION"),
    ("requeue", "the fleet"),
    ("no-requeue", "the fleet"),
    ("signal", "--grace"),
    ("time", "--walltime"),
    ("wrap", "the fleet"),
];

/// A script of workers.
pub(super) struct Script<'a> {
    pub(super) spec: &'a Spec,
    pub(super) partition: Option<&'a str>,
    /// The maximum number of elements of an array.
    pub(super) longest: u32,
}

/// The description of a fleet in its script.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct About {
    pub(super) digest: String,
    /// The directory of logs.
    pub(super) logs: PathBuf,
    /// The number of workers that run at the same time.
    pub(super) workers: u32,
    pub(super) environment: BTreeMap<String, String>,
}

impl About {
    pub(super) fn of_script(text: &str) -> Option<Self> {
        let line = text.lines().find_map(|line| line.strip_prefix(ABOUT))?;
        serde_json::from_str(line).ok()
    }
}

/// The name of the log file of an array's element.
pub(super) fn log_file(fleet: &FleetName, array: impl Display, element: impl Display) -> String {
    format!("{fleet}-{array}_{element}.log")
}

impl Script<'_> {
    /// The maximum number of workers in one script.
    pub(super) fn most(&self) -> u32 {
        (self.longest / self.spec.relay.max(1)).max(1)
    }

    /// The script for this number of workers.
    ///
    /// # Errors
    /// If the settings do not fit Slurm.
    pub(super) fn text(&self, workers: u32) -> Result<String, EngineError> {
        let spec = self.spec;
        let relay = spec.relay.max(1);
        let logs = match spec.options.get(LOGS).and_then(|dirs| dirs.last()) {
            Some(logs) => spec.directory.join(logs),
            None => spec.directory.clone(),
        };
        let directory = text_of(&spec.directory)?;
        // Slurm expands a percent sign in this path.
        let output = text_of(&logs)?.replace('%', "%%");
        let about = About {
            digest: spec.digest(),
            logs: logs.clone(),
            workers,
            environment: spec.environment.clone(),
        };
        let about =
            serde_json::to_string(&about).map_err(|error| unfit(error.to_string(), None))?;

        let mut text = "#!/bin/sh\n".to_owned();
        let mut set = |name: &str, value: &str| {
            let _ = match value {
                "" => writeln!(text, "#SBATCH --{name}"),
                value => writeln!(text, "#SBATCH --{name}={}", quoted(value)),
            };
        };
        set("job-name", &format!("{PREFIX}{}", spec.fleet));
        if let Some(partition) = self.partition {
            set("partition", partition);
        }
        let last = (workers * relay).saturating_sub(1);
        set("array", &format!("0-{last}%{workers}"));
        set("ntasks", "1");
        set("cpus-per-task", &spec.cpus.to_string());
        set("mem", &format!("{}M", spec.memory.as_u64().div_ceil(1 << 20)));
        if let Some(walltime) = spec.walltime {
            if walltime <= spec.stop_time {
                return Err(unfit(
                    format!(
                        "a walltime of {} is too short: a worker needs {} of it to stop",
                        humantime::format_duration(walltime),
                        humantime::format_duration(spec.stop_time)
                    ),
                    Some("use a longer --walltime, or a shorter --grace"),
                ));
            }
            set("time", &walltime.as_secs().div_ceil(60).to_string());
        }
        // Slurm may send the signal up to a minute earlier.
        set("signal", &format!("B:TERM@{}", spec.stop_time.as_secs()));
        set("requeue", "");
        set("open-mode", "append");
        set("export", "ALL");
        set("chdir", &directory);
        set("output", &format!("{output}/{}", log_file(&spec.fleet, "%A", "%a")));
        // The number tells how many elements are workers at the same time. The others replace them
        // later.
        set("comment", &format!("task-host {} {workers}", spec.digest()));
        for (name, values) in spec.options.iter().filter(|(name, _)| *name != LOGS) {
            if let Some((_, ours)) = OURS.iter().find(|(ours, _)| ours == name) {
                let problem = format!("the option {name} of Slurm is set by {ours}");
                return Err(unfit(problem, None));
            }
            for value in values {
                if value.contains(char::is_control) {
                    return Err(unfit(format!("Slurm can't have this {name}: {value:?}"), None));
                }
                set(name, value);
            }
        }
        text.push_str(ABOUT);
        text.push_str(&about);
        text.push('\n');
        for (name, value) in &spec.environment {
            let _ = writeln!(text, "export {name}={}", shell::quoted(value));
        }
        let _ = writeln!(
            text,
            "export HOST_WORKER_INDEX=$((SLURM_ARRAY_TASK_ID % {}))",
            workers.max(1)
        );
        if relay > 1 && spec.environment.contains_key("HOST_EXIT_WHEN_IDLE") {
            // A replacement that starts when all tasks are done must not wait until it is idle.
            let _ = writeln!(
                text,
                "if [ \"$SLURM_ARRAY_TASK_ID\" -ge {workers} ]; then\n  export \
                 HOST_EXIT_WHEN_EMPTY=true\nfi"
            );
        }
        let program = spec.program.to_str().ok_or_else(|| {
            unfit(format!("the program's path is not UTF-8 text: {}", spec.program.display()), None)
        })?;
        // `exec` replaces the shell, so that signals reach the worker.
        let _ = writeln!(text, "exec {} run", shell::quoted(program));
        Ok(text)
    }
}

fn unfit(problem: String, cure: Option<&str>) -> EngineError {
    EngineError::Unfit { problem, cure: cure.map(str::to_owned) }
}

/// The directory as text that Slurm accepts.
fn text_of(path: &Path) -> Result<String, EngineError> {
    let text = path.to_str().filter(|text| !text.contains(|c: char| c.is_control() || c == '\\'));
    text.map(str::to_owned).ok_or_else(|| {
        unfit(
            format!(
                "Slurm can't use the directory {path:?}: names with line breaks or backslashes \
                 don't reach it unchanged"
            ),
            Some("start the fleet in another directory"),
        )
    })
}

/// A value for an `#SBATCH` line, quoted if necessary.
fn quoted(value: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if value.chars().all(is_plain) {
        return value.to_owned();
    }
    let mut quoted = "\"".to_owned();
    for c in value.chars() {
        if c == '"' || c == '\\' {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests;
