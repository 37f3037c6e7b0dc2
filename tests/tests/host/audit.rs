//! `host receipts audit` runs finished tasks again with the components and inputs of their
//! receipts, finds tasks with different outputs, and changes nothing.

use std::collections::BTreeSet;
use std::fs;

use serde_json::{Value, json};
use task_host_tests::{Finished, Place, misbehaviour, no_op};

/// Writes tasks to `tasks.jsonl`, one per line.
fn list(place: &Place, tasks: &[Value]) {
    let lines: Vec<String> = tasks.iter().map(|task| format!("{task}\n")).collect();
    fs::write(place.path().join("tasks.jsonl"), lines.concat()).unwrap();
}

/// Lists tasks, and runs them with receipts.
#[track_caller]
fn run(place: &Place, tasks: &[Value], args: &[&str]) {
    place.submit(tasks);
    place.run_until_empty(&[&["--receipts"], args].concat()).good();
    list(place, tasks);
}

fn audit(place: &Place, args: &[&str]) -> Finished {
    place.host(&[&["receipts", "audit", "tasks.jsonl", "--json"], args].concat())
}

/// The summary of an audit: how many tasks are the same, different, failed and not repeatable.
#[track_caller]
fn found(audit: &Finished) -> [u64; 4] {
    let summary = audit.stderr.lines().last().expect("a summary");
    let summary: Value = serde_json::from_str(summary).expect("JSON");
    ["same", "different", "failed", "not_repeatable"]
        .map(|name| summary[name].as_u64().expect("a count"))
}

/// A task whose output has a random name.
fn random(id: i64) -> Value {
    misbehaviour(id, &[], json!({"do": "mark", "dir": "marks"}))
}

#[test]
fn tasks_that_leave_other_outputs_are_printed_and_no_others() {
    let place = Place::with(&["NO_OP", "misbehave"]);
    place.put("data/0_input/a", "A");
    let copy = no_op(2, &["0_input/a".to_owned()]);
    let second = misbehaviour(3, &[], json!({"do": "fail-until", "attempt": 2}));
    let ordinary = [random(1), copy, second];
    run(&place, &ordinary, &[]);
    let deterministic = [random(4), random(5)];
    run(&place, &deterministic, &["--deterministic"]);
    let all = [&ordinary[..], &deterministic].concat();
    list(&place, &all);

    let before = place.keys();
    let audited = audit(&place, &["--sample", "100%"]).code(3);
    assert_eq!(found(&audited), [4, 1, 0, 0]);
    assert_eq!(audited.stdout, format!("{}\n", all[0]));
    let said = &audited.stderr;
    assert!(said.contains("task 1 (misbehave): different: output tests/marks/1-"), "{said}");
    assert!(said.contains("its host ran without --deterministic"), "{said}");
    assert_eq!(place.keys(), before, "nothing is published");
    // An audit does not compare the outputs in the bucket.
    list(&place, &all[1..]);
    place.put("data/0_output/a", "changed");
    let audited = audit(&place, &["--sample", "10"]).good();
    assert_eq!((found(&audited), &*audited.stdout), ([4, 0, 0, 0], ""));
}

#[test]
fn a_task_that_fails_is_printed() {
    let place = Place::with(&["misbehave"]);
    let steps = json!([{"do": "alloc", "mib": 64}, {"do": "output", "key": "a", "text": "a"}]);
    let task = misbehaviour(1, &[], json!({"do": "all", "steps": steps}));
    run(&place, std::slice::from_ref(&task), &[]);
    assert_eq!(found(&audit(&place, &[]).good()), [1, 0, 0, 0]);
    let audited = audit(&place, &["--memory", "32MiB"]).code(3);
    assert_eq!(found(&audited), [0, 0, 1, 0]);
    assert_eq!(audited.stdout, format!("{task}\n"));
    assert!(audited.stderr.contains("memory limit of 32.0 MiB"), "{}", audited.stderr);
}

#[test]
fn a_task_whose_input_or_component_has_changed_can_not_be_repeated() {
    let place = Place::with(&["NO_OP", "misbehave"]);
    place.put("data/0_input/a", "A");
    place.put("data/0_input/large", vec![b'B'; 1 << 20]);
    let tasks = [
        no_op(1, &["0_input/a".to_owned()]),
        no_op(2, &["0_input/large".to_owned()]),
        misbehaviour(3, &[], json!({"do": "output", "key": "a", "text": "a"})),
    ];
    run(&place, &tasks, &[]);
    // A new version of the object with the same bytes.
    place.put("data/0_input/large", vec![b'B'; 1 << 20]);
    assert_eq!(found(&audit(&place, &[]).good()), [3, 0, 0, 0]);

    let check = |words: &str, want: [u64; 4]| {
        let audited = audit(&place, &[]).code(3);
        assert_eq!((found(&audited), &*audited.stdout), (want, ""));
        assert!(audited.stderr.contains(words), "{}", audited.stderr);
    };
    place.put("data/0_input/a", "C");
    check("task 1 (NO_OP): can't be repeated: its input data/0_input/a has changed", [2, 0, 0, 1]);
    place.put("data/0_input/large", vec![b'D'; 1 << 20]);
    check("its input data/0_input/large has changed", [1, 0, 0, 2]);
    fs::remove_file(place.path().join("bucket/data/0_input/a")).unwrap();
    check("has no object `data/0_input/a`", [1, 0, 0, 2]);
    // Adds an empty custom section.
    let component = place.path().join("bucket/components/misbehave.wasm");
    let mut bytes = fs::read(&component).unwrap();
    bytes.extend([0, 2, 1, b'x']);
    fs::write(&component, bytes).unwrap();
    check("its component components/misbehave.wasm has changed", [0, 0, 0, 3]);
    fs::remove_file(component).unwrap();
    check("no component for tasks named `misbehave`", [0, 0, 0, 3]);
}

#[test]
fn a_sample_is_chosen_by_its_seed_and_not_by_the_order_of_the_tasks() {
    let place = Place::with(&["misbehave"]);
    let tasks: Vec<Value> = (0..40).map(random).collect();
    run(&place, &tasks, &[]);
    let unfinished: Vec<Value> = (40..80).map(random).collect();
    let mixed = [&unfinished[..], &tasks].concat();
    // All of these tasks leave different outputs, so the audit prints the whole sample.
    let chosen = |tasks: &[Value], args: &[&str]| -> BTreeSet<String> {
        list(&place, tasks);
        let audited = audit(&place, args).code(3);
        audited.stdout.lines().map(str::to_owned).collect()
    };
    let sample = chosen(&mixed, &["--sample", "6", "--seed", "1"]);
    assert_eq!(sample.len(), 6);
    let lines = |tasks: &[Value]| tasks.iter().map(Value::to_string).collect::<BTreeSet<_>>();
    assert!(sample.is_subset(&lines(&tasks)), "these have no receipt: {sample:?}");
    let mut backwards = mixed.clone();
    backwards.reverse();
    assert_eq!(chosen(&backwards, &["--sample", "6", "--seed", "1"]), sample);
    assert_ne!(chosen(&mixed, &["--sample", "6", "--seed", "2"]), sample);

    let half = chosen(&mixed, &["--sample", "50%", "--seed", "1"]);
    assert!((8..=32).contains(&half.len()), "{}", half.len());
    assert!(half.is_superset(&sample), "a larger sample has the smaller one in it");
    assert_eq!(chosen(&backwards, &["--sample", "50%", "--seed", "1"]), half);

    list(&place, &unfinished);
    let audited = audit(&place, &["--sample", "100%"]).good();
    assert_eq!(found(&audited), [0; 4]);
    let said = place.host(&["receipts", "audit", "tasks.jsonl"]).good().stderr;
    assert!(said.contains("0 of 40 tasks in") && said.contains("hint: no finished"), "{said}");
}

#[test]
fn a_sample_that_is_none_is_refused() {
    let place = Place::with(&["misbehave"]);
    list(&place, &[random(1)]);
    for wrong in ["0", "0%", "200%", "some"] {
        let said = audit(&place, &["--sample", wrong]).code(2).stderr;
        assert!(said.contains(&format!("--sample: {wrong:?}")), "{said}");
    }
}

#[test]
fn tasks_of_a_listing_keep_their_receipts_when_objects_come_and_go_if_ids_are_of_keys() {
    let place = Place::with(&["NO_OP"]);
    let each = ["--name", "NO_OP", "--each", "data/0_input/*"];
    let undone = |ids: &[&str]| {
        let verified = place.host(&[&["receipts", "verify"], &each[..], ids].concat());
        verified.stdout.lines().count()
    };
    let key = |n: usize| format!("data/0_input/{n}");
    for n in 0..20 {
        place.put(&key(n), "x");
    }
    for ids in [&["--ids", "key"][..], &[]] {
        place.host(&[&["submit", "--fq", "./queue"], &each[..], ids].concat()).good();
    }
    place.run_until_empty(&["--receipts"]).good();
    assert_eq!((undone(&["--ids", "key"]), undone(&[])), (0, 0));
    for n in (0..20).step_by(2) {
        fs::remove_file(place.path().join("bucket").join(key(n))).unwrap();
    }
    assert_eq!(undone(&["--ids", "key"]), 0);
    assert_ne!(undone(&[]), 0, "the listing numbers the others as before");
    place.put(&key(100), "x");
    assert_eq!(undone(&["--ids", "key"]), 1);
    let both = [&["receipts", "verify"], &each[..], &["--ids", "key", "--id", "3"]].concat();
    let said = place.host(&both).code(2).stderr;
    assert!(said.contains("--id and --ids key exclude each other"), "{said}");
}
