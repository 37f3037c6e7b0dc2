//! Commands for queues lose no message, even if they are killed.

use std::collections::BTreeSet;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use task_host_tests::{Place, Running};

fn task(id: usize) -> Value {
    json!({"basic_info": {"id": id, "name": "NOBODY", "base_directory": "data"}})
}

fn ids(messages: &[Value]) -> BTreeSet<u64> {
    messages.iter().filter_map(|message| message["basic_info"]["id"].as_u64()).collect()
}

/// Kills `host ARGS…` at different times, from before its start to almost its end, and then lets it
/// finish. Meanwhile, each message is in at least one of the two queues.
fn kill_at_any_moment(args: &[&str], from: &str, tasks: usize, id: fn(&Value) -> Option<u64>) {
    let place = Place::new();
    fill(&place, from, tasks);
    let all: BTreeSet<u64> = (0..tasks as u64).collect();
    let to = if from == "queue" { "elsewhere" } else { "queue" };
    let seen = || -> BTreeSet<u64> {
        let messages = [place.messages(from), place.messages(to)].concat();
        messages.iter().filter_map(id).collect()
    };
    for millis in [1, 10, 20, 30, 40, 60, 80, 120] {
        let command = Running::start(place.command(args), &place.path().join("logs"));
        std::thread::sleep(Duration::from_millis(millis));
        command.signal(Signal::KILL);
        drop(command);
        assert_eq!(seen(), all, "after a kill at {millis} ms");
        // The messages that the killed command held become available again after a minute.
        place.host(&["queue", "release", from, "--yes"]).good();
    }
    place.host(args).good();
    assert!(place.messages(from).is_empty());
    assert_eq!(seen(), all);
}

/// Tasks in `queue`, or their reports in `queue-errors`.
fn fill(place: &Place, queue: &str, tasks: usize) {
    let tasks: Vec<Value> = (0..tasks).map(task).collect();
    place.submit(&tasks);
    if queue != "queue" {
        std::fs::create_dir_all(place.path().join("bucket")).unwrap();
        place.run(&["-x", "--max-attempts", "1", "--parallel", "8"]).code(3);
        assert_eq!(place.messages(queue).len(), tasks.len());
    }
}

#[test]
fn a_move_that_is_killed_at_any_moment_loses_nothing() {
    kill_at_any_moment(&["queue", "mv", "queue", "./elsewhere"], "queue", 4000, |message| {
        message["basic_info"]["id"].as_u64()
    });
}

#[test]
fn a_redrive_that_is_killed_at_any_moment_loses_nothing() {
    kill_at_any_moment(&["queue", "redrive", "queue"], "queue-errors", 1500, |message| {
        let task = if message["task"].is_null() { message } else { &message["task"] };
        task["basic_info"]["id"].as_u64()
    });
}

#[test]
fn a_redrive_takes_what_matches_and_leaves_the_rest() {
    let place = Place::new();
    fill(&place, "queue-errors", 10);
    let redrive = |args: &[&str]| {
        let all = [&["queue", "redrive", "queue", "--json"], args].concat();
        let said = place.host(&all).good().stdout;
        serde_json::from_str::<Value>(&said).unwrap()
    };
    let dry = redrive(&["--dry-run"]);
    assert_eq!((&dry["sent"], &dry["names"]["NOBODY"]), (&json!(10), &json!(10)), "{dry}");
    assert_eq!((place.counts().0, place.errors().len()), (0, 10), "a dry run does nothing");

    let check = |args: &[&str], sent: usize| {
        let before = place.counts().0;
        let done = redrive(args);
        assert_eq!(done["sent"], sent, "{args:?}: {done}");
        assert_eq!(place.counts(), (before + sent, 0), "{args:?}");
        assert_eq!(place.errors().len(), 10 - before - sent, "{args:?}");
    };
    check(&["--name", "SOMEBODY"], 0);
    check(&["--match", "no such text"], 0);
    check(&["--older-than", "1h"], 0);
    check(&["--id", "7"], 1);
    assert_eq!(ids(&place.messages("queue")), BTreeSet::from([7]));
    check(&["--match", "NOBODY", "--newer-than", "1h", "--limit", "3"], 3);
    let text = place.host(&["queue", "redrive", "queue"]).good().stdout;
    assert!(text.starts_with("6 tasks sent back from fq://queue-errors to fq://queue"), "{text}");
    assert_eq!(ids(&place.messages("queue")), (0..10).collect());
}

#[test]
fn lines_that_are_no_tasks_are_kept_and_can_be_sent_when_they_are_mended() {
    let place = Place::new();
    let mut lines: Vec<String> = (0..100).map(|id| task(id).to_string()).collect();
    for i in (0..100).step_by(3) {
        lines[i] = lines[i].replace("basic_info", "basic-info");
    }
    std::fs::write(place.path().join("tasks.jsonl"), lines.join("\n")).unwrap();
    let submit = ["submit", "--fq", "queue", "tasks.jsonl", "--rejects", "rejects.jsonl"];
    let said = place.host(&submit).code(3).stderr;
    let told = said.lines().filter(|line| line.starts_with("tasks.jsonl, line ")).count();
    assert_eq!(told, 20, "{said}");
    assert!(said.contains("and 14 more\n34 lines kept in rejects.jsonl\n"), "{said}");
    assert!(said.contains("tasks.jsonl, line 4: message: has neither"), "{said}");
    // An existing file is never overwritten, because it may be the input file.
    place.host(&submit).code(2);

    let rejects = std::fs::read_to_string(place.path().join("rejects.jsonl")).unwrap();
    std::fs::write(place.path().join("mended.jsonl"), rejects.replace("basic-info", "basic_info"))
        .unwrap();
    place.host(&["submit", "--fq", "queue", "mended.jsonl", "--rejects", "more.jsonl"]).good();
    assert!(!place.path().join("more.jsonl").exists());
    assert_eq!(ids(&place.messages("queue")), (0..100).collect());
}

#[test]
fn the_doctor_finds_what_is_missing_and_makes_nothing() {
    let place = Place::new();
    let doctor = ["doctor", "--fq", "./queue", "--json"];
    let found = place.host(&doctor).code(1).stdout;
    let found: Value = serde_json::from_str(&found).unwrap();
    assert_eq!(found["problems"], 1, "{found:#}");
    assert!(!place.path().join("queue").exists() && !place.path().join("bucket").exists());

    place.push("NO_OP");
    let found: Value = serde_json::from_str(&place.host(&doctor).good().stdout).unwrap();
    assert_eq!(found["problems"], 0, "{found:#}");
    assert!(found.to_string().contains("NO_OP"), "{found:#}");
    assert!(!place.path().join("queue").exists());
}
