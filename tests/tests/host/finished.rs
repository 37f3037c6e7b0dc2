//! A task that has ended is not executed again, reported twice or overwritten.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;

use rustix::process::Signal;
use serde_json::{Value, json};
use task_host_tests::{Place, Running, eventually, http, misbehaviour};

/// Starts a host with a status page. Returns the host and the address of the page.
fn start(place: &Place, args: &[&str]) -> (Running, String) {
    let host = place.start(&[&["--listen", "127.0.0.1:0"], args].concat());
    let address = eventually("a host that listens", || {
        let said = host.stderr();
        let rest = said.split("listening at http://").nth(1)?;
        rest.split('/').next().map(str::to_owned)
    });
    (host, address)
}

/// The reasons why a host is not ready; empty if it is ready.
fn problems(address: &str) -> String {
    let answer = http::send(address, "GET", "/readyz", &[], b"");
    match answer.status {
        200 => String::new(),
        _ => String::from_utf8_lossy(&answer.body).into_owned(),
    }
}

/// The number of executions that began, of all tasks in the queue.
fn starts(place: &Place) -> usize {
    let movements = fs::read_dir(place.path().join("queue/movement")).into_iter().flatten();
    let texts = movements.flatten().filter_map(|entry| fs::read_to_string(entry.path()).ok());
    texts.map(|text| text.lines().filter(|line| line.is_empty()).count()).sum()
}

/// The file names of the queue's messages, which change with every renewal.
fn names(place: &Place) -> Vec<String> {
    task_host_tests::files(&place.path().join("queue/queue")).into_iter().collect()
}

/// Runs tasks while no message can be deleted from the queue, for longer than a lease. Returns what
/// the host prints at its end.
fn undeletable(place: &Place, tasks: &[Value], is_ended: impl Fn() -> bool) -> String {
    place.submit(tasks);
    let (host, address) = start(place, &["--lease", "2s", "--parallel", "2"]);
    eventually("executions", || (starts(place) == tasks.len()).then_some(()));
    // Deleted messages are moved to this directory first.
    let tmp = place.path().join("queue/host/tmp");
    fs::remove_dir_all(&tmp).unwrap();
    fs::write(&tmp, "in the way").unwrap();
    eventually("ends", || is_ended().then_some(()));
    eventually("a host that is not ready", || {
        problems(&address).contains("deleting message").then_some(())
    });
    for _ in 0..3 {
        let before = names(place);
        eventually("renewals", || {
            let now = names(place);
            now.iter().all(|name| !before.contains(name)).then_some(())
        });
    }
    assert_eq!(names(place).len(), tasks.len());
    fs::remove_file(&tmp).unwrap();
    eventually("an empty queue", || (place.counts().0 == 0).then_some(()));
    eventually("a host that is ready", || problems(&address).is_empty().then_some(()));
    host.signal(Signal::TERM);
    host.wait().stdout
}

#[test]
fn tasks_that_are_done_are_only_deleted_when_deletions_work_again() {
    let place = Place::with(&["misbehave"]);
    let task = |id: i64| {
        let steps = json!([{"do": "sleep", "secs": 2}, {"do": "mark", "dir": "marks"}]);
        misbehaviour(id, &[], json!({"do": "all", "steps": steps}))
    };
    let marks = || place.keys().iter().filter(|key| key.starts_with("tests/marks/")).count();
    let said = undeletable(&place, &[task(1), task(2)], || marks() == 2);
    assert_eq!(marks(), 2, "tasks were executed again");
    assert!(place.errors().is_empty(), "{:#?}", place.errors());
    assert!(said.contains("2 done"), "{said}");
}

#[test]
fn tasks_that_are_given_up_are_reported_once_when_deletions_do_not_work() {
    let place = Place::with(&["misbehave"]);
    let task = |id: i64| {
        let steps = json!([{"do": "sleep", "secs": 2}, {"do": "reject", "text": "no image"}]);
        misbehaviour(id, &[], json!({"do": "all", "steps": steps}))
    };
    let said = undeletable(&place, &[task(1), task(2)], || place.errors().len() == 2);
    assert_eq!(place.errors().len(), 2);
    assert!(said.contains("2 rejected"), "{said}");
}

/// Stops a host, lets another host complete its tasks with a different result, and continues the
/// first. Returns what the first host prints at its end.
fn overtaken(place: &Place, host: Running) -> String {
    host.signal(Signal::STOP);
    place.push("NO_OP");
    let components = place.path().join("bucket/components");
    fs::rename(components.join("NO_OP.wasm"), components.join("misbehave.wasm")).unwrap();
    place.run_until_empty(&["--lease", "2s", "--parallel", "4"]).good();
    assert_eq!(place.counts(), (0, 0));
    host.signal(Signal::CONT);
    eventually("a host that sees what it lost", || {
        host.stderr().contains("another host may have leased the task").then_some(())
    });
    host.signal(Signal::TERM);
    host.wait().good().stdout
}

#[test]
fn a_host_that_was_stopped_neither_reports_nor_publishes_what_another_has_done() {
    let place = Place::with(&["misbehave"]);
    let after_a_while = |id: i64, then: Value| {
        misbehaviour(id, &[], json!({"do": "all", "steps": [{"do": "sleep", "secs": 1}, then]}))
    };
    place.submit(&[
        after_a_while(1, json!({"do": "reject", "text": "no image"})),
        after_a_while(2, json!({"do": "retry", "text": "busy"})),
        after_a_while(3, json!({"do": "output", "key": "stale.txt", "text": "stale"})),
    ]);
    let args = ["--lease", "2s", "--parallel", "3", "--max-attempts", "1", "--json"];
    let host = place.start(&[&args[..], &["--done-queue", "fq://./queue-done"]].concat());
    eventually("three executions", || (starts(&place) == 3).then_some(()));
    let said = overtaken(&place, host);
    let summary: Value = serde_json::from_str(&said).unwrap();
    let counts = ["done", "failed", "retried", "lost"].map(|name| summary[name].as_u64());
    assert_eq!(counts, [Some(0), Some(0), Some(0), Some(3)], "{summary}");
    assert!(place.errors().is_empty(), "{:#?}", place.errors());
    assert!(place.messages("queue-done").is_empty());
    assert_eq!(place.object("tests/stale.txt"), None);
}

#[test]
fn a_host_that_was_stopped_while_it_published_overwrites_nothing() {
    const FILES: usize = 4_000;
    let place = Place::with(&["misbehave"]);
    let dir = |round: u32| place.path().join(format!("bucket/round-{round}/many"));
    let count = |round: u32| fs::read_dir(dir(round)).map_or(0, Iterator::count);
    let args = ["--lease", "2s", "--parallel", "1", "--prefetch", "0"];
    let mut round = 0;
    // Repeats until a host is stopped before it has published all files.
    let host = loop {
        round += 1;
        assert!(round <= 10, "publishing is too fast to be interrupted");
        let mut task = misbehaviour(1, &[], json!({"do": "many-files", "count": FILES}));
        task["basic_info"]["base_directory"] = json!(format!("round-{round}"));
        place.submit(&[task]);
        let host = place.start(&args);
        eventually("published files", || (count(round) > 0).then_some(()));
        host.signal(Signal::STOP);
        if count(round) < FILES - 1000 {
            break host;
        }
        host.signal(Signal::CONT);
        eventually("an empty queue", || (place.counts().0 == 0).then_some(()));
    };
    let other = place.start(&[&args[..], &["-x"]].concat());
    other.wait().good();
    assert_eq!(count(round), FILES);
    let files = || -> BTreeMap<_, u64> {
        let entries = fs::read_dir(dir(round)).unwrap().flatten();
        entries.map(|entry| (entry.file_name(), entry.metadata().unwrap().ino())).collect()
    };
    let result = files();
    host.signal(Signal::CONT);
    eventually("a host that sees what it lost", || {
        host.stderr().contains("another host may have leased the task").then_some(())
    });
    host.signal(Signal::TERM);
    host.wait().good();
    let now = files();
    let changed = now.iter().filter(|(name, inode)| result.get(*name) != Some(inode)).count();
    // The host may have been stopped while it published one file.
    assert!(changed <= 1, "{changed} files of a finished result were overwritten");
    let left = place.left_behind().into_iter().find(|name| name.starts_with("bucket/"));
    assert_eq!(left, None);
}
