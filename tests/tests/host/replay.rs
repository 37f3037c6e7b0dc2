//! Runs the task of a report or a message again with full output. Also tests stored logs.

use std::fs;

use serde_json::{Value, json};
use task_host_tests::{Place, files, misbehaviour, no_op};

/// Two tasks, of which the task with id 2 is rejected.
fn failed_place() -> Place {
    let place = Place::with(&["misbehave", "NO_OP"]);
    place.put("tests/0_input/a.dat", "an input");
    let copy = json!({"do": "copy"});
    let reject = json!({"do": "all", "steps": [
        {"do": "say", "text": "about to fail"}, copy, {"do": "reject", "text": "no cheese"}]});
    let inputs = ["0_input/a.dat"];
    place.submit(&[misbehaviour(1, &inputs, copy), misbehaviour(2, &inputs, reject)]);
    place.run_until_empty(&[]).code(3);
    place
}

#[test]
fn the_task_of_a_report_runs_again_with_its_inputs_and_changes_nothing() {
    let place = failed_place();
    let (keys, errors) = (place.keys(), files(&place.path().join("queue-errors")));
    let again = place.host(&["try", "--from", "./queue-errors", "--id", "2"]).code(3);
    for said in [
        "misbehave 2 in \"tests\", attempt 1, 1 input, payload {\"do\":",
        "the report says: no cheese",
        "the component is that of the report: ",
        "about to fail",
        "error: no cheese",
        "`host run` would reject it",
        "failed after ",
        " of memory, 8 B read and 8 B written in ",
    ] {
        assert!(again.stderr.contains(said), "no {said:?} in\n{}", again.stderr);
    }
    assert_eq!(place.keys(), keys);
    assert_eq!(files(&place.path().join("queue-errors")), errors);
}

#[test]
fn the_outputs_of_a_message_go_to_a_directory_or_to_the_bucket_if_that_is_wanted() {
    let place = Place::with(&["NO_OP"]);
    place.put("data/0_input/a.dat", "an input");
    place.submit(&[no_op(7, &["0_input/a.dat".to_owned()]), no_op(8, &[])]);
    let queued = files(&place.path().join("queue"));
    let run = |more: &[&str]| {
        place.host(&[&["try", "--from", "./queue", "--id", "7"], more].concat()).good()
    };
    let said = run(&["--json"]);
    let outcome: Value = serde_json::from_str(&said.stdout).expect("an outcome");
    assert_eq!((&outcome["success"], &outcome["read"]), (&json!(true), &json!(8)), "{outcome}");
    assert_eq!(outcome["outputs"][0]["size"], 8);
    let output = place.path().join("out/0_output/a.dat");
    assert_eq!(fs::read(&output).expect("an output"), b"an input");
    assert!(place.object("data/0_output/a.dat").is_none());
    run(&["--publish"]);
    assert!(place.object("data/0_output/a.dat").is_some());
    // The message is unchanged: nothing was leased or counted.
    assert_eq!(files(&place.path().join("queue")), queued);
    place.host(&["try", "--from", "./queue"]).code(2);
}

#[test]
fn another_component_and_a_file_with_a_report_will_do() {
    let place = failed_place();
    let listed = place.host(&["queue", "ls", "./queue-errors", "--json"]).good().stdout;
    fs::write(place.path().join("reports.jsonl"), &listed).expect("a file");
    let line: Value = serde_json::from_str(listed.lines().next().expect("a report")).unwrap();
    fs::write(place.path().join("report.json"), line["message"].to_string()).expect("a file");
    let other = place.path().join("bucket/components/NO_OP.wasm");
    let other = other.to_str().expect("a path that is text");
    for from in ["reports.jsonl", "report.json"] {
        let ended = place.host(&["try", other, "--from", from]).good();
        let said = "the component differs from the one in the report: ";
        assert!(ended.stderr.contains(said), "{}", ended.stderr);
        assert!(ended.stderr.contains("done in "), "{}", ended.stderr);
    }
    fs::remove_file(place.path().join("bucket/tests/0_input/a.dat")).expect("an input");
    let missing = place.host(&["try", "--from", "report.json"]).code(1);
    assert!(missing.stderr.contains("has no object `tests/0_input/a.dat`"), "{}", missing.stderr);
}

#[test]
fn a_profile_has_the_functions_of_the_task() {
    let place = Place::with(&["misbehave"]);
    let wasm = place.path().join("bucket/components/misbehave.wasm");
    let wasm = wasm.to_str().expect("a path that is text");
    let run = ["try", wasm, "--payload", r#"{"do": "loop"}"#, "--timeout", "1s"];
    place.host(&[&run[..], &["--profile", "loop.cpuprofile"]].concat()).code(3);
    let profile = fs::read(place.path().join("loop.cpuprofile")).expect("a profile");
    let profile: Value = serde_json::from_slice(&profile).expect("a profile that is JSON");
    let nodes = profile["nodes"].as_array().expect("the tree of calls");
    let names: Vec<_> =
        nodes.iter().filter_map(|n| n["callFrame"]["functionName"].as_str()).collect();
    let has = |name: &str| names.iter().any(|text| text.contains(name));
    assert!(has("misbehave::perform") && !has("_ZN"), "{names:?}");
    assert!(profile["samples"].as_array().is_some_and(|samples| samples.len() > 1));
}

#[test]
fn a_directory_of_inputs_is_given_and_missing_inputs_are_told() {
    let place = Place::with(&["misbehave"]);
    let wasm = place.path().join("bucket/components/misbehave.wasm");
    let wasm = wasm.to_str().expect("a path that is text");
    fs::create_dir_all(place.path().join("data/0_input")).expect("a directory");
    fs::write(place.path().join("data/0_input/a.dat"), "an input").expect("an input");
    fs::write(place.path().join("payload.json"), r#"{"do": "copy"}"#).expect("a payload");
    place.host(&["try", wasm, "data", "--payload", "@payload.json"]).good();
    assert!(
        place.path().join("out/out/0_input/a.dat").exists(),
        "{:?}",
        files(&place.path().join("out"))
    );
    let warning = "warning: no inputs were given";
    let ended = place.host(&["try", wasm, "--payload", "@payload.json"]);
    assert!(ended.stderr.contains(warning), "{}", ended.stderr);
    let write = r#"{"do": "output", "key": "x", "text": "y"}"#;
    let ended = place.host(&["try", wasm, "--payload", write]).good();
    assert!(!ended.stderr.contains(warning), "{}", ended.stderr);

    let mut piped = place.command(&["try", "-", "--payload", write]);
    piped.stdin(fs::File::open(wasm).expect("a component"));
    let output = piped.output().expect("host");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn logs_of_attempts_are_stored_where_no_task_can_write() {
    let place = Place::with(&["misbehave"]);
    let say = |text: &str| json!({"do": "say", "text": text});
    let long = json!({"do": "log", "bytes": 100_000, "to": "stderr"});
    let retry = json!({"do": "all", "steps": [say("again"), {"do": "fail-until", "attempt": 2}]});
    let forge = json!({"do": "all", "steps": [
        say("forged"), {"do": "output", "key": "logs/misbehave/9/x.1.log", "text": "forged"}]});
    let mut forging = misbehaviour(9, &[], forge);
    forging["basic_info"]["base_directory"] = json!("kept");
    place.submit(&[
        misbehaviour(1, &[], say("hello")),
        misbehaviour(2, &[], retry),
        misbehaviour(3, &[], long),
        forging,
    ]);
    place.run_until_empty(&["--logs", "kept/logs", "--max-log", "10KiB"]).code(3);
    let keys = place.keys();
    let logs = |id: &str| -> Vec<(String, String)> {
        let below = format!("kept/logs/misbehave/{id}/");
        let found = keys.iter().filter(|key| key.starts_with(&below));
        found
            .map(|key| {
                let text = place.object(key).expect("a log");
                (key[below.len()..].to_owned(), String::from_utf8(text).expect("a text"))
            })
            .collect()
    };
    assert!(
        matches!(&logs("1")[..], [(name, text)] if name.ends_with(".1.log") && text.contains("hello"))
    );
    let two = logs("2");
    assert!(two.iter().any(|(name, _)| name.ends_with(".1.log")), "{two:?}");
    assert!(two.iter().any(|(name, _)| name.ends_with(".2.log")), "{two:?}");
    let three = logs("3");
    assert!(three[0].1.starts_with('(') && three[0].1.contains("bytes before this were not kept"));
    assert!(three[0].1.len() < 11 << 10);
    let nine = logs("9");
    assert!(nine.iter().all(|(name, _)| name != "x.1.log") && nine[0].1.contains("forged"));
    let exception = place.the_error()["exception"].to_string();
    assert!(exception.contains("where the logs of tasks are"), "{exception}");
}

#[test]
fn a_log_that_can_not_be_stored_costs_no_task() {
    let place = Place::with(&["misbehave"]);
    // A file at the path of the directory of logs.
    place.put("logs", "a file");
    place.submit(&[
        misbehaviour(1, &[], json!({"do": "say", "text": "one"})),
        misbehaviour(2, &[], json!({"do": "say", "text": "two"})),
    ]);
    let ended = place.run_until_empty(&["--logs", "logs", "--json"]).good();
    let summary: Value = serde_json::from_str(&ended.stdout).expect("a summary");
    assert_eq!((&summary["done"], &summary["retried"]), (&json!(2), &json!(0)), "{summary}");
    let told = ended.stderr.matches("the log of a task could not be stored").count();
    assert_eq!(told, 1, "{}", ended.stderr);
}
