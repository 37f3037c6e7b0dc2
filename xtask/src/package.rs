//! The crates that are published build from their packages alone.
//!
//! `cargo package` would verify each with features of dependencies that no other build of this
//! workspace has, and so compile wasmtime and the AWS SDK again. Instead, the packages are unpacked
//! into a copy of the workspace, in which they take the places of their directories: the features
//! are those of `cargo clippy`, which has checked the dependencies already.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

use crate::command::run;
use crate::project::Project;

/// The package, and where it is unpacked. In the place of `host`, files beside it that are not
/// packaged would be found: so it goes one level deeper.
const PUBLISHED: [(&str, &str); 2] = [("task-host-sdk", "guest-sdk"), ("task-host", "packed/host")];

/// Packages, unpacks and checks them.
pub(crate) fn check(project: &Project) -> anyhow::Result<()> {
    let copy = project.target.join("packaged");
    if copy.exists() {
        fs::remove_dir_all(&copy).with_context(|| format!("{}", copy.display()))?;
    }
    fs::create_dir_all(&copy)?;
    for (name, directory) in PUBLISHED {
        let quiet = ["package", "--quiet", "--offline", "--no-verify", "--allow-dirty", "-p", name];
        run(project.cargo().args(quiet))?;
        let version = env!("CARGO_PKG_VERSION");
        let package = project.target.join(format!("package/{name}-{version}.crate"));
        let directory = copy.join(directory);
        fs::create_dir_all(&directory)?;
        // Every file in a package is from 2006; cargo would take the check of an earlier one for
        // that of this one. `-m` gives the files the time of now.
        run(Command::new("tar")
            .args(["--strip-components=1", "-mxzf"])
            .arg(&package)
            .arg("-C")
            .arg(&directory))?;
        for file in ["LICENSE-APACHE", "LICENSE-MIT", "wit/task.wit"] {
            let same =
                fs::read(directory.join(file)).ok() == fs::read(project.root.join(file)).ok();
            ensure!(same, "{} has not the {file} of the repository", package.display());
        }
    }
    for directory in ["guest-examples", "tests", "xtask"] {
        link(&project.root.join(directory), &copy.join(directory))?;
    }
    fs::copy(project.root.join("Cargo.lock"), copy.join("Cargo.lock"))?;
    let workspace = fs::read_to_string(project.root.join("Cargo.toml"))?;
    fs::write(copy.join("Cargo.toml"), workspace.replace("\"host\"", "\"packed/host\""))?;
    // One file of tests makes cargo count the features that tests want, as clippy did.
    let check = ["check", "--locked", "--workspace", "--lib", "--bins", "--test", "style"];
    run(project.cargo().current_dir(&copy).args(check))
        .context("a crate does not build from its package alone")
}

fn link(to: &Path, at: &Path) -> anyhow::Result<()> {
    symlink(to, at).with_context(|| format!("{} can't be made", at.display()))
}
