//! The wheel, in a fresh virtual environment.

use std::process::Command;

use task_host_tests::{Finished, Place};

use crate::packed::{HERE, PACKAGES, VERSION};
use crate::{first_result, in_place};

#[test]
fn pip_installs_the_program_and_takes_it_away() {
    let place = Place::new();
    let environment = place.path().join("environment");
    let mut venv = Command::new("python3");
    Finished::run(venv.args(["-m", "venv"]).arg(&environment)).good();
    let bin = environment.join("bin");
    let pip = |args: &[&str]| {
        let quiet = ["--disable-pip-version-check", "--quiet"];
        Finished::run(&mut in_place(&place, &bin.join("pip"), &[args, &quiet].concat())).good();
    };
    let wheel = PACKAGES.wheel(HERE);
    pip(&["install", "--no-index", wheel.to_str().unwrap()]);
    let host = bin.join("host");
    let version = Finished::run(&mut in_place(&place, &host, &["--version"])).good();
    assert!(version.stdout.contains(VERSION), "{}", version.stdout);
    first_result(&place, |args| in_place(&place, &host, args));

    pip(&["uninstall", "--yes", "task-host"]);
    assert!(!host.exists());
}
