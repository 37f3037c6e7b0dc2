//! Builds a project in Python with its package `task_host_guest`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::super::super::exit_code::Advice;
use super::super::super::output;

/// A file of every project in Python.
pub(super) const MANIFEST: &str = "pyproject.toml";
/// The packages that the project needs.
const REQUIREMENTS: &str = "requirements.txt";
/// The project's virtual environment.
const ENVIRONMENT: &str = ".venv";

/// Builds the project in `dir`, and returns the file of its component. Makes the virtual environment
/// if there is none.
///
/// # Errors
/// When the packages can't be installed, or the project can't be built.
pub(super) fn build(dir: &Path) -> anyhow::Result<PathBuf> {
    let python = Path::new(ENVIRONMENT).join("bin/python");
    let shown = dir.display();
    if !dir.join(&python).is_file() {
        install(dir, &python)?;
    }
    // A path with a directory is relative to the directory of this process.
    let mut build = Command::new(std::path::absolute(dir.join(&python))?);
    build.args(["-m", "task_host_guest"]).current_dir(dir).stderr(Stdio::inherit());
    let built = build.output().map_err(|error| {
        Advice::failed(format!("can't start {}: {error}", dir.join(&python).display()))
            .hint(format!("remove {}, and it is made again", dir.join(ENVIRONMENT).display()))
    })?;
    if !built.status.success() {
        return Err(Advice::failed(format!("{shown} was not built"))
            .hint(format!(
                "if a package is missing: {} -m pip install -r {REQUIREMENTS}",
                python.display()
            ))
            .into());
    }
    let printed = String::from_utf8_lossy(&built.stdout);
    let component = printed.lines().next_back().unwrap_or_default();
    Ok(dir.join(component))
}

/// Makes the virtual environment and installs the project's packages there.
fn install(dir: &Path, python: &Path) -> anyhow::Result<()> {
    output::tell(format_args!("installing {REQUIREMENTS} in {}", dir.join(ENVIRONMENT).display()));
    let python = std::path::absolute(dir.join(python))?;
    let mut make = Command::new("python3");
    make.args(["-m", "venv", ENVIRONMENT]);
    let mut fill = Command::new(python);
    fill.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
    fill.args(["-r", REQUIREMENTS]);
    for mut step in [make, fill] {
        // What it prints is not this command's output.
        let done = step.current_dir(dir).stdout(output::of_program()).status();
        let problem = match done {
            Ok(status) if status.success() => continue,
            Ok(status) => format!("{step:?} failed: {status}"),
            Err(error) => format!("can't start {}: {error}", step.get_program().display()),
        };
        // Otherwise the next run would take it for complete.
        let _ = std::fs::remove_dir_all(dir.join(ENVIRONMENT));
        return Err(Advice::failed(problem)
            .hint("this needs Python 3.11 or later with its venv module, and a package index once")
            .into());
    }
    Ok(())
}
