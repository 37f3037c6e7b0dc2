//! Programs for the other processor, in an emulator. Only a release has them.

use std::process::Command;

use task_host_tests::{Finished, Place};

use crate::archive::unpack;
use crate::packed::{PACKAGES, VERSION};

#[test]
#[ignore = "only a release has a program for arm64: `cargo xtask dist --check` runs this"]
fn the_program_for_arm64_starts() {
    let place = Place::new();
    unpack(&PACKAGES.file("task-host-v", "aarch64-unknown-linux-musl.tar.gz"), place.path());
    let name = format!("task-host-v{VERSION}-aarch64-unknown-linux-musl");
    let program = place.path().join(name).join("host");
    let mut emulator = Command::new("qemu-aarch64-static");
    let version = Finished::run(emulator.arg(&program).arg("--version")).good();
    assert!(version.stdout.contains(VERSION), "{}", version.stdout);
}
