//! Checks that the published crates build from their packages alone.
//!
//! `cargo package` would verify each crate with its own features of dependencies, and so compile
//! wasmtime and the AWS SDK again. Instead, this module unpacks the packages into a copy of the
//! workspace, in place of their directories. The features are then those of `cargo clippy`, which
//! has checked the dependencies already.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

use crate::command::run;
use crate::project::Project;

/// Each published package and its directory in the copy. The host's directory is one level deeper,
/// so that the host cannot find files beside `host` that are not packaged.
const PUBLISHED: [(&str, &str); 2] = [("task-host-sdk", "guest-sdk"), ("task-host", "packed/host")];

/// Packages, unpacks and checks the crates.
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
        // All files in a package are dated 2006, so Cargo would reuse the check of an earlier
        // package. `-m` sets the current time instead.
        run(Command::new("tar")
            .args(["--strip-components=1", "-mxzf"])
            .arg(&package)
            .arg("-C")
            .arg(&directory))?;
        for file in ["LICENSE-APACHE", "LICENSE-MIT", "wit/task.wit"] {
            let same =
                fs::read(directory.join(file)).ok() == fs::read(project.root.join(file)).ok();
            ensure!(same, "{}: {file} differs from the repository's", package.display());
        }
    }
    for directory in ["guest-examples", "tests", "xtask", "fuzz/src", "fuzz/tests"] {
        link(&project.root.join(directory), &copy.join(directory))?;
    }
    fs::copy(project.root.join("Cargo.lock"), copy.join("Cargo.lock"))?;
    for manifest in ["Cargo.toml", "fuzz/Cargo.toml"] {
        let text = fs::read_to_string(project.root.join(manifest))?;
        let text = text.replace("\"host\"", "\"packed/host\"");
        fs::write(copy.join(manifest), text.replace("\"../host\"", "\"../packed/host\""))?;
    }
    // A test file makes Cargo enable the features that tests need, as in the run of clippy.
    let check = ["check", "--locked", "--workspace", "--lib", "--bins", "--test", "style"];
    run(project.cargo().current_dir(&copy).args(check))
        .context("a crate does not build from its package alone")
}

fn link(to: &Path, at: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(at.parent().context("a path in the copy")?)?;
    symlink(to, at).with_context(|| format!("cannot create {}", at.display()))
}
