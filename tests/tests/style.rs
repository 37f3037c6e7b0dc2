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
