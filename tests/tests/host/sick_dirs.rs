//! Directories of the host that are removed, moved away or replaced while it works.

use std::fs;
use std::path::Path;
use std::process::Command;

use task_host_tests::{Finished, Place, SmallDisk, Watched, eventually};

const TASKS: usize = 12;

/// Copies a directory with its contents and times.
fn copy(from: &Path, to: &Path) {
    Finished::run(Command::new("cp").arg("-aT").args([from, to])).good();
}

fn rename(from: &Path, to: &Path) {
    fs::rename(from, to).unwrap_or_else(|error| panic!("{} is moved: {error}", from.display()));
}

/// A host that has finished all tasks once, and the tasks.
fn at_work(place: &Place, args: &[&str]) -> (Watched, Vec<serde_json::Value>) {
    let tasks = place.innocent(TASKS);
    place.submit(&tasks);
    let host = place.watch(args);
    place.innocent_are_done(TASKS);
    fs::remove_dir_all(place.path().join("bucket/data/0_output")).expect("outputs");
    (host, tasks)
}

/// Checks that a host runs the tasks again after `happens` has changed its directories.
fn goes_on(args: &[&str], happens: impl FnOnce(&Place)) -> Place {
    let place = Place::with(&["NO_OP"]);
    fs::create_dir(place.path().join("components")).expect("a directory");
    fs::copy(
        place.path().join("bucket/components/NO_OP.wasm"),
        place.path().join("components/NO_OP.wasm"),
    )
    .expect("a component");
    let (host, tasks) = at_work(&place, args);
    host.in_one_moment(|| {
        happens(&place);
        place.submit(&tasks);
    });
    place.innocent_are_done(TASKS);
    let complaints = host.lines("WARN").len();
    assert!(complaints <= 4, "{complaints} lines: {:#?}", host.lines("WARN"));
    host.did_without_harm(2 * TASKS);
    place
}

#[test]
fn a_work_directory_that_is_removed() {
    goes_on(&[], |place| {
        fs::remove_dir_all(place.cache().join("work")).expect("it is removed");
    });
}

#[test]
fn a_cache_that_is_removed() {
    goes_on(&[], |place| fs::remove_dir_all(place.cache()).expect("it is removed"));
}

#[test]
fn a_cache_whose_blobs_are_removed() {
    goes_on(&[], |place| {
        fs::remove_dir_all(place.cache().join("blobs")).expect("they are removed");
    });
}

#[test]
fn a_cache_that_is_removed_again_and_again() {
    let place = Place::with(&["NO_OP"]);
    let tasks = place.innocent(TASKS);
    let host = place.watch(&[]);
    for round in 1..=5 {
        place.submit(&tasks);
        for name in ["blobs", "index", "compiled"] {
            // The directory may not exist yet, or may be filled again at the same time.
            let _ = fs::remove_dir_all(place.cache().join(name));
        }
        eventually(&format!("an empty queue, {round}"), || {
            (place.counts() == (0, 0)).then_some(())
        });
    }
    place.innocent_are_done(TASKS);
    host.did_without_harm(5 * TASKS);
}

#[test]
fn a_bucket_that_is_replaced_by_an_equal_one() {
    let place = goes_on(&[], |place| {
        let [bucket, old] = ["bucket", "old"].map(|name| place.path().join(name));
        rename(&bucket, &old);
        copy(&old, &bucket);
    });
    assert!(!place.path().join("old/data/0_output").exists(), "outputs are in the old bucket");
}

#[test]
fn components_that_are_replaced_by_equal_ones() {
    goes_on(&["--components", "./components"], |place| {
        let [components, old] = ["components", "old"].map(|name| place.path().join(name));
        rename(&components, &old);
        copy(&old, &components);
        // The host finds compiled code by the identity of the component file, so it must look for
        // the file again.
        fs::remove_dir_all(old).expect("the old ones");
    });
}

/// Checks that a host waits while a directory is missing.
fn waits_for_a_directory(name: &str) {
    let place = Place::with(&["NO_OP"]);
    let (host, tasks) = at_work(&place, &[]);
    let [there, away] = [name, "away"].map(|name| place.path().join(name));
    host.in_one_moment(|| {
        place.submit(&tasks);
        rename(&there, &away);
    });
    host.is_out(name);
    host.has_tried(2);
    rename(&away, &there);
    place.innocent_are_done(TASKS);
    host.did_without_harm(2 * TASKS);
}

#[test]
fn a_bucket_that_is_moved_away_and_back() {
    waits_for_a_directory("bucket");
}

#[test]
fn components_that_are_moved_away_and_back() {
    let place = Place::with(&["NO_OP"]);
    let [there, away] = ["components", "away"].map(|name| place.path().join(name));
    copy(&place.path().join("bucket/components"), &there);
    let (host, tasks) = at_work(&place, &["--components", "./components"]);
    rename(&there, &away);
    let mut more = 0;
    // A host does not look for a component again if it has just done so.
    eventually("a host that is not ready", || {
        place.submit(&tasks);
        more += TASKS;
        (host.ready().0 == 503).then_some(())
    });
    host.is_out("components");
    host.has_tried(2);
    rename(&away, &there);
    place.innocent_are_done(TASKS);
    host.did_without_harm(TASKS + more);
}

#[test]
fn a_queue_that_is_moved_away_and_back() {
    waits_for_a_directory("queue");
}

#[test]
fn a_queue_that_is_removed_and_made_again() {
    let place = Place::with(&["NO_OP"]);
    let (host, tasks) = at_work(&place, &[]);
    host.in_one_moment(|| fs::remove_dir_all(place.path().join("queue")).expect("it is removed"));
    host.is_out("queue");
    host.has_tried(2);
    place.submit(&tasks);
    place.innocent_are_done(TASKS);
    host.did_without_harm(2 * TASKS);
}

#[test]
fn a_bucket_that_is_unmounted_and_mounted_again() {
    let place = Place::new();
    let disk = SmallDisk::mount(place.path().join("bucket"), 16);
    place.push("NO_OP");
    let (host, tasks) = at_work(&place, &[]);
    let (bucket, kept) = (place.path().join("bucket"), place.path().join("kept"));
    copy(&bucket, &kept);
    // First unmounts and remounts at once, as after an autofs timeout. Then unmounts for a while,
    // so that the mount point is an empty directory.
    host.in_one_moment(|| {
        disk.unmount();
        disk.mount_again();
        copy(&kept, &bucket);
        place.submit(&tasks);
    });
    place.innocent_are_done(TASKS);
    host.in_one_moment(|| {
        disk.unmount();
        place.submit(&tasks);
    });
    host.is_out("bucket");
    host.has_tried(2);
    disk.mount_again();
    copy(&kept, &bucket);
    place.innocent_are_done(TASKS);
    host.did_without_harm(3 * TASKS);
}
