//! The directory of a soak run: queue, bucket, cache and logs.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use task_host_test_network::faults::Proxy;
use task_host_test_network::http;

use super::aws::Aws;
use super::faults::{self, Disk};
use super::ledger::Ledger;
use super::{On, Options};
use crate::project::Project;

const PYTHON: &str = include_str!("python.py");
/// The message that a host logs when it loses a lease.
const LOST: &str = "the lease was lost; another host may have leased the task";
/// Bytes per task on the disk of queue and bucket: its message, its movement file, its input, two
/// outputs and its receipt, each in a page of its own.
const ROOM: u64 = 48 << 10;
/// Files per task, including directories.
const FILES: u64 = 10;
/// The size of the cache's disk in bytes.
const CACHE: u64 = 512 << 20;
/// The exit code of `host receipts verify` if some tasks are not done.
const NOT_DONE: i32 = 3;

pub(super) struct Place {
    dir: PathBuf,
    host: PathBuf,
    aws: Option<Aws>,
    /// The proxy through which hosts read the inputs from a web server.
    inputs: Proxy,
    has_network_faults: bool,
    disks: Vec<Disk>,
}

impl Place {
    /// Creates an empty directory. Removes the files of an earlier run.
    pub(super) fn new(
        dir: &Path,
        host: &Path,
        options: &Options,
        project: &Project,
    ) -> anyhow::Result<Self> {
        let is_ours = dir.join("python.py").is_file();
        let is_free = fs::read_dir(dir).map_or(true, |mut entries| entries.next().is_none());
        ensure!(is_ours || is_free, "{} is not the directory of a soak run", dir.display());
        remove(dir)?;
        for part in ["data", "cache", "logs"] {
            fs::create_dir_all(dir.join(part))?;
        }
        fs::write(dir.join("python.py"), PYTHON)?;
        let mut disks = Vec::new();
        if !options.no_disk_faults {
            let tasks = options.tasks as u64;
            let bytes = tasks * ROOM + (256 << 20);
            disks.push(Disk::mount(dir.join("data"), bytes, tasks * FILES + 100_000)?);
            disks.push(Disk::mount(dir.join("cache"), CACHE, tasks + 100_000)?);
        }
        fs::create_dir_all(dir.join("data/bucket/components"))?;
        let aws = match options.on {
            On::Directory | On::Docker | On::Slurm => None,
            On::Aws => Some(Aws::start(project)?),
        };
        Ok(Self {
            dir: dir.to_owned(),
            host: host.to_owned(),
            aws,
            inputs: Proxy::to(&http::serve_files(dir.join("data/bucket"))),
            has_network_faults: !options.no_network_faults,
            disks,
        })
    }

    /// The path of the program `host`.
    pub(super) fn program(&self) -> &Path {
        &self.host
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn log_file(&self, name: &str) -> PathBuf {
        self.dir.join("logs").join(name)
    }

    /// The networks that may fail.
    pub(super) fn networks(&self) -> impl Iterator<Item = &Proxy> {
        let aws = self.aws.iter().map(|aws| &aws.proxy);
        aws.chain([&self.inputs]).filter(|_| self.has_network_faults)
    }

    /// The disks that may fail.
    pub(super) fn disks(&self) -> impl Iterator<Item = &Disk> {
        self.disks.iter()
    }

    pub(super) fn remove(self) -> anyhow::Result<()> {
        let dir = self.dir.clone();
        drop(self);
        remove(&dir)
    }

    /// Keeps the files of a failed run for inspection. Returns a text with their path.
    pub(super) fn keep(mut self) -> anyhow::Result<String> {
        if !self.disks.is_empty() {
            // The disks are in memory, and their files are lost when the run ends.
            let kept = self.dir.join("kept");
            fs::create_dir_all(&kept)?;
            for part in ["data", "cache"] {
                let mut copy = Command::new("cp");
                copy.arg("-a").arg(self.dir.join(part)).arg(&kept);
                crate::command::run(&mut copy)?;
            }
            self.disks.clear();
        }
        Ok(format!("queue, bucket and logs are in {}", self.dir.display()))
    }

    /// The command `host ARGS…` in this directory.
    pub(super) fn command(&self, args: &[&str], past_faults: bool) -> Command {
        let mut command = Command::new(&self.host);
        command.args(args).current_dir(&self.dir).stdin(Stdio::null());
        let (queue, errors, bucket) = match &self.aws {
            None => Default::default(),
            Some(aws) => {
                aws.lead(&mut command, past_faults);
                (Some(aws.queue()), Some(aws.errors()), Some(aws.bucket()))
            }
        };
        let or = |name: Option<String>, directory: &str| name.unwrap_or(directory.to_owned());
        command.env("HOST_QUEUE", or(queue, "./data/queue"));
        command.env("HOST_ERROR_QUEUE", or(errors, "./data/queue-errors"));
        command.env("HOST_BUCKET", or(bucket, "./data/bucket"));
        command
    }

    /// The command of a host whose network may fail.
    pub(super) fn host_at_work(&self) -> Command {
        let mut command = self.command(&["run", "--cache-dir", "./cache", "--input-bucket"], false);
        command.arg(format!("{}/", self.inputs.url()));
        command
    }

    /// Runs `host ARGS…`.
    fn output(&self, args: &[&str]) -> anyhow::Result<Output> {
        self.command(args, true).output().context("cannot start host")
    }

    /// Runs `host ARGS…`, which must succeed.
    fn host(&self, args: &[&str]) -> anyhow::Result<()> {
        let output = self.output(args)?;
        ensure!(
            output.status.success(),
            "host {}: {}\n{}",
            args.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    /// Runs a host until the queue is empty.
    pub(super) fn run_until_empty(&self) -> anyhow::Result<()> {
        self.host(&["run", "--cache-dir", "./cache", "-x", "--progress", "never"])
    }

    /// Creates inputs, and a task for each.
    pub(super) fn fill(&self, guest: &Path, options: &Options) -> anyhow::Result<()> {
        let guest = guest.to_str().context("a path that is not text")?;
        self.host(&["component", "push", guest, "--name", "misbehave"])?;
        // Compiles the component first, because hosts that are killed soon may never finish
        // compiling.
        let warm = ["submit", "--name", "misbehave", "--base-directory", "warm"];
        self.host(&[&warm[..], &["--payload", r#"{"do": "copy"}"#]].concat())?;
        self.run_until_empty()?;
        // The total slot time of all hosts, divided by the number of tasks, is the average time of
        // a task.
        let slots = (options.hosts * options.parallel) as f64;
        let seconds = options.minutes * 60.0 * slots / options.tasks as f64;
        let mut lines = std::io::BufWriter::new(fs::File::create(self.dir.join("tasks.jsonl"))?);
        for id in 0..options.tasks {
            let key = key(id);
            let path = self.dir.join("data/bucket/data").join(&key);
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::write(path, input(id))?;
            // Times range from zero to twice the average.
            let share = (id * 7919 % 1000) as f64 / 500.0;
            let sleep = json!({"do": "sleep", "secs": seconds * share});
            let mark = json!({"do": "mark", "dir": format!("marks/{}", id / 1000)});
            let steps = [sleep, json!({"do": "copy"}), mark];
            // Python runs the class of this task, and hosts run its component.
            let info = json!({
                "id": id, "name": "misbehave", "base_directory": "data", "inputs": [key],
            });
            let payload = json!({"do": "all", "steps": steps});
            let task = json!({"class": "Soak", "basic_info": info, "payload_info": payload});
            writeln!(lines, "{}", json!({"payload": task, "queueName": "queue"}))?;
        }
        lines.flush()?;
        self.host(&["submit", "--progress", "never", "tasks.jsonl"])
    }

    /// How often to count the messages in the queue.
    pub(super) fn count_every(&self) -> Duration {
        // With SQS, each count starts two programs.
        Duration::from_millis(if self.aws.is_some() { 3000 } else { 300 })
    }

    /// The number of messages in the queue.
    pub(super) fn left(&self) -> anyhow::Result<usize> {
        match &self.aws {
            Some(aws) => aws.messages(&aws.queue()),
            None => Ok(fs::read_dir(self.dir.join("data/queue/queue"))?.count()),
        }
    }

    fn rejected(&self) -> anyhow::Result<usize> {
        match &self.aws {
            Some(aws) => aws.messages(&aws.errors()),
            None => Ok(files(&self.dir.join("data/queue-errors/queue")).len()),
        }
    }

    /// The log of a process.
    pub(super) fn log(&self, name: &str) -> String {
        let log = fs::read(self.log_file(name)).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Determines the result of every task.
    pub(super) fn count(&self, options: &Options, ledger: &mut Ledger) -> anyhow::Result<()> {
        ledger.tasks = options.tasks;
        ledger.rejected = self.rejected()?;
        ledger.left = self.left()?;
        if !options.python {
            ledger.unproven = Some(self.unproven()?);
        }
        if let Some(aws) = &self.aws {
            aws.copy_outputs(&self.dir.join("data/bucket/data"))?;
        }

        // Each execution that publishes leaves its own mark.
        let mut marks: HashMap<usize, usize> = HashMap::new();
        for name in files(&self.dir.join("data/bucket/data/marks")) {
            let name = name.rsplit('/').next().unwrap_or_default();
            let id = name.split('-').next().and_then(|id| id.parse().ok());
            let id = id.with_context(|| format!("{name} is not a mark"))?;
            *marks.entry(id).or_default() += 1;
            ledger.by_python += usize::from(name.contains("-python-"));
        }
        ledger.executions = marks.values().sum();
        for id in 0..options.tasks {
            let published = marks.get(&id).copied().unwrap_or_default();
            ledger.repeated += usize::from(published > 1);
            let output = fs::read(self.dir.join("data/bucket/data/out").join(key(id)));
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
        ledger.lost = options.tasks.saturating_sub(ended + ledger.rejected + ledger.left);
        ledger.left_behind = self.left_behind();
        for log in files(&self.dir.join("logs")) {
            ledger.leases_lost += self.log(&log).matches(LOST).count();
        }
        Ok(())
    }

    /// The number of tasks that `host receipts verify` does not report as done.
    fn unproven(&self) -> anyhow::Result<u64> {
        let output = self.output(&["receipts", "verify", "--json", "tasks.jsonl"])?;
        let told = String::from_utf8_lossy(&output.stderr);
        let code = output.status.code();
        ensure!(code == Some(0) || code == Some(NOT_DONE), "host receipts verify: {told}");
        let last = told.lines().last().context("`host receipts verify` printed no summary")?;
        let summary: Value = serde_json::from_str(last)?;
        let count =
            |name: &str| summary[name].as_u64().with_context(|| format!("no {name}: {last}"));
        Ok(count("tasks")? - count("done")?)
    }

    /// Temporary files that remain.
    fn left_behind(&self) -> Vec<String> {
        let mut left = Vec::new();
        // The lock file of the process directories stays.
        let is_lock = |name: &str| name == "tmp/.lock" || name == "work/.lock";
        for queue in ["queue", "queue-errors"] {
            let names = files(&self.dir.join("data").join(queue));
            let in_host = |name: &&String| {
                name.strip_prefix("host/").is_some_and(|name| name.contains('/') && !is_lock(name))
            };
            left.extend(names.iter().filter(in_host).map(|name| format!("{queue}/{name}")));
        }
        // Python and hosts both remove the movement file of a finished message.
        let movements = files(&self.dir.join("data/queue/movement"));
        left.extend(movements.iter().map(|name| format!("queue/movement/{name}")));
        let is_temporary = |name: &&String| {
            name.split('/').any(|part| part.contains("tmp") || part.starts_with('.'))
        };
        let objects = files(&self.dir.join("data/bucket"));
        left.extend(objects.iter().filter(is_temporary).map(|name| format!("bucket/{name}")));
        let cached = files(&self.dir.join("cache"));
        let is_work =
            |name: &&String| !is_lock(name) && (is_temporary(name) || name.starts_with("work/"));
        left.extend(cached.iter().filter(is_work).map(|name| format!("cache/{name}")));
        left
    }
}

/// Removes the directory of a run, even if its disks are still mounted.
fn remove(dir: &Path) -> anyhow::Result<()> {
    for part in ["data", "cache"] {
        faults::unmount(&dir.join(part));
    }
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", dir.display()))
        }
        _ => Ok(()),
    }
}

fn key(id: usize) -> String {
    format!("0_input/{}/{id}.dat", id / 1000)
}

/// The content of an input. A quarter of the inputs have equal contents, so that the cache is used.
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
