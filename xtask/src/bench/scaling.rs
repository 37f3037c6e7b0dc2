//! Measures rates from one core to all of them, and the limits of these rates: the same host on a
//! queue in memory, the directory queue without a host, and threads that only compute. The threads
//! show how much the machine's cores give when other programs use them too.
//!
//! `host/benches/scaling.rs` measures the limits. It is not part of the program that users install.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Stdio};

use anyhow::{Context, ensure};

use super::series::Series;
use super::table::Table;
use super::used::Used;
use super::work::{Cores, Ran, Task, Work};

/// What is measured with each number of cores.
#[derive(Clone, Copy)]
enum Subject {
    /// `host run` on a directory queue.
    Host(Task),
    /// The same code on a queue in memory.
    Engine(Task),
    /// Digests, on threads that share nothing.
    Compute,
    /// The directory queue in one process.
    Threads,
    /// The directory queue in a process per core.
    Processes,
}

const SUBJECTS: [(&str, Subject); 7] = [
    ("digests of 4 KiB, no queue and no task", Subject::Compute),
    ("no-op, queue in memory", Subject::Engine(Task::Nothing)),
    ("no-op, directory queue", Subject::Host(Task::Nothing)),
    ("4 KiB in and out, queue in memory", Subject::Engine(Task::Copy)),
    ("4 KiB in and out, directory queue", Subject::Host(Task::Copy)),
    ("directory queue alone, one process", Subject::Threads),
    ("directory queue alone, a process per core", Subject::Processes),
];

/// Spare messages in the queue, because each process may delete one message too many.
const SPARE: usize = 1_000;

/// Measures everything with each number of cores.
pub(super) struct Scaling<'a> {
    pub(super) work: &'a Work,
    /// The program of `host/benches/scaling.rs`.
    pub(super) program: &'a Path,
    /// The number of tasks of each measurement.
    pub(super) count: usize,
}

/// The result of one measurement.
#[derive(Clone, Copy, Default)]
struct Pace {
    per_second: f64,
    /// Microseconds of processor time per task. Other programs on the machine affect this less than
    /// they affect the rate.
    processor: f64,
}

/// Rate and processor time with one number of cores.
struct Row {
    cores: usize,
    per_second: Series,
    processor: Series,
}

impl Row {
    fn new(name: &str, cores: usize) -> Self {
        let name = format!("{name}, cores: {cores}");
        let processor = Series::new(&format!("processor time, {name}"), "microseconds");
        Self { cores, per_second: Series::new(&name, "per second"), processor }
    }
}

impl Scaling<'_> {
    pub(super) fn measure(&self, rounds: usize) -> anyhow::Result<(Table, Vec<Series>)> {
        let mut table = Table::new(
            "Tasks, messages or digests per second by the number of cores, with as many slots, and \
             processor time for each",
            &["", "cores", "per second", "to one core", "processor time, µs", "to one core"],
        );
        let mut all = Vec::new();
        for (name, subject) in SUBJECTS {
            let rows = numbers_of_cores()?.into_iter().map(|cores| Row::new(name, cores));
            let mut rows: Vec<Row> = rows.collect();
            for _ in 0..rounds {
                for row in &mut rows {
                    let pace = self.pace(subject, row.cores)?;
                    row.per_second.push(pace.per_second);
                    row.processor.push(pace.processor);
                }
            }
            for row in &rows {
                let ratio = |of: fn(&Row) -> &Series| {
                    format!("{:.2}", of(row).median() / of(&rows[0]).median())
                };
                table.row([
                    name.to_owned(),
                    row.cores.to_string(),
                    row.per_second.shown(),
                    ratio(|row| &row.per_second),
                    row.processor.shown(),
                    ratio(|row| &row.processor),
                ]);
            }
            all.extend(rows.into_iter().flat_map(|row| [row.per_second, row.processor]));
        }
        Ok((table, all))
    }

    fn pace(&self, subject: Subject, cores: usize) -> anyhow::Result<Pace> {
        let (count, parallel) = (self.count, cores.to_string());
        match subject {
            Subject::Host(task) => {
                self.work.fill(task, count)?;
                let args = ["--parallel", &parallel];
                let Ran { summary, used } = self.work.run(count, &args, Cores::First(cores))?;
                let number = |name: &str| summary[name].as_f64().context("a number of the summary");
                Ok(Pace {
                    per_second: number("tasks_per_second")?,
                    processor: used.processor_seconds * 1e6 / number("done")?,
                })
            }
            Subject::Engine(task) => {
                self.work.prepare(task, count)?;
                let fixed = ["engine", "--tasks", "tasks.jsonl", "--cache-dir", "./cache"];
                // The host opens these two queues, but does not use them.
                let queues = ["--queue", "./queue", "--error-queue", "./queue-errors"];
                let args = [&fixed[..], &queues, &["--parallel", &parallel]].concat();
                finish(self.start(&args, cores)?)
            }
            Subject::Compute => finish(self.start(&["compute", "--parallel", &parallel], cores)?),
            Subject::Threads => {
                self.work.fill(Task::Nothing, count + SPARE)?;
                finish(self.empty_queue(count, cores, cores)?)
            }
            Subject::Processes => {
                self.work.fill(Task::Nothing, count + SPARE)?;
                let each = count / cores;
                let started: Vec<Child> = (0..cores)
                    .map(|_| self.empty_queue(each, 1, cores))
                    .collect::<Result<_, _>>()?;
                let mut all = Pace::default();
                for child in started {
                    let one = finish(child)?;
                    all.per_second += one.per_second;
                    all.processor += one.processor / cores as f64;
                }
                Ok(all)
            }
        }
    }
    /// Starts a process that deletes messages from the queue.
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

/// Waits for a program that prints how many tasks or messages it processed, and its rate.
fn finish(mut child: Child) -> anyhow::Result<Pace> {
    let used = Used::until_end_of(&child)?;
    let ended = child.wait()?;
    ensure!(ended.success(), "the program that measures limits: {ended}");
    let mut printed = String::new();
    child.stdout.take().context("its output")?.read_to_string(&mut printed)?;
    let (done, per_second) = printed.trim().split_once(' ').context("two numbers")?;
    let processor = used.processor_seconds * 1e6 / done.parse::<f64>()?;
    Ok(Pace { per_second: per_second.parse()?, processor })
}

/// 1, 2, 4 and so on, and the number of all cores.
fn numbers_of_cores() -> anyhow::Result<Vec<usize>> {
    let all = std::thread::available_parallelism()?.get();
    let mut numbers: Vec<usize> = (0..).map(|n| 1 << n).take_while(|&n| n < all).collect();
    numbers.push(all);
    Ok(numbers)
}
