//! What a guest can see and change: its inputs, its outputs, and nothing else.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use task_host_tests::{Place, files, misbehaviour};

/// Runs one task that succeeds, and returns the report it wrote.
#[track_caller]
fn report(place: &Place, inputs: &[&str], payload: Value) -> Value {
    place.submit(&[misbehaviour(1, inputs, payload)]);
    place.run_until_empty(&["--max-attempts", "1"]).good();
    let report = place.object("tests/report.json").expect("a report");
    serde_json::from_slice(&report).expect("a report that is JSON")
}

/// What worked, of all that was tried.
fn worked(report: &Value) -> Vec<&str> {
    let tried = report["tried"].as_array().expect("what was tried");
    assert!(tried.len() > 3, "hardly anything was tried: {report:#}");
    tried.iter().filter(|t| t["ok"] == true).map(|t| t["what"].as_str().unwrap()).collect()
}

fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let read = |name: String| std::fs::read(dir.join(&name)).ok().map(|bytes| (name, bytes));
    files(dir).into_iter().filter_map(read).collect()
}

#[test]
fn inputs_can_not_be_changed_by_any_way_in() {
    let place = Place::with(&["misbehave"]);
    place.put("tests/0_input/a.txt", "an input\n");
    place.put("tests/0_input/deep/b.txt", "another\n");
    // The guest reads the file itself, which is open.
    place.put("tests/0_input/large.dat", vec![7; 1 << 20]);
    let inputs = ["0_input/a.txt", "0_input/deep/b.txt", "0_input/large.dat"];
    let report = report(&place, &inputs, json!({"do": "write-input"}));
    let none: [&str; 0] = [];
    assert_eq!(worked(&report), none);
    assert_eq!(report["changed"], json!([]));
    assert_eq!(place.object("tests/0_input/a.txt").unwrap(), b"an input\n");
    assert_eq!(place.object("tests/0_input/deep/b.txt").unwrap(), b"another\n");

    assert!(place.object("tests/0_input/large.dat").unwrap() == vec![7; 1 << 20]);
    let cached = contents(&place.cache());
    assert!(!cached.values().any(|bytes| bytes == b"changed"));
    place.submit(&[misbehaviour(2, &inputs, json!({"do": "copy"}))]);
    place.run_until_empty(&[]).good();
    assert_eq!(place.object("tests/out/0_input/a.txt").unwrap(), b"an input\n");
    assert!(place.object("tests/out/0_input/large.dat").unwrap() == vec![7; 1 << 20]);
}

#[test]
fn there_is_no_way_out_of_the_two_directories() {
    let place = Place::with(&["misbehave"]);
    let report = report(&place, &[], json!({"do": "escape"}));
    let out: Vec<&str> = worked(&report)
        .into_iter()
        // The current directory is one of the two, and a link can be made and listed as such.
        .filter(|what| !matches!(*what, "list ." | "list /"))
        .collect();
    assert!(out.is_empty(), "{out:#?}");
    for escaped in ["escaped", "bucket/escaped", "home/escaped"] {
        assert!(!place.path().join(escaped).exists());
    }
    assert!(!files(&place.cache()).iter().any(|name| name.contains("escaped")));
}

#[test]
fn the_environment_is_empty() {
    let place = Place::with(&["misbehave"]);
    let report = report(&place, &[], json!({"do": "env"}));
    assert_eq!(report["vars"], json!({}));
    assert!(report["args"].as_array().unwrap().len() <= 1, "{report}");
    assert!(!report.to_string().contains(place.path().to_str().unwrap()), "{report}");
}

#[test]
fn there_is_no_network() {
    // A server that is there, so that a connection would work.
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap().to_string();
    let place = Place::with(&["misbehave"]);
    let report = report(&place, &[], json!({"do": "net", "address": address}));
    let none: [&str; 0] = [];
    assert_eq!(worked(&report), none);
    server.set_nonblocking(true).unwrap();
    assert!(server.accept().is_err(), "somebody connected");
}

#[test]
fn standard_input_is_empty() {
    let place = Place::with(&["misbehave"]);
    let report = report(&place, &[], json!({"do": "stdin"}));
    assert!(report["bytes"] == 0 || report["error"].is_string(), "{report}");
}

#[test]
fn nothing_of_one_task_is_there_for_the_next() {
    let place = Place::with(&["misbehave"]);
    place.put("tests/0_input/a.txt", "a");
    place.put("tests/0_input/b.txt", "b");
    // One slot, so that every task gets what the one before had; some of them end badly.
    let tasks: Vec<Value> = (0..8)
        .map(|id| {
            let input = ["0_input/a.txt", "0_input/b.txt"][id % 2];
            let mut task = misbehaviour(id as i64, &[input], json!({"do": "leave"}));
            if id % 4 == 3 {
                let steps = json!([{"do": "leave"}, {"do": "odd-names"}, {"do": "panic"}]);
                task["payload_info"] = json!({"do": "all", "steps": steps});
            } else {
                // Each its own report: the base directory is part of an output's key.
                task["basic_info"]["base_directory"] = json!(format!("tests-{id}"));
                place.put(&format!("tests-{id}/{input}"), input);
            }
            task
        })
        .collect();
    place.submit(&tasks);
    place.run_until_empty(&["--parallel", "1", "--max-attempts", "2"]).code(3);
    for id in (0..8).filter(|id| id % 4 != 3) {
        let report = place.object(&format!("tests-{id}/report.json")).expect("a report");
        let report: Value = serde_json::from_slice(&report).unwrap();
        let input = ["0_input/a.txt", "0_input/b.txt"][id % 2];
        assert_eq!(report["runs"], 1, "the instance is not fresh");
        assert_eq!(report["inputs"], json!(["0_input/", input]), "{report:#}");
        assert_eq!(report["outputs"], json!([]), "{report:#}");
    }
    assert_eq!(place.errors().len(), 2);
}
