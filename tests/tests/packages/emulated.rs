//! Packages for arm64 on another machine. The kernel starts an emulator for each arm64 program.

use task_host_tests::{Finished, Place};

use crate::archive::unpack;
use crate::packed::{ARM, PACKAGES, VERSION};
use crate::{first_result, image, in_place, shared, system};

#[test]
#[ignore = "only a release has a program for arm64: `cargo xtask dist --check` runs this"]
fn the_program_for_arm64_does_a_task() {
    let place = Place::new();
    let (archive, dir) = PACKAGES.archive(ARM);
    unpack(&archive, place.path());
    let program = place.path().join(dir).join("host");
    let host = |args: &[&str]| in_place(&place, &program, args);
    let version = Finished::run(&mut host(&["--version"])).good();
    assert!(version.stdout.contains(VERSION), "{}", version.stdout);
    first_result(&place, host);
    let checked = Finished::run(&mut host(&["doctor", "--fq", "./queue"])).good();
    println!("{}{}", version.stdout, checked.stdout);
}

#[test]
#[ignore = "only a release has a program for arm64: `cargo xtask dist --check` runs this"]
fn a_container_for_arm64_with_no_rights_does_a_task() {
    let place = shared();
    first_result(&place, |args| image::run_for(ARM, &place, &["--rm"], args));
}

#[test]
#[ignore = "only a release has packages for arm64: `cargo xtask dist --check` runs this"]
fn a_debian_system_for_arm64_installs_the_package_and_the_wheel() {
    system::installs_package_and_wheel(ARM);
}
