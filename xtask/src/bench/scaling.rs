//! Rates from one core to all of them, and their limits: the same host on a queue in memory, and the
//! directory queue without a host.
//!
//! `host/benches/scaling.rs` measures both limits; users can't run either.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Stdio};

use anyhow::{Context, ensure};

use super::series::Series;
use super::table::Table;
use super::work::{Cores, Task, Work};

/// What is measured with each number of cores.
#[derive(Clone, Copy)]
enum Subject {
    /// `host run` on a directory queue.
    Host(Task),
    /// The same code on a queue in memory.
    Engine(Task),
    /// The directory queue in one process.
    Threads,
    /// The directory queue in a process per core.
    Processes,
}

const SUBJECTS: [(&str, Subject); 6] = [
    ("no-op, queue in memory", Subject::Engine(Task::Nothing)),
    ("no-op, directory queue", Subject::Host(Task::Nothing)),
    ("4 KiB in and out, queue in memory", Subject::Engine(Task::Copy)),
    ("4 KiB in and out, directory queue", Subject::Host(Task::Copy)),
    ("directory queue alone, one process", Subject::Threads),
    ("directory queue alone, a process per core", Subject::Processes),
];

/// More messages than are deleted, because each process may delete one message too many.
const SPARE: usize = 1_000;

/// Measures everything with each number of cores.
pub(super) struct Scaling<'a> {
    pub(super) work: &'a Work,
    /// The program of `host/benches/scaling.rs`.
    pub(super) program: &'a Path,
    /// The number of tasks of each measurement.
    pub(super) count: usize,
}

impl Scaling<'_> {
    pub(super) fn measure(&self, rounds: usize) -> anyhow::Result<(Table, Vec<Series>)> {
        let cores = numbers_of_cores()?;
        let mut table = Table::new(
            "Tasks per second by the number of cores, with as many slots; messages per second of the \
             queue alone",
            &["", "cores", "per second", "to one core"],
        );
        let mut all = Vec::new();
        for (name, subject) in SUBJECTS {
            let series = |n: &usize| Series::new(&format!("{name}, {n} cores"), "per second");
            let mut rates: Vec<Series> = cores.iter().map(series).collect();
            for _ in 0..rounds {
                for (series, &cores) in rates.iter_mut().zip(&cores) {
                    series.push(self.rate(subject, cores)?);
                }
            }
            for (series, cores) in rates.iter().zip(&cores) {
                let ratio = series.median() / rates[0].median();
                let row = [name.to_owned(), cores.to_string(), series.shown()];
                let [name, cores, rate] = row;
                table.row([name, cores, rate, format!("{ratio:.2}")]);
            }
            all.extend(rates);
        }
        Ok((table, all))
    }

    fn rate(&self, subject: Subject, cores: usize) -> anyhow::Result<f64> {
        let parallel = cores.to_string();
        match subject {
            Subject::Host(task) => {
                let args = ["--parallel", &parallel];
                self.work.host_runs(task, self.count, &args, Cores::First(cores))
            }
            Subject::Engine(task) => {
                self.work.prepare(task, self.count)?;
                let fixed = ["engine", "--tasks", "tasks.jsonl", "--cache-dir", "./cache"];
                // The host opens both, and uses neither.
                let queues = ["--queue", "./queue", "--error-queue", "./queue-errors"];
                let args = [&fixed[..], &queues, &["--parallel", &parallel]].concat();
                finish(self.start(&args, cores)?)
            }
            Subject::Threads => {
                self.fill()?;
                finish(self.empty_queue(self.count, cores, cores)?)
            }
            Subject::Processes => {
                self.fill()?;
                let empty = || self.empty_queue(self.count / cores, 1, cores);
                let started: Vec<Child> = (0..cores).map(|_| empty()).collect::<Result<_, _>>()?;
                started.into_iter().map(finish).sum()
            }
        }
    }

    fn fill(&self) -> anyhow::Result<()> {
        self.work.prepare(Task::Nothing, self.count + SPARE)?;
        self.work.submit()
    }

    /// Starts a process that deletes messages of the queue.
    fn empty_queue(&self, messages: usize, parallel: usize, cores: usize) -> anyhow::Result<Child> {
        let [messages, parallel] = [messages, parallel].map(|number| number.to_string());
        let args = ["queue", "--queue", "./queue", "--messages", &messages];
        self.start(&[&args[..], &["--parallel", &parallel]].concat(), cores)
    }

    fn start(&self, args: &[&str], cores: usize) -> anyhow::Result<Child> {
        let mut command = self.work.command(self.program, Cores::First(cores));
        command
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .context("the program that measures limits")
    }
}

/// Waits for a program that prints a number.
fn finish(mut child: Child) -> anyhow::Result<f64> {
    let mut printed = String::new();
    child.stdout.take().context("its output")?.read_to_string(&mut printed)?;
    let ended = child.wait()?;
    ensure!(ended.success(), "the program that measures limits: {ended}");
    Ok(printed.trim().parse()?)
}

/// 1, 2, 4 and so on, and all cores.
fn numbers_of_cores() -> anyhow::Result<Vec<usize>> {
    let all = std::thread::available_parallelism()?.get();
    let mut numbers: Vec<usize> = (0..).map(|n| 1 << n).take_while(|&n| n < all).collect();
    numbers.push(all);
    Ok(numbers)
}
