//! An error queue that does not accept reports. The tasks wait, each is reported once, and each was
//! executed once.

use std::fs;
use std::path::PathBuf;

use rustix::process::Signal;
use serde_json::{Value, json};
use task_host_tests::{Place, SmallDisk, Watched, eventually, misbehaviour};

const TASKS: usize = 6;

/// A host that rejects all tasks while the error queue fails. `fail` makes the queue fail.
fn rejecting(place: &Place, fail: impl FnOnce()) -> Watched {
    let host = place.watch(&["--parallel", "2"]);
    let reject = json!({"do": "reject", "text": "no image"});
    let tasks: Vec<Value> =
        (0..TASKS).map(|id| misbehaviour(id as i64, &[], reject.clone())).collect();
    host.in_one_moment(|| {
        place.submit(&tasks);
        fail();
    });
    host
}

/// Checks that all reports arrive, and that no task was executed or reported twice.
fn all_are_reported(place: &Place, host: Watched) {
    eventually("an empty queue", || (place.counts() == (0, 0)).then_some(()));
    let mut reported: Vec<u64> =
        place.errors().iter().map(|e| e["task"]["basic_info"]["id"].as_u64().unwrap()).collect();
    reported.sort_unstable();
    assert_eq!(reported, Vec::from_iter(0..TASKS as u64));
    host.is_ready_again();
    // The log has a line for each execution, with its payload and attempt.
    let log = host.host().stderr();
    assert_eq!(log.matches("no image\\\" }, attempt 1").count(), TASKS, "{log}");
    assert_eq!(log.matches("no image\\\" }, attempt").count(), TASKS, "{log}");
    let given_up = |line: &&String| line.contains("rejected");
    eventually("a line for each task", || {
        (host.lines("ERROR").iter().filter(given_up).count() == TASKS).then_some(())
    });
    assert!(host.lines("ERROR").len() <= TASKS + 2, "{:#?}", host.lines("ERROR"));
    let host = host.into_host();
    host.signal(Signal::TERM);
    host.wait().good();
}

fn error_queue(place: &Place) -> PathBuf {
    place.path().join("queue-errors")
}

#[test]
fn an_error_queue_that_is_full() {
    let place = Place::with(&["misbehave"]);
    let disk = SmallDisk::mount(error_queue(&place), 4);
    let host = rejecting(&place, || disk.fill());
    host.is_out("queue-errors");
    host.has_tried(2);
    disk.empty();
    all_are_reported(&place, host);
}

#[test]
fn an_error_queue_that_is_moved_away_and_back() {
    let place = Place::with(&["misbehave"]);
    let (there, away) = (error_queue(&place), place.path().join("away"));
    let host = rejecting(&place, || fs::rename(&there, &away).expect("it is moved away"));
    host.is_out("queue-errors");
    host.has_tried(2);
    fs::rename(&away, &there).expect("it is moved back");
    all_are_reported(&place, host);
}

#[test]
fn an_error_queue_that_is_deleted_and_made_again() {
    let place = Place::with(&["misbehave"]);
    let there = error_queue(&place);
    let host = rejecting(&place, || fs::remove_dir_all(&there).expect("it is removed"));
    host.is_out("queue-errors");
    host.has_tried(2);
    place.host(&["submit", "--fq", "./queue-errors", "/dev/null"]).good();
    all_are_reported(&place, host);
}
