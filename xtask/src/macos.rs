//! `cargo xtask check-macos`: compiles the host for macOS, without linking it.
//!
//! Zig stands in for the C compiler of macOS. Linking needs Apple's SDK, and running a Mac: the
//! workflow `macos` does both.

use std::env;
use std::process::Command;

use crate::command::run;
use crate::project::Project;
use crate::setup;

/// The processor of today's Macs.
const TARGET: &str = "aarch64-apple-darwin";

pub(crate) fn check(project: &Project) -> anyhow::Result<()> {
    setup::standard_library(project, TARGET)?;
    let tools = setup::zig(project)?;
    let mut path = vec![tools.clone()];
    path.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    // `cargo zigbuild` knows only one command, and the program of that name more.
    run(Command::new(tools.join("cargo-zigbuild"))
        .current_dir(&project.root)
        .env("PATH", env::join_paths(path)?)
        .args(["clippy", "--locked", "-p", "task-host", "--bin", "host"])
        .args(["--target", TARGET, "--", "-D", "warnings"]))
}
