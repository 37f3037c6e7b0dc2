//! The log on standard error without a terminal: one line of JSON per event, which every parser
//! reads in the same way.

use std::collections::BTreeSet;
use std::path::Path;

use rustix::process::Signal;
use serde_json::{Value, json};
use task_host_tests::{Place, eventually, misbehaviour};

/// Parses a line. Checks that it is an object without duplicate keys at any depth.
#[track_caller]
fn strict(line: &str) -> Value {
    let value: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    assert!(value.is_object(), "{line}");
    // The parser keeps a duplicate key only once.
    assert_eq!(keys_of(&value), keys_in(line), "a key is there twice: {line}");
    value
}

fn keys_of(value: &Value) -> usize {
    match value {
        Value::Object(fields) => fields.len() + fields.values().map(keys_of).sum::<usize>(),
        Value::Array(items) => items.iter().map(keys_of).sum(),
        _ => 0,
    }
}

/// The number of strings in a JSON text that a colon follows.
fn keys_in(line: &str) -> usize {
    let (mut keys, mut in_string, mut escaped, mut ended) = (0, false, false, false);
    for c in line.chars() {
        if in_string {
            in_string = escaped || c != '"';
            ended = !in_string;
            escaped = !escaped && c == '\\';
        } else {
            keys += usize::from(ended && c == ':');
            in_string = c == '"';
            ended &= c.is_whitespace();
        }
    }
    keys
}

#[test]
fn a_key_that_is_there_twice_is_found() {
    assert_eq!(keys_in(r#"{"a": 1, "b\":" : {"a": ["x: ", "c"], "d":2}}"#), 4);
    assert!(std::panic::catch_unwind(|| strict(r#"{"a": {"b": 1, "b": 2}}"#)).is_err());
}

#[test]
fn every_line_of_a_log_is_an_object_without_a_key_twice() {
    let place = Place::with(&["misbehave"]);
    let payloads = [
        json!({"do": "reject", "text": "a \"word\"\n\u{0}\u{ffff}"}),
        json!({"do": "retry", "text": "not yet"}),
        json!({"do": "panic", "text": "out of cheese"}),
        json!({"do": "log", "bytes": 100}),
        json!({"do": "unsuccessful"}),
        json!({"do": "sleep", "secs": 3600}),
    ];
    let mut tasks: Vec<Value> =
        payloads.into_iter().zip(1..).map(|(p, id)| misbehaviour(id, &[], p)).collect();
    tasks.push(misbehaviour(100, &["missing.dat"], json!({"do": "log", "bytes": 1})));
    tasks.push(json!({"basic_info": {"id": 101, "name": "NOBODY", "base_directory": "d"}}));
    place.submit(&tasks);
    let mut command = place.command(&["run", "--fq", "./queue", "--lease", "2s", "--grace", "0s"]);
    command.args(["--max-attempts", "2", "--retry-after", "10ms", "--log-level", "debug"]);
    command.args(["--cpu-time", "1h"]);
    // This misspelt variable causes a warning at the start.
    command.env("HOST_PARALEL", "4");
    let host = task_host_tests::Running::start(command, &place.path().join("logs"));
    eventually("the reports", || (place.errors().len() >= 6).then_some(()));
    // Only the sleeping task is left. Releasing its message makes the host lose the lease each
    // time.
    eventually("a lost lease", || {
        place.host(&["queue", "release", "./queue", "--yes"]).good();
        host.stderr().contains("the lease was lost").then_some(())
    });
    host.signal(Signal::TERM);
    let said = host.wait().stderr;

    let lines: Vec<Value> = said.lines().map(strict).collect();
    for level in ["DEBUG", "INFO", "WARN", "ERROR"] {
        assert!(lines.iter().any(|line| line["level"] == level), "no {level} in\n{said}");
    }
    for line in &lines {
        for key in ["timestamp", "level", "target"] {
            assert!(line[key].is_string(), "{key} of {line}");
        }
        assert!(line["message"].is_string(), "{line}");
    }
    fields_are_those_of_the_page(&lines);
}

/// Compares the fields of log lines about tasks with the list in `docs/operating.md`.
fn fields_are_those_of_the_page(lines: &[Value]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let page = std::fs::read_to_string(root.join("docs/operating.md")).unwrap();
    let section = page.split("\n## Logs\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows = section.lines().skip_while(|line| !line.starts_with("| field |")).skip(2);
    let listed: BTreeSet<String> = rows
        .take_while(|line| line.starts_with('|'))
        .flat_map(|row| row.split('|').nth(1).unwrap().split(", "))
        .map(|field| field.trim().trim_matches('`').to_owned())
        .collect();
    let is_about_a_task = |line: &&Value| {
        let target = line["target"].as_str().unwrap_or_default();
        line["span"].is_object() && (target.starts_with("task_host::task") || target == "guest")
    };
    let mut found = BTreeSet::new();
    for line in lines.iter().filter(is_about_a_task) {
        for (key, value) in line.as_object().unwrap() {
            match value.as_object().filter(|_| key == "span") {
                Some(span) => found.extend(span.keys().map(|key| format!("span.{key}"))),
                None => drop(found.insert(key.clone())),
            }
        }
    }
    assert_eq!(found, listed, "lines about tasks, and the table in docs/operating.md");
}

#[test]
fn what_a_task_prints_is_logged_when_it_prints_it() {
    let place = Place::with(&["misbehave"]);
    let say = |text: &str| json!({"do": "say", "text": text});
    let steps = json!([
        say("ERROR no \u{1b}[2J image"),
        say("[warning] dark"),
        say("INFO tile 3"),
        {"do": "sleep", "secs": 3600},
    ]);
    place.submit(&[misbehaviour(7, &[], json!({"do": "all", "steps": steps}))]);
    let host = place.start(&["--grace", "0s"]);
    // The task is still running.
    eventually("a line of the task", || host.stderr().contains("dark").then_some(()));
    host.signal(Signal::TERM);
    let said = host.wait().stderr;
    let lines: Vec<Value> = said.lines().map(strict).collect();
    let printed: Vec<(&Value, &Value)> = lines
        .iter()
        .filter(|line| line["target"] == "guest")
        .map(|line| (&line["level"], &line["message"]))
        .collect();
    let want = [(&json!("ERROR"), &json!("no \u{1b}[2J image")), (&json!("WARN"), &json!("dark"))];
    assert_eq!(printed, want, "{said}");
    let line = lines.iter().find(|line| line["target"] == "guest").unwrap();
    assert_eq!((&line["span"]["id"], &line["span"]["task_name"]), (&json!(7), &json!("misbehave")));
}

#[test]
fn a_host_that_logs_only_errors_says_which_task_they_are_about() {
    let place = Place::with(&["misbehave"]);
    place.submit(&[misbehaviour(7, &[], json!({"do": "reject", "text": "no image"}))]);
    let said = place.run(&["--exit-when-empty", "--log-level", "error"]).code(3).stderr;
    let lines: Vec<Value> = said.lines().map(strict).collect();
    let [line] = &*lines else { panic!("one line: {said}") };
    assert_eq!(line["message"], "rejected: no image");
    assert_eq!((&line["span"]["id"], &line["span"]["task_name"]), (&json!(7), &json!("misbehave")));
}
