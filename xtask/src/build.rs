//! Builds the host, the guests and the tests.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use serde_json::Value;

use crate::command::{capture, run};
use crate::project::Project;
use crate::setup;

/// How the host is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Profile {
    /// Quickly, for tests.
    Dev,
    /// Optimized, for users.
    Release,
}

/// Builds `host`, and returns the path of the program.
///
/// The two profiles build different selections of packages, because Cargo unifies the features of
/// dependencies over a selection: in one profile, `--workspace` with tests and `-p task-host` would
/// compile wasmtime twice.
pub(crate) fn host(project: &Project, profile: Profile) -> anyhow::Result<PathBuf> {
    let mut cargo = project.cargo();
    match profile {
        Profile::Dev => cargo.args(["build", "--workspace", "--bins", "--tests"]),
        Profile::Release => cargo.args(["build", "--release", "-p", "task-host"]),
    };
    run(&mut cargo)?;
    Ok(profile.host(project))
}

/// Builds `host` with fault points, for tests: `target/fault-points/host`.
///
/// Compiles only the host's own crate again. The selected packages and the test file give all
/// dependencies the same features as in the build of the tests.
pub(crate) fn host_with_fault_points(project: &Project) -> anyhow::Result<()> {
    let mut cargo = project.cargo();
    cargo.args(["build", "--workspace", "--bin", "host", "--test", "style"]);
    run(cargo.args(FAULT_POINTS))?;
    let directory = project.target.join("fault-points");
    fs::create_dir_all(&directory)?;
    // A test may be running the old program, so the new one gets another inode.
    let (built, new) = (Profile::Dev.host(project), directory.join("host.new"));
    fs::copy(&built, &new).with_context(|| format!("{}", built.display()))?;
    fs::rename(&new, directory.join("host"))?;
    // Builds the ordinary program again, which replaces this one in its place.
    host(project, Profile::Dev).map(drop)
}

/// Cargo's arguments for fault points. Releases have no fault points.
pub(crate) const FAULT_POINTS: [&str; 2] = ["--features", "task-host/fault-points"];

/// Builds a benchmark of `host/benches`, and returns its path.
pub(crate) fn bench(project: &Project, name: &str) -> anyhow::Result<PathBuf> {
    let mut cargo = project.cargo();
    run(cargo.args(["build", "--release", "-p", "task-host", "--bench", name]))?;
    // The second run prints the path, because Cargo's messages are either for people or for
    // programs.
    let messages = capture(cargo.args(["--quiet", "--message-format=json"]))?;
    let mut path = messages.lines().filter_map(|message| {
        let message: Value = serde_json::from_str(message).ok()?;
        let is_bench = message["target"]["kind"][0] == "bench";
        is_bench.then(|| message["executable"].as_str().map(PathBuf::from))?
    });
    path.next_back().with_context(|| format!("Cargo did not build the benchmark {name}"))
}

impl Profile {
    /// The path at which the build leaves `host`.
    pub(crate) fn host(self, project: &Project) -> PathBuf {
        let directory = match self {
            Self::Dev => "debug",
            Self::Release => "release",
        };
        project.target.join(directory).join("host")
    }
}

/// A test program that Cargo built.
pub(crate) struct TestProgram {
    /// The name of the library, program or test file.
    pub(crate) name: String,
    kind: String,
    executable: PathBuf,
}

impl TestProgram {
    /// Whether this contains the unit tests of a program, not those of a library or a test file.
    pub(crate) fn is_bin(&self) -> bool {
        self.kind == "bin"
    }

    /// Cargo's arguments that select this program. Unit tests are not selected individually.
    pub(crate) fn target(&self) -> Vec<String> {
        match &*self.kind {
            "bin" => vec!["--bins".to_owned()],
            "test" => vec!["--test".to_owned(), self.name.clone()],
            _ => vec!["--lib".to_owned()],
        }
    }

    /// The names of its tests that contain `filter`.
    pub(crate) fn tests(&self, filter: Option<&str>) -> anyhow::Result<Vec<String>> {
        let mut list = Command::new(&self.executable);
        let listed = capture(list.args(["--list", "--format", "terse"]).args(filter))?;
        let names = listed.lines().filter_map(|line| line.strip_suffix(": test"));
        Ok(names.map(str::to_owned).collect())
    }
}

/// Builds all tests and the programs that they run. Returns the test programs.
pub(crate) fn tests(project: &Project) -> anyhow::Result<Vec<TestProgram>> {
    // Cargo runs twice, because its messages are either for people or for programs.
    host(project, Profile::Dev)?;
    let messages = capture(project.cargo().args([
        "build",
        "--quiet",
        "--workspace",
        "--bins",
        "--tests",
        "--message-format=json",
    ]))?;
    let mut programs = Vec::new();
    for message in messages.lines() {
        let message: Value = serde_json::from_str(message).context("a message of cargo")?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        if let (Some(true), Some(executable), Some(name), Some(kind)) = (
            message["profile"]["test"].as_bool(),
            message["executable"].as_str(),
            text(&message["target"]["name"]),
            text(&message["target"]["kind"][0]),
        ) {
            programs.push(TestProgram { name, kind, executable: executable.into() });
        }
    }
    Ok(programs)
}

/// Builds the guests of examples and tests as `target/guests/NAME.wasm`, and returns the paths.
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
            let to = directory.join(&name);
            put(&built.join(&name), &to)?;
            Ok(to)
        })
        .collect()
}

/// Builds the test program for WASI 0.2 and for preview 1: `target/guests/rust_program.wasm` and
/// `rust_program_preview1.wasm`.
pub(crate) fn programs(project: &Project) -> anyhow::Result<()> {
    setup::standard_library(project, setup::PREVIEW1)?;
    let mut cargo = project.cargo();
    cargo.args(["build", "--release", "-p", "rust-program"]);
    let targets = [("wasm32-wasip2", ""), (setup::PREVIEW1, "_preview1")];
    for (target, _) in targets {
        cargo.args(["--target", target]);
    }
    run(&mut cargo)?;
    for (target, end) in targets {
        let built = project.target.join(target).join("release/rust_program.wasm");
        put(&built, &project.target.join(format!("guests/rust_program{end}.wasm")))?;
    }
    Ok(())
}

/// Copies a file into place by renaming it, because a running test may read the old file. The name
/// of the copy contains the process id, because another xtask may do the same at this moment.
fn put(from: &Path, to: &Path) -> anyhow::Result<()> {
    let new = to.with_extension(format!("wasm.{}", std::process::id()));
    fs::copy(from, &new).with_context(|| format!("{} was not built", from.display()))?;
    Ok(fs::rename(&new, to)?)
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
