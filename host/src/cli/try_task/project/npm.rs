//! Builds a project in JavaScript with npm.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::super::super::exit_code::Advice;
use super::super::super::output;

/// A file of every project in JavaScript.
pub(super) const MANIFEST: &str = "package.json";
/// Where npm installs the packages that the project needs.
const PACKAGES: &str = "node_modules";

/// Builds the project in `dir`, and returns the file of its component. Installs its packages if
/// they are not there.
///
/// # Errors
/// When the packages can't be installed, or the project can't be built.
pub(super) fn build(dir: &Path) -> anyhow::Result<PathBuf> {
    if !dir.join(PACKAGES).is_dir() {
        install(dir)?;
    }
    let mut npm = Command::new("npm");
    npm.args(["run", "--silent", "build"]);
    super::printed(npm, dir, "if a package is missing: npm install")
}

fn install(dir: &Path) -> anyhow::Result<()> {
    output::tell(format_args!("installing {MANIFEST} in {}", dir.join(PACKAGES).display()));
    let mut npm = Command::new("npm");
    npm.args(["install", "--no-audit", "--no-fund", "--loglevel", "error"]).current_dir(dir);
    // What it prints is not this command's output.
    let problem = match npm.stdout(output::of_program()).status() {
        Ok(status) if status.success() => return Ok(()),
        Ok(status) => format!("npm install failed: {status}"),
        Err(error) => format!("can't start npm: {error}"),
    };
    Err(Advice::failed(problem)
        .hint("this needs Node.js 20 or later with npm, and its registry once")
        .into())
}
