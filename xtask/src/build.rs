//! Building the host and the guests.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, bail};
use serde_json::Value;

use crate::command::{capture, run};
use crate::project::Project;

/// How the host is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Profile {
    /// Quickly, for tests.
    Dev,
    /// As it is meant to be used.
    Release,
}

/// Builds `host`, and returns its path.
///
/// The two profiles build different selections of packages. Cargo decides for a whole
/// selection which features a dependency gets: `--workspace` with its tests and
/// `-p task-host` would be two builds of wasmtime in one profile.
pub(crate) fn host(project: &Project, profile: Profile) -> anyhow::Result<PathBuf> {
    let mut cargo = project.cargo();
    match profile {
        Profile::Dev => cargo.args(["build", "--workspace", "--bins", "--tests"]),
        Profile::Release => cargo.args(["build", "--release", "-p", "task-host"]),
    };
    run(&mut cargo)?;
    Ok(profile.host(project))
}

impl Profile {
    /// Where `host` is when it has been built.
    pub(crate) fn host(self, project: &Project) -> PathBuf {
        let directory = match self {
            Self::Dev => "debug",
            Self::Release => "release",
        };
        project.target.join(directory).join("host")
    }
}

/// Builds all guests, of examples and of tests, and returns their components:
/// `target/guests/NAME.wasm`.
pub(crate) fn guests(project: &Project) -> anyhow::Result<Vec<PathBuf>> {
    let guests = packages(project)?;
    let mut cargo = project.cargo();
    cargo.args(["build", "--release", "--target", "wasm32-wasip2"]);
    for guest in &guests {
        cargo.args(["-p", &guest.package]);
    }
    run(&mut cargo)?;

    let directory = project.target.join("guests");
    fs::create_dir_all(&directory)?;
    let built = project.target.join("wasm32-wasip2/release");
    guests
        .iter()
        .map(|guest| {
            let name = format!("{}.wasm", guest.library);
            let (from, to) = (built.join(&name), directory.join(&name));
            // Renamed into place: a test that is running may be reading the old one.
            let new = directory.join(format!("{name}.new"));
            fs::copy(&from, &new)
                .with_context(|| format!("guest {} left no {}", guest.package, from.display()))?;
            fs::rename(&new, &to)?;
            Ok(to)
        })
        .collect()
}

struct Guest {
    package: String,
    /// The name of the component's file.
    library: String,
}

/// The workspace's packages that are components.
fn packages(project: &Project) -> anyhow::Result<Vec<Guest>> {
    let metadata =
        capture(project.cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: Value = serde_json::from_str(&metadata).context("cargo metadata")?;
    let is_component = |target: &&Value| {
        let kinds = target["kind"].as_array();
        kinds.is_some_and(|kinds| kinds.iter().any(|kind| kind == "cdylib"))
    };
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let guests: Vec<_> = packages
        .iter()
        .filter_map(|package| {
            let target = package["targets"].as_array()?.iter().find(is_component)?;
            Some(Guest {
                package: package["name"].as_str()?.to_owned(),
                library: target["name"].as_str()?.replace('-', "_"),
            })
        })
        .collect();
    if guests.is_empty() {
        bail!("the workspace has no guests (packages whose library is a cdylib)");
    }
    Ok(guests)
}
