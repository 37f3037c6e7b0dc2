//! Builds static programs, also for other processors than this machine's.

use std::env;
use std::path::PathBuf;

use anyhow::Context;

use super::release::metadata;
use super::target::Target;
use crate::command::run;
use crate::project::Project;
use crate::setup;

/// Builds the host for a processor, and returns its path.
///
/// Zig compiles the C code of dependencies and links the program. Zig contains all that is needed
/// for both processors; otherwise each needs its own musl and GCC.
pub(crate) fn build(project: &Project, target: Target, commit: &str) -> anyhow::Result<PathBuf> {
    setup::standard_library(project, target.rust())?;
    let zig = setup::zig(project)?;
    let mut path = vec![zig];
    path.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));

    let names =
        [(cargo_home()?.join("registry/src"), "registry"), (build_directory(project)?, "target")];
    let renamed = |flag: &str| {
        let rename = |(from, to): &(PathBuf, &str)| format!("{flag}={}={to}", from.display());
        names.iter().map(rename).collect::<Vec<_>>()
    };
    let c_flags = renamed("-ffile-prefix-map").join(" ");
    let underscored = target.rust().replace('-', "_");
    let mut cargo = project.cargo();
    cargo
        .args(["zigbuild", "--profile", "dist", "--locked", "-p", "task-host", "--bin", "host"])
        .args(["--target", target.rust()])
        .env("PATH", env::join_paths(path)?)
        .env("TASK_HOST_COMMIT", commit)
        // Error messages contain the paths of source files. Renaming these paths gives the same
        // program on all machines.
        .env("CARGO_ENCODED_RUSTFLAGS", renamed("--remap-path-prefix").join("\x1f"))
        .env(format!("CFLAGS_{underscored}"), &c_flags)
        .env(format!("CXXFLAGS_{underscored}"), &c_flags);
    run(&mut cargo)?;
    Ok(project.target.join(target.rust()).join("dist/host"))
}

fn cargo_home() -> anyhow::Result<PathBuf> {
    let home = || Some(PathBuf::from(env::var_os("HOME")?).join(".cargo"));
    env::var_os("CARGO_HOME").map(PathBuf::from).or_else(home).context("HOME is not set")
}

/// The directory in which Cargo keeps generated sources.
fn build_directory(project: &Project) -> anyhow::Result<PathBuf> {
    let metadata = metadata(project, &["--no-deps"])?;
    let directory = metadata["build_directory"].as_str().context("cargo metadata")?;
    Ok(directory.into())
}
