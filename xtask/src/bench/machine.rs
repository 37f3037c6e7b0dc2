//! Describes the machine of a measurement.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Context;

use crate::command::capture;

/// The machine and the programs, as a Markdown list.
pub(super) fn describe(host: &Path, python: &Path) -> anyhow::Result<String> {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("unknown", |(_, model)| model.trim());
    let cores = std::thread::available_parallelism()?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default();
    let version = |command: &mut Command| -> anyhow::Result<String> {
        Ok(capture(command)?.lines().next().unwrap_or_default().trim().to_owned())
    };
    let host = version(Command::new(host).arg("--version"))?;
    let interpreter = version(Command::new(python).arg("--version"))?;
    let queue = version(
        Command::new(python)
            .args(["-c", "import importlib.metadata as m; print(m.version('task-queue'))"]),
    )?;
    Ok(format!(
        "- {cores} cores, {model}\n- Linux {}, load {load} before\n- {host}\n- task-queue {queue}, {interpreter}\n",
        kernel.trim()
    ))
}

/// The kind of a directory's file system.
pub(super) fn file_system(dir: &Path) -> anyhow::Result<String> {
    let kind = capture(Command::new("stat").args(["--file-system", "--format", "%T"]).arg(dir))
        .context("the kind of file system")?;
    Ok(match kind.trim() {
        "ext2/ext3" => "ext4".to_owned(),
        other => other.to_owned(),
    })
}
