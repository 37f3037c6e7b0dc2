//! `cargo xtask demo`, on a build for tests.

use std::process::Command;

use task_host_tests::{Finished, target};

#[test]
fn the_demo_leaves_pictures_and_can_be_run_again() {
    let dir = tempfile::tempdir().unwrap();
    let demo = dir.path().join("demo");
    // Again over what is there: from the start, and with the same end.
    for _ in 0..2 {
        let mut xtask = Command::new(target().join("debug/xtask"));
        xtask.args(["demo", "--profile", "dev", "--dir"]).arg(&demo);
        let finished = Finished::run(&mut xtask).good();
        let named = finished
            .stdout
            .split_whitespace()
            .find(|word| {
                word.ends_with(".png") && demo.join(word).is_file() || {
                    std::path::Path::new(word).is_file() && word.ends_with(".png")
                }
            })
            .unwrap_or_else(|| panic!("no picture is named:\n{}", finished.stdout));
        let picture = std::fs::read(demo.join(named)).unwrap();
        assert!(picture.starts_with(b"\x89PNG\r\n") && picture.len() > 10_000);
    }
    let queue = demo.join("queue/queue");
    assert_eq!(std::fs::read_dir(queue).unwrap().count(), 0, "tasks are left");
    let errors = std::fs::read_dir(demo.join("queue-errors/queue"));
    assert_eq!(errors.map_or(0, Iterator::count), 0, "tasks were given up");
}

#[test]
fn the_demo_does_not_clear_a_directory_that_is_not_its_own() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("thesis.tex"), "x").unwrap();
    let mut xtask = Command::new(target().join("debug/xtask"));
    xtask.args(["demo", "--profile", "dev", "--dir"]).arg(dir.path());
    let refused = Finished::run(&mut xtask).code(1);
    assert!(refused.stderr.contains("thesis.tex"), "{}", refused.stderr);
    assert!(dir.path().join("thesis.tex").exists());
}
