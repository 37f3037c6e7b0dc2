//! `cargo xtask check-macos`: compiles the host for macOS, without linking it.
//!
//! Zig replaces the C compiler of macOS. Linking needs Apple's SDK, and running needs a Mac: the
//! workflow `macos` does both.

use std::env;
use std::process::Command;

use crate::command::run;
use crate::project::Project;
use crate::setup;

/// The target of Macs with Apple processors.
const TARGET: &str = "aarch64-apple-darwin";

pub(crate) fn check(project: &Project) -> anyhow::Result<()> {
    setup::standard_library(project, TARGET)?;
    let tools = setup::zig(project)?;
    let mut path = vec![tools.clone()];
    path.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    // `cargo zigbuild` has only the command `build`; the program `cargo-zigbuild` has more.
    run(Command::new(tools.join("cargo-zigbuild"))
        .current_dir(&project.root)
        .env("PATH", env::join_paths(path)?)
        .args(["clippy", "--locked", "-p", "task-host", "--bin", "host"])
        .args(["--target", TARGET, "--", "-D", "warnings"]))
}
