//! A process with low limits: few open files, or only small files.

use serde_json::json;
use task_host_tests::{Finished, Place, Running, Watched, misbehaviour, no_op};

/// Submits tasks with four inputs each.
fn of_four(place: &Place, count: usize) {
    let tasks: Vec<_> = (0..count)
        .map(|id| {
            let inputs: Vec<String> =
                (0..4).map(|n| format!("0_input/{id}/{n}-{id}.dat")).collect();
            for input in &inputs {
                place.put(&format!("data/{input}"), input);
            }
            no_op(id, &inputs)
        })
        .collect();
    place.submit(&tasks);
}

#[track_caller]
fn of_four_are_done(place: &Place, count: usize) {
    for id in 0..count {
        for n in 0..4 {
            let output = place.object(&format!("data/0_output/{n}-{id}.dat"));
            let expected = format!("0_input/{id}/{n}-{id}.dat");
            assert_eq!(output.as_deref(), Some(expected.as_bytes()));
        }
    }
    assert_eq!((place.counts(), place.errors().len()), ((0, 0), 0));
}

fn run_limited(place: &Place, limit: &str, args: &[&str]) -> Finished {
    let host =
        [&["run", "--fq", "./queue", "-x", "--json", "--retry-after", "10ms"], args].concat();
    Finished::run(&mut place.command_by(&["prlimit", limit], &host))
}

#[track_caller]
fn summary(finished: &Finished) -> serde_json::Value {
    serde_json::from_str(&finished.stdout).expect("a summary that is JSON")
}

#[test]
fn few_open_files_slow_a_host_down_and_fail_no_task() {
    const TASKS: usize = 60;
    let place = Place::with(&["NO_OP"]);
    of_four(&place, TASKS);
    let args = ["--parallel", "8", "--prefetch", "16"];
    let run = run_limited(&place, "--nofile=64:64", &args).good();
    of_four_are_done(&place, TASKS);
    let summary = summary(&run);
    assert_eq!((&summary["failed"], &summary["retried"]), (&json!(0), &json!(0)), "{summary:#}");
    assert!(run.stderr.contains("ulimit -n"), "{}", run.stderr);
}

#[test]
fn the_soft_limit_of_open_files_is_raised() {
    let place = Place::with(&["NO_OP"]);
    of_four(&place, 8);
    let run = run_limited(&place, "--nofile=64:4096", &["--parallel", "8"]).good();
    of_four_are_done(&place, 8);
    assert!(!run.stderr.contains("ulimit -n"), "{}", run.stderr);

    // Checks the kernel's limits of the running process.
    let args = [&["run", "--fq", "./queue"], &Watched::FLAGS[..]].concat();
    let command = place.command_by(&["prlimit", "--nofile=64:4096"], &args);
    let host = Watched::new(Running::start(command, &place.path().join("logs")));
    let limits = format!("/proc/{}/limits", host.host().pid().as_raw_nonzero());
    let limits = std::fs::read_to_string(limits).expect("the limits of a process");
    let files = limits.lines().find(|line| line.starts_with("Max open files")).expect("a limit");
    assert_eq!(files.split_whitespace().nth(3), Some("4096"), "{files}");
    host.stop();
}

#[test]
fn an_output_that_is_larger_than_files_may_be_fails_its_task_alone() {
    let place = Place::with(&["misbehave", "NO_OP"]);
    let mut tasks = place.innocent(10);
    tasks.insert(2, misbehaviour(99, &[], json!({"do": "write", "bytes": 12 << 20})));
    place.submit(&tasks);
    let args = ["--max-attempts", "2", "--parallel", "3"];
    let run = run_limited(&place, "--fsize=8388608", &args).code(3);
    let report = place.the_error();
    assert_eq!(report["task"]["basic_info"]["id"], 99, "{report:#}");
    let exception = report["exception"].as_str().expect("an exception");
    assert!(exception.contains("File too large"), "{exception}");
    let done = summary(&run);
    assert_eq!((&done["done"], &done["failed"]), (&json!(10), &json!(1)), "{done:#}");
    for id in 0..10 {
        assert!(place.object(&format!("data/0_output/{id}.dat")).is_some(), "{id}");
    }
}
