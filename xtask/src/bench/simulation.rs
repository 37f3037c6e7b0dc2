//! Measures a simulated fleet of a thousand hosts: `host/src/simulation.rs`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::thread;

use anyhow::{Context, anyhow};
use serde_json::{Value, json};

use super::table::Table;
use crate::command::{capture, run};
use crate::project::Project;

/// The test that simulates one fleet, and the variable with its arguments.
const SIMULATE: [&str; 4] =
    ["--exact", "simulation::tests::a_large_fleet", "--ignored", "--nocapture"];
const FLEET: &str = "TASK_HOST_FLEET";

/// The simulated fleets: name and arguments of each.
const FLEETS: [(&str, &str); 8] = [
    ("1 ms", "--length 1ms"),
    ("10 s", "--length 10s"),
    // Takes thirty times as long as the others. Hosts share only the queue, so a tenth of the hosts
    // shows the same.
    ("1 h", "--length 1h --hosts 100 --tasks 100000"),
    ("10 s, 30% of the hosts killed after 100 s", "--length 10s --wave 100s"),
    ("10 s, the same with two minutes' notice", "--length 10s --wave 100s --notice 2m"),
    (
        "10 min, 30% of the hosts killed after 75 min",
        "--length 10m --wave 75m --hosts 200 --tasks 100000",
    ),
    (
        "10 min, the same with two minutes' notice",
        "--length 10m --wave 75m --notice 2m --hosts 200 --tasks 100000",
    ),
    ("10 s, SQS fails from 100 s to 700 s", "--length 10s --outage 100s"),
];

/// For a quick check: a tenth of the hosts and of the tasks.
const QUICK: &str = "--hosts 100 --tasks 100000";

/// Returns tables for people, and all figures.
pub(super) fn measure(project: &Project, quick: bool) -> anyhow::Result<(String, Value)> {
    let program = program(project)?;
    let next = Mutex::new(FLEETS.iter().enumerate());
    let results = Mutex::new(vec![Value::Null; FLEETS.len()]);
    let work = || {
        while let Some((n, (name, arguments))) = next.lock().expect("a lock").next() {
            let arguments =
                if quick { format!("{QUICK} {arguments}") } else { (*arguments).into() };
            println!("{name}: {arguments}");
            let figures = simulate(&program, &arguments)?;
            println!("{name}: {figures}");
            results.lock().expect("a lock")[n] = figures;
        }
        anyhow::Ok(())
    };
    // Each simulation has one thread.
    let cores = thread::available_parallelism()?.get();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|one| one.join().map_err(|_| anyhow!("a panic"))?)
    })?;
    let results = results.into_inner().expect("a lock");
    let named = FLEETS.iter().zip(&results).map(|((name, _), figures)| ((*name).into(), figures));
    let raw = json!(named.collect::<std::collections::BTreeMap<String, &Value>>());
    Ok((tables(&results)?, raw))
}

/// Builds the simulation without the engines of `host fleet`, and returns its path.
fn program(project: &Project) -> anyhow::Result<PathBuf> {
    let mut cargo = project.cargo();
    cargo.args(["test", "--release", "-p", "task-host", "--no-default-features", "--lib"]);
    run(cargo.arg("--no-run"))?;
    let messages = capture(cargo.args(["--quiet", "--message-format=json"]))?;
    let mut path = messages.lines().filter_map(|message| {
        let message: Value = serde_json::from_str(message).ok()?;
        message["executable"].as_str().map(PathBuf::from)
    });
    path.next_back().context("Cargo did not build the tests of the library")
}

fn simulate(program: &Path, arguments: &str) -> anyhow::Result<Value> {
    let printed = capture(Command::new(program).args(SIMULATE).env(FLEET, arguments))?;
    // The test harness may print the test's name before the figures.
    let figures =
        printed.lines().find_map(|line| serde_json::from_str(&line[line.find('{')?..]).ok());
    figures.with_context(|| format!("no figures of {arguments}"))
}

fn tables(results: &[Value]) -> anyhow::Result<String> {
    let mut time = Table::new(
        "Time",
        &["tasks of", "all done after, s", "ideal, s", "lost, %", "free while held elsewhere, %"],
    );
    let mut requests = Table::new(
        "Requests for each task",
        &["tasks of", "all", "receive", "empty", "delete", "renew or confirm", "send again"],
    );
    let mut work = Table::new(
        "Executions",
        &["tasks of", "cut short", "seconds of these", "run again", "attempts charged", "given up"],
    );
    for ((name, _), figures) in FLEETS.iter().zip(results) {
        let number = |value: &Value| value.as_f64().context("a figure");
        let tasks = number(&figures["tasks"])?;
        let cell = |name: &str, digits: usize| {
            number(&figures[name]).map(|value| format!("{value:.digits$}"))
        };
        let percent = |name: &str| anyhow::Ok(format!("{:.1}", 100.0 * number(&figures[name])?));
        let each =
            |kind: &str| anyhow::Ok(format!("{:.3}", number(&figures["requests"][kind])? / tasks));
        let name = || (*name).to_owned();
        let (lost, free) = (percent("time_lost")?, percent("free_while_held")?);
        time.row([name(), cell("seconds", 1)?, cell("ideal", 1)?, lost, free]);
        let kinds = ["all", "receive", "empty", "delete", "change", "send"];
        let [all, receive, empty, delete, change, send] = kinds.map(each);
        requests.row([name(), all?, receive?, empty?, delete?, change?, send?]);
        let (cut, again) = (cell("cut", 0)?, cell("again", 0)?);
        let (charged, given_up) = (cell("charged", 0)?, cell("given_up", 0)?);
        work.row([name(), cut, cell("cut_seconds", 0)?, again, charged, given_up]);
    }
    Ok(format!("{time}\n{requests}\n{work}"))
}
