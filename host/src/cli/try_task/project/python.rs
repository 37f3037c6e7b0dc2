//! Builds a project in Python with its package `task_host_guest`.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::super::super::output;

/// A file of every project in Python.
pub(super) const MANIFEST: &str = "pyproject.toml";
/// The packages that the project needs.
const REQUIREMENTS: &str = "requirements.txt";
/// The project's virtual environment.
const ENVIRONMENT: &str = ".venv";

/// Builds the project in `dir`, and returns the file of its component. Creates the virtual
/// environment first if it is missing.
///
/// # Errors
/// If the packages can't be installed, or the project can't be built.
pub(super) fn build(dir: &Path) -> anyhow::Result<PathBuf> {
    let python = Path::new(ENVIRONMENT).join("bin/python");
    if !dir.join(&python).is_file() {
        install(dir, &python)?;
    }
    // With another working directory for the command, it is not specified what a relative path
    // refers to, so the path is absolute.
    let mut build = Command::new(std::path::absolute(dir.join(&python))?);
    build.args(["-m", "task_host_guest"]);
    let hint = format!(
        "if a package is missing: {} -m pip install -r {REQUIREMENTS}; if Python is: remove \
         {ENVIRONMENT}, and it is made again",
        output::path(&python)
    );
    super::printed(build, dir, &hint)
}

/// Creates the virtual environment, and installs the project's packages there.
fn install(dir: &Path, python: &Path) -> anyhow::Result<()> {
    output::note(format_args!(
        "installing {REQUIREMENTS} in {}",
        output::path(dir.join(ENVIRONMENT))
    ));
    let python = std::path::absolute(dir.join(python))?;
    let mut make = Command::new("python3");
    make.args(["-m", "venv", ENVIRONMENT]);
    let mut fill = Command::new(python);
    fill.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
    fill.args(["-r", REQUIREMENTS]);
    for step in [make, fill] {
        let hint = "this needs Python 3.11 or later with its venv module, and a package index once";
        super::install(step, dir, hint).inspect_err(|_| {
            // Otherwise the next run would treat it as complete.
            let _ = std::fs::remove_dir_all(dir.join(ENVIRONMENT));
        })?;
    }
    Ok(())
}
