//! Builds a project in Rust with Cargo.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;

use super::super::super::exit_code::Advice;
use super::super::super::output;

/// A file of every project in Rust.
pub(super) const MANIFEST: &str = "Cargo.toml";
/// The target of components in Rust.
const TARGET: &str = "wasm32-wasip2";

/// The fields of a message of Cargo that tell which files were built.
#[derive(Deserialize)]
struct Message {
    reason: String,
    #[serde(default)]
    filenames: Vec<PathBuf>,
    #[serde(default)]
    manifest_path: PathBuf,
}

/// Builds the project in `dir`, and returns the file of its component.
///
/// # Errors
/// If the project can't be built, or the build does not produce exactly one component.
pub(super) fn build(dir: &Path) -> anyhow::Result<PathBuf> {
    let manifest = dir.join(MANIFEST);
    let shown = output::path(dir);
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--release", "--target", TARGET]).current_dir(dir);
    // Errors and progress go to the terminal. Messages as JSON go to the pipe.
    cargo.args(["--message-format", "json-render-diagnostics"]).stdout(Stdio::piped());
    let mut building = cargo.spawn().map_err(|error| {
        Advice::failed(format!("can't start cargo to build {shown}: {error}"))
            .hint("install Rust, or build the component elsewhere and name its file")
    })?;
    let mut made = Vec::new();
    let own = manifest.canonicalize()?;
    if let Some(messages) = building.stdout.take() {
        for line in BufReader::new(messages).lines() {
            let Ok(message) = serde_json::from_str::<Message>(&line?) else { continue };
            if message.reason == "compiler-artifact" && message.manifest_path == own {
                let is_wasm =
                    |file: &PathBuf| file.extension().is_some_and(|ending| ending == "wasm");
                made.extend(message.filenames.into_iter().filter(is_wasm));
            }
        }
    }
    if !building.wait()?.success() {
        return Err(Advice::failed(format!("{shown} was not built"))
            .hint(format!("once per machine: rustup target add {TARGET}"))
            .into());
    }
    match made.len() {
        1 => Ok(made.remove(0)),
        0 => Err(Advice::failed(format!("the build of {shown} made no component"))
            .hint("in Rust a task is a library with crate-type = [\"cdylib\"], see `host new`")
            .into()),
        _ => {
            let made: Vec<String> = made.iter().map(output::path).collect();
            Err(Advice::usage(format!("the build of {shown} made several components"))
                .hint(format!("name one: {}", made.join(", ")))
                .into())
        }
    }
}
