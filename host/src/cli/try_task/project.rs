//! Builds the project of a component, so that its author can run it with one command.

mod cargo;
mod make;
mod npm;
mod python;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::super::exit_code::Advice;
use super::super::output;

/// Builds the project in a directory, and returns the file of its component.
type Builder = fn(&Path) -> anyhow::Result<PathBuf>;

/// For each language, the file that identifies a project, and its builder.
const BUILDERS: [(&str, Builder); 4] = [
    (cargo::MANIFEST, cargo::build),
    (python::MANIFEST, python::build),
    (npm::MANIFEST, npm::build),
    (make::MANIFEST, make::build),
];

/// Builds the project in `dir`, and returns the file of its component.
///
/// # Errors
/// If the project can't be built, or the build does not produce exactly one component.
pub(super) fn build(dir: &Path) -> anyhow::Result<PathBuf> {
    let found = BUILDERS.iter().find(|(file, _)| dir.join(file).is_file());
    let Some((_, build)) = found else {
        let files = BUILDERS.map(|(file, _)| file).join(" and no ");
        return Err(Advice::usage(format!(
            "{} has no {files}, so it can't be built",
            output::path(dir)
        ))
        .hint("build the component with the tools of its language, and name the .wasm file")
        .into());
    };
    build(dir)
}

/// Runs a command that installs the dependencies of the project in `dir`.
fn install(mut command: Command, dir: &Path, hint: &str) -> anyhow::Result<()> {
    let program = command.get_program().display().to_string();
    // The command's output goes to standard error, because it is not the output of this program.
    let problem = match command.current_dir(dir).stdout(output::of_program()).status() {
        Ok(status) if status.success() => return Ok(()),
        Ok(status) => format!("{command:?} failed: {status}"),
        Err(error) => format!("can't start {program}: {error}"),
    };
    Err(Advice::failed(problem).hint(hint.to_owned()).into())
}

/// Runs a command that builds the project in `dir`. The last line of its output must be the path of
/// the component.
fn printed(mut command: Command, dir: &Path, hint: &str) -> anyhow::Result<PathBuf> {
    let shown = output::path(dir);
    let program = command.get_program().display().to_string();
    let built = command.current_dir(dir).stderr(Stdio::inherit()).output();
    let built = built.map_err(|error| {
        Advice::failed(format!("can't start {program} to build {shown}: {error}"))
            .hint(hint.to_owned())
    })?;
    if !built.status.success() {
        return Err(Advice::failed(format!("{shown} was not built")).hint(hint.to_owned()).into());
    }
    let text = String::from_utf8_lossy(&built.stdout);
    let component = text.lines().next_back().map(|path| dir.join(path));
    match component.filter(|path| path.is_file()) {
        Some(component) => Ok(component),
        None => Err(Advice::failed(format!("the build of {shown} made no component"))
            .hint(format!(
                "the last line that {program} prints has to be the path of the .wasm file"
            ))
            .into()),
    }
}
