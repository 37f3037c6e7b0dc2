//! The archive with the program, for any Linux and for `cargo binstall`.

use std::path::{Path, PathBuf};

use super::release::{Program, Release};
use super::stage::gzip;
use super::target::Target;

/// Writes `task-host-vVERSION-TARGET.tar.gz`. Keep the name equal to the one in
/// `[package.metadata.binstall]` of `host/Cargo.toml`.
pub(crate) fn pack(release: &Release<'_>, program: &Program) -> anyhow::Result<PathBuf> {
    let name = name(&release.version, program.target);
    let stage = release.stage("archive")?;
    stage.copy(&program.file, &format!("{name}/host"), 0o755)?;
    release.documents(&stage, &name, program)?;
    stage.copy_all(&release.project.root.join("deploy"), &format!("{name}/deploy"))?;
    let tar = stage.dir().join("archive.tar");
    stage.tar(&[&name], &tar)?;
    let archive = release.dir.join(format!("{name}.tar.gz"));
    gzip(&tar, &archive)?;
    Ok(archive)
}

/// The archive for `target` that an earlier run left in the directory.
pub(crate) fn file(dir: &Path, target: Target) -> Option<PathBuf> {
    let name = name(env!("CARGO_PKG_VERSION"), target);
    Some(dir.join(format!("{name}.tar.gz"))).filter(|file| file.is_file())
}

fn name(version: &str, target: Target) -> String {
    format!("task-host-v{version}-{}", target.rust())
}
