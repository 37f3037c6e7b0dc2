//! Builds a project with `make`, such as one in C.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A file of every such project.
pub(super) const MANIFEST: &str = "Makefile";

/// Builds the project in `dir`, and returns the file of its component.
///
/// # Errors
/// If the project can't be built.
pub(super) fn build(dir: &Path) -> anyhow::Result<PathBuf> {
    let mut make = Command::new("make");
    make.arg("--silent");
    super::printed(
        make,
        dir,
        "the project's README.md says what it needs (in C: make, clang, lld, and the C library of WASI)",
    )
}
