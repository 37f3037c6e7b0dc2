//! Hosts load components from the bucket by name, whenever they are pushed.

use serde_json::json;
use task_host_tests::{Place, eventually, guest};

fn task(id: i64, name: &str) -> serde_json::Value {
    json!({"basic_info": {"id": id, "name": name, "base_directory": "data", "inputs": ["0_input/a.dat"]}})
}

#[test]
fn a_name_without_a_component_is_tried_again_and_then_reported() {
    let place = Place::new();
    place.put("data/0_input/a.dat", "a");
    place.submit(&[task(1, "NO_OP")]);
    place.run_until_empty(&["--max-attempts", "3"]).code(3);
    let report = place.the_error();
    assert_eq!(report["attempt"], 3);
    let exception = report["exception"].as_str().unwrap();
    assert!(exception.contains("components/NO_OP.wasm"), "{exception}");
}

#[test]
fn a_component_that_comes_later_is_picked_up_without_a_restart() {
    let place = Place::new();
    place.put("data/0_input/a.dat", "a");
    place.submit(&[task(1, "NO_OP")]);
    let host = place.start(&["--retry-after", "50ms", "--max-attempts", "1000"]);
    eventually("a failed attempt", || host.stderr().contains("NO_OP").then_some(()));
    place.push("NO_OP");
    eventually("the output", || place.object("data/0_output/a.dat"));
    assert!(place.errors().is_empty());
}

#[test]
fn a_new_version_is_picked_up_without_a_restart() {
    let place = Place::new();
    place.put("data/0_input/a.dat", "a");
    // Pushes two guests under one name: first one that copies, then one that hashes.
    let push = |file: &str| {
        let file = guest(file);
        let file = file.to_str().unwrap();
        place
            .host(&["component", "push", file, "--name", "changing", "--bucket", "./bucket"])
            .good();
    };
    push("NO_OP");
    let _host = place.start(&[]);
    place.submit(&[task(1, "changing")]);
    eventually("the copy", || place.object("data/0_output/a.dat"));
    push("digest");
    let mut id = 2;
    eventually("the digest", || {
        // Running tasks keep the component that they began with, and a host does not check the
        // bucket for each task, so several tasks are needed.
        if place.counts().0 == 0 {
            place.submit(&[task(id, "changing")]);
            id += 1;
        }
        place.object("data/0_digest/a.dat.sha256")
    });
    assert!(place.errors().is_empty());
}

#[test]
fn what_is_no_component_of_ours_is_refused_at_the_door() {
    let place = Place::new();
    std::fs::write(place.path().join("core.wasm"), b"\0asm\x01\0\0\0").unwrap();
    let refused = place.host(&["component", "push", "core.wasm", "--bucket", "./bucket"]).code(1);
    assert!(refused.stderr.contains("core.wasm"), "{}", refused.stderr);
    assert!(place.keys().is_empty());
}

/// The policy is in `docs/interface-versions.md`.
#[test]
fn a_component_for_another_version_of_the_interface_is_refused_with_both_versions() {
    let place = Place::new();
    place.put("data/0_input/a.dat", "a");
    let built_for = |version: &str| {
        // Both versions have the same length, so nothing else in the file changes.
        let ours = b"task-host:guest/types@0.1.1";
        let theirs = format!("task-host:guest/types@{version}").into_bytes();
        assert_eq!(ours.len(), theirs.len());
        let mut bytes = std::fs::read(guest("NO_OP")).unwrap();
        let found = (0..bytes.len() - ours.len()).filter(|at| bytes[*at..].starts_with(ours));
        let found: Vec<usize> = found.collect();
        assert!(!found.is_empty(), "the guest names no version");
        for at in found {
            bytes[at..at + theirs.len()].copy_from_slice(&theirs);
        }
        bytes
    };
    place.put("components/earlier.wasm", built_for("0.1.0"));
    place.put("components/later.wasm", built_for("0.1.9"));
    place.put("components/other.wasm", built_for("0.2.0"));
    place.submit(&[task(1, "earlier"), task(2, "later"), task(3, "other")]);
    place.run_until_empty(&["--max-attempts", "1"]).code(3);
    assert!(place.object("data/0_output/a.dat").is_some());
    let report = place.the_error();
    let exception = report["exception"].as_str().unwrap();
    let problem = "was built for version 0.2.0 of the guest interface, and this host runs 0.1";
    assert!(exception.contains(problem), "{exception}");

    std::fs::write(place.path().join("other.wasm"), built_for("0.2.0")).unwrap();
    let push = place.host(&["component", "push", "other.wasm", "--bucket", "./bucket"]);
    assert_ne!(push.status.code(), Some(0));
    assert!(push.stderr.contains(problem), "{}", push.stderr);
}

#[test]
fn a_component_is_shown_with_the_language_of_its_task() {
    let place = Place::new();
    for (name, language) in [
        ("NO_OP", "Rust"),
        ("c_observe", "C99"),
        ("javascript_observe", "JavaScript"),
        ("python_observe", "Python"),
    ] {
        let wasm = guest(name);
        let wasm = wasm.to_str().expect("a path that is text");
        let shown = place.host(&["component", "inspect", wasm, "--json"]).good();
        let shown: serde_json::Value = serde_json::from_str(&shown.stdout).expect("a component");
        assert_eq!(shown["languages"], serde_json::json!([language]), "{name}");
    }
}
