//! What a host writes to standard error when nobody watches: a line of JSON for each event, which
//! every parser reads alike.

use rustix::process::Signal;
use serde_json::{Value, json};
use task_host_tests::{Place, eventually, misbehaviour};

/// Reads a line, and insists on an object that has no key twice, at any depth.
#[track_caller]
fn strict(line: &str) -> Value {
    let value: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    assert!(value.is_object(), "{line}");
    // A key that is there twice is read once.
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

/// Strings in a text of JSON that a colon follows.
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
    // Warns at the start.
    command.env("HOST_PARALEL", "4");
    let host = task_host_tests::Running::start(command, &place.path().join("logs"));
    // Who holds a message loses it, again and again; the task that sleeps is always held.
    eventually("a lost lease", || {
        place.host(&["queue", "release", "./queue"]).good();
        host.stderr().contains("the lease was lost").then_some(())
    });
    eventually("the reports", || (place.errors().len() >= 6).then_some(()));
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
}
