//! The wheel, in a fresh virtual environment.

use std::path::Path;
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
    sends_tasks(&place, &bin.join("python"));

    pip(&["uninstall", "--yes", "task-host"]);
    assert!(!host.exists());
}

/// Checks that the module sends the tasks of a generator, and reports errors.
fn sends_tasks(place: &Place, python: &Path) {
    let program = r#"
import sys
from task_host import Refused, SubmitError, Task, submit

def tasks(n):
    for id in range(n):
        yield Task("NO_OP", "data", [f"{id}.dat"], {"text": "größe"}, id)

def breaks_off():
    yield from tasks(1000)
    raise KeyError("mine")

sent = submit(tasks(20_000), queue="./sent", options=["--progress", "never"])
assert (sent.queue, sent.sent, sent.refused) == ("fq://./sent", 20_000, 0), sent
try:
    submit([*tasks(1), {"no": "task"}], queue="./sent")
    sys.exit("no error")
except Refused as error:
    assert (error.code, error.sent.sent, error.sent.refused) == (3, 1, 1), error.sent
for given, wanted in [
    (breaks_off(), KeyError),
    ([Task("NO_OP", "data", payload=float("nan"))], ValueError),
]:
    try:
        submit(given, queue="./none", options=["--all-or-nothing"])
        sys.exit("no error")
    except wanted:
        pass
try:
    submit(tasks(100_000), queue="nowhere://queue")
    sys.exit("no error")
except SubmitError as error:
    assert error.code == 2, error
"#;
    let sent = Finished::run(&mut in_place(place, python, &["-c", program])).good();
    assert!(sent.stderr.contains("has neither `basic_info`"), "{}", sent.stderr);
    assert!(sent.stderr.contains("is not the URL of a queue"), "{}", sent.stderr);
    assert_eq!(place.messages("sent").len(), 20_001);
    assert_eq!(place.messages("sent")[0]["payload_info"]["text"], "größe");
    assert!(!place.path().join("none").exists());
}
