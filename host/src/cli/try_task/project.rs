//! Builds the project of a component, so that its author can run it with one command.

mod cargo;
mod python;

use std::path::{Path, PathBuf};

use super::super::exit_code::Advice;

/// How to build a project in a directory.
type Builder = fn(&Path) -> anyhow::Result<PathBuf>;

/// The file that tells the language of a project, and its builder.
const BUILDERS: [(&str, Builder); 2] =
    [(cargo::MANIFEST, cargo::build), (python::MANIFEST, python::build)];

/// Builds the project in `dir`, and returns the file of its component.
///
/// # Errors
/// When the project can't be built, or makes no component or several.
pub(super) fn build(dir: &Path) -> anyhow::Result<PathBuf> {
    let found = BUILDERS.iter().find(|(file, _)| dir.join(file).is_file());
    let Some((_, build)) = found else {
        let files = BUILDERS.map(|(file, _)| file).join(" and no ");
        return Err(Advice::usage(format!(
            "{} has no {files}, so it can't be built",
            dir.display()
        ))
        .hint("build the component with the tools of its language, and name the .wasm file")
        .into());
    };
    build(dir)
}
