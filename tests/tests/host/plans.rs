//! Tasks that name their own inputs, with a guest whose plan asks for the inputs in the payload.

use rustix::process::Signal;
use serde_json::{Value, json};
use task_host_tests::{Place, eventually, misbehaviour};

use crate::invariants::{executing, given_up_after_deaths};

/// A task of the planner with the base directory `tests`.
fn task(id: i64, inputs: &[&str], payload: Value) -> Value {
    let mut task = misbehaviour(id, inputs, payload);
    task["basic_info"]["name"] = json!("planner");
    task
}

fn ask(id: i64, keys: &[&str], optional: &[&str], prefixes: &[&str]) -> Value {
    let payload = json!({"do": "ask", "keys": keys, "optional": optional, "prefixes": prefixes});
    task(id, &[], payload)
}

/// The files that the execution found in `/inputs`.
fn found(place: &Place, key: &str) -> Value {
    let report = place.object(key).expect("a report");
    let report: Value = serde_json::from_slice(&report).unwrap();
    assert_eq!(report["memory"], 0, "the plan's instance is another");
    json!([report["inputs"], report["texts"]])
}

fn place(objects: &[&str]) -> Place {
    let place = Place::with(&["planner"]);
    for key in objects {
        place.put(key, format!("text of {key}"));
    }
    place
}

fn cause(place: &Place) -> String {
    place.the_error()["exception"].as_str().unwrap().to_owned()
}

#[test]
fn a_task_reads_what_its_plan_asks_for_in_that_order() {
    let place =
        place(&["tests/a", "tests/b/2", "tests/b/10", "tests/c", "models/m", "tests/given"]);
    let payload = json!({"do": "ask", "keys": ["c", "/models/m"], "optional": ["a", "hole"],
                         "prefixes": ["b"]});
    place.submit(&[task(1, &["given"], payload)]);
    place.run(&["-x", "--readable", "models"]).good();
    let keys = ["given", "c", "models/m", "a", "b/10", "b/2"];
    let texts = ["given", "c", "", "a", "b/10", "b/2"].map(|key| match key {
        "" => "text of models/m".to_owned(),
        key => format!("text of tests/{key}"),
    });
    assert_eq!(found(&place, "tests/report.json"), json!([keys, texts]));
}

#[test]
fn a_plan_may_read_an_index_first() {
    let place = place(&["tests/x", "tests/y"]);
    place.put("tests/index", "y\nx\n");
    place.submit(&[task(1, &[], json!({"do": "index", "key": "index"}))]);
    place.run(&["-x"]).good();
    assert_eq!(found(&place, "tests/report.json")[0], json!(["index", "y", "x"]));
}

#[test]
fn a_plan_is_made_anew_for_each_attempt() {
    let place = place(&["tests/1.dat", "tests/2.dat"]);
    place.submit(&[task(1, &[], json!({"do": "change"}))]);
    place.run_until_empty(&[]).good();
    assert_eq!(found(&place, "tests/report.json")[0], json!(["2.dat"]));
}

#[test]
fn the_instance_of_a_plan_is_not_that_of_the_execution() {
    let place = place(&[]);
    place.submit(&[task(1, &[], json!({"do": "remember"}))]);
    place.run(&["-x"]).good();
    assert_eq!(found(&place, "tests/report.json"), json!([[], []]));
}

#[test]
fn an_input_that_has_to_exist_is_waited_for_and_then_named() {
    let place = place(&[]);
    place.submit(&[ask(1, &["late"], &[], &[])]);
    place.run_until_empty(&["--max-attempts", "2"]).code(3);
    let report = place.the_error();
    assert_eq!(report["attempt"], 2);
    let cause = report["exception"].as_str().unwrap();
    assert!(
        cause.contains("input `late`: ") && cause.contains("no object `tests/late`"),
        "{cause}"
    );
}

#[test]
fn without_a_base_directory_a_plan_reads_only_what_the_operator_allows() {
    let message = json!({"payload": {"class": "planner", "do": "ask", "keys": ["data/a"]},
                         "queueName": "queue"});
    let place = place(&["data/a"]);
    place.submit(std::slice::from_ref(&message));
    place.run_until_empty(&[]).code(3);
    let want = "`plan` asked for `data/a`, which is outside of --readable; its message has no base \
                directory";
    assert_eq!(cause(&place), want);
    assert_eq!(place.the_error()["phase"], "plan");

    place.submit(&[message]);
    place.run(&["-x", "--readable", "other:data"]).good();
    assert_eq!(found(&place, "report.json"), json!([["data/a"], ["text of data/a"]]));
}

#[test]
fn a_finished_task_runs_again_when_its_plan_finds_more_or_something_else() {
    let place = place(&["tests/a"]);
    let message = ask(1, &["a"], &["hole"], &[]);
    let runs = |place: &Place| {
        place.submit(std::slice::from_ref(&message));
        let ran = place.run(&["-x", "--skip-unchanged", "--json"]).good();
        serde_json::from_str::<Value>(&ran.stdout).unwrap()["done_before"].as_u64().unwrap() == 0
    };
    assert!(runs(&place));
    assert!(!runs(&place), "nothing has changed");
    place.put("tests/hole", "filled");
    assert!(runs(&place), "an object is there that was missing");
    assert_eq!(found(&place, "tests/report.json")[0], json!(["a", "hole"]));
    assert!(!runs(&place));
    place.put("tests/a", "other");
    assert!(runs(&place));
}

#[test]
fn a_task_with_a_plan_is_audited_and_tried() {
    let place = place(&["tests/a", "tests/b"]);
    let message = ask(1, &["a"], &["hole"], &[]);
    std::fs::write(place.path().join("tasks.jsonl"), format!("{message}\n")).unwrap();
    place.submit(&[message]);
    place.run(&["-x", "--receipts", "--deterministic"]).good();
    let audit = ["receipts", "audit", "--sample", "100%", "tasks.jsonl", "--json"];
    let audited = place.host(&audit).good();
    let summary: Value = serde_json::from_str(audited.stderr.lines().last().unwrap()).unwrap();
    assert_eq!(summary["same"], 1, "{summary}");

    // `host try` uses these files in place of the bucket.
    let payload = r#"{"do": "ask", "keys": ["a", "/tests/b"], "optional": ["hole"]}"#;
    let guest = task_host_tests::guest("planner");
    let component = guest.to_str().unwrap();
    let inputs = ["--input", "a=bucket/tests/a", "--input", "tests/b=bucket/tests/b"];
    let tried = [&["try", component, "--payload", payload][..], &inputs].concat();
    place.host(&tried).good();
    let report = std::fs::read(place.path().join("out/report.json")).unwrap();
    let report: Value = serde_json::from_slice(&report).unwrap();
    assert_eq!(report["inputs"], json!(["a", "tests/b"]));
    let failed = place.host(&["try", component, "--payload", payload]).code(3);
    assert!(failed.stderr.contains("error: input `a`: "), "{}", failed.stderr);
}

#[test]
fn a_prefix_with_more_objects_than_a_plan_may_have() {
    let place = place(&["tests/many/0"]);
    for n in 1..=10_000 {
        std::fs::write(place.path().join(format!("bucket/tests/many/{n}")), "").unwrap();
    }
    place.submit(&[ask(1, &[], &[], &["many"])]);
    place.run_until_empty(&[]).code(3);
    let want = "`plan` asked for more than the maximum of 10000 inputs (below `many`)";
    assert_eq!(cause(&place), want);
}

#[test]
fn a_task_whose_plan_takes_its_hosts_along_is_given_up_in_the_end() {
    let place = place(&[]);
    place.submit(&[task(1, &[], json!({"do": "sleep"}))]);
    given_up_after_deaths(&place);
}

#[test]
fn plans_are_made_while_all_slots_are_taken() {
    let place = Place::with(&["planner", "misbehave"]);
    place.put("tests/a", "A");
    place.submit_misbehaviour(json!({"do": "sleep", "secs": 3600}));
    let host =
        executing(&place, &["--parallel", "1", "--prefetch", "2", "--log-level", "debug"], 1);
    // The plan fails, which shows that it was called.
    place.submit(&[task(2, &[], json!({"do": "reject"}))]);
    let report = eventually("the failure of a plan", || place.errors().pop());
    assert_eq!(report["exception"], "the plan can't be made");
    host.signal(Signal::KILL);
    let _killed = host.wait();
}
