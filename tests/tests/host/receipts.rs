//! A task with a receipt is done. It does not run again, however often its message comes. Of two
//! attempts, only the first counts.

use std::fs;
use std::process::Command;

use rustix::process::Signal;
use serde_json::{Value, json};
use task_host_tests::{Place, Running, eventually, misbehaviour, no_op};

const README: &str = "_receipts/README.txt";

/// The keys of all receipts.
fn receipts(place: &Place) -> Vec<String> {
    let keys = place.keys().into_iter();
    keys.filter(|key| key.starts_with("_receipts/") && key != README).collect()
}

/// The only receipt.
#[track_caller]
fn the_receipt(place: &Place) -> (String, Value) {
    let keys = receipts(place);
    assert_eq!(keys.len(), 1, "{keys:?}");
    let bytes = place.object(&keys[0]).expect("a receipt");
    (keys[0].clone(), serde_json::from_slice(&bytes).expect("JSON"))
}

/// Runs the queue until it is empty. Returns the number of tasks that are done, the number of these
/// that were done before, and the host's log.
#[track_caller]
fn run(place: &Place, args: &[&str]) -> (u64, u64, String) {
    let run = place.run_until_empty(&[&["--json"], args].concat()).good();
    let summary: Value = serde_json::from_str(&run.stdout).expect("a summary");
    let count = |name: &str| summary[name].as_u64().expect("a count");
    (count("done"), count("done_before"), run.stderr)
}

/// A task that leaves a mark for each execution that published outputs.
fn marked() -> Value {
    misbehaviour(1, &[], json!({"do": "mark", "dir": "marks"}))
}

fn slow_and_marked() -> Value {
    let steps = json!([{"do": "sleep", "secs": 1}, {"do": "mark", "dir": "marks"}]);
    misbehaviour(1, &[], json!({"do": "all", "steps": steps}))
}

fn marks(place: &Place) -> usize {
    place.keys().iter().filter(|key| key.starts_with("tests/marks/")).count()
}

/// The number of recorded executions of messages in the queue.
fn starts(place: &Place) -> usize {
    let movements = fs::read_dir(place.path().join("queue/movement")).into_iter().flatten();
    let texts = movements.flatten().filter_map(|entry| fs::read_to_string(entry.path()).ok());
    texts.map(|text| text.lines().filter(|line| line.is_empty()).count()).sum()
}

#[test]
fn a_receipt_says_what_a_task_was_and_read_and_left() {
    let place = Place::with(&["NO_OP"]);
    place.put("data/0_input/a", "A");
    let large = vec![b'B'; 6 << 20];
    place.put("data/0_input/b", &large);
    let inputs = ["0_input/a", "0_input/b"].map(str::to_owned);
    place.submit(&[no_op(7, &inputs)]);
    assert_eq!(run(&place, &["--receipts"]).0, 1);
    let (_, receipt) = the_receipt(&place);
    assert_eq!(receipt["receipt"], 1);
    assert_eq!(receipt["attempt"], 1);
    assert_eq!(receipt["task"], no_op(7, &inputs));
    let sha256 = |file: &str| {
        let mut sum = Command::new("sha256sum");
        let sum = sum.arg(file).current_dir(place.path()).output().expect("a digest");
        String::from_utf8_lossy(&sum.stdout)[..64].to_owned()
    };
    assert_eq!(receipt["component"], sha256("bucket/components/NO_OP.wasm"));
    for (kind, dir) in [("inputs", "0_input"), ("outputs", "0_output")] {
        for (n, (name, size)) in [("a", 1), ("b", large.len())].into_iter().enumerate() {
            let (key, one) = (format!("data/{dir}/{name}"), &receipt[kind][n]);
            assert_eq!((&one["key"], &one["size"]), (&json!(key), &json!(size)));
            assert_eq!(one["sha256"], sha256(&format!("bucket/{key}")), "{key}");
            assert!(one["version"].as_str().is_some_and(|version| !version.is_empty()));
        }
    }
    assert!(receipt["memory_bytes"].as_u64().is_some_and(|bytes| bytes >= 64 << 10), "{receipt}");
    assert!(receipt["steps"]["run"].as_f64().is_some_and(|seconds| seconds > 0.0), "{receipt}");
    assert!(receipt["host_info"]["hostname"].is_string(), "{receipt}");
}

#[test]
fn a_task_that_comes_again_is_acknowledged_and_reported_and_not_run() {
    let place = Place::with(&["misbehave"]);
    let again = [&["--receipts"][..], &["--done-queue", "fq://./queue-done"]].concat();
    place.submit(&[marked()]);
    assert_eq!(run(&place, &again).1, 0);
    place.submit(&[marked(), marked()]);
    assert_eq!(run(&place, &again).1, 2);
    assert_eq!(marks(&place), 1);
    let reports = place.messages("queue-done");
    assert_eq!(reports.len(), 3);
    assert!(reports.iter().all(|report| report["result"] == reports[0]["result"]), "{reports:#?}");
    // Without receipts, the task runs again.
    place.submit(&[marked()]);
    run(&place, &[]);
    assert_eq!(marks(&place), 2);
}

/// A host with receipts, and with a lease that lasts longer than the test.
fn start(place: &Place) -> Running {
    place.start(&["--receipts", "--parallel", "1", "--prefetch", "0", "--lease", "1h"])
}

/// Puts a file at the path of the only receipt's directory, so that no receipt can be written
/// there. Removes the receipt and the marks. Returns a function that removes the file.
fn bar_the_receipt(place: &Place) -> impl Fn() {
    place.submit(&[slow_and_marked()]);
    run(place, &["--receipts"]);
    let (key, _) = the_receipt(place);
    fs::remove_dir_all(place.path().join("bucket/tests")).unwrap();
    let dir = place.path().join("bucket").join(key).parent().unwrap().to_owned();
    fs::remove_dir_all(&dir).unwrap();
    fs::write(&dir, "in the way").unwrap();
    move || fs::remove_file(&dir).unwrap()
}

#[track_caller]
fn waits_with_outputs(host: &Running, place: &Place, count: usize) {
    eventually("outputs", || (marks(place) == count).then_some(()));
    eventually("a host that says why it waits", || {
        host.stderr().contains("is an object, not a directory").then_some(())
    });
    assert_ne!(place.counts().0, 0, "acknowledged without a receipt");
}

#[test]
fn a_host_that_can_not_write_a_receipt_waits_with_the_result() {
    let place = Place::with(&["misbehave"]);
    let unbar = bar_the_receipt(&place);
    place.submit(&[slow_and_marked()]);
    let host = start(&place);
    waits_with_outputs(&host, &place, 1);
    unbar();
    eventually("an empty queue", || (place.counts().0 == 0).then_some(()));
    assert_eq!((marks(&place), receipts(&place).len()), (1, 1));
    host.signal(Signal::TERM);
    host.wait().good();
}

#[test]
fn a_task_whose_host_is_killed_before_its_receipt_runs_again() {
    let place = Place::with(&["misbehave"]);
    let unbar = bar_the_receipt(&place);
    place.submit(&[slow_and_marked()]);
    let host = start(&place);
    waits_with_outputs(&host, &place, 1);
    host.signal(Signal::KILL);
    drop(host);
    unbar();
    place.host(&["queue", "release", "./queue", "--yes"]).good();
    let (done, before, _) = run(&place, &["--receipts"]);
    assert_eq!((done, before), (1, 0));
    assert_eq!((marks(&place), receipts(&place).len()), (2, 1));
}

#[test]
fn a_task_whose_host_is_killed_after_its_receipt_does_not_run_again() {
    let place = Place::with(&["misbehave"]);
    place.submit(&[slow_and_marked()]);
    let host = start(&place);
    eventually("an execution", || (starts(&place) == 1).then_some(()));
    // Deleted messages are moved to this directory first.
    let tmp = place.path().join("queue/host/tmp");
    fs::remove_dir_all(&tmp).unwrap();
    fs::write(&tmp, "in the way").unwrap();
    eventually("a receipt", || (receipts(&place).len() == 1).then_some(()));
    host.signal(Signal::KILL);
    drop(host);
    fs::remove_file(&tmp).unwrap();
    assert_eq!(place.counts().0, 1);
    place.host(&["queue", "release", "./queue", "--yes"]).good();
    let (done, before, _) = run(&place, &["--receipts"]);
    assert_eq!((done, before, marks(&place)), (1, 1, 1));
}

#[test]
fn of_two_attempts_the_later_publishes_nothing() {
    let place = Place::with(&["misbehave"]);
    place.submit(&[slow_and_marked(), slow_and_marked()]);
    let stalled = start(&place);
    eventually("an execution", || (starts(&place) == 1).then_some(()));
    stalled.signal(Signal::STOP);
    place.run(&["--receipts", "--max-tasks", "1"]).good();
    assert_eq!(marks(&place), 1);
    stalled.signal(Signal::CONT);
    eventually("an empty queue", || (place.counts().0 == 0).then_some(()));
    stalled.signal(Signal::TERM);
    let said = stalled.wait().good().stderr;
    assert!(said.contains("another attempt has finished the task"), "{said}");
    assert_eq!((marks(&place), receipts(&place).len()), (1, 1));
}

#[test]
fn of_two_attempts_that_both_published_the_first_receipt_stays_and_the_other_says_so() {
    let place = Place::with(&["misbehave"]);
    let unbar = bar_the_receipt(&place);
    place.submit(&[slow_and_marked()]);
    let stalled = start(&place);
    waits_with_outputs(&stalled, &place, 1);
    stalled.signal(Signal::STOP);
    unbar();
    place.submit(&[slow_and_marked()]);
    place.run(&["--receipts", "--max-tasks", "1"]).good();
    let first = the_receipt(&place);
    stalled.signal(Signal::CONT);
    eventually("an empty queue", || (place.counts().0 == 0).then_some(()));
    stalled.signal(Signal::TERM);
    let said = stalled.wait().good().stderr;
    assert!(said.contains("is not the same; `host receipts verify` finds"), "{said}");
    assert_eq!((the_receipt(&place), marks(&place)), (first, 2));
}

#[test]
fn a_receipt_that_can_not_be_read_counts_as_none_and_is_replaced() {
    let place = Place::with(&["misbehave"]);
    place.submit(&[marked()]);
    run(&place, &["--receipts"]);
    let (key, receipt) = the_receipt(&place);
    let text = receipt.to_string();
    let other = place.object(&key).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let newer = other.unwrap().replacen("\"receipt\":1", "\"receipt\":9", 1);
    for (n, (damage, words)) in [
        (&text[..text.len() / 2], "is damaged: EOF while parsing"),
        ("", "is damaged: EOF while parsing"),
        ("[]", "is damaged: "),
        (&newer, "has format 9, and this host reads format 1"),
    ]
    .into_iter()
    .enumerate()
    {
        place.put(&key, damage);
        place.submit(&[marked()]);
        let (_, before, said) = run(&place, &["--receipts"]);
        assert_eq!((before, marks(&place)), (0, n + 2), "{said}");
        assert!(said.contains(&format!("the receipt {key} {words}")), "{said}");
        assert!(said.contains("the task runs and replaces it"), "{said}");
        assert_eq!(the_receipt(&place).1["receipt"], 1);
    }
}

#[test]
fn tasks_can_not_write_receipts() {
    let place = Place::with(&["misbehave"]);
    let reserved = "is in `_receipts` or `_hosts`, which are reserved for the host";
    for base in ["_receipts", "_receipts/abc", "_RECEIPTS/abc"] {
        let args = ["submit", "--fq", "./queue", "--name", "misbehave", "--base-directory", base];
        let said = place.host(&args).code(2).stderr;
        assert!(said.contains(reserved), "{said}");
    }
    // A message of python-task-queue has the root of the bucket as its base directory.
    let output = json!({"do": "output", "key": "_receipts/abc/def.json", "text": "{}"});
    let mut payload = output.clone();
    payload["class"] = json!("misbehave");
    place.submit(&[json!({"payload": payload})]);
    place.run_until_empty(&["--receipts"]).code(3);
    let error = place.the_error();
    assert!(error["exception"].as_str().unwrap().contains(reserved), "{error}");
    assert!(receipts(&place).is_empty());
    let said = place.run(&["--component-prefix", "_receipts"]).code(2).stderr;
    assert!(said.contains(reserved), "{said}");
}

#[test]
fn a_host_does_not_start_where_it_can_not_keep_receipts() {
    let place = Place::with(&["misbehave"]);
    place.put("_receipts", "in the way");
    place.submit(&[marked()]);
    let said = place.run(&["--receipts"]).code(1).stderr;
    assert!(said.contains("receipts can't be kept"), "{said}");
    assert_eq!(place.counts().0, 1);
}

#[test]
fn receipts_are_no_objects_to_make_tasks_of() {
    let place = Place::with(&["NO_OP"]);
    place.put("data/0_input/a", "A");
    place.submit(&[no_op(1, &["0_input/a".to_owned()])]);
    run(&place, &["--receipts"]);
    let args = ["--name", "NO_OP", "--each", "**/*.json", "--base-directory", "data"];
    let said = place.host(&[&["submit", "--fq", "./queue"][..], &args].concat()).code(1).stderr;
    assert!(said.contains("no object of"), "{said}");
}

#[test]
fn only_tasks_that_have_changed_run_again() {
    let place = Place::with(&["NO_OP"]);
    place.put("data/0_input/a", "A");
    place.put("data/0_input/b", "B");
    let tasks = ["a", "b"].map(|name| no_op(1, &[format!("0_input/{name}")]));
    let again = |args: &[&str]| {
        place.submit(&tasks);
        run(&place, args).1
    };
    assert_eq!(again(&["--skip-unchanged"]), 0);
    assert_eq!(again(&["--skip-unchanged"]), 2);
    let before: Vec<_> = receipts(&place).iter().map(|key| place.object(key)).collect();
    // A new version of the object with the same bytes.
    place.put("data/0_input/a", "A");
    assert_eq!(again(&["--skip-unchanged"]), 2);
    assert_eq!(receipts(&place).iter().map(|key| place.object(key)).collect::<Vec<_>>(), before);
    // A new version with other bytes.
    place.put("data/0_input/a", "C");
    assert_eq!(again(&["--receipts"]), 2, "a task is done once");
    assert_eq!(place.object("data/0_output/a"), Some(b"A".to_vec()));
    assert_eq!(again(&["--skip-unchanged"]), 1);
    assert_eq!(place.object("data/0_output/a"), Some(b"C".to_vec()));
    assert_eq!(again(&["--skip-unchanged"]), 2, "the receipt was replaced");
    // A different component: adds an empty custom section.
    let component = place.path().join("bucket/components/NO_OP.wasm");
    let mut bytes = fs::read(&component).unwrap();
    bytes.extend([0, 2, 1, b'x']);
    fs::write(&component, bytes).unwrap();
    assert_eq!(again(&["--receipts"]), 2);
    assert_eq!(again(&["--skip-unchanged"]), 0);
    assert_eq!(again(&["--skip-unchanged"]), 2);
    // A missing input is still a failure.
    fs::remove_file(place.path().join("bucket/data/0_input/b")).unwrap();
    place.submit(&tasks);
    place.run_until_empty(&["--skip-unchanged", "--max-attempts", "1"]).code(3);
    assert_eq!(place.errors().len(), 1);
}
