//! Installs and uses the packages of `cargo xtask dist` as a user would.
//!
//! The tests pack the host that all other tests run. `cargo xtask dist --check` makes them use the
//! files of a release instead.

mod archive;
mod debian;
mod emulated;
mod image;
mod packed;
mod system;
mod wheel;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use task_host_tests::{Finished, Place, guest};

/// Runs a task with an installed program, from its component to its output.
#[track_caller]
fn first_result(place: &Place, host: impl Fn(&[&str]) -> Command) {
    place.put("NO_OP.wasm", fs::read(guest("NO_OP")).expect("a guest"));
    place.put("data/0_input/a.dat", "content");
    let push = ["component", "push", "bucket/NO_OP.wasm", "--name", "NO_OP"];
    let submit = ["submit", "--fq", "./queue", "--name", "NO_OP", "--each", "data/0_input/*.dat"];
    let run = ["run", "--fq", "./queue", "--exit-when-empty"];
    for args in [&push[..], &submit, &run] {
        Finished::run(&mut host(args)).good();
    }
    let output = place.object("data/0_output/a.dat");
    assert_eq!(output.as_deref(), Some(&b"content"[..]), "the output of the task is not right");
}

/// A place to which every user may write.
fn shared() -> Place {
    let place = Place::new();
    for dir in ["", "bucket", "bucket/data", "home", "queue"] {
        let dir = place.path().join(dir);
        fs::create_dir_all(&dir).expect("a directory of a place");
        fs::set_permissions(&dir, Permissions::from_mode(0o777)).expect("the mode of a directory");
    }
    place
}

/// A program that runs in a place, with only PATH and HOME in its environment.
fn in_place(place: &Place, program: &std::path::Path, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(args).current_dir(place.path()).env_clear();
    command.env("HOME", place.path().join("home"));
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command
}
