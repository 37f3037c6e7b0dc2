//! Builds a project in JavaScript with npm.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::super::super::output;

/// A file of every project in JavaScript.
pub(super) const MANIFEST: &str = "package.json";
/// The directory in which npm installs the project's packages.
const PACKAGES: &str = "node_modules";

/// Builds the project in `dir`, and returns the file of its component. Installs its packages first
/// if that directory is missing.
///
/// # Errors
/// If the packages can't be installed, or the project can't be built.
pub(super) fn build(dir: &Path) -> anyhow::Result<PathBuf> {
    if !dir.join(PACKAGES).is_dir() {
        install(dir)?;
    }
    let mut npm = Command::new("npm");
    npm.args(["run", "--silent", "build"]);
    super::printed(npm, dir, "if a package is missing: npm install")
}

fn install(dir: &Path) -> anyhow::Result<()> {
    output::note(format_args!("installing {MANIFEST} in {}", output::path(dir.join(PACKAGES))));
    let mut npm = Command::new("npm");
    npm.args(["install", "--no-audit", "--no-fund", "--loglevel", "error"]);
    super::install(npm, dir, "this needs Node.js 20 or later with npm, and its registry once")
}
