//! Each limit ends the task that runs into it, with a report that names the limit.

use std::fs;

use serde_json::{Value, json};
use task_host_tests::{Place, guest, misbehaviour};

/// Runs one task with these settings, and returns the report it leads to.
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
fn memory() {
    let report = check(
        json!({"do": "alloc"}),
        &["--memory", "64MiB"],
        "the guest ran into its memory limit of 64.0 MiB",
    );
    assert_eq!(report["phase"], "execute");
}

#[test]
fn memory_by_a_guest_that_takes_no_for_an_answer() {
    // It gets no more than there is, and then does its work.
    let place = Place::with(&["misbehave"]);
    place.submit_misbehaviour(json!({"do": "alloc", "gently": true}));
    place.run_until_empty(&["--memory", "64MiB"]).good();
    let report = place.object("tests/report.json").expect("a report");
    let report: Value = serde_json::from_slice(&report).unwrap();
    let mib = report["mib"].as_u64().unwrap();
    assert!((32..64).contains(&mib), "{report}");
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
fn time_in_a_loop() {
    let settings = ["--timeout", "300ms"];
    check(json!({"do": "loop"}), &settings, "the guest ran into its time limit of 300ms");
}

#[test]
fn time_in_a_sleep() {
    let settings = ["--timeout", "300ms"];
    check(
        json!({"do": "sleep", "secs": 3600}),
        &settings,
        "the guest ran into its time limit of 300ms",
    );
}

#[test]
fn bytes_of_output_however_they_are_written() {
    let expected = "the guest ran into its output limit of 1.0 MiB";
    for how in ["plain", "set-len", "seek"] {
        let payload = json!({"do": "write", "bytes": 1_500_000, "how": how});
        check(payload, &["--max-output", "1MiB"], expected);
    }
}

#[test]
fn bytes_of_output_of_many_files_by_a_guest_that_ignores_errors() {
    check(
        json!({"do": "write", "bytes": 1_500_000, "files": 50, "ignore_errors": true}),
        &["--max-output", "1MiB"],
        "the guest ran into its output limit of 1.0 MiB",
    );
}

#[test]
fn bytes_of_output_up_to_the_limit_are_published() {
    let place = Place::with(&["misbehave"]);
    place.submit_misbehaviour(json!({"do": "write", "bytes": 1 << 20}));
    place.run_until_empty(&["--max-output", "1MiB"]).good();
    assert_eq!(place.object("tests/written/0.dat").unwrap().len(), 1 << 20);
}

#[test]
fn files() {
    check(
        json!({"do": "many-files", "count": 200}),
        &["--max-output-files", "100"],
        "the guest ran into its limit of 100 output files",
    );
}

#[test]
fn directories_count_as_files() {
    check(
        json!({"do": "mkdirs", "depth": 60}),
        &["--max-output-files", "50"],
        "the guest ran into its limit of 50 output files",
    );
}

#[test]
fn the_log_has_a_bound_and_its_end_is_in_the_report() {
    let place = Place::with(&["misbehave"]);
    let steps = json!([
        {"do": "log", "bytes": 300_000},
        {"do": "panic", "text": "the last words"},
    ]);
    place.submit_misbehaviour(json!({"do": "all", "steps": steps}));
    place.run_until_empty(&["--max-attempts", "1"]).code(3);
    let report = place.the_error();
    let log = report["log"].as_str().expect("a log");
    assert!(log.contains("the last words"), "the end of the log is missing: {log:?}");
    assert!(log.len() <= 64 << 10, "the log has {} bytes", log.len());
}

#[test]
fn directories_that_are_there_already_are_not_charged() {
    let place = Place::with(&["misbehave"]);
    // The SDK makes the directory of each output that it writes.
    let steps: Vec<Value> = (0..10)
        .map(|n| json!({"do": "output", "key": format!("a/{n}.txt"), "text": "x"}))
        .collect();
    place.submit_misbehaviour(json!({"do": "all", "steps": steps}));
    place.run_until_empty(&["--max-output-files", "11"]).good();
    assert!(place.object("tests/a/9.txt").is_some());
    let expected = "the guest ran into its limit of 10 output files";
    check(json!({"do": "all", "steps": steps}), &["--max-output-files", "10"], expected);
}
