//! `host new`: creates a guest project that builds and runs.
//!
//! Each language has a module that lists the files of its project. They are embedded in this
//! binary.

mod c;
mod js;
mod python;
mod rust;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use task_host::shell;

use super::exit_code::{Advice, Exit};
use super::output;

/// Options of `host new`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The project works as it is. `host try DIR` builds it and runs it once; its README says how to
run its tests without WebAssembly.

Examples:
  host new word-count
  host new csv-summary --lang python
  host new word-count --dir tasks/words")]
pub(crate) struct New {
    /// Name of the project and of the tasks that its component runs
    name: String,
    /// Language of the project
    #[arg(long, value_name = "LANGUAGE", value_enum, default_value_t = Lang::Rust)]
    lang: Lang,
    /// Directory to create [default: ./NAME]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Copy the SDK into the project instead of depending on crates.io [always, until the SDK is
    /// published there]
    #[arg(long)]
    offline: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl New {
    pub(crate) fn run(self) -> anyhow::Result<Exit> {
        let dir = self.dir.unwrap_or_else(|| PathBuf::from(&self.name));
        let project = self.lang.project(&self.name, self.offline);
        create(&dir, &self.name, &project).map_err(|error| match error {
            NewError::Name { .. } => Advice::usage(error.to_string()),
            _ => Advice::failed(error.to_string()),
        })?;
        if self.json {
            let dir = dir.display().to_string();
            output::json(&serde_json::json!({"name": self.name, "dir": dir}))?;
            return Ok(Exit::Done);
        }
        writeln!(output::out(), "created {}", output::path(&dir))?;
        output::note(format_args!("build and try it:"));
        let cd = format!("cd {}", shell::word(dir.display()));
        for line in [&*cd].iter().chain(project.steps) {
            output::note(format_args!("  {line}"));
        }
        output::note(format_args!("README.md says how to push the component and to queue a task."));
        Ok(Exit::Done)
    }
}

/// The languages that have a project to start with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Lang {
    /// Counts the words of texts
    Rust,
    /// Summarises the columns of CSV files
    Python,
    /// Summarises the columns of CSV files
    C,
    /// Summarises the columns of CSV files
    Js,
}

/// A project of a language.
struct Project {
    /// Paths in the project, and contents.
    files: Vec<(&'static str, String)>,
    /// Paths and contents of files that are not text.
    objects: &'static [(&'static str, &'static [u8])],
    /// Commands that build the project and run it once, in its directory.
    steps: &'static [&'static str],
    /// Names that a project of this language can't have.
    taken: &'static [&'static str],
}

impl Lang {
    fn project(self, name: &str, offline: bool) -> Project {
        match self {
            Self::Rust => Project {
                files: rust::files(name, rust::Sdk::chosen(offline)),
                objects: &[],
                steps: rust::STEPS,
                taken: rust::TAKEN,
            },
            Self::Python => Project {
                files: python::files(name),
                objects: &[],
                steps: python::STEPS,
                taken: &[],
            },
            Self::C => {
                Project { files: c::files(name), objects: c::OBJECTS, steps: c::STEPS, taken: &[] }
            }
            Self::Js => Project {
                files: js::files(name),
                objects: &[],
                steps: js::STEPS,
                // npm does not accept a package that depends on itself.
                taken: &["componentize-qjs", "node_modules"],
            },
        }
    }
}

/// Why no project was created.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NewError {
    /// The name is not valid for a project.
    #[error("{name:?} can't be the name of a guest: {reason}; {suggestion:?} would do")]
    Name { name: String, reason: &'static str, suggestion: String },
    /// The directory is not empty.
    #[error("{} is not empty; name a new directory with --dir", .0.display())]
    NotEmpty(PathBuf),
    /// A file can't be written.
    #[error("can't write {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// Creates a project called `name` in `dir`, which may exist if it is empty.
///
/// # Errors
/// If `name` can't be the name of a project, `dir` is not empty, or a file can't be written.
fn create(dir: &Path, name: &str, project: &Project) -> Result<(), NewError> {
    check_name(name, project.taken)?;
    check_empty(dir)?;
    for (path, contents) in &project.files {
        write(&dir.join(path), contents.as_bytes())?;
    }
    for (path, contents) in project.objects {
        write(&dir.join(path), contents)?;
    }
    Ok(())
}

fn check_empty(dir: &Path) -> Result<(), NewError> {
    match fs::read_dir(dir) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(NewError::NotEmpty(dir.to_owned())),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(NewError::Io { path: dir.to_owned(), source }),
    }
}

fn write(path: &Path, contents: &[u8]) -> Result<(), NewError> {
    let written =
        path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(path, contents));
    written.map_err(|source| NewError::Io { path: path.to_owned(), source })
}

/// Checks a name by Cargo's rules for packages and crates. They suit the other languages too.
fn check_name(name: &str, taken: &[&str]) -> Result<(), NewError> {
    let reason = if name.is_empty() {
        "it is empty"
    } else if name.len() > 64 {
        "it is longer than 64 characters"
    } else if !name.starts_with(|c: char| c.is_ascii_alphabetic()) {
        "it has to start with a letter"
    } else if name.contains(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_') {
        "it may have only letters, digits, - and _"
    } else if taken.contains(&name) {
        "the language or a dependency of the project has that name"
    } else {
        return Ok(());
    };
    Err(NewError::Name { name: name.to_owned(), reason, suggestion: suggest(name, taken) })
}

/// A name that follows the rules and resembles the given one.
fn suggest(name: &str, taken: &[&str]) -> String {
    let legal: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '_' { c.to_ascii_lowercase() } else { '-' })
        .collect();
    let words: Vec<&str> = legal.split('-').filter(|word| !word.is_empty()).collect();
    let mut suggestion = words.join("-");
    suggestion.truncate(58);
    if suggestion.is_empty() {
        return "my-task".to_owned();
    }
    if taken.contains(&&*suggestion) {
        suggestion.push_str("-task");
    }
    if !suggestion.starts_with(|c: char| c.is_ascii_alphabetic()) {
        suggestion.insert_str(0, "task-");
    }
    suggestion
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn a_project_is_complete_and_has_no_placeholder_left() {
        for lang in Lang::value_variants() {
            let dir = tempfile::tempdir().unwrap();
            let dir = dir.path().join("sub/edge-finder");
            let project = lang.project("edge-finder", true);
            create(&dir, "edge-finder", &project).unwrap();
            for (path, _) in &project.files {
                let text = fs::read_to_string(dir.join(path)).unwrap();
                assert!(!text.contains("{{"), "{path}");
            }
            let readme = fs::read_to_string(dir.join("README.md")).unwrap();
            assert!(readme.contains("edge_finder.wasm --name edge-finder"), "{readme}");
            for step in project.steps {
                assert!(readme.contains(step), "{step}");
            }
        }
    }

    #[test]
    fn what_is_there_stays() {
        let dir = tempfile::tempdir().unwrap();
        let project = Lang::Rust.project("edges", true);
        create(dir.path(), "edges", &project).unwrap();
        let again = create(dir.path(), "edges", &project);
        assert!(matches!(again, Err(NewError::NotEmpty(_))));
        let file = dir.path().join("Cargo.toml");
        assert!(matches!(create(&file, "edges", &project), Err(NewError::Io { .. })));
    }

    #[test]
    fn a_name_that_is_none_gets_one_that_is() {
        let check = |name: &str, expected: &str| match check_name(name, rust::TAKEN) {
            Err(NewError::Name { suggestion, .. }) => {
                assert_eq!(suggestion, expected);
                check_name(&suggestion, rust::TAKEN).unwrap();
            }
            result => panic!("{name}: {result:?}"),
        };
        for name in ["edges", "edge-finder", "NO_OP", "a1"] {
            check_name(name, rust::TAKEN).unwrap();
        }
        check("", "my-task");
        check("größe", "gr-e");
        check("Edge Finder!", "edge-finder");
        check("2d", "task-2d");
        check("_", "task-_");
        check("../up", "up");
        check("match", "match-task");
        check("serde", "serde-task");
        check(&"x".repeat(65), &"x".repeat(58));
    }
}
