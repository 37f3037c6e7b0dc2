//! Measures how well several hosts share the tasks of one queue.
//!
//! Three hosts with one slot each run six tasks of six seconds, which takes 12 seconds if no host
//! holds a task that another could run. Tasks sleep, so it does not matter that the hosts are on
//! one machine.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Instant;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::series::Series;
use super::sqs::Sqs;
use super::table::Table;

const HOSTS: usize = 3;
const TASKS: usize = 6;
const SECONDS: usize = 6;

/// Returns a table for people, and all series. The component `guest` sleeps as long as its tasks
/// say.
pub(super) fn measure(
    sqs: &mut Sqs,
    guest: &Path,
    rounds: usize,
) -> anyhow::Result<(Table, Vec<Series>)> {
    fs::copy(guest, sqs.dir().join("bucket/components/misbehave.wasm"))?;
    let mut all = ["a directory", "SQS"].map(|queue| {
        let name = format!("{HOSTS} hosts, {TASKS} tasks of {SECONDS} s, {queue}");
        Series::new(&name, "seconds")
    });
    let mut shares = [const { String::new() }; 2];
    for _ in 0..rounds {
        for (n, (series, shares)) in all.iter_mut().zip(&mut shares).enumerate() {
            let queue = match n {
                0 => format!("fq://./fleet-{}", series.values.len()),
                _ => format!("sqs://{}", sqs.new_queue()?),
            };
            let (seconds, done) = run(sqs, &queue)?;
            series.push(seconds);
            *shares = done.map(|done| done.to_string()).join(" + ");
        }
    }
    let mut table = Table::new(
        "Seconds until three hosts with one slot each have ended, with six tasks of six seconds",
        &["", "seconds", "best possible", "tasks of each host, last round"],
    );
    for (series, shares) in all.iter().zip(shares) {
        let best = TASKS.div_ceil(HOSTS) * SECONDS;
        table.row([series.name.clone(), series.shown(), best.to_string(), shares]);
    }
    Ok((table, all.into()))
}

/// Returns the seconds until all hosts have ended, and how many tasks each did.
fn run(sqs: &Sqs, queue: &str) -> anyhow::Result<(f64, [u64; HOSTS])> {
    // The first task makes a host compile the component.
    submit(sqs, queue, 1, 0)?;
    finish(start(sqs, queue, &["--max-tasks", "1"])?)?;
    submit(sqs, queue, TASKS, SECONDS)?;
    let begun = Instant::now();
    let mut hosts = Vec::new();
    for _ in 0..HOSTS {
        hosts.push(start(sqs, queue, &["-x"])?);
    }
    let mut done = [0; HOSTS];
    for (done, host) in done.iter_mut().zip(hosts) {
        *done = finish(host)?;
    }
    let seconds = begun.elapsed().as_secs_f64();
    ensure!(done.iter().sum::<u64>() == TASKS as u64, "{queue}: the hosts did {done:?} tasks");
    Ok((seconds, done))
}

fn submit(sqs: &Sqs, queue: &str, tasks: usize, seconds: usize) -> anyhow::Result<()> {
    let lines = (0..tasks).map(|id| {
        let task = json!({
            "basic_info": {"id": id, "name": "misbehave", "base_directory": "data"},
            "payload_info": {"do": "sleep", "secs": seconds},
        });
        format!("{task}\n")
    });
    fs::write(sqs.dir().join("fleet.jsonl"), lines.collect::<String>())?;
    let sent = sqs.host()?.args(["submit", "--queue", queue, "fleet.jsonl"]).output()?;
    ensure!(sent.status.success(), "host submit: {}", String::from_utf8_lossy(&sent.stderr));
    Ok(())
}

fn start(sqs: &Sqs, queue: &str, args: &[&str]) -> anyhow::Result<Child> {
    let mut run = sqs.host()?;
    run.args(["run", "--queue", queue, "--error-queue", "./errors", "--bucket", "./bucket"]);
    run.args(["--cache-dir", "./cache", "--parallel", "1", "--json"]).args(args);
    run.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().context("host run")
}

/// How many tasks a host did.
fn finish(host: Child) -> anyhow::Result<u64> {
    let output = host.wait_with_output()?;
    ensure!(output.status.success(), "host run: {}", output.status);
    let summary: Value = serde_json::from_slice(&output.stdout)?;
    summary["done"].as_u64().context("`done` of the summary")
}
