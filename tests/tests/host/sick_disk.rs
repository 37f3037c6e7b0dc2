//! A disk that is full or fails, wherever the host needs one: no task is charged for it, and
//! work goes on when the disk is well.

use std::fs;

use serde_json::json;
use task_host_tests::{FaultyDisk, Place, SmallDisk, eventually, http, misbehaviour};

const TASKS: usize = 12;
/// Small enough to be filled at once, and large enough for everything that is kept.
const MIB: usize = 16;

const CACHE: &str = "home/.cache/task-host";
/// No output is kept in memory.
const ON_DISK: [&str; 2] = ["--output-file-memory", "1KiB"];
const WORK: &str = "home/.cache/task-host/work";

/// A disk at a directory of a place that gets full while a host has work to do.
fn waits_for_room(place: &Place, at: &str, words: &str, settings: &[&str]) {
    let disk = SmallDisk::mount(place.path().join(at), MIB);
    place.push("NO_OP");
    let tasks = place.innocent(TASKS);
    let host = place.watch(settings);
    host.in_one_moment(|| {
        place.submit(&tasks);
        disk.fill();
    });
    host.is_out(words);
    host.has_tried(2);
    disk.empty();
    place.innocent_are_done(TASKS);
    host.did_without_harm(TASKS);
}

#[test]
fn a_cache_that_is_full() {
    // The inputs of a directory are read where they are. Those of a server go through the cache.
    let place = Place::new();
    let inputs = http::serve_files(place.path().join("bucket"));
    waits_for_room(&place, CACHE, CACHE, &["--input-bucket", &inputs]);
}

#[test]
fn a_work_directory_that_is_full() {
    waits_for_room(&Place::new(), WORK, "No space left", &ON_DISK);
}

#[test]
fn a_bucket_that_is_full() {
    waits_for_room(&Place::new(), "bucket", "bucket", &[]);
}

#[test]
fn a_queue_that_is_full() {
    // Messages are moved with little more than their names: the disk has no room for those
    // either.
    let place = Place::with(&["NO_OP"]);
    let disk = SmallDisk::mount(place.path().join("queue"), MIB);
    let tasks = place.innocent(TASKS);
    let host = place.watch(&[]);
    host.in_one_moment(|| {
        place.submit(&tasks);
        disk.fill();
        disk.fill_names();
    });
    // Leasing and deleting may need no room at all.
    eventually("work or an outage", || {
        (place.counts() == (0, 0) || host.ready().0 == 503).then_some(())
    });
    disk.empty();
    place.innocent_are_done(TASKS);
    host.did_without_harm(TASKS);
}

#[test]
fn a_full_cache_beside_a_healthy_host() {
    const MANY: usize = 200;
    let place = Place::with(&["NO_OP"]);
    let disk = SmallDisk::mount(place.path().join("sick"), MIB);
    let tasks = place.innocent(MANY);
    let sick = place.watch(&["--cache-dir", "./sick"]);
    sick.in_one_moment(|| {
        place.submit(&tasks);
        disk.fill();
    });
    sick.is_out("./sick");
    let healthy = place.watch(&[]);
    place.innocent_are_done(MANY);
    // The disk is still full: nothing else may be lost with it when the host stops.
    assert_eq!(sick.ready().0, 503);
    healthy.did_without_harm(MANY);
    let summary = sick.stop();
    let ends = ["done", "failed", "retried"].map(|name| summary[name].as_u64());
    assert_eq!(ends, [Some(0); 3], "{summary:#}");
}

/// A guest that takes no notice of a failed write, and says that all went well.
#[test]
fn a_guest_that_hides_a_full_disk() {
    let place = Place::with(&["misbehave"]);
    let disk = SmallDisk::mount(place.path().join(CACHE), MIB);
    let input = "content;".repeat(10_000);
    place.put("tests/0_input/a.txt", &input);
    let task =
        |id| misbehaviour(id, &["0_input/a.txt"], json!({"do": "copy", "ignore_errors": true}));
    let output = || place.object("tests/out/0_input/a.txt");
    let host = place.watch(&ON_DISK);
    // Its input and component are in the cache then, so that only outputs need room.
    place.submit(&[task(0)]);
    eventually("an output", || (place.counts() == (0, 0)).then_some(()));
    fs::remove_file(place.path().join("bucket/tests/out/0_input/a.txt")).expect("an output");
    host.in_one_moment(|| {
        place.submit(&[task(1), task(2)]);
        disk.fill();
    });
    host.is_out("No space left");
    host.has_tried(2);
    assert_eq!(output(), None, "an output was published that the guest did not write");
    disk.empty();
    eventually("an empty queue", || (place.counts() == (0, 0)).then_some(()));
    assert_eq!(output().as_deref(), Some(input.as_bytes()));
    assert_eq!(place.errors().len(), 0);
    host.did_without_harm(3);
}

#[test]
fn a_bucket_that_is_read_only() {
    let place = Place::new();
    let disk = SmallDisk::mount(place.path().join("bucket"), MIB);
    place.push("NO_OP");
    let tasks = place.innocent(TASKS);
    let host = place.watch(&[]);
    host.in_one_moment(|| {
        place.submit(&tasks);
        disk.make_read_only();
    });
    host.is_out("Read-only file system");
    host.has_tried(2);
    disk.make_writable();
    place.innocent_are_done(TASKS);
    host.did_without_harm(TASKS);
}

/// A disk at a directory of a place whose calls fail while a host has work to do.
fn waits_for_a_disk(at: &str, calls: &str) {
    let place = Place::new();
    let disk = FaultyDisk::mount(place.path().join(at));
    place.push("NO_OP");
    let tasks = place.innocent(TASKS);
    let host = place.watch(&[]);
    host.in_one_moment(|| {
        place.submit(&tasks);
        disk.fail("EIO", calls);
    });
    host.is_out("Input/output error");
    host.has_tried(2);
    disk.mend();
    place.innocent_are_done(TASKS);
    host.did_without_harm(TASKS);
}

#[test]
fn a_bucket_whose_disk_fails() {
    waits_for_a_disk("bucket", "all");
}

#[test]
fn a_bucket_whose_disk_fails_to_write() {
    waits_for_a_disk("bucket", "write");
}

#[test]
fn a_cache_whose_disk_fails() {
    waits_for_a_disk(CACHE, "all");
}

#[test]
fn a_queue_whose_disk_fails() {
    waits_for_a_disk("queue", "all");
}
