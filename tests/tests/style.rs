//! Rules that no other tool checks.

use std::path::Path;
use std::process::Command;

#[test]
fn every_file_says_what_it_is_for() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let files = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "*.rs"])
        .current_dir(root)
        .output()
        .expect("git");
    let files = String::from_utf8(files.stdout).unwrap();
    let files: Vec<&str> = files.lines().filter(|file| root.join(file).is_file()).collect();
    assert!(files.len() > 20, "hardly any files: {files:?}");
    let silent: Vec<&&str> = files
        .iter()
        .filter(|file| !std::fs::read_to_string(root.join(file)).unwrap().starts_with("//!"))
        .collect();
    assert!(silent.is_empty(), "these do not begin with `//!`: {silent:#?}");
}

#[test]
fn what_is_printed_goes_through_the_place_that_escapes_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let files = task_host_tests::files(&root.join("host/src"));
    assert!(files.len() > 100, "hardly any files: {files:?}");
    let prints =
        ["io::stdout()", "io::stderr()", "print!(", "println!(", "Term::stdout", "Term::buffered"];
    let is_theirs = |file: &&String| {
        let for_people = ["cli/output.rs", "cli/console.rs", "cli/screen.rs"];
        // Test processes that are killed print text for each other, and a benchmark reads the
        // figures of a simulation.
        let for_tests = ["queue/file/tests/crashes.rs", "simulation/tests.rs"];
        [&for_people[..], &for_tests[..]].concat().contains(&file.as_str())
    };
    let others: Vec<&String> = files
        .iter()
        .filter(|file| file.ends_with(".rs") && !is_theirs(file))
        .filter(|file| {
            let text = std::fs::read_to_string(root.join("host/src").join(file)).unwrap();
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            code.into_iter().any(|line| prints.iter().any(|print| line.contains(print)))
        })
        .collect();
    assert!(others.is_empty(), "these print by themselves, not by `output`: {others:#?}");
}
