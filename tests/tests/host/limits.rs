//! Each limit ends the task that runs into it, with a report that names the limit.

use serde_json::{Value, json};
use task_host_tests::Place;

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
fn bytes_of_output_up_to_the_limit_are_published() {
    let place = Place::with(&["misbehave"]);
    place.submit_misbehaviour(json!({"do": "write", "bytes": 1 << 20}));
    place.run_until_empty(&["--max-output", "1MiB"]).good();
    assert_eq!(place.object("tests/written/0.dat").unwrap().len(), 1 << 20);
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
