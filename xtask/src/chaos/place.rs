//! The directory of a chaos run: queue, bucket, cache and logs.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use serde_json::json;

use super::crew::Report;
use super::ledger::Ledger;

const PYTHON: &str = include_str!("python.py");
/// One in `LONG.0` tasks takes `LONG.1` seconds; the others take no time.
const LONG: (usize, f64) = (40, 0.4);

/// A host that runs until the queue is empty.
pub(super) const RUN: [&str; 6] = ["run", "--fq", "./queue", "--cache-dir", "./cache", "-x"];

/// The message that a host logs when it has lost a lease.
const LOST: &str = "the lease was lost; the task is left to whoever has it now";

pub(super) struct Place {
    dir: PathBuf,
    host: PathBuf,
}

impl Place {
    /// An empty place. Clears that of an earlier run.
    pub(super) fn new(dir: &Path, host: &Path) -> anyhow::Result<Self> {
        let is_ours = dir.join("python.py").is_file();
        let is_free = fs::read_dir(dir).map_or(true, |mut entries| entries.next().is_none());
        ensure!(is_ours || is_free, "{} is not the directory of a chaos run", dir.display());
        let place = Self { dir: dir.to_owned(), host: host.to_owned() };
        place.remove()?;
        for part in ["bucket/components", "logs"] {
            fs::create_dir_all(dir.join(part))?;
        }
        fs::write(dir.join("python.py"), PYTHON)?;
        Ok(place)
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn remove(&self) -> anyhow::Result<()> {
        match fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", self.dir.display()))
            }
            _ => Ok(()),
        }
    }

    /// The command `host ARGS…` in this place.
    pub(super) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.host);
        command.args(args).current_dir(&self.dir).stdin(Stdio::null());
        command
    }

    /// Runs `host ARGS…`, which must succeed.
    pub(super) fn host(&self, args: &[&str]) -> anyhow::Result<()> {
        let output = self.command(args).output().context("cannot start host")?;
        ensure!(
            output.status.success(),
            "host {}: {}\n{}",
            args.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    /// Creates inputs, and a task for each.
    pub(super) fn fill(&self, guest: &Path, tasks: usize) -> anyhow::Result<()> {
        fs::copy(guest, self.dir.join("bucket/components/misbehave.wasm"))
            .with_context(|| format!("cannot copy {}", guest.display()))?;
        // Compiles the component first: hosts that are soon killed may never finish compiling.
        let warm = ["submit", "--fq", "./queue", "--name", "misbehave", "--base-directory", "warm"];
        self.host(&[&warm[..], &["--payload", r#"{"do": "copy"}"#]].concat())?;
        self.host(&RUN)?;
        let file = self.dir.join("tasks.jsonl");
        let mut lines = std::io::BufWriter::new(fs::File::create(&file)?);
        for id in 0..tasks {
            let key = key(id);
            let path = self.dir.join("bucket/data").join(&key);
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::write(path, input(id))?;
            let sleep = json!({"do": "sleep", "secs": LONG.1});
            let mark = json!({"do": "mark", "dir": format!("marks/{}", id / 1000)});
            let mut steps = vec![json!({"do": "copy"}), mark];
            if id.is_multiple_of(LONG.0) {
                steps.insert(0, sleep);
            }
            // A task for both: Python runs the class, hosts run the component.
            let info = json!({
                "id": id, "name": "misbehave", "base_directory": "data", "inputs": [key],
            });
            let payload = json!({"do": "all", "steps": steps});
            let task = json!({"class": "Chaos", "basic_info": info, "payload_info": payload});
            writeln!(lines, "{}", json!({"payload": task, "queueName": "queue"}))?;
        }
        lines.flush()?;
        self.host(&["submit", "--fq", "./queue", "--progress", "never", "tasks.jsonl"])
    }

    /// The number of messages in the queue.
    pub(super) fn left(&self) -> anyhow::Result<usize> {
        Ok(fs::read_dir(self.dir.join("queue/queue"))?.count())
    }

    /// The output of a process.
    pub(super) fn log(&self, name: &str) -> String {
        let log = fs::read(self.dir.join("logs").join(name)).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Determines the result of every task.
    pub(super) fn ledger(
        &self,
        tasks: usize,
        seed: u64,
        seconds: f64,
        report: Report,
    ) -> anyhow::Result<Ledger> {
        let mut ledger = Ledger { tasks, seed, seconds, ..Ledger::default() };
        ledger.kills = report.kills;
        ledger.stops = report.stops;
        ledger.peak_mib = report.peak_bytes as f64 / f64::from(1 << 20);
        ledger.bad_ends = report.bad_ends;
        ledger.rejected = files(&self.dir.join("queue-errors/queue")).len();
        ledger.left = self.left()?;

        // Each execution that publishes leaves its own mark.
        let mut marks: HashMap<usize, usize> = HashMap::new();
        for name in files(&self.dir.join("bucket/data/marks")) {
            let name = name.rsplit('/').next().unwrap_or_default();
            let id = name.split('-').next().and_then(|id| id.parse().ok());
            let id = id.with_context(|| format!("{name} is not a mark"))?;
            *marks.entry(id).or_default() += 1;
            ledger.by_python += usize::from(name.contains("-python-"));
        }
        ledger.executions = marks.values().sum();
        for id in 0..tasks {
            let published = marks.get(&id).copied().unwrap_or_default();
            ledger.repeated += usize::from(published > 1);
            let output = fs::read(self.dir.join("bucket/data/out").join(key(id)));
            match output {
                Ok(output) if output == input(id) => {
                    if published > 0 {
                        ledger.done += 1;
                    } else {
                        ledger.half += 1;
                    }
                }
                Ok(output) if input(id).starts_with(&output) => ledger.half += 1,
                Ok(_) => ledger.wrong += 1,
                Err(_) if published > 0 => ledger.missing += 1,
                Err(_) => {}
            }
        }
        let ended = ledger.done + ledger.half + ledger.wrong + ledger.missing;
        ledger.lost = tasks.saturating_sub(ended + ledger.rejected + ledger.left);
        ledger.left_behind = self.left_behind();
        for log in files(&self.dir.join("logs")) {
            ledger.leases_lost += self.log(&log).matches(LOST).count();
        }
        Ok(ledger)
    }

    /// Temporary files that remain.
    fn left_behind(&self) -> Vec<String> {
        let mut left = Vec::new();
        // The lock of a directory for process directories stays.
        let is_lock = |name: &str| name == "tmp/.lock" || name == "work/.lock";
        for queue in ["queue", "queue-errors"] {
            let names = files(&self.dir.join(queue));
            let in_host = |name: &&String| {
                name.strip_prefix("host/").is_some_and(|name| name.contains('/') && !is_lock(name))
            };
            left.extend(names.iter().filter(in_host).map(|name| format!("{queue}/{name}")));
        }
        // Python and hosts remove the movement file of a finished message.
        let movements = files(&self.dir.join("queue/movement"));
        left.extend(movements.iter().map(|name| format!("queue/movement/{name}")));
        let is_temporary = |name: &&String| {
            name.split('/').any(|part| part.contains("tmp") || part.starts_with('.'))
        };
        let objects = files(&self.dir.join("bucket"));
        left.extend(objects.iter().filter(is_temporary).map(|name| format!("bucket/{name}")));
        let cached = files(&self.dir.join("cache"));
        let is_work =
            |name: &&String| !is_lock(name) && (is_temporary(name) || name.starts_with("work/"));
        left.extend(cached.iter().filter(is_work).map(|name| format!("cache/{name}")));
        left
    }
}

fn key(id: usize) -> String {
    format!("0_input/{}/{id}.dat", id / 1000)
}

/// A quarter of the inputs have equal contents, so that the cache takes part.
fn input(id: usize) -> Vec<u8> {
    let content = if id.is_multiple_of(4) { id % 100 } else { id };
    format!("{content}\n").repeat(1 + content % 500).into_bytes()
}

/// The paths of all files below a directory, relative to it.
fn files(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        let Ok(entries) = fs::read_dir(&next) else { continue };
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                dirs.push(entry.path());
            } else if let Ok(path) = entry.path().strip_prefix(dir) {
                found.push(path.to_string_lossy().into_owned());
            }
        }
    }
    found
}
