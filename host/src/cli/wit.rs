//! `host wit`: prints or writes the interface between host and task, for the tools of any language.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::exit_code::{Advice, Exit};
use super::output;

/// Options of `host wit`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A task is a component of the world `task-host:guest/task`, or `task-with-plan` if it names its own
inputs. Tools that make bindings read DIR with the option for a WIT directory, and the world's name.

Examples:
  host wit
  host wit --out wit
  wit-bindgen c wit --world task --out-dir bindings
  componentize-py --wit-path wit --world task componentize app --output app.wasm")]
pub(crate) struct Wit {
    /// Directory for the world and the packages of WASI 0.2; files of an earlier version there are
    /// replaced
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// The world and its documentation.
pub(crate) const TASK: &str = include_str!("../../wit/task.wit");

/// The packages of WASI 0.2 that a guest may import: paths in a project, and contents. They are
/// copied from wasmtime-wasi 48 (Apache-2.0 WITH LLVM-exception). They refer to each other, so all
/// of them are needed.
pub(crate) const WASI: [(&str, &str); 6] = [
    ("wit/deps/cli.wit", include_str!("../../wasi/cli.wit")),
    ("wit/deps/clocks.wit", include_str!("../../wasi/clocks.wit")),
    ("wit/deps/filesystem.wit", include_str!("../../wasi/filesystem.wit")),
    ("wit/deps/io.wit", include_str!("../../wasi/io.wit")),
    ("wit/deps/random.wit", include_str!("../../wasi/random.wit")),
    ("wit/deps/sockets.wit", include_str!("../../wasi/sockets.wit")),
];

impl Wit {
    pub(crate) fn run(self) -> anyhow::Result<Exit> {
        let Some(dir) = &self.out else {
            output::out().write_all(TASK.as_bytes())?;
            return Ok(Exit::Done);
        };
        write(&dir.join("task.wit"), TASK)?;
        for (path, text) in WASI {
            write(&dir.join(path.trim_start_matches("wit/")), text)?;
        }
        output::note(format_args!("wrote the world task-host:guest/task to {}", output::path(dir)));
        Ok(Exit::Done)
    }
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let written =
        path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(path, text));
    Ok(written
        .map_err(|error| Advice::failed(format!("can't write {}: {error}", output::path(path))))?)
}

#[cfg(test)]
mod tests {
    use wit_parser::Resolve;

    use super::*;

    #[test]
    fn tools_can_read_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("new/wit");
        // The second time, the files exist.
        for _ in 0..2 {
            Wit { out: Some(out.clone()) }.run().unwrap();
        }
        let mut resolve = Resolve::default();
        let (package, _) = resolve.push_dir(&out).unwrap();
        resolve.select_world(&[package], Some("task")).unwrap();
        let mut packages: Vec<String> =
            resolve.packages.iter().map(|(_, package)| package.name.to_string()).collect();
        packages.sort();
        assert_eq!(packages.len(), 1 + WASI.len(), "{packages:?}");
    }

    #[test]
    fn a_file_in_the_place_of_the_directory_stays() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(Wit { out: Some(file.path().to_owned()) }.run().is_err());
    }
}
