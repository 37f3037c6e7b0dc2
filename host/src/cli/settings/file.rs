//! `host.toml`: each key is the name of a setting, except for the tables for tasks and for `host
//! fleet`.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use task_host::environment;

use super::super::exit_code::Advice;
use super::fleet::{FLEET, FleetTable};
use super::tables::{self, TASKS, Tables};
use super::{DECLARED, Given, Origin, name, nearest, text_of};

/// The file that is read if none is named.
const DEFAULT: &str = "host.toml";

/// The contents of a file.
#[derive(Debug, Default)]
pub(super) struct File {
    /// Settings of the host.
    pub(super) given: BTreeMap<&'static str, Given>,
    /// Settings for the tasks of each name.
    pub(super) tables: Tables,
    /// Options of `host fleet`.
    pub(super) fleet: FleetTable,
    /// Whether there is a file.
    pub(super) is_there: bool,
}

/// Parses the contents of a file from the value of a variable.
pub(super) fn of_text(variable: &str, text: &str) -> anyhow::Result<File> {
    Ok(parse(Path::new(variable), text)?)
}

/// Reads the named file, or `host.toml` in the current directory if it exists. `named` is the path
/// and the flag or variable that named it.
pub(super) fn read(named: Option<(PathBuf, &str)>) -> anyhow::Result<File> {
    let (path, by) = match named {
        Some((path, by)) => (path, Some(by)),
        None => (PathBuf::from(DEFAULT), None),
    };
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(parse(&path, &text)?),
        Err(error) if by.is_none() && is_missing(&path, &error) => Ok(File::default()),
        Err(error) => {
            let by = by.map_or(String::new(), |by| format!("{by}: "));
            Err(Advice::usage(format!("{by}{} can't be read: {error}", path.display())).into())
        }
    }
}

/// Reads `host.toml` in the user's configuration directory, if it exists and is readable.
pub(super) fn read_users() -> anyhow::Result<File> {
    use io::ErrorKind::{NotADirectory, PermissionDenied};
    let Some(path) = environment::config_dir().map(|dir| dir.join(DEFAULT)) else {
        return Ok(File::default());
    };
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(parse(&path, &text)?),
        Err(error) if is_missing(&path, &error) => Ok(File::default()),
        Err(error) if matches!(error.kind(), NotADirectory | PermissionDenied) => {
            Ok(File::default())
        }
        Err(error) => {
            Err(Advice::usage(format!("{} can't be read: {error}", path.display())).into())
        }
    }
}

/// Whether there is no file. A dangling symbolic link does not count as missing, because its
/// settings are expected.
fn is_missing(path: &Path, error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound && !path.is_symlink()
}

fn parse(path: &Path, text: &str) -> Result<File, Advice> {
    let shown = path.display();
    // Some editors write a byte order mark before the text.
    let text = task_host::message::without_mark(text);
    let table: toml::Table = toml::from_str(text)
        .map_err(|e| Advice::usage(format!("{shown} is not TOML: {}", e.to_string().trim_end())))?;
    let mut file = File { is_there: true, ..File::default() };
    for (key, value) in table {
        if key == TASKS {
            file.tables = tables::parse(path, value)?;
            continue;
        }
        if key == FLEET {
            file.fleet = FleetTable::parse(path, value)?;
            continue;
        }
        let Some(name) = DECLARED.iter().map(name).find(|name| *name == key) else {
            let error = Advice::usage(format!("{shown}: there is no setting `{key}`"));
            return Err(match nearest(&key.replace('_', "-")) {
                _ if value.is_table() => error.hint("did you mean `[tasks.NAME]`?"),
                Some(name) => error.hint(format!("did you mean `{name}`?")),
                None => error.hint("`host config` lists all settings"),
            });
        };
        let text = text_of(&format!("{shown}: {key}"), value)?;
        file.given.insert(name, Given { text, origin: Origin::File(path.to_owned()) });
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, want: Result<&[(&str, &str)], &str>) {
        let got = parse(Path::new("host.toml"), text);
        match want {
            Ok(want) => {
                let got = got.unwrap().given;
                let got: Vec<_> = got.iter().map(|(k, v)| (*k, v.text.as_str())).collect();
                assert_eq!(got, want, "{text}");
            }
            Err(want) => assert_eq!(got.unwrap_err().to_string(), want, "{text}"),
        }
    }

    #[test]
    fn a_file_holds_settings_by_their_flags_names() {
        check("", Ok(&[]));
        check("\u{feff}parallel = 3", Ok(&[("parallel", "3")]));
        check(
            "queue = \"fq://q\"\nparallel = 3\nexit-when-empty = true",
            Ok(&[("exit-when-empty", "true"), ("parallel", "3"), ("queue", "fq://q")]),
        );
    }

    #[test]
    fn a_key_that_means_nothing_is_an_error() {
        check("paralel = 3", Err("host.toml: there is no setting `paralel`"));
        check(
            "[queue]\nurl = 1",
            Err("host.toml: queue: expected a string, a whole number, true or false; \
             found table { url = 1 }"),
        );
    }

    #[test]
    fn the_nearest_key_is_suggested() {
        assert_eq!(nearest("paralel"), Some("parallel"));
        assert_eq!(nearest("max-attempt"), Some("max-attempts"));
        assert_eq!(nearest("xyzzy"), None);
    }
}
