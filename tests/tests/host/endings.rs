//! The outcomes of tasks that do not simply succeed.

use serde_json::{Value, json};
use task_host_tests::Place;

/// Runs one task until it is rejected, and returns its report. Nothing is published.
#[track_caller]
fn given_up(payload: Value, settings: &[&str]) -> Value {
    let place = Place::with(&["misbehave"]);
    place.submit_misbehaviour(payload);
    place.run_until_empty(settings).code(3);
    assert_eq!(place.counts(), (0, 0));
    assert_eq!(Vec::from_iter(place.keys()), ["components/misbehave.wasm"], "it was published");
    place.the_error()
}

#[track_caller]
fn says(report: &Value, expected: &str) {
    let exception = report["exception"].as_str().unwrap_or_default();
    assert!(exception.contains(expected), "{expected:?} is not in {exception:?}");
}

#[test]
fn a_panic_is_tried_again_and_its_report_begins_with_the_cause() {
    let report =
        given_up(json!({"do": "panic", "text": "out of cheese"}), &["--max-attempts", "2"]);
    let exception = report["exception"].as_str().unwrap();
    let (position, cause) = exception.rsplit_once(": ").unwrap();
    assert!(position.starts_with("panicked at ") && cause == "out of cheese", "{exception}");
    assert_eq!(report["attempt"], 2);
    assert_eq!(report["earlier"][0], exception, "{report:#}");
    assert_eq!(report["phase"], "execute");
    let log = report["log"].as_str().unwrap();
    assert!(log.ends_with(&format!("ERROR {exception}\n")), "{report:#}");
    assert!(!log.contains("RUST_BACKTRACE"), "{report:#}");
    let trace = report["trace"].as_str().unwrap();
    assert!(trace.contains("misbehave"), "{trace}");
    for library in ["core::", "std::", "::h0", "rust_begin_unwind"] {
        assert!(!trace.contains(library), "{library} in {trace}");
    }
    assert!(report["memory_bytes"].as_u64().unwrap() > 0, "{report:#}");
    assert!(report["steps"]["run"].as_f64().unwrap() > 0.0, "{report:#}");
}

#[test]
fn the_last_file_call_that_failed_is_told() {
    let payload = json!({"do": "read-file", "path": "/inputs/nothing.png"});
    let report = given_up(payload, &["--max-attempts", "1"]);
    assert_eq!(report["failed_call"], "open /inputs/nothing.png: no such file", "{report:#}");
    says(&report, "open /inputs/nothing.png: no such file");
}

#[test]
fn an_abort_an_exit_and_a_full_stack_are_told_apart() {
    let once = ["--max-attempts", "1"];
    says(&given_up(json!({"do": "abort"}), &once), "panicked or aborted");
    says(&given_up(json!({"do": "exit", "code": 3}), &once), "called exit with an error");
    says(&given_up(json!({"do": "stack"}), &once), "stack overflow");
}

#[test]
fn a_retry_is_made_until_the_attempts_are_used_up_and_all_reasons_are_told() {
    let report = given_up(json!({"do": "retry", "text": "not yet"}), &["--max-attempts", "3"]);
    says(&report, "not yet");
    assert_eq!(report["attempt"], 3);
    let earlier = report["earlier"].as_array().expect("the earlier reasons");
    assert_eq!(earlier.len(), 2, "{report:#}");
    assert!(earlier.iter().all(|reason| reason.as_str().unwrap().contains("not yet")));
}

#[test]
fn a_task_that_fails_twice_and_then_succeeds_is_done() {
    let place = Place::with(&["misbehave"]);
    place.submit_misbehaviour(json!({"do": "fail-until", "attempt": 3}));
    place.run_until_empty(&["--max-attempts", "3"]).good();
    assert_eq!(place.object("tests/attempt.txt").as_deref(), Some(&b"3"[..]));
    assert!(place.errors().is_empty());
}

#[test]
fn attempts_are_counted_over_restarts_of_the_host() {
    let place = Place::with(&["misbehave"]);
    place.submit_misbehaviour(json!({"do": "fail-until", "attempt": 3}));
    // Each attempt has its own host, which stops after the attempt failed.
    for attempt in 1..3 {
        let host = place.start(&["--retry-after", "10ms"]);
        task_host_tests::eventually("a failed attempt", || {
            host.stderr().contains(&format!("attempt {attempt} of 3")).then_some(())
        });
        drop(host);
        // The host left a lease behind.
        place.host(&["queue", "release", "--fq", "./queue", "--yes"]).good();
    }
    place.run_until_empty(&["--max-attempts", "10"]).good();
    let attempt = String::from_utf8(place.object("tests/attempt.txt").unwrap()).unwrap();
    assert!(attempt.parse::<u32>().unwrap() >= 3, "{attempt}");
}

#[test]
fn a_reject_is_final() {
    let report = given_up(json!({"do": "reject", "text": "no image"}), &[]);
    says(&report, "no image");
    assert_eq!(report["attempt"], 1);
}

#[test]
fn an_outcome_without_success_is_final_and_publishes_nothing() {
    let report = given_up(json!({"do": "unsuccessful"}), &[]);
    says(&report, "without success");
    assert_eq!(report["attempt"], 1);
}

#[test]
fn a_failing_finalize_publishes_nothing() {
    let payload = json!({"do": "fail-in", "phase": "finalize", "how": "reject"});
    let report = given_up(payload, &[]);
    assert_eq!(report["phase"], "finalize");
}

#[test]
fn a_missing_output_is_named() {
    says(&given_up(json!({"do": "missing-output"}), &["--max-attempts", "1"]), "missing.txt");
}

#[test]
fn links_can_not_be_made() {
    let settings = ["--max-attempts", "1"];
    for (target, name) in [("../../../../etc/passwd", "way-out"), ("good.txt", "alias")] {
        let payload = json!({"do": "all", "steps": [
            {"do": "output", "key": "good.txt", "text": "good"},
            {"do": "symlink", "target": target, "name": name},
        ]});
        says(&given_up(payload, &settings), "symlink: Operation not permitted");
    }
    let payload = json!({"do": "hardlink", "target": "one.txt", "name": "two.txt"});
    says(&given_up(payload, &settings), "hard link: Operation not permitted");
}

#[test]
fn a_message_that_is_no_task_is_reported_at_once() {
    let place = Place::new();
    place.host(&["queue", "status", "--fq", "./queue"]);
    std::fs::create_dir_all(place.path().join("queue/queue")).unwrap();
    std::fs::create_dir_all(place.path().join("queue/movement")).unwrap();
    let id = "0f2c4e66-1a3b-4c5d-8e7f-001122334455";
    let name = format!("0--{id}.json");
    std::fs::write(place.path().join("queue/movement").join(id), format!("{name}\n")).unwrap();
    std::fs::write(place.path().join("queue/queue").join(name), r#"{"basic": 1}"#).unwrap();
    place.run_until_empty(&[]).code(3);
    says(&place.the_error(), "neither `basic_info`");
    assert_eq!(place.the_error()["task"]["basic"], 1);
}
