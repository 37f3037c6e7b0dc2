//! The files of tasks: large files, many files, and their removal.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use serde_json::json;
use task_host_tests::{Finished, Place, misbehaviour};

/// A content that is larger than one read, than the files in memory, and than the part that one
/// call uploads.
fn large() -> Vec<u8> {
    (0..6_u32 << 18).flat_map(u32::to_le_bytes).collect()
}

#[test]
fn a_large_input_and_a_large_output_arrive_whole_from_memory_and_from_the_disk() {
    let place = Place::with(&["misbehave"]);
    place.put("tests/0_input/large.dat", large());
    for settings in [
        &["--output-file-memory", "1KiB"][..],
        &["--output-memory", "1KiB"],
        &["--output-file-memory", "16MiB"],
    ] {
        place.submit(&[misbehaviour(1, &["0_input/large.dat"], json!({"do": "copy"}))]);
        place.run_until_empty(settings).good();
        let output = place.object("tests/out/0_input/large.dat").expect("an output");
        assert!(output == large(), "{} bytes", output.len());
        std::fs::remove_file(place.path().join("bucket/tests/out/0_input/large.dat")).unwrap();
        assert_eq!(place.left_behind(), Vec::<String>::new());
    }
}

#[test]
fn more_large_outputs_than_the_process_may_have_files_open_are_published() {
    const FILES: usize = 500;
    let place = Place::with(&["misbehave"]);
    let bytes = 2_000 * FILES;
    place.submit_misbehaviour(json!({"do": "write", "bytes": bytes, "files": FILES}));
    let args = ["run", "-x", "--fq", "./queue", "--parallel", "1", "--output-file-memory", "1KiB"];
    let mut host = place.command_by(&["prlimit", "--nofile=128:128"], &args);
    Finished::run(&mut host).good();
    for n in 0..FILES {
        let output = place.object(&format!("tests/written/{n}.dat")).expect("an output");
        assert_eq!(output.len(), 2_000, "{n}");
    }
    assert_eq!(place.left_behind(), Vec::<String>::new());
}

#[test]
fn many_large_inputs_are_read_with_few_files_open() {
    const FILES: usize = 200;
    let place = Place::with(&["misbehave"]);
    let inputs: Vec<String> = (0..FILES).map(|n| format!("in/{n}.dat")).collect();
    for (n, input) in inputs.iter().enumerate() {
        place.put(&format!("tests/{input}"), vec![n as u8; 70_000]);
    }
    let names: Vec<&str> = inputs.iter().map(String::as_str).collect();
    place.submit(&[misbehaviour(1, &names, json!({"do": "copy"}))]);
    let args = ["run", "-x", "--fq", "./queue", "--parallel", "1"];
    let mut host = place.command_by(&["prlimit", "--nofile=128:128"], &args);
    Finished::run(&mut host).good();
    for (n, input) in inputs.iter().enumerate() {
        let output = place.object(&format!("tests/out/{input}")).expect("an output");
        assert!(output == vec![n as u8; 70_000], "{input}");
    }
}

#[test]
fn what_is_removed_makes_room_again() {
    let place = Place::with(&["misbehave"]);
    // The second file replaces the first. Both together would exceed the limit.
    let write = json!({"do": "write", "bytes": 700_000});
    place.submit_misbehaviour(json!({"do": "all", "steps": [write, write]}));
    place.run_until_empty(&["--max-output", "1MiB", "--max-attempts", "1"]).good();
    assert_eq!(place.object("tests/written/0.dat").unwrap().len(), 700_000);
}

#[test]
fn an_input_that_changes_under_a_task_fails_the_attempt_and_publishes_nothing() {
    let place = Place::with(&["misbehave"]);
    place.put("tests/0_input/large.dat", large());
    let steps = [json!({"do": "sleep", "secs": 3.0}), json!({"do": "copy"})];
    place.submit(&[misbehaviour(1, &["0_input/large.dat"], json!({"do": "all", "steps": steps}))]);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let file =
            File::options().write(true).open(place.path().join("bucket/tests/0_input/large.dat"));
        let (file, over) = (file.unwrap(), &over);
        scope.spawn(move || {
            while !over.load(Relaxed) {
                file.write_all_at(b"changed", 1000).unwrap();
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        place.run_until_empty(&["--max-attempts", "1"]);
        over.store(true, Relaxed);
    });
    let exception = place.the_error()["exception"].to_string();
    assert!(exception.contains("it was changed while the task read it"), "{exception}");
    assert_eq!(place.object("tests/out/0_input/large.dat"), None);
    assert_eq!(place.left_behind(), Vec::<String>::new());
}

#[test]
fn an_input_that_is_replaced_under_a_task_stays_what_it_was() {
    let place = Place::with(&["misbehave"]);
    let path = place.path().join("bucket/tests/0_input/large.dat");
    place.put("tests/0_input/large.dat", large());
    let steps = [json!({"do": "sleep", "secs": 3.0}), json!({"do": "copy"})];
    place.submit(&[misbehaviour(1, &["0_input/large.dat"], json!({"do": "all", "steps": steps}))]);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let over = &over;
        scope.spawn(move || {
            while !over.load(Relaxed) {
                let new = path.with_extension("new");
                std::fs::write(&new, large()).unwrap();
                std::fs::rename(new, &path).unwrap();
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        place.run_until_empty(&["--max-attempts", "1"]);
        over.store(true, Relaxed);
    });
    assert!(place.object("tests/out/0_input/large.dat").unwrap() == large());
}
