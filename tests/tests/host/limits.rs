//! Each limit ends a task that exceeds it, with a report that names the limit.

use std::fs;

use serde_json::{Value, json};
use task_host_tests::{Place, guest, misbehaviour};

/// Runs one task with these settings, and returns its error report.
#[track_caller]
fn check(payload: Value, settings: &[&str], expected: &str) -> Value {
    let place = Place::with(&["misbehave"]);
    place.submit_misbehaviour(payload);
    place.run_until_empty(&[&["--max-attempts", "1"], settings].concat()).code(3);
    let report = place.the_error();
    let exception = report["exception"].as_str().unwrap_or_default();
    assert!(exception.contains(expected), "{expected:?} is not in {exception:?}");
    assert_eq!(place.counts(), (0, 0));
    assert_eq!(Vec::from_iter(place.keys()), ["components/misbehave.wasm"]);
    report
}

#[test]
fn a_table_limits_the_tasks_of_its_name_and_no_others() {
    let place = Place::with(&["misbehave"]);
    fs::copy(
        place.path().join("bucket/components/misbehave.wasm"),
        place.path().join("bucket/components/greedy.wasm"),
    )
    .unwrap();
    let table = "memory = \"32MiB\"\n[tasks.greedy]\nmemory = \"64MiB\"\n";
    fs::write(place.path().join("host.toml"), table).unwrap();
    let want = [
        ("misbehave", "memory limit of 32.0 MiB; `--memory` raises it"),
        ("greedy", "memory limit of 64.0 MiB; `memory` in [tasks.greedy] raises it"),
    ];
    for (name, _) in want {
        let mut task = misbehaviour(1, &[], json!({"do": "alloc"}));
        task["basic_info"]["name"] = name.into();
        place.submit(&[task]);
    }
    let ran = place.run_until_empty(&[]).code(3);
    assert!(ran.stderr.contains("other limits for greedy (memory)"), "{}", ran.stderr);
    let errors = place.errors();
    for (name, exception) in want {
        let of_name = |error: &&Value| error["task"]["basic_info"]["name"] == name;
        let report = errors.iter().find(of_name).expect("a report");
        let said = report["exception"].as_str().unwrap();
        assert!(said.ends_with(exception), "{said:?} does not end with {exception:?}");
    }
}

#[test]
fn a_table_for_a_component_that_is_not_there_is_noticed() {
    let place = Place::with(&["NO_OP"]);
    fs::write(place.path().join("host.toml"), "[tasks.NO_OP]\n[tasks.NOOP]\n").unwrap();
    let told = place.host(&["doctor", "--fq", "./queue", "--bucket", "./bucket"]).stdout;
    assert!(told.contains("limits for tasks named `NOOP`, which is not here"), "{told}");
    assert!(!told.contains("`NO_OP`"), "{told}");
}

#[test]
fn a_table_limits_a_task_that_is_tried() {
    let place = Place::new();
    let table = "[tasks.greedy]\nmemory = \"64MiB\"\n";
    fs::write(place.path().join("host.toml"), table).unwrap();
    let guest = guest("misbehave");
    let guest = guest.to_str().unwrap();
    let payload = json!({"do": "alloc"}).to_string();
    let tried = place.host(&["try", guest, "--name", "greedy", "--payload", &payload]).code(3);
    let want = "memory limit of 64.0 MiB; `memory` in [tasks.greedy] raises it";
    assert!(tried.stderr.contains(want), "{}", tried.stderr);
}

#[test]
fn processor_time_in_a_loop() {
    check(
        json!({"do": "loop"}),
        &["--cpu-time", "300ms"],
        "the guest ran into its limit of 300ms of processor time; `--cpu-time` raises it",
    );
}

#[test]
fn a_sleep_takes_no_processor_time() {
    let place = Place::with(&["misbehave"]);
    let nap = json!({"do": "sleep", "secs": 1.5});
    place.submit_misbehaviour(json!({"do": "all", "steps": [nap, {"do": "mark", "dir": "m"}]}));
    let done = ["--cpu-time", "1s", "--done-queue", "./done"];
    place.run_until_empty(&done).good();
    let reports = place.messages("done");
    let seconds = reports[0]["cpu_seconds"].as_f64().expect("a measured time");
    assert!((0.0..1.0).contains(&seconds), "{reports:?}");
}

#[test]
fn the_hosts_memory_for_many_names() {
    let report = check(
        json!({"do": "many-files", "count": 9000}),
        &["--host-memory", "24MiB"],
        "the guest ran into its limit of 24.0 MiB of the host's memory",
    );
    let exception = report["exception"].as_str().unwrap();
    assert!(exception.ends_with("; `--host-memory` raises it"), "{exception}");
}

#[test]
fn open_files_have_a_limit_of_their_own_for_each_name() {
    let place = Place::with(&["misbehave"]);
    let table = "[tasks.misbehave]\nmax-open-files = 10\n";
    fs::write(place.path().join("host.toml"), table).unwrap();
    place.submit_misbehaviour(
        json!({"do": "raw", "call": {"open-files-or-reject": {"count": 100}}}),
    );
    place.run_until_empty(&[]).code(3);
    let report = place.the_error();
    let exception = report["exception"].as_str().unwrap();
    let want =
        "files and directories that are open at a time; `max-open-files` in [tasks.misbehave]";
    assert!(exception.contains(&format!("its limit of 10 {want}")), "{exception}");
}

#[test]
fn bytes_of_output_up_to_the_limit_are_published() {
    let place = Place::with(&["misbehave"]);
    place.submit_misbehaviour(json!({"do": "write", "bytes": 1 << 20}));
    place.run_until_empty(&["--max-output", "1MiB"]).good();
    assert_eq!(place.object("tests/written/0.dat").unwrap().len(), 1 << 20);
}

#[test]
fn more_of_a_log_is_kept_if_that_is_asked_for() {
    let place = Place::with(&["misbehave"]);
    let steps = json!([{"do": "log", "bytes": 80_000}, {"do": "reject"}]);
    place.submit_misbehaviour(json!({"do": "all", "steps": steps}));
    place.run_until_empty(&["--max-log", "100kB"]).code(3);
    let report = place.the_error();
    let log = report["log"].as_str().expect("a log");
    assert!((80_000..100_000).contains(&log.len()), "the log has {} bytes", log.len());
}

#[test]
fn directories_that_are_there_already_are_not_charged() {
    let place = Place::with(&["misbehave"]);
    // The SDK creates the directory of each output that it writes.
    let steps: Vec<Value> = (0..10)
        .map(|n| json!({"do": "output", "key": format!("a/{n}.txt"), "text": "x"}))
        .collect();
    place.submit_misbehaviour(json!({"do": "all", "steps": steps}));
    place.run_until_empty(&["--max-output-files", "11"]).good();
    assert!(place.object("tests/a/9.txt").is_some());
    let expected = "the guest ran into its limit of 10 output files";
    check(json!({"do": "all", "steps": steps}), &["--max-output-files", "10"], expected);
}
