//! Checks which tasks are really done: `host receipts verify`, `host receipts show`, and `host
//! submit --skip-done`.

use std::fs;
use std::process::Stdio;

use serde_json::{Value, json};
use task_host_tests::{Finished, Place, misbehaviour, no_op};

const TASKS: usize = 600;

/// A place in which tasks ran with receipts, and a file with all of these tasks.
fn finished(count: usize) -> (Place, Vec<Value>) {
    let place = Place::with(&["NO_OP"]);
    let task = |id: usize| {
        let inputs = ["a", "b"].map(|name| format!("0_input/{id}{name}"));
        for input in &inputs {
            place.put(&format!("data/{input}"), format!("content of {input}"));
        }
        no_op(id, &inputs)
    };
    let tasks: Vec<_> = (0..count).map(task).collect();
    let lines: String = tasks.iter().map(|task| format!("{task}\n")).collect();
    fs::write(place.path().join("tasks.jsonl"), lines).unwrap();
    place.host(&["submit", "--fq", "./queue", "tasks.jsonl"]).good();
    place.run_until_empty(&["--receipts"]).good();
    (place, tasks)
}

fn verify(place: &Place, args: &[&str]) -> Finished {
    place.host(&[&["receipts", "verify", "--json"], args].concat())
}

/// The printed tasks, and the counts: done, missing, changed, mixed.
#[track_caller]
fn found(verified: Finished) -> (Vec<Value>, [u64; 4]) {
    let lines = verified.stdout.lines();
    let tasks = lines.map(|line| serde_json::from_str(line).expect("a task")).collect();
    let last = verified.stderr.lines().last().expect("a summary");
    let summary: Value = serde_json::from_str(last).expect(last);
    let count = |name: &str| summary[name].as_u64().expect("a count");
    (tasks, ["done", "missing", "changed", "mixed"].map(count))
}

/// The key of the receipt that has this output.
fn receipt_of(place: &Place, output: &str) -> String {
    let is_it = |key: &String| {
        let bytes = place.object(key).unwrap_or_default();
        key.starts_with("_receipts/") && String::from_utf8_lossy(&bytes).contains(output)
    };
    place.keys().into_iter().find(is_it).expect("a receipt")
}

#[test]
fn what_is_missing_changed_and_mixed_is_found_and_can_be_sent_again() {
    let (place, tasks) = finished(TASKS);
    for args in [&["tasks.jsonl"][..], &["tasks.jsonl", "--quick"]] {
        assert_eq!(found(verify(&place, args).good()), (vec![], [TASKS as u64, 0, 0, 0]));
    }
    let bucket = place.path().join("bucket");
    // Creates the cases: no receipt; half a receipt; no output; different bytes of the same size in
    // one output, and in all outputs.
    fs::remove_file(bucket.join(receipt_of(&place, "0_output/1a"))).unwrap();
    let half = receipt_of(&place, "0_output/5a");
    let bytes = place.object(&half).unwrap();
    place.put(&half, &bytes[..bytes.len() / 2]);
    fs::remove_file(bucket.join("data/0_output/20b")).unwrap();
    place.put("data/0_output/300a", "CONTENT of 0_input/300a");
    for name in ["a", "b"] {
        place.put(&format!("data/0_output/599{name}"), format!("CONTENT of 0_input/599{name}"));
    }
    let want: Vec<Value> = [1, 5, 20, 300, 599].map(|id| tasks[id].clone()).into();
    let counts = [TASKS as u64 - 5, 3, 1, 1];
    for args in [&["tasks.jsonl"][..], &["tasks.jsonl", "--quick"]] {
        let (mut undone, found) = found(verify(&place, args).code(3));
        undone.sort_by_key(|task| task["basic_info"]["id"].as_u64());
        assert_eq!((undone, found), (want.clone(), counts));
    }
    let said = place.host(&["receipts", "verify", "tasks.jsonl"]).code(3).stderr;
    for words in [
        "missing: has no receipt",
        "is damaged: EOF while parsing",
        "missing: output data/0_output/20b is not there",
        "mixed: output data/0_output/300a does not match the receipt, but others do",
        "changed: output data/0_output/599a does not match the receipt",
        "600 tasks checked in",
        "595 done, 3 missing, 1 changed, 1 mixed",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    // Only the tasks that are sent again run again.
    let undone = verify(&place, &["tasks.jsonl", "--withdraw"]).code(3).stdout;
    place.submit_text(&undone);
    let run = place.run_until_empty(&["--receipts", "--json"]).good();
    let summary: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!((&summary["done"], &summary["done_before"]), (&json!(5), &json!(0)));
    assert!(!run.stderr.contains("was withdrawn"), "{}", run.stderr);
    assert_eq!(found(verify(&place, &["tasks.jsonl"]).good()).1[0], TASKS as u64);
}

#[test]
fn tasks_from_flags_and_from_a_listing_are_verified() {
    let place = Place::with(&["NO_OP"]);
    for name in ["a", "b"] {
        place.put(&format!("data/0_input/{name}"), name);
    }
    let described = ["--name", "NO_OP", "--each", "data/0_input/*"];
    place.host(&[&["submit", "--fq", "./queue"], &described[..]].concat()).good();
    place.run_until_empty(&["--receipts"]).good();
    assert_eq!(found(verify(&place, &described).good()).1, [2, 0, 0, 0]);
    let one = ["--name", "NO_OP", "--base-directory", "data", "--id", "7"];
    let (undone, counts) = found(verify(&place, &one).code(3));
    assert_eq!((undone[0]["basic_info"]["id"].as_u64(), counts), (Some(7), [0, 1, 0, 0]));
}

#[test]
fn lines_that_are_no_tasks_and_buckets_that_are_not_there_are_errors() {
    let (place, _) = finished(1);
    let mut lines = fs::read_to_string(place.path().join("tasks.jsonl")).unwrap();
    lines.push_str("nonsense\n");
    fs::write(place.path().join("tasks.jsonl"), lines).unwrap();
    let verified = verify(&place, &["tasks.jsonl"]).code(3);
    assert!(verified.stderr.contains("tasks.jsonl, line 2: message: is not JSON"));
    assert_eq!(found(verified), (vec![], [1, 0, 0, 0]));
    verify(&place, &["tasks.jsonl", "--bucket", "./nowhere"]).code(1);
}

#[test]
fn only_tasks_without_a_receipt_are_sent() {
    let (place, tasks) = finished(3);
    fs::remove_file(place.path().join("bucket").join(receipt_of(&place, "0_output/1a"))).unwrap();
    let submit = |args: &[&str]| {
        let args = [&["submit", "--fq", "./queue", "--skip-done", "--json"], args].concat();
        serde_json::from_str::<Value>(&place.host(&args).good().stdout).unwrap()
    };
    let counts = |told: &Value| ["sent", "skipped"].map(|name| told[name].as_u64());
    let dry = submit(&["tasks.jsonl", "--dry-run"]);
    assert_eq!(counts(&dry), [Some(1), Some(2)], "{dry}");
    assert_eq!(place.counts().0, 0);
    let told = submit(&["tasks.jsonl"]);
    assert_eq!(counts(&told), [Some(1), Some(2)], "{told}");
    let mut sent = place.messages("queue");
    assert_eq!(sent.len(), 1);
    sent[0].as_object_mut().unwrap().remove("id");
    assert_eq!(sent[0], tasks[1]);
    place.run_until_empty(&["--receipts"]).good();
    let told = submit(&["tasks.jsonl"]);
    assert_eq!(counts(&told), [Some(0), Some(3)], "{told}");
}

#[test]
fn what_produced_an_output_is_shown() {
    let (place, tasks) = finished(3);
    let show = |args: &[&str]| place.host(&[&["receipts", "show"], args].concat());
    let said = show(&["data/0_output/2b"]).good().stdout;
    for words in ["matches this receipt", "component", "data/0_input/2b", "data/0_output/2a"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let json = |args: &[&str]| -> Value {
        serde_json::from_str(&show(&[&["--json"], args].concat()).good().stdout).unwrap()
    };
    let shown = json(&["data/0_output/2b"]);
    assert_eq!((&shown["matches"], &shown["receipt"]["task"]), (&json!(true), &tasks[2]));
    place.put("data/0_output/2b", "changed");
    assert_eq!(json(&["data/0_output/2b"])["matches"], false);
    let key = receipt_of(&place, "0_output/2b");
    assert_eq!(json(&[&key])["receipt"], shown["receipt"]);
    let said = show(&["data/0_output/9a"]).code(1).stderr;
    assert!(said.contains("no receipt in") && said.contains("--receipts"), "{said}");
}

#[test]
fn an_output_that_a_stalled_host_still_wrote_is_found() {
    let place = Place::with(&["misbehave"]);
    let steps = json!([
        {"do": "output", "key": "same", "text": "same"}, {"do": "output", "key": "own", "text": "1"}
    ]);
    let task = misbehaviour(1, &[], json!({"do": "all", "steps": steps}));
    place.submit(std::slice::from_ref(&task));
    place.run_until_empty(&["--receipts"]).good();
    // Overwrites an output, as a second attempt could that the receipt did not stop.
    place.put("tests/own", "2");
    let mut command = place.command(&["receipts", "verify", "--json", "-"]);
    let file = place.path().join("task.jsonl");
    fs::write(&file, format!("{task}\n")).unwrap();
    command.stdin(Stdio::from(fs::File::open(file).unwrap()));
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let summary = String::from_utf8_lossy(&output.stderr);
    assert!(summary.contains("\"mixed\":1"), "{summary}");
}
