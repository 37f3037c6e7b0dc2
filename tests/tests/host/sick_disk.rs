//! A disk that is full or fails, wherever the host needs one. No attempt is counted, and the host
//! continues when the disk works again.

use std::fs;

use serde_json::json;
use task_host_tests::{FaultyDisk, Place, SmallDisk, eventually, http, misbehaviour};

const TASKS: usize = 12;
/// The size of a disk: small enough to fill quickly, and large enough for all files of a test.
const MIB: usize = 16;

const CACHE: &str = "home/.cache/task-host";
/// The host keeps no output in memory.
const ON_DISK: [&str; 2] = ["--output-file-memory", "1KiB"];
const WORK: &str = "home/.cache/task-host/work";

/// Checks that a host waits while the disk at `at` in this place is full.
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
    // A host reads the inputs of a directory in place. Inputs from a web server go through the
    // cache.
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
    // Moving a message needs little more space than its name, so this test also fills the space for
    // names.
    let place = Place::with(&["NO_OP"]);
    let disk = SmallDisk::mount(place.path().join("queue"), MIB);
    let tasks = place.innocent(TASKS);
    let host = place.watch(&[]);
    host.in_one_moment(|| {
        place.submit(&tasks);
        disk.fill();
        disk.fill_names();
    });
    // Leasing and deleting may need no space at all.
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
    // The disk is still full when the host stops, which must not lose anything else.
    assert_eq!(sick.ready().0, 503);
    healthy.did_without_harm(MANY);
    let summary = sick.stop();
    let ends = ["done", "failed", "retried"].map(|name| summary[name].as_u64());
    assert_eq!(ends, [Some(0); 3], "{summary:#}");
}

/// A guest that ignores a failed write and reports success.
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
    // The input and the component are then in the cache, so only outputs need space.
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

/// Checks that a host waits while these calls fail on the disk at `at`.
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
