//! The number of system calls that a host makes per task. Small tasks spend most of their time in
//! the kernel, so each additional call makes every host slower.
//!
//! `strace` counts the calls of the real `host run`, of all its threads and children. The test
//! subtracts the calls of a short run from those of a long run, so start and end do not count. To
//! see the tables: `cargo test --workspace --test host system_calls -- --nocapture`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;

use serde_json::Value;
use task_host_tests::{Finished, Place, no_op};

/// The number of tasks in the short and in the long run.
const RUNS: [usize; 2] = [300, 900];

/// Calls with which threads wait for each other or wake each other. A thread that has more work
/// does not sleep, so the number of these calls depends on the speed of the other threads.
const WAITS: [&str; 6] =
    ["clock_nanosleep", "epoll_pwait", "epoll_wait", "futex", "sched_yield", WAKE];
const WAKE: &str = "write (wakes a thread)";

/// The maximum of waits and wakes per task. A task changes threads a few times: from the loop to a
/// thread of the runtime, to the guest's thread, and back. Each change is a wake by one thread, and
/// a wait in the other thread if that had nothing else to do. Measured: 3 to 6.
const MOST_WAITS: f64 = 12.0;

/// Checks the calls per task with one slot and with two. `most` does not include [`WAITS`]. It is
/// less than one call above the measured number, so that one additional call fails the test. The
/// margin is for calls that a host makes at certain times, because a slow machine makes more of
/// them.
#[track_caller]
fn at_most(most: f64, inputs: usize, settings: &[&str]) {
    for parallel in ["1", "2"] {
        let (calls, waits): (BTreeMap<_, _>, BTreeMap<_, _>) = per_task(parallel, inputs, settings)
            .into_iter()
            .partition(|(name, _)| !WAITS.contains(&name.as_str()));
        let table = format!(
            "`host run --parallel {parallel}` with {settings:?}, files of 4 KiB: {inputs} in, {inputs} out; per task:\n\
             {}  of at most {most}\n{}  of at most {MOST_WAITS} that depend on the machine's pace\n",
            listed("system calls", &calls),
            listed("waits and wakes", &waits),
        );
        println!("{table}");
        assert!(sum(&calls) <= most, "a task makes more system calls than before\n{table}");
        assert!(sum(&waits) <= MOST_WAITS, "a task changes threads more often\n{table}");
    }
}

fn sum(calls: &BTreeMap<String, f64>) -> f64 {
    calls.values().sum()
}

/// The calls, the most frequent first.
fn listed(what: &str, calls: &BTreeMap<String, f64>) -> String {
    let mut sorted: Vec<_> = calls.iter().filter(|(_, count)| count.abs() >= 0.005).collect();
    sorted.sort_by(|a, b| b.1.total_cmp(a.1));
    let mut lines = String::new();
    for (name, count) in sorted {
        writeln!(lines, "{count:9.2} {name}").expect("a line");
    }
    writeln!(lines, "{:9.2} {what}", sum(calls)).expect("a line");
    lines
}

/// The calls of one task, by name.
fn per_task(parallel: &str, inputs: usize, settings: &[&str]) -> BTreeMap<String, f64> {
    let [short, long] = RUNS.map(|tasks| run(tasks, parallel, inputs, settings));
    let names = short.keys().chain(long.keys());
    let count =
        |calls: &BTreeMap<String, usize>, name: &str| calls.get(name).map_or(0.0, |n| *n as f64);
    let per_task = |name: &String| {
        let more = count(&long, name) - count(&short, name);
        (name.clone(), more / (RUNS[1] - RUNS[0]) as f64)
    };
    names.map(per_task).collect()
}

/// Runs tasks in a new place, because a host at its start checks the contents of its cache and
/// queue. Counts all calls.
fn run(tasks: usize, parallel: &str, inputs: usize, settings: &[&str]) -> BTreeMap<String, usize> {
    let place = Place::with(&["NO_OP"]);
    let task = |id: usize| {
        let inputs: Vec<String> = (0..inputs).map(|n| format!("0_input/{id}-{n}.dat")).collect();
        for input in &inputs {
            place.put(&format!("data/{input}"), format!("{id:08}").repeat(512));
        }
        no_op(id, &inputs)
    };
    // Compiles the component, and creates the files that the first task needs.
    place.submit(&[task(tasks)]);
    place.run(&["--max-tasks", "1"]).good();
    place.submit(&(0..tasks).map(task).collect::<Vec<_>>());
    let trace = place.path().join("trace");
    let path = trace.to_str().expect("a path that is text");
    // `strace` leaves out strings, because the test needs only names and lengths.
    let strace = ["strace", "-f", "-qq", "-s", "0", "-e", "signal=none", "-o", path];
    // With a lease of one hour, no lease is renewed.
    let args = ["run", "--fq", "./queue", "--json", "--lease", "1h", "--parallel", parallel];
    let last = ["--max-tasks", &tasks.to_string()];
    let ran = Finished::run(&mut place.command_by(&strace, &[&args[..], &last, settings].concat()))
        .good();
    let summary: Value = serde_json::from_str(&ran.stdout).expect("a summary");
    assert_eq!(summary["done"], tasks, "{summary:#}");
    let mut calls = BTreeMap::new();
    for name in fs::read_to_string(trace).expect("a trace").lines().filter_map(call) {
        *calls.entry(name).or_default() += 1;
    }
    calls
}

/// The name of the system call at the start of a line of `strace`: `PID NAME(ARGUMENTS`.
fn call(line: &str) -> Option<String> {
    let (_, call) = line.split_once(' ')?;
    let (name, arguments) = call.trim_start().split_once('(')?;
    // If another thread interrupts the line of a call, the line of its end starts with `<... NAME
    // resumed>`.
    if !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        return None;
    }
    match name {
        // The standard library checks a descriptor before it closes it, but only in debug builds.
        "fcntl" if arguments.contains("F_GETFD") => None,
        // Only the runtime writes eight bytes: to an eventfd, to wake a thread.
        "write" if is_of_eight_bytes(arguments) => Some(WAKE.to_owned()),
        _ => Some(name.to_owned()),
    }
}

/// Whether the last argument is 8. It is followed by `)`, or by a space if the line ends there.
fn is_of_eight_bytes(arguments: &str) -> bool {
    let length = arguments.rsplit(", ").next().unwrap_or_default();
    length.split([')', ' ']).next() == Some("8")
}

#[test]
fn a_task_that_does_nothing_makes_few_system_calls() {
    at_most(19.9, 0, &[]);
}

#[test]
fn a_task_with_a_small_input_and_output_makes_few_system_calls() {
    at_most(31.9, 1, &[]);
}

/// One call before the guest runs, and one after it.
#[test]
fn a_limit_of_processor_time_takes_two_system_calls() {
    at_most(21.9, 0, &["--cpu-time", "10m"]);
}
