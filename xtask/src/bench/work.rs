//! One kind of work, done by `host` or by Python in a directory of its own.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::used::Used;

/// A measurement ends after this time even if tasks remain.
const LONGEST: Duration = Duration::from_secs(4);

const PYTHON: &str = include_str!("python.py");

/// The progress bars of python-task-queue, which are on by default. It creates one for each task
/// that it deletes.
#[derive(Clone, Copy)]
pub(super) enum Bars {
    Shown,
    Off,
}

/// What a task does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    /// Nothing.
    Nothing,
    /// Reads its own file of 4 KiB and writes a copy.
    Copy,
}

/// The cores that a program may use.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Cores {
    One,
    First(usize),
    All,
}

/// The result of a `host` run.
pub(super) struct Run {
    /// Time until the first task was done.
    pub(super) first: Duration,
    /// Tasks per second after the first.
    pub(super) rate: f64,
    /// The peak memory.
    pub(super) peak_bytes: u64,
}

/// A `host run` that has ended.
pub(super) struct Ran {
    pub(super) summary: Value,
    pub(super) used: Used,
}

/// A directory on the measured file system. Dropping this removes it.
pub(super) struct Work {
    dir: PathBuf,
    host: PathBuf,
    python: PathBuf,
}

impl Work {
    pub(super) fn new(
        host: &Path,
        python: &Path,
        guest: &Path,
        parent: &Path,
    ) -> anyhow::Result<Self> {
        let dir = parent.join(format!("task-host-bench-{}", std::process::id()));
        fs::create_dir_all(dir.join("bucket/components"))?;
        fs::copy(guest, dir.join("bucket/components/NO_OP.wasm"))?;
        fs::write(dir.join("python.py"), PYTHON)?;
        let work = Self { dir, host: host.to_owned(), python: python.to_owned() };
        // Compiles the component before any measurement. The start-up measurement removes the
        // compiled code.
        work.host_runs(Task::Nothing, 1, &[], Cores::All)?;
        Ok(work)
    }

    /// Uses another `host` program from now on.
    pub(super) fn use_program(&mut self, host: &Path) {
        host.clone_into(&mut self.host);
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// A program that works in this directory.
    pub(super) fn command(&self, program: &Path, cores: Cores) -> Command {
        let on = |cores: usize| {
            let mut command = Command::new("taskset");
            command.args(["--cpu-list", &format!("0-{}", cores - 1)]).arg(program);
            command
        };
        let mut command = match cores {
            Cores::All => Command::new(program),
            Cores::One => on(1),
            Cores::First(cores) => on(cores),
        };
        command.current_dir(&self.dir).stdin(Stdio::null());
        command
    }

    fn host(&self, args: &[&str], cores: Cores) -> Command {
        let mut command = self.command(&self.host, cores);
        command.args(args);
        command
    }

    /// Measures how many tasks per second `host submit` puts into an empty queue.
    pub(super) fn host_inserts(&self, count: usize) -> anyhow::Result<f64> {
        self.clear()?;
        self.write_lines(count, |id| message(Task::Nothing, id))?;
        let start = Instant::now();
        self.submit()?;
        Ok(count as f64 / start.elapsed().as_secs_f64())
    }

    /// Measures how many tasks per second Python puts into an empty queue.
    pub(super) fn python_inserts(&self, count: usize, bars: Bars) -> anyhow::Result<f64> {
        self.clear()?;
        self.python("insert", count, bars)
    }

    /// Measures the tasks per second of `host run`.
    pub(super) fn host_runs(
        &self,
        task: Task,
        count: usize,
        args: &[&str],
        cores: Cores,
    ) -> anyhow::Result<f64> {
        let summary = self.host_summary(task, count, args, cores)?;
        summary["tasks_per_second"].as_f64().context("`tasks_per_second` of the summary")
    }

    /// The summary of `host run --json` for `count` tasks, all of which are in the queue.
    pub(super) fn host_summary(
        &self,
        task: Task,
        count: usize,
        args: &[&str],
        cores: Cores,
    ) -> anyhow::Result<Value> {
        self.fill(task, count)?;
        Ok(self.run(count, args, cores)?.summary)
    }

    /// Puts tasks into an empty queue, and creates their inputs.
    pub(super) fn fill(&self, task: Task, count: usize) -> anyhow::Result<()> {
        self.prepare(task, count)?;
        self.submit()?;
        sync()
    }

    /// Writes tasks to `tasks.jsonl`, and creates their inputs.
    pub(super) fn prepare(&self, task: Task, count: usize) -> anyhow::Result<()> {
        self.clear()?;
        if task == Task::Copy {
            self.make_inputs(count)?;
        }
        self.write_lines(count, |id| message(task, id))?;
        sync()
    }

    /// Runs `host run` for the first `count` of `length` no-ops.
    pub(super) fn host_runs_of(&self, length: usize, count: usize) -> anyhow::Result<Run> {
        self.clear()?;
        self.write_lines(length, |id| message(Task::Nothing, id))?;
        self.submit()?;
        sync()?;
        let run = |count: usize| {
            let Ran { summary, used } = self.run(count, &["--parallel", "1"], Cores::All)?;
            let done = summary["done"].as_f64().context("`done` of the summary")?;
            let seconds = summary["seconds"].as_f64().context("`seconds` of the summary")?;
            anyhow::Ok((done, seconds, used.peak_bytes))
        };
        let (_, first, _) = run(1)?;
        let (done, all, peak_bytes) = run(count - 1)?;
        let rate = (done - 1.0) / (all - first).max(1e-6);
        Ok(Run { first: Duration::from_secs_f64(first), rate, peak_bytes })
    }

    /// Measures the tasks per second of Python.
    pub(super) fn python_runs(&self, task: Task, count: usize, bars: Bars) -> anyhow::Result<f64> {
        self.clear()?;
        match task {
            Task::Nothing => self.write_lines(count, python_message)?,
            Task::Copy => {
                self.make_inputs(count)?;
                fs::create_dir_all(self.dir.join("bucket/data/0_output"))?;
                self.write_lines(count, |id| {
                    let path = |part: &str| format!("bucket/data/0_{part}/{id}.dat");
                    let (source, target) = (path("input"), path("output"));
                    json!({"payload": {"class": "CopyTask", "source": source, "target": target}, "queueName": "queue"})
                })?;
            }
        }
        self.submit()?;
        sync()?;
        self.python("run", count, bars)
    }

    /// Runs Python for the first `count` of `length` no-ops.
    pub(super) fn python_runs_of(&self, length: usize, count: usize) -> anyhow::Result<f64> {
        self.clear()?;
        self.write_lines(length, python_message)?;
        self.submit()?;
        sync()?;
        self.python("run", count, Bars::Shown)
    }

    /// Measures the time until the first output of `host`.
    pub(super) fn host_first_result(&self, keep_compiled: bool) -> anyhow::Result<Duration> {
        self.clear()?;
        if !keep_compiled {
            remove(&self.dir.join("cache"))?;
        }
        self.make_inputs(1)?;
        self.write_lines(1, |id| message(Task::Copy, id))?;
        self.submit()?;
        let args = ["run", "--fq", "./queue", "--cache-dir", "./cache", "--max-tasks", "1"];
        self.until_output(self.host(&args, Cores::All))
    }

    /// Measures the time until the first output of Python.
    pub(super) fn python_first_result(&self) -> anyhow::Result<Duration> {
        self.clear()?;
        self.make_inputs(1)?;
        fs::create_dir_all(self.dir.join("bucket/data/0_output"))?;
        let (source, target) = ("bucket/data/0_input/0.dat", "bucket/data/0_output/0.dat");
        self.write_lines(1, |_| {
            json!({"payload": {"class": "CopyTask", "source": source, "target": target}, "queueName": "queue"})
        })?;
        self.submit()?;
        let mut command = Command::new(&self.python);
        command.args(["python.py", "run", "1", "60"]).current_dir(&self.dir).stdin(Stdio::null());
        self.until_output(command)
    }

    fn until_output(&self, mut command: Command) -> anyhow::Result<Duration> {
        let output = self.dir.join("bucket/data/0_output/0.dat");
        let start = Instant::now();
        let mut child = command
            .stdout(Stdio::null())
            .stderr(fs::File::create(self.dir.join("log"))?)
            .spawn()?;
        loop {
            if fs::metadata(&output).is_ok_and(|output| output.len() == 4096) {
                let time = start.elapsed();
                child.wait()?;
                return Ok(time);
            }
            let ended = child.try_wait()?.is_some();
            ensure!(!ended || output.exists(), "there was no output: {}", self.log());
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Runs `count` tasks from the queue.
    pub(super) fn run(&self, count: usize, args: &[&str], cores: Cores) -> anyhow::Result<Ran> {
        let count = count.to_string();
        let longest = format!("{}ms", LONGEST.as_millis());
        // Does not wait until the queue is empty, because the host needs time to notice that.
        let fixed = [
            "run",
            "--fq",
            "./queue",
            "--cache-dir",
            "./cache",
            "--json",
            "--progress",
            "never",
            "--max-tasks",
            &count,
            "--for",
            &longest,
        ];
        let mut child = self
            .host(&[&fixed, args].concat(), cores)
            .stdout(fs::File::create(self.dir.join("summary"))?)
            .stderr(fs::File::create(self.dir.join("log"))?)
            .spawn()
            .context("host run")?;
        let used = Used::until_end_of(&child)?;
        let ended = child.wait()?;
        ensure!(ended.success(), "host run: {ended}: {}", self.log());
        let summary = serde_json::from_slice(&fs::read(self.dir.join("summary"))?)?;
        Ok(Ran { summary, used })
    }

    fn python(&self, what: &str, count: usize, bars: Bars) -> anyhow::Result<f64> {
        let output = Command::new(&self.python)
            .args(["python.py", what, &count.to_string(), &LONGEST.as_secs_f64().to_string()])
            .args(matches!(bars, Bars::Off).then_some("quiet"))
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .output()?;
        ensure!(
            output.status.success(),
            "python.py {what} {count}: {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?.trim().parse()?)
    }

    pub(super) fn submit(&self) -> anyhow::Result<()> {
        let output = self
            .host(&["submit", "--fq", "./queue", "--progress", "never", "tasks.jsonl"], Cores::All)
            .output()?;
        ensure!(
            output.status.success(),
            "host submit: {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    pub(super) fn write_lines(
        &self,
        count: usize,
        line: impl Fn(usize) -> Value,
    ) -> anyhow::Result<()> {
        let mut file = std::io::BufWriter::new(fs::File::create(self.dir.join("tasks.jsonl"))?);
        for id in 0..count {
            writeln!(file, "{}", line(id))?;
        }
        Ok(file.flush()?)
    }

    fn make_inputs(&self, count: usize) -> anyhow::Result<()> {
        let inputs = self.dir.join("bucket/data/0_input");
        fs::create_dir_all(&inputs)?;
        for id in 0..count {
            // All inputs differ, so none comes from the cache.
            fs::write(inputs.join(format!("{id}.dat")), format!("{id:08}").repeat(512))?;
        }
        Ok(())
    }

    /// Removes what a run left, except compiled components.
    pub(super) fn clear(&self) -> anyhow::Result<()> {
        for part in ["queue", "queue-errors", "bucket/data", "bucket/_receipts"] {
            remove(&self.dir.join(part))?;
        }
        let Ok(parts) = fs::read_dir(self.dir.join("cache")) else { return Ok(()) };
        for part in parts {
            let part = part?;
            if part.file_name() != "compiled" {
                remove(&part.path())?;
            }
        }
        Ok(())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // A directory that remains in the build directory or in memory is not worth a failure.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn remove(path: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Waits for earlier writes, which would otherwise slow down the measurement.
pub(super) fn sync() -> anyhow::Result<()> {
    crate::command::capture(&mut Command::new("sync")).map(drop)
}

fn message(task: Task, id: usize) -> Value {
    let inputs = match task {
        Task::Nothing => Vec::new(),
        Task::Copy => vec![format!("0_input/{id}.dat")],
    };
    json!({
        "basic_info": {"id": id, "name": "NO_OP", "base_directory": "data", "inputs": inputs},
        "payload_info": format!("number {id}"),
    })
}

fn python_message(id: usize) -> Value {
    json!({"payload": {"class": "MockTask", "n": id}, "queueName": "queue"})
}
