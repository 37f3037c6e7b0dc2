//! `cargo xtask bench`: compares `host` with the real python-task-queue on one machine, on disk and
//! in memory.
//!
//! `host` and Python take turns several times, and the report compares medians, so other load
//! affects both.

mod bytes;
mod fleet;
mod languages;
mod machine;
mod packed;
mod scaling;
mod series;
mod simulation;
mod sqs;
mod table;
mod tiles;
mod used;
mod work;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};

use crate::build::{self, Profile};
use crate::project::Project;
use crate::setup;
use bytes::Bytes;
use scaling::Scaling;
use series::Series;
use table::Table;
use work::{Bars, Cores, Ran, Task, Work};

#[derive(Args)]
pub(crate) struct Options {
    /// One round with few tasks, to check that the benchmark works
    #[arg(long)]
    quick: bool,
    /// Rounds, each of which measures everything once
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Only one measurement: insert, noop, copy, steps, receipts, seen, length, start, scaling,
    /// bytes, sqs, fleet or tiles; or languages, which needs their tools and packages from the network,
    /// packed, which builds the program of the packages, or simulation, which takes most of an hour:
    /// these three run only when named
    #[arg(long)]
    only: Option<String>,
    /// Directory on disk to measure [default: in the build directory]
    #[arg(long)]
    disk: Option<PathBuf>,
    /// Directory in memory to measure
    #[arg(long, default_value = "/dev/shm")]
    memory: PathBuf,
}

/// The maximum number of tasks of a measurement, which also ends after some seconds. Python gets
/// fewer tasks, and takes as long.
#[derive(Clone, Copy)]
struct Counts {
    insert: usize,
    run: usize,
    python: usize,
    lengths: [usize; 3],
    /// MiB of the largest file.
    large: u64,
}

pub(crate) fn run(project: &Project, options: &Options) -> anyhow::Result<()> {
    let results = project.target.join("bench");
    fs::create_dir_all(&results)?;
    if options.only.as_deref() == Some("simulation") {
        let (tables, raw) = simulation::measure(project, options.quick)?;
        return write(&results, &tables, &raw);
    }
    setup::wasm_target(project)?;
    let python = setup::python(project)?;
    build::guests(project)?;
    let host = build::host(project, Profile::Release)?;
    let guest = project.target.join("guests/NO_OP.wasm");

    let disk = options.disk.clone().unwrap_or_else(|| results.clone());
    let rounds = if options.quick { 1 } else { options.rounds.max(1) };
    let counts = if options.quick {
        Counts { insert: 2_000, run: 2_000, python: 300, lengths: [100, 1_000, 10_000], large: 64 }
    } else {
        Counts {
            insert: 20_000,
            run: 10_000,
            python: 2_000,
            lengths: [100, 10_000, 100_000],
            large: 1024,
        }
    };

    let mut report = machine::describe(&host, &python)?;
    let mut raw = vec![json!({"machine": report})];
    let is_only = |name: &str| options.only.as_deref() == Some(name);
    let wants = |name: &str| options.only.is_none() || is_only(name);
    let is_apart = ["sqs", "fleet", "tiles", "languages", "packed"].into_iter().any(is_only);
    if wants("tiles") {
        println!("\nTiles");
        let count = if options.quick { 60 } else { 200 };
        let tiles = tiles::Tiles::new(project, &host, &python, &options.memory, count)?;
        let (tables, series) = tiles.measure(rounds)?;
        report += &format!("\n## Tiles\n\n{tables}");
        raw.push(json!({"tiles": named(series)}));
    }
    if is_only("languages") {
        println!("\nLanguages");
        crate::languages::install(project)?;
        let work = Work::new(&host, &python, &guest, &options.memory)?;
        let tasks = if options.quick { 10 } else { 200 };
        let (table, series) = languages::measure(&work, &host, rounds, tasks)?;
        report += &format!("\n## Languages\n\n{table}");
        raw.push(json!({"languages": named(series)}));
    }
    if is_only("packed") {
        println!("\nThe program of the packages");
        let packed = crate::dist::program(project)?;
        let mut work = Work::new(&host, &python, &guest, &options.memory)?;
        let (table, series) = packed::measure(&mut work, &host, &packed, rounds, counts.run)?;
        report += &format!("\n## The program of the packages\n\n{table}");
        raw.push(json!({"packed": named(series)}));
    }
    for parent in [&disk, &options.memory].into_iter().filter(|_| !is_apart) {
        let work = Work::new(&host, &python, &guest, parent)
            .with_context(|| format!("cannot measure {}", parent.display()))?;
        let file_system = machine::file_system(parent)?;
        println!("\n{}: {file_system}", parent.display());
        let mut bench = Bench { project, work, counts, rounds, only: options.only.clone() };
        let (tables, values) = bench.everything()?;
        report += &format!("\n## {file_system}\n\n{tables}");
        raw.push(json!({"file_system": file_system, "results": values}));
    }
    if wants("sqs") || wants("fleet") {
        let mut sqs = sqs::Sqs::new(project, &host, &python, &guest)?;
        if wants("sqs") {
            println!("\nSQS");
            let count = if options.quick { 2_000 } else { 10_000 };
            let (tables, series) = sqs.measure(rounds, count)?;
            report += &format!("\n## SQS\n\n{tables}");
            raw.push(json!({"sqs": named(series)}));
        }
        if wants("fleet") {
            println!("\nSeveral hosts");
            let guest = project.target.join("guests/misbehave.wasm");
            let (table, series) = fleet::measure(&mut sqs, &guest, rounds)?;
            report += &format!("\n## Several hosts\n\n{table}");
            raw.push(json!({"fleet": named(series)}));
        }
    }
    write(&results, &report, &raw.into())
}

/// Prints a report, and writes the report and its figures to files.
fn write(results: &Path, report: &str, raw: &Value) -> anyhow::Result<()> {
    fs::write(results.join("benchmarks.md"), report)?;
    fs::write(results.join("results.json"), serde_json::to_vec_pretty(raw)?)?;
    println!("\n{report}");
    println!("Written to {}/benchmarks.md and results.json", show(results));
    Ok(())
}

/// The values of each series, by its name.
fn named(series: Vec<Series>) -> Value {
    let values =
        series.into_iter().map(|one| (one.name, json!({"unit": one.unit, "values": one.values})));
    Value::Object(values.collect())
}

fn show(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(&here).unwrap_or(path).display().to_string()
}

/// The measurements on one file system.
struct Bench<'a> {
    project: &'a Project,
    work: Work,
    counts: Counts,
    rounds: usize,
    only: Option<String>,
}

/// Does some work, and returns the rate in tasks per second.
type Rate<'a> = Box<dyn Fn() -> anyhow::Result<f64> + 'a>;

/// The same work, for Python and for variants of `host`.
struct Race<'a> {
    name: &'static str,
    python: [(&'static str, Rate<'a>); 2],
    host: Vec<(&'static str, Rate<'a>)>,
}

impl Race<'_> {
    /// Measures all variants in turns.
    fn run(&self, rounds: usize) -> anyhow::Result<([Series; 2], Vec<Series>)> {
        let mut python = self.python.each_ref().map(|(label, _)| {
            Series::new(&format!("python, {}, {label}", self.name), "per second")
        });
        let series = |label: &str| Series::new(&format!("host, {label}"), "per second");
        let mut hosts: Vec<Series> = self.host.iter().map(|(label, _)| series(label)).collect();
        for _ in 0..rounds {
            for (series, (_, rate)) in python.iter_mut().zip(&self.python) {
                series.push(rate()?);
            }
            for (series, (_, rate)) in hosts.iter_mut().zip(&self.host) {
                series.push(rate()?);
            }
        }
        Ok((python, hosts))
    }
}

impl<'a> Bench<'a> {
    fn everything(&mut self) -> anyhow::Result<(String, Value)> {
        let mut text = String::new();
        let mut values = serde_json::Map::new();
        type Measurement<'b> = fn(&mut Bench<'b>) -> anyhow::Result<(String, Vec<Series>)>;
        let all: [(&str, Measurement<'a>); 8] = [
            ("insert noop copy", Bench::beside_python),
            ("steps", Bench::steps),
            ("receipts", Bench::receipts),
            ("seen", Bench::seen),
            ("length", Bench::queue_length),
            ("start", Bench::first_result),
            ("scaling", Bench::scaling),
            ("bytes", Bench::bytes),
        ];
        for (name, measure) in all {
            if !name.split(' ').any(|name| self.wants(name)) {
                continue;
            }
            let (tables, series) = measure(self)?;
            text += &format!("{tables}\n");
            for one in series {
                values.insert(one.name.clone(), json!({"unit": one.unit, "values": one.values}));
            }
        }
        Ok((text, values.into()))
    }

    /// The rates of `host` and Python, and their ratios.
    fn beside_python(&mut self) -> anyhow::Result<(String, Vec<Series>)> {
        let (work, counts) = (&self.work, &self.counts);
        let (run, python) = (counts.run, counts.python);
        let host = |task: Task, parallel: &'static str, cores: Cores| -> Rate<'_> {
            Box::new(move || work.host_runs(task, run, &["--parallel", parallel], cores))
        };
        let inserts =
            |bars: Bars| -> Rate<'_> { Box::new(move || work.python_inserts(counts.insert, bars)) };
        let runs = |task: Task, bars: Bars| -> Rate<'_> {
            Box::new(move || work.python_runs(task, python, bars))
        };
        let (shown, off) = ("default settings", "progress bars off");
        let races = [
            Race {
                name: "insert",
                python: [(shown, inserts(Bars::Shown)), (off, inserts(Bars::Off))],
                host: vec![("insert", Box::new(|| work.host_inserts(counts.insert)))],
            },
            Race {
                name: "noop",
                python: [
                    (shown, runs(Task::Nothing, Bars::Shown)),
                    (off, runs(Task::Nothing, Bars::Off)),
                ],
                host: vec![
                    ("no-op: lease, run, delete; one core", host(Task::Nothing, "1", Cores::One)),
                    ("no-op, `--parallel 2`", host(Task::Nothing, "2", Cores::All)),
                ],
            },
            Race {
                name: "copy",
                python: [
                    (shown, runs(Task::Copy, Bars::Shown)),
                    (off, runs(Task::Copy, Bars::Off)),
                ],
                host: vec![
                    ("4 KiB in, 4 KiB out; one core", host(Task::Copy, "1", Cores::One)),
                    ("4 KiB in and out, `--parallel 1`", host(Task::Copy, "1", Cores::All)),
                    ("4 KiB in and out, `--parallel 2`", host(Task::Copy, "2", Cores::All)),
                ],
            },
        ];
        let mut table = Table::new(
            "Tasks per second; python-task-queue with its default settings, and without its \
             progress bars",
            &["", "python", "bars off", "`host`", "ratio", "to bars off"],
        );
        let mut all = Vec::new();
        for race in races.iter().filter(|race| self.wants(race.name)) {
            let (python, hosts) = race.run(self.rounds)?;
            for (ours, (label, _)) in hosts.iter().zip(&race.host) {
                let ratio = |python: &Series| format!("{:.1}", ours.median() / python.median());
                let [shown, off] = &python;
                let (to_shown, to_off) = (ratio(shown), ratio(off));
                let label = (*label).to_owned();
                let (theirs, ours) = ([shown.shown(), off.shown()], ours.shown());
                let [shown_cell, off_cell] = theirs;
                table.row([label, shown_cell, off_cell, ours, to_shown, to_off]);
            }
            all.extend(python);
            all.extend(hosts);
        }
        Ok((table.to_string(), all))
    }

    fn wants(&self, name: &str) -> bool {
        self.only.as_deref().is_none_or(|only| name.contains(only))
    }

    /// The time of a task's steps, with one task at a time.
    fn steps(&mut self) -> anyhow::Result<(String, Vec<Series>)> {
        const STEPS: [&str; 8] =
            ["decode", "fetch", "resolve", "wait", "instantiate", "run", "publish", "settle"];
        let args = ["--parallel", "1", "--prefetch", "0"];
        let kinds = [("a no-op", Task::Nothing), ("4 KiB in, 4 KiB out", Task::Copy)];
        let mut columns: Vec<Vec<Series>> = Vec::new();
        for (label, kind) in kinds {
            let mut steps: Vec<Series> = STEPS
                .iter()
                .map(|step| Series::new(&format!("{step} of {label}"), "microseconds"))
                .collect();
            let mut whole = Series::new(&format!("the whole of {label}"), "microseconds");
            for _ in 0..self.rounds {
                let summary =
                    self.work.host_summary(kind, self.counts.run / 2, &args, Cores::All)?;
                let done = summary["done"].as_f64().context("`done` of the summary")?;
                for (series, step) in steps.iter_mut().zip(STEPS) {
                    let seconds = summary["steps"][step].as_f64();
                    let seconds = seconds.with_context(|| format!("step {step} of the summary"))?;
                    series.push(seconds / done * 1e6);
                }
                let seconds = summary["seconds"].as_f64().context("`seconds` of the summary")?;
                whole.push(seconds / done * 1e6);
            }
            // The steps do not include leasing and the loop around a task.
            let booked: f64 = steps.iter().map(Series::median).sum();
            let mut rest = Series::new(&format!("lease and the rest of {label}"), "microseconds");
            rest.push((whole.median() - booked).max(0.0));
            steps.insert(0, rest);
            steps.push(whole);
            columns.push(steps);
        }
        let mut table = Table::new(
            "Microseconds of each step, with one task at a time",
            &["step", kinds[0].0, kinds[1].0],
        );
        let names = ["lease, loop"].into_iter().chain(STEPS).chain(["the whole"]);
        for (row, name) in names.enumerate() {
            let value = |column: &Vec<Series>| column[row].shown();
            table.row([name.to_owned(), value(&columns[0]), value(&columns[1])]);
        }
        Ok((table.to_string(), columns.into_iter().flatten().collect()))
    }

    /// The time of a task without and with a receipt.
    fn receipts(&mut self) -> anyhow::Result<(String, Vec<Series>)> {
        self.without_and_with("a receipt", &[], &["--receipts"])
    }

    /// The time of a task on a host without a status page and heartbeats, and on one with both.
    fn seen(&mut self) -> anyhow::Result<(String, Vec<Series>)> {
        let unseen = ["--heartbeat", "0"];
        // More heartbeats than by default, so that short runs have some.
        let seen = ["--listen", "127.0.0.1:0", "--heartbeat", "1s"];
        self.without_and_with("being seen", &unseen, &seen)
    }

    fn without_and_with(
        &self,
        what: &str,
        without: &[&str],
        with: &[&str],
    ) -> anyhow::Result<(String, Vec<Series>)> {
        let ways = [("without", without), ("with", with)];
        let kinds = [("a no-op", Task::Nothing), ("4 KiB in, 4 KiB out", Task::Copy)];
        let caption =
            format!("Microseconds and processor time (µs) of a task, without and with {what}");
        let head = ["", "without", "with", "ratio", "processor, without", "with", "ratio"];
        let mut table = Table::new(&caption, &head);
        let mut all = Vec::new();
        for (label, kind) in kinds {
            for parallel in ["1", "2"] {
                let series = |of: &str, unit| {
                    Series::new(&format!("{of} of {label}, {parallel} at a time, {what}"), unit)
                };
                let mut times = ways.map(|(way, _)| series(&format!("time {way}"), "microseconds"));
                let mut work =
                    ways.map(|(way, _)| series(&format!("processor time {way}"), "microseconds"));
                let mut ratios =
                    ["ratio of time", "ratio of processor time"].map(|of| series(of, ""));
                for round in 0..self.rounds {
                    // Alternates which of the two goes first.
                    for n in [round % 2, 1 - round % 2] {
                        let args = [&["--parallel", parallel], ways[n].1].concat();
                        self.work.fill(kind, self.counts.run)?;
                        let Ran { summary, used } =
                            self.work.run(self.counts.run, &args, Cores::All)?;
                        let number =
                            |name: &str| summary[name].as_f64().context("a number of the summary");
                        times[n].push(1e6 / number("tasks_per_second")?);
                        work[n].push(used.processor_seconds * 1e6 / number("done")?);
                    }
                    for (ratio, [without, with]) in ratios.iter_mut().zip([&times, &work]) {
                        ratio.push(with.values[round] / without.values[round]);
                    }
                }
                let mut row = vec![format!("{label}, `--parallel {parallel}`")];
                for ([without, with], ratio) in [&times, &work].into_iter().zip(&ratios) {
                    row.extend([without.shown(), with.shown(), ratio.shown()]);
                }
                table.row(row);
                all.extend(times.into_iter().chain(work).chain(ratios));
            }
        }
        Ok((table.to_string(), all))
    }

    /// Rate and memory at different lengths of the queue.
    fn queue_length(&mut self) -> anyhow::Result<(String, Vec<Series>)> {
        let mut table = Table::new(
            "No-ops per second and peak memory, by the length of the queue",
            &[
                "tasks in the queue",
                "python-task-queue",
                "`host`",
                "`host`: first task after, ms",
                "`host`: peak memory, MiB",
            ],
        );
        let mut all = Vec::new();
        for length in self.counts.lengths {
            let name = |what: &str| format!("{what} with {length} queued");
            let mut theirs = Series::new(&name("python"), "per second");
            let mut ours = Series::new(&name("host"), "per second");
            let mut first = Series::new(&name("first task of host"), "milliseconds");
            let mut memory = Series::new(&name("peak memory of host"), "MiB");
            for _ in 0..self.rounds {
                theirs.push(self.work.python_runs_of(length, length.min(self.counts.python))?);
                let run = self.work.host_runs_of(length, length.min(self.counts.run))?;
                ours.push(run.rate);
                first.push(run.first.as_secs_f64() * 1e3);
                memory.push(run.peak_bytes as f64 / f64::from(1 << 20));
            }
            let length = length.to_string();
            table.row([length, theirs.shown(), ours.shown(), first.shown(), memory.shown()]);
            all.extend([theirs, ours, first, memory]);
        }
        Ok((table.to_string(), all))
    }

    /// The time from the start of the program to the first output.
    fn first_result(&mut self) -> anyhow::Result<(String, Vec<Series>)> {
        let series = |name: &str| Series::new(name, "milliseconds");
        let (mut cold, mut warm) = (series("host, cold"), series("host, warm"));
        let mut python = series("python");
        for _ in 0..self.rounds.max(3) {
            python.push(self.work.python_first_result()?.as_secs_f64() * 1e3);
            cold.push(self.work.host_first_result(false)?.as_secs_f64() * 1e3);
            warm.push(self.work.host_first_result(true)?.as_secs_f64() * 1e3);
        }
        let mut table =
            Table::new("Milliseconds from the start of the program to the first output", &["", ""]);
        table.row(["python-task-queue".to_owned(), python.shown()]);
        table.row(["`host`, component never compiled before".to_owned(), cold.shown()]);
        table.row(["`host`, component compiled before".to_owned(), warm.shown()]);
        Ok((table.to_string(), vec![python, cold, warm]))
    }

    /// Rates from one core to all.
    fn scaling(&mut self) -> anyhow::Result<(String, Vec<Series>)> {
        let program = build::bench(self.project, "scaling")?;
        let scaling = Scaling { work: &self.work, program: &program, count: self.counts.run };
        let (table, series) = scaling.measure(self.rounds)?;
        Ok((table.to_string(), series))
    }

    /// Memory, bytes on the disk, and large files.
    fn bytes(&mut self) -> anyhow::Result<(String, Vec<Series>)> {
        let Counts { run, large, .. } = self.counts;
        let guests = self.project.target.join("guests");
        let bytes = Bytes { work: &self.work, guests: &guests, count: run, large };
        bytes.measure(self.rounds)
    }
}
