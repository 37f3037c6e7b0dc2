//! The wheel of the package for tasks in Python: `pip install task-host-guest`.

use std::path::PathBuf;
use std::process::Command;

use super::release::Release;
use crate::setup;

/// Writes `task_host_guest-VERSION-py3-none-any.whl`.
///
/// pip builds it with the build tool that its `pyproject.toml` names, which is installed already.
/// The tool rejects symbolic links, so it gets a copy.
pub(crate) fn pack(release: &Release<'_>) -> anyhow::Result<PathBuf> {
    let stage = release.stage("guest-wheel")?;
    stage.copy_all(&release.project.root.join("guest-python"), "package")?;
    let python = setup::packing_tools(release.project)?.join("bin/python");
    let mut pack = Command::new(python);
    pack.args(["-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]);
    pack.args(["--no-deps", "--no-build-isolation", "--wheel-dir"]).arg(release.dir);
    pack.arg(stage.dir().join("package"));
    release.made(&format!("task_host_guest-{}-py3-none-any.whl", release.version), &mut pack)
}
