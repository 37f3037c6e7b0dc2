//! A host with little memory. The tests set the memory with Slurm's variable, which works on every
//! machine and for every user.

use serde_json::{Value, json};
use task_host_tests::{Finished, Place, misbehaviour};

/// Runs `host ARGS…` with `mib` MiB of memory.
fn host(place: &Place, mib: u32, args: &[&str]) -> Finished {
    let mut command = place.command(args);
    Finished::run(command.env("SLURM_MEM_PER_NODE", mib.to_string()))
}

fn run_until_empty(place: &Place, mib: u32, args: &[&str]) -> Finished {
    let run = ["run", "--fq", "./queue", "--exit-when-empty", "--retry-after", "10ms"];
    host(place, mib, &[&run, args].concat())
}

/// The value and source of a setting in `host config`.
fn setting(place: &Place, mib: u32, args: &[&str], name: &str) -> String {
    let shown = host(place, mib, &[&["config"], args].concat()).good().stdout;
    let line = shown.lines().find(|line| line.split_whitespace().next() == Some(name));
    let line = line.unwrap_or_else(|| panic!("{name} is not in {shown}"));
    line.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
}

#[test]
fn the_defaults_fit_the_memory() {
    let place = Place::new();
    assert_eq!(setting(&place, 512, &[], "parallel"), "1 default");
    assert_eq!(setting(&place, 512, &[], "compile-memory"), "312.0 MiB default");
    assert_eq!(setting(&place, 100_000, &[], "compile-memory"), "2GiB default");
    assert_eq!(setting(&place, 512, &["--parallel", "2"], "parallel"), "2 --parallel");
    // With a lower limit per task, more tasks fit.
    let all = setting(&place, 100_000, &[], "parallel");
    assert_eq!(setting(&place, 100_000, &["--memory", "64MiB"], "parallel"), all);
    assert_eq!(setting(&place, 2000, &["--memory", "2GiB"], "parallel"), "1 default");
}

#[test]
fn a_task_that_needs_more_than_the_host_has_fails_alone() {
    let place = Place::with(&["misbehave", "NO_OP"]);
    let mut tasks = place.innocent(6);
    tasks.insert(1, misbehaviour(99, &[], json!({"do": "alloc", "mib": 700})));
    place.submit(&tasks);
    let args = ["--parallel", "2", "--max-attempts", "2", "--json"];
    let run = run_until_empty(&place, 512, &args).code(3);
    for id in 0..6 {
        assert!(place.object(&format!("data/0_output/{id}.dat")).is_some(), "{id}");
    }
    let report = place.the_error();
    assert_eq!(report["task"]["basic_info"]["id"], 99, "{report:#}");
    let exception = report["exception"].as_str().expect("a reason");
    let want = "the guest asked for more than the 173.";
    assert!(exception.starts_with(want), "{exception}");
    let want = "of memory that this host has for tasks; more memory for the host's machine, \
        container or job raises it";
    assert!(exception.ends_with(want), "{exception}");
    let summary: Value = serde_json::from_str(&run.stdout).expect("a summary that is JSON");
    assert_eq!((&summary["failed"], &summary["retried"]), (&json!(1), &json!(1)), "{summary:#}");
    let want = "memory: a task may use 1.0 GiB (--memory), and the job has 512.0 MiB of memory \
        (SLURM_MEM_PER_NODE)";
    assert!(run.stderr.contains(want), "{}", run.stderr);
}

#[test]
fn tasks_that_do_not_fit_together_cost_one_another_no_attempt() {
    let place = Place::with(&["misbehave"]);
    // Each task holds some memory, and then needs more than the other leaves.
    let steps = json!([
        {"do": "alloc", "mib": 60}, {"do": "sleep", "secs": 0.5}, {"do": "alloc", "mib": 120},
    ]);
    let tasks: Vec<Value> =
        (0..4).map(|id| misbehaviour(id, &[], json!({"do": "all", "steps": steps}))).collect();
    place.submit(&tasks);
    // A single counted attempt would send an error report.
    let args = ["--parallel", "2", "--memory", "128MiB", "--max-attempts", "1"];
    let run = run_until_empty(&place, 512, &args).good();
    assert_eq!((place.counts(), place.errors().len()), ((0, 0), 0));
    let want = "-> --parallel 1, a lower --memory, or more memory";
    assert!(run.stderr.contains(want), "{}", run.stderr);
}

#[test]
fn a_task_that_is_tried_is_told_of_the_memory_too() {
    let place = Place::new();
    let guest = task_host_tests::guest("misbehave");
    let payload = json!({"do": "alloc", "mib": 700}).to_string();
    let args = ["try", guest.to_str().unwrap(), "--payload", &payload];
    let tried = host(&place, 512, &args).code(3);
    let want = "the guest asked for more than the 242.";
    assert!(tried.stderr.contains(want), "{}", tried.stderr);
}

#[test]
fn the_doctor_finds_limits_that_do_not_fit_the_memory() {
    let place = Place::with(&["NO_OP"]);
    let doctor = |mib, args: &[&str]| {
        let all = [&["doctor", "--fq", "./queue", "--bucket", "./bucket"], args].concat();
        host(&place, mib, &all)
    };
    let told = doctor(512, &[]).code(1).stdout;
    assert!(told.contains("problem  memory: a task may use 1.0 GiB (--memory)"), "{told}");
    assert!(told.contains("-> more memory, or --memory 242MiB"), "{told}");
    let told = doctor(2000, &["--parallel", "4"]).good().stdout;
    let want = "warn     memory: 4 tasks of 1.0 GiB (--memory) may use 4.0 GiB, and the job has";
    assert!(told.contains(want), "{told}");
    let told = doctor(512, &["--memory", "64MiB", "--compile-memory", "1GiB"]).good().stdout;
    assert!(told.contains("note     memory: compiling a component may use 1.0 GiB"), "{told}");
    let told = doctor(512, &["--memory", "64MiB"]).good().stdout;
    assert!(!told.contains("  memory: "), "{told}");
}

#[test]
fn fewer_tasks_run_where_address_space_is_short() {
    let place = Place::with(&["NO_OP", "planner"]);
    let limited = |bytes: u64, args: &[&str]| {
        let limit = format!("--as={bytes}:{bytes}");
        Finished::run(&mut place.command_by(&["prlimit", &limit], args))
    };
    let shown = limited(20 << 30, &["config"]).good().stdout;
    let is_one = |line: &str| line.split_whitespace().eq(["parallel", "1", "default"]);
    assert!(shown.lines().any(is_one), "{shown}");
    let (queue, bucket) = (["--fq", "./queue"], ["--bucket", "./bucket"]);
    let told = limited(8 << 30, &[&["doctor"], &queue[..], &bucket].concat()).code(1);
    assert!(
        told.stdout.contains("problem  sandbox: 1 task can't run at a time"),
        "{}",
        told.stdout
    );
    let cure = "LimitAS=infinity in a systemd unit\n";
    assert!(told.stdout.contains(cure), "{}", told.stdout);
    let run = limited(8 << 30, &[&["run", "-x"], &queue[..], &bucket].concat()).code(1);
    assert!(run.stderr.contains("(`ulimit -v`)"), "{}", run.stderr);
    // With this limit of address space, plans run without a thread of their own.
    let mut planned = misbehaviour(9, &[], json!({"do": "ask", "optional": ["hole"]}));
    planned["basic_info"]["name"] = json!("planner");
    place.submit(&[&place.innocent(3)[..], &[planned]].concat());
    limited(20 << 30, &[&["run", "-x"], &queue[..], &bucket].concat()).good();
    place.innocent_are_done(3);
    assert!(place.object("tests/report.json").is_some());
}
