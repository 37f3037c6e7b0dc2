//! Memory, bytes written to the disk, and large files: `host`, compared with `sha256sum` and `cp`.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::Context;
use serde_json::json;

use super::series::Series;
use super::table::Table;
use super::work::{self, Cores, Ran, Task, Work};

const MIB: u64 = 1 << 20;
const LARGE: &str = "large.dat";

pub(super) struct Bytes<'a> {
    pub(super) work: &'a Work,
    /// The directory with the components.
    pub(super) guests: &'a Path,
    /// The number of small tasks.
    pub(super) count: usize,
    /// MiB of the largest file.
    pub(super) large: u64,
}

/// Tasks of one kind, and what `host run` needed for them.
struct Kind {
    name: String,
    /// Bytes of the output of each task.
    output: u64,
    memory: Series,
    written: Series,
}

impl Kind {
    fn new(name: &str, output: u64) -> Self {
        let memory = Series::new(&format!("peak memory, {name}"), "MiB");
        let written = Series::new(&format!("written to the disk, {name}"), "KiB a task");
        Self { name: name.to_owned(), output, memory, written }
    }

    fn push(&mut self, ran: &Ran) -> anyhow::Result<()> {
        let done = ran.summary["done"].as_f64().context("`done` of the summary")?;
        self.memory.push(ran.used.peak_bytes as f64 / MIB as f64);
        self.written.push(ran.used.written_bytes as f64 / 1024.0 / done);
        Ok(())
    }

    fn row(&self) -> [String; 4] {
        let per_byte = match self.output {
            0 => String::new(),
            bytes => format!("{:.2}", self.written.median() * 1024.0 / bytes as f64),
        };
        [self.name.clone(), self.memory.shown(), self.written.shown(), per_byte]
    }
}

impl Bytes<'_> {
    /// Returns tables for people, and all series.
    pub(super) fn measure(&self, rounds: usize) -> anyhow::Result<(String, Vec<Series>)> {
        let dir = self.work.dir();
        fs::copy(self.guests.join("digest.wasm"), dir.join("bucket/components/digest.wasm"))?;
        make_file(&dir.join(LARGE), self.large * MIB)?;
        // The first task compiles the component.
        self.large("digest", 1, MIB)?;

        let large = format!("{} MiB", self.large);
        let mut nothing = Kind::new("no-op", 0);
        let mut small = Kind::new("4 KiB in and out", 4096);
        let mut medium = Kind::new("64 MiB in and out", 64 * MIB);
        let mut whole = Kind::new(&format!("{large} in and out"), self.large * MIB);
        let speed = |name: &str| Series::new(&format!("{name}, {large}"), "MB per second");
        let [mut digest, mut sha256sum] = ["host, digest", "sha256sum"].map(speed);
        let [mut copy, mut cp] = ["host, NO_OP", "cp"].map(speed);
        let per_second = |seconds: f64| (self.large * MIB) as f64 / 1e6 / seconds;
        for _ in 0..rounds {
            nothing.push(&self.small(Task::Nothing)?)?;
            small.push(&self.small(Task::Copy)?)?;
            medium.push(&self.large("NO_OP", 4, 64 * MIB)?)?;
            digest.push(per_second(self.large("digest", 1, self.large * MIB)?.used.seconds));
            sha256sum.push(per_second(self.program(&["sha256sum", LARGE])?));
            let ran = self.large("NO_OP", 1, self.large * MIB)?;
            whole.push(&ran)?;
            copy.push(per_second(ran.used.seconds));
            cp.push(per_second(self.program(&["cp", LARGE, "copy.dat"])?));
            fs::remove_file(dir.join("copy.dat"))?;
        }

        let mut needed = Table::new(
            "Peak memory of `host run --parallel 1`, and what it writes to the disk, in whole pages",
            &["", "peak memory, MiB", "written per task, KiB", "per byte of output"],
        );
        let kinds = [nothing, small, medium, whole];
        kinds.iter().for_each(|kind| needed.row(kind.row()));
        let mut speeds = Table::new(
            "MB per second with one large file, from the start of the program to its end",
            &["", "`host`", "the other program", "ratio"],
        );
        let pairs = [
            (format!("{large} read: `digest`, `sha256sum`"), &digest, &sha256sum),
            (format!("{large} copied: `NO_OP`, `cp`"), &copy, &cp),
        ];
        for (name, ours, theirs) in pairs {
            let ratio = format!("{:.2}", ours.median() / theirs.median());
            speeds.row([name, ours.shown(), theirs.shown(), ratio]);
        }
        let of_kinds = kinds.into_iter().flat_map(|kind| [kind.memory, kind.written]);
        let series = of_kinds.chain([digest, sha256sum, copy, cp]).collect();
        Ok((format!("{needed}\n{speeds}"), series))
    }

    fn small(&self, task: Task) -> anyhow::Result<Ran> {
        self.work.fill(task, self.count)?;
        self.work.run(self.count, &["--parallel", "1"], Cores::All)
    }

    /// Runs tasks that each have an input of `bytes` bytes.
    fn large(&self, component: &str, tasks: usize, bytes: u64) -> anyhow::Result<Ran> {
        self.work.clear()?;
        let inputs = self.work.dir().join("bucket/data/0_input");
        fs::create_dir_all(&inputs)?;
        for id in 0..tasks {
            make_file(&inputs.join(format!("{id}.dat")), bytes)?;
        }
        self.work.write_lines(tasks, |id| {
            let inputs = [format!("0_input/{id}.dat")];
            json!({"basic_info": {"id": id, "name": component, "base_directory": "data", "inputs": inputs}})
        })?;
        self.work.submit()?;
        work::sync()?;
        self.work.run(tasks, &["--parallel", "1"], Cores::All)
    }

    /// The seconds that a program takes.
    fn program(&self, words: &[&str]) -> anyhow::Result<f64> {
        work::sync()?;
        let start = Instant::now();
        let mut command = Command::new(words[0]);
        crate::command::capture(command.args(&words[1..]).current_dir(self.work.dir()))?;
        Ok(start.elapsed().as_secs_f64())
    }
}

/// Writes a file of random bytes.
fn make_file(path: &Path, bytes: u64) -> anyhow::Result<()> {
    let mut piece = vec![0; MIB as usize];
    fs::File::open("/dev/urandom")?.read_exact(&mut piece)?;
    let mut file = fs::File::create(path)?;
    for _ in 0..bytes / MIB {
        std::io::Write::write_all(&mut file, &piece)?;
    }
    Ok(())
}
