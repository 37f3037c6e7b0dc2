//! The archive with the program, for everybody and for `cargo binstall`.

use std::path::PathBuf;

use super::release::{Program, Release};
use super::stage::gzip;

/// Writes `task-host-vVERSION-TARGET.tar.gz`. The names in `[package.metadata.binstall]` of
/// `host/Cargo.toml` are these.
pub(crate) fn pack(release: &Release<'_>, program: &Program) -> anyhow::Result<PathBuf> {
    let name = format!("task-host-v{}-{}", release.version, program.target.rust());
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
