//! Compares the same real work on both sides: PNG tiles of 512x512 pixels are decoded, averaged to
//! half the size and encoded, by the example guest and by python-task-queue with Pillow. A native
//! program does the guest's work without a sandbox.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::series::Series;
use super::table::Table;
use crate::command::{capture, run};
use crate::project::Project;

const PYTHON: &str = include_str!("tiles.py");
const GUEST: &str = "image_downsample";
const SOURCES: [&str; 2] = ["retina.jpg", "hubble_deep_field.jpg"];
/// Compression levels: Pillow's default, and the lowest.
const LEVELS: [u8; 2] = [6, 1];
/// How often the guest and the native program take turns in each round.
const TURNS: usize = 3;
/// Where the guest and Pillow write.
const OUTPUTS: &str = "bucket/data/1_downsampled";

/// A directory with tiles. Dropping this removes it.
pub(super) struct Tiles {
    dir: PathBuf,
    host: PathBuf,
    python: PathBuf,
    native: PathBuf,
    count: usize,
}

impl Tiles {
    /// Cuts `count` tiles in a directory below `parent`. `count` must be even.
    pub(super) fn new(
        project: &Project,
        host: &Path,
        python: &Path,
        parent: &Path,
        count: usize,
    ) -> anyhow::Result<Self> {
        let native = ["build", "--release", "-p", "image-downsample", "--example", "native"];
        run(project.cargo().args(native))?;
        let dir = parent.join(format!("task-host-tiles-{}", std::process::id()));
        fs::create_dir_all(dir.join("bucket/components"))?;
        let tiles = Self {
            dir,
            host: host.to_owned(),
            python: python.to_owned(),
            native: project.target.join("release/examples/native"),
            count,
        };
        let component = format!("{GUEST}.wasm");
        fs::copy(
            project.target.join("guests").join(&component),
            tiles.dir.join("bucket/components").join(&component),
        )?;
        fs::write(tiles.dir.join("tiles.py"), PYTHON)?;
        let images = SOURCES.map(|name| project.root.join("guest-examples/data").join(name));
        capture(tiles.python().args(["cut", &count.to_string()]).args(images))?;
        // Compiles the component before any measurement.
        tiles.host_runs(1, "0", &[])?;
        Ok(tiles)
    }

    /// Returns tables for people, and all series.
    pub(super) fn measure(&self, rounds: usize) -> anyhow::Result<(String, Vec<Series>)> {
        let rate = |who: &str, cores: usize| {
            Series::new(&format!("{who}, cores: {cores}"), "tiles per second")
        };
        let pillow = LEVELS.map(|level| format!("Pillow, level {level}"));
        let mut host = [1, 2].map(|cores| rate("host", cores));
        let mut python = [1, 2].map(|cores| pillow.each_ref().map(|who| rate(who, cores)));
        let mut native = Series::new("the native program", "ms a tile");
        let mut guest = Series::new("`run` of the guest", "ms a tile");
        let bytes = |who: &str| Series::new(&format!("outputs of {who}"), "bytes a tile");
        let mut host_bytes = bytes("the guest");
        let mut native_bytes = bytes("the native program");
        let mut python_bytes = pillow.each_ref().map(|who| bytes(who));
        for _ in 0..rounds {
            for (n, cores) in ["0", "0,1"].into_iter().enumerate() {
                let workers = n + 1;
                let parallel = workers.to_string();
                let summary = self.host_runs(self.count, cores, &["--parallel", &parallel])?;
                host[n].push(number(&summary, "tasks_per_second")?);
                for (series, (sizes, level)) in
                    python[n].iter_mut().zip(python_bytes.iter_mut().zip(LEVELS))
                {
                    series.push(self.python_runs(workers, cores, level)?);
                    if n == 0 {
                        sizes.push(self.output_bytes()?);
                    }
                }
            }
            // With one task at a time and no prefetch, the time of `run` is the guest's alone.
            let alone = ["--parallel", "1", "--prefetch", "0"];
            for _ in 0..TURNS {
                let summary = self.host_runs(self.count, "0,1", &alone)?;
                guest.push(number(&summary["steps"], "run")? / self.count as f64 * 1e3);
                let report = self.native_runs()?;
                native.push(number(&report, "milliseconds_per_task")?);
                native_bytes.push(number(&report, "output_bytes")? / self.count as f64);
            }
            host_bytes.push(self.output_bytes()?);
        }

        let [level_6, level_1] = &pillow;
        let mut rates = Table::new(
            "512x512 PNG tiles, averaged to 256x256: tiles per second",
            &["", level_6, level_1, "`host`", "ratio", "to level 1"],
        );
        let ratio = |a: &Series, b: &Series| format!("{:.1}", a.median() / b.median());
        for (cores, (host, [slow, fast])) in
            ["one core", "two cores"].into_iter().zip(host.iter().zip(&python))
        {
            rates.row([
                cores.to_owned(),
                slow.shown(),
                fast.shown(),
                host.shown(),
                ratio(host, slow),
                ratio(host, fast),
            ]);
        }
        let [slow, fast] = &python_bytes;
        let none = String::new;
        rates.row([
            "bytes of an output".to_owned(),
            slow.shown(),
            fast.shown(),
            host_bytes.shown(),
            none(),
            none(),
        ]);
        let mut sandbox = Table::new(
            "The guest and a native program of the same code",
            &["", "native", "guest", "ratio"],
        );
        let share = format!("{:.2}", guest.median() / native.median());
        sandbox.row(["ms a tile".to_owned(), native.shown(), guest.shown(), share]);
        let sizes = [native_bytes.shown(), host_bytes.shown()];
        let [native_size, guest_size] = sizes;
        sandbox.row(["bytes of an output".to_owned(), native_size, guest_size, none()]);
        let text = format!("{rates}\n{sandbox}\n");
        let mut all = vec![native, guest, host_bytes, native_bytes];
        all.extend(host);
        all.extend(python.into_iter().flatten());
        all.extend(python_bytes);
        Ok((text, all))
    }

    /// The summary of `host run --json` over the first `count` tiles.
    fn host_runs(&self, count: usize, cores: &str, args: &[&str]) -> anyhow::Result<Value> {
        self.submit(count, |id| {
            json!({"basic_info": {
                "id": id, "name": GUEST, "base_directory": "data",
                "inputs": [format!("0_input/{id}.png")],
            }})
        })?;
        let count = count.to_string();
        let mut command = pinned(cores, &self.host);
        command
            .args(["run", "--fq", "./queue", "--cache-dir", "./cache", "--json"])
            .args(["--progress", "never", "--max-tasks", &count])
            .args(args)
            .current_dir(&self.dir)
            .stderr(fs::File::create(self.dir.join("log"))?);
        let summary = self.output(&mut command)?;
        let summary: Value = serde_json::from_str(&summary).context("the summary of host run")?;
        ensure!(
            summary["done"].as_u64() == count.parse().ok(),
            "host run did not do all {count} tasks: {summary}"
        );
        Ok(summary)
    }

    /// Tiles per second of Python workers. The workers share the tiles.
    fn python_runs(&self, workers: usize, cores: &str, level: u8) -> anyhow::Result<f64> {
        self.submit(self.count, |id| {
            json!({"queueName": "queue", "payload": {
                "class": "DownsampleTask",
                "source": format!("bucket/data/0_input/{id}.png"),
                "target": format!("{OUTPUTS}/{id}.png"),
                "level": level,
            }})
        })?;
        fs::create_dir_all(self.dir.join(OUTPUTS))?;
        let part = (self.count / workers).to_string();
        let start = || {
            pinned(cores, &self.python)
                .args(["tiles.py", "run", &part])
                .current_dir(&self.dir)
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn()
                .context("a Python worker")
        };
        let started: Vec<Child> = (0..workers).map(|_| start()).collect::<anyhow::Result<_>>()?;
        let mut longest: f64 = 0.0;
        for worker in started {
            let output = worker.wait_with_output()?;
            ensure!(output.status.success(), "a Python worker: {}", output.status);
            longest = longest.max(String::from_utf8(output.stdout)?.trim().parse()?);
        }
        Ok(self.count as f64 / longest)
    }

    /// The report of the native program over all tiles.
    fn native_runs(&self) -> anyhow::Result<Value> {
        let mut command = pinned("0,1", &self.native);
        command
            .arg("1")
            .args((0..self.count).map(|id| format!("bucket/data/0_input/{id}.png")))
            .env("TMPDIR", &self.dir)
            .current_dir(&self.dir)
            .stderr(fs::File::create(self.dir.join("log"))?);
        serde_json::from_str(&self.output(&mut command)?).context("the native program's report")
    }

    /// Fills the queue. Removes what an earlier run left, except compiled components.
    fn submit(&self, count: usize, message: impl Fn(usize) -> Value) -> anyhow::Result<()> {
        for part in ["queue", "queue-errors", OUTPUTS] {
            remove(&self.dir.join(part))?;
        }
        for part in fs::read_dir(self.dir.join("cache")).into_iter().flatten() {
            let part = part?;
            if part.file_name() != "compiled" {
                remove(&part.path())?;
            }
        }
        let mut lines = std::io::BufWriter::new(fs::File::create(self.dir.join("tasks.jsonl"))?);
        for id in 0..count {
            writeln!(lines, "{}", message(id))?;
        }
        lines.flush()?;
        let mut submit = Command::new(&self.host);
        submit
            .args(["submit", "--fq", "./queue", "--progress", "never", "tasks.jsonl"])
            .current_dir(&self.dir)
            .stderr(fs::File::create(self.dir.join("log"))?);
        self.output(&mut submit).map(drop)
    }

    /// The mean size of the outputs. Fails if one is missing.
    fn output_bytes(&self) -> anyhow::Result<f64> {
        let mut bytes = 0;
        for id in 0..self.count {
            let output = self.dir.join(OUTPUTS).join(format!("{id}.png"));
            let output = fs::metadata(&output).with_context(|| output.display().to_string())?;
            bytes += output.len();
        }
        Ok(bytes as f64 / self.count as f64)
    }

    fn python(&self) -> Command {
        let mut command = Command::new(&self.python);
        command.arg("tiles.py").current_dir(&self.dir);
        command
    }

    /// Runs a program whose errors go to the log. Returns its output.
    fn output(&self, command: &mut Command) -> anyhow::Result<String> {
        let output = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let output = output.wait_with_output()?;
        let log = || fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        ensure!(output.status.success(), "{command:?}: {}: {}", output.status, log());
        Ok(String::from_utf8(output.stdout)?)
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // A directory that remains in memory is not worth a failure.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn pinned(cores: &str, program: &Path) -> Command {
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", cores]).arg(program);
    command
}

fn number(value: &Value, name: &str) -> anyhow::Result<f64> {
    value[name].as_f64().with_context(|| format!("`{name}` of {value}"))
}

fn remove(path: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}
