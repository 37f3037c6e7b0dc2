//! The archives, their checksums, and their installation with `cargo binstall`.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use task_host_tests::{Finished, Place, files};

use crate::packed::{HERE, PACKAGES, VERSION, pack};
use crate::{first_result, in_place};

#[test]
fn the_archive_has_the_program_where_cargo_binstall_looks() {
    let mut metadata = Command::new("cargo");
    metadata.args(["metadata", "--locked", "--no-deps", "--format-version", "1"]);
    let metadata = Finished::run(metadata.current_dir(env!("CARGO_MANIFEST_DIR"))).good();
    let metadata: Value = serde_json::from_str(&metadata.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let package = packages.iter().find(|package| package["name"] == "task-host").unwrap();
    let filled = |name: &str| {
        let mut text = package["metadata"]["binstall"][name].as_str().unwrap().to_owned();
        for (variable, value) in [
            ("repo", package["repository"].as_str().unwrap()),
            ("name", "task-host"),
            ("version", VERSION),
            ("target", HERE.target),
            ("bin", "host"),
            ("binary-ext", ""),
        ] {
            text = text.replace(&format!("{{ {variable} }}"), value);
        }
        assert!(!text.contains('{'), "{text}");
        text
    };
    let url = filled("pkg-url");
    let (directory, name) = url.rsplit_once('/').unwrap();
    assert!(directory.ends_with(&format!("/releases/download/v{VERSION}")), "{url}");
    let place = Place::new();
    unpack(&PACKAGES.dir().join(name), place.path());
    let program = place.path().join(filled("bin-dir"));
    let version = Finished::run(&mut in_place(&place, &program, &["--version"])).good();
    assert!(version.stdout.contains(VERSION), "{}", version.stdout);
    first_result(&place, |args| in_place(&place, &program, args));
}

#[test]
fn the_archive_has_the_licences_of_all_dependencies() {
    let place = Place::new();
    let (archive, dir) = PACKAGES.archive(HERE);
    unpack(&archive, place.path());
    let dir = place.path().join(dir);
    let names = files(&dir);
    for name in ["CHANGELOG.md", "LICENSE-MIT", "README.md", "deploy/task-host.service"] {
        assert!(names.contains(name), "{name} is missing: {names:?}");
    }
    let licences = fs::read_to_string(dir.join("LICENSES-OF-DEPENDENCIES.txt")).unwrap();
    for part in ["\ntokio ", "\nwasmtime ", "\naws-lc-sys ", "Copyright (c) Tokio", "Rich Felker"] {
        assert!(licences.contains(part), "{part:?} is missing");
    }
    // Only tests use this package.
    assert!(!licences.contains("\nproptest "));
}

#[test]
fn the_checksums_are_of_all_files() {
    let dir = PACKAGES.dir();
    let mut check = Command::new("sha256sum");
    let checked =
        Finished::run(check.args(["--check", "--strict", "SHA256SUMS"]).current_dir(dir)).good();
    assert_eq!(checked.stdout.lines().count(), files(dir).len() - 1, "{}", checked.stdout);
}

#[test]
fn packing_the_same_program_twice_gives_the_same_bytes() {
    let work = tempfile::tempdir().unwrap();
    // The file's time and directory must not matter.
    let (program, dir) = (work.path().join("again"), work.path().join("dist"));
    fs::copy(PACKAGES.program(), &program).unwrap();
    pack(&program, &dir);
    let sums = |dir: &Path| fs::read_to_string(dir.join("SHA256SUMS")).unwrap();
    assert_eq!(sums(&dir), sums(PACKAGES.dir()));
}

#[track_caller]
pub(crate) fn unpack(archive: &Path, dir: &Path) {
    Finished::run(Command::new("tar").arg("-xzf").arg(archive).arg("-C").arg(dir)).good();
}
