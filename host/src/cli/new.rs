//! `host new`: creates a guest project that builds and runs.
//!
//! The SDK comes from crates.io, or as a copy inside the project of the sources that this binary
//! was built with. Both have the interface version of this host.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use task_host::fleet::shell;

use super::exit_code::{Advice, Exit};
use super::output;

/// Builds the project and runs it once.
const TRY: &str = "host try . --input sample/tyger.txt --payload '{\"top\": 5}'";

/// Options of `host new`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The project is in Rust, and works as it is: it counts the words of its inputs. `cargo test` runs its
tests without WebAssembly, and `host try DIR` builds it and runs it once.

Examples:
  host new word-count
  host new word-count --dir tasks/words")]
pub(crate) struct New {
    /// Name of the project and of the tasks that its component runs
    name: String,
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
        create(&dir, &self.name, Sdk::chosen(self.offline)).map_err(|error| match error {
            NewError::Name { .. } => Advice::usage(error.to_string()),
            _ => Advice::failed(error.to_string()),
        })?;
        if self.json {
            let dir = dir.display().to_string();
            output::json(&serde_json::json!({"name": self.name, "dir": dir}))?;
            return Ok(Exit::Done);
        }
        writeln!(output::out(), "created {}", dir.display())?;
        output::tell(format_args!("build and try it:"));
        let cd = format!("cd {}", shell::word(&dir.display().to_string()));
        for line in ["rustup target add wasm32-wasip2", &cd, TRY] {
            output::tell(format_args!("  {line}"));
        }
        output::tell(format_args!("README.md says how to push the component and to queue a task."));
        Ok(Exit::Done)
    }
}

/// Why no project was created.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NewError {
    /// The name can't be a crate's.
    #[error("{name:?} can't be the name of a guest: {reason}; {suggestion:?} would do")]
    Name { name: String, reason: &'static str, suggestion: String },
    /// The directory has files.
    #[error("{} is not empty; name a new directory with --dir", .0.display())]
    NotEmpty(PathBuf),
    /// A file can't be written.
    #[error("can't write {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// True if crates.io has the SDK in this version. The first release that is published there sets
/// this (`docs/releasing.md`).
const SDK_IS_PUBLISHED: bool = false;

/// Where a project gets the SDK from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sdk {
    /// crates.io, in the version of this host.
    Published,
    /// A copy in the directory `sdk` of the project.
    Copied,
}

impl Sdk {
    fn chosen(offline: bool) -> Self {
        if SDK_IS_PUBLISHED && !offline { Self::Published } else { Self::Copied }
    }

    /// The placeholders of the template and their values.
    fn placeholders(self) -> [(&'static str, &'static str); 3] {
        match self {
            Self::Published => [
                ("{{sdk}}", concat!("task-host-sdk = \"", env!("CARGO_PKG_VERSION"), "\"")),
                (
                    "{{workspace}}",
                    "# The project stands alone, whatever directory it is in.\n[workspace]",
                ),
                ("{{about-sdk}}", ABOUT_PUBLISHED),
            ],
            Self::Copied => [
                (
                    "{{sdk}}",
                    "# A copy, in the version of the host that made this project.\ntask-host-sdk = { path = \"sdk\" }",
                ),
                (
                    "{{workspace}}",
                    "# The project stands alone, whatever directory it is in. The SDK is not its code.\n[workspace]\nexclude = [\"sdk\"]",
                ),
                ("{{about-sdk}}", ABOUT_COPIED),
            ],
        }
    }
}

const ABOUT_PUBLISHED: &str = concat!(
    "The interface of a task is that of [`task-host-sdk`](https://docs.rs/task-host-sdk) ",
    env!("CARGO_PKG_VERSION"),
    ". `host new --offline` makes a project with a copy of the SDK inside."
);
const ABOUT_COPIED: &str = "`sdk/` contains the SDK and the interface (`sdk/wit/task.wit`) in the \
    version of the `host` that created this project. Don't edit it; a newer `host new` writes a \
    newer version.";

/// Paths in the project, and contents with placeholders. In this repository the manifest and the
/// list of ignored files have other names, because tools would use them.
const TEMPLATE: &[(&str, &str)] = &[
    ("Cargo.toml", include_str!("../../template/Cargo.toml.in")),
    (".cargo/config.toml", include_str!("../../template/.cargo/config.toml")),
    (".gitignore", include_str!("../../template/gitignore.in")),
    ("README.md", include_str!("../../template/README.md")),
    ("src/lib.rs", include_str!("../../template/src/lib.rs")),
    ("sample/tyger.txt", include_str!("../../template/sample/tyger.txt")),
];

macro_rules! sdk {
    ($($path:literal,)+) => {
        &[
            ("sdk/LICENSE-APACHE", include_str!("../../LICENSE-APACHE")),
            ("sdk/LICENSE-MIT", include_str!("../../LICENSE-MIT")),
            ("sdk/wit/task.wit", include_str!("../../wit/task.wit")),
            $(($path, include_str!(concat!("../../", $path)))),+
        ]
    };
}

/// Paths in the project, and contents as in the repository. `sdk`, `wit` and the licences are links
/// in this crate's directory. `cargo package` follows links, so the published crate has the files.
const SDK: &[(&str, &str)] = sdk![
    "sdk/README.md",
    "sdk/src/error.rs",
    "sdk/src/guest.rs",
    "sdk/src/lib.rs",
    "sdk/src/logging.rs",
    "sdk/src/outcome.rs",
    "sdk/src/output.rs",
    "sdk/src/plan.rs",
    "sdk/src/task.rs",
    "sdk/src/testing.rs",
];

/// The manifest has another name, because cargo packages no directory with a `Cargo.toml`.
const SDK_MANIFEST: &str = include_str!("../../sdk/Cargo.toml.in");

/// What the SDK's manifest inherits from the workspace, which a project does not have. Cargo gives
/// this package the same values except for the edition, which a test compares.
const INHERITED: &[(&str, &str)] = &[
    ("version", env!("CARGO_PKG_VERSION")),
    ("edition", "2024"),
    ("rust-version", env!("CARGO_PKG_RUST_VERSION")),
    ("license", env!("CARGO_PKG_LICENSE")),
    ("repository", env!("CARGO_PKG_REPOSITORY")),
];

/// Creates a guest project called `name` in `dir`, which may exist if it is empty.
///
/// # Errors
/// If `name` can't be the name of a crate, `dir` is not empty, or a file can't be written.
pub(crate) fn create(dir: &Path, name: &str, sdk: Sdk) -> Result<(), NewError> {
    check_name(name)?;
    check_empty(dir)?;
    for (path, contents) in TEMPLATE {
        let mut contents = (*contents).to_owned();
        let component = component(name);
        let names = [("{{name}}", name), ("{{component}}", &*component)];
        for (placeholder, text) in names.into_iter().chain(sdk.placeholders()) {
            contents = contents.replace(placeholder, text);
        }
        write(&dir.join(path), &contents)?;
    }
    if sdk == Sdk::Published {
        return Ok(());
    }
    for (path, contents) in SDK {
        write(&dir.join(path), contents)?;
    }
    write(&dir.join("sdk/Cargo.toml"), &sdk_manifest())
}

/// The name of the file that `cargo build` makes, without `.wasm`.
pub(crate) fn component(name: &str) -> String {
    name.replace('-', "_")
}

/// The SDK's manifest without a workspace.
fn sdk_manifest() -> String {
    let literal = |line: &str| {
        let inherited = line.strip_suffix(".workspace = true")?;
        let (key, value) = INHERITED.iter().find(|(key, _)| *key == inherited)?;
        Some(format!("{key} = {value:?}"))
    };
    let manifest = SDK_MANIFEST.replace("[lints]\nworkspace = true\n", "");
    let lines = manifest.trim_end().lines();
    lines.map(|line| literal(line).unwrap_or_else(|| line.to_owned()) + "\n").collect()
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

fn write(path: &Path, contents: &str) -> Result<(), NewError> {
    let written =
        path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(path, contents));
    written.map_err(|source| NewError::Io { path: path.to_owned(), source })
}

/// Checks Cargo's rules for the names of packages and crates.
fn check_name(name: &str) -> Result<(), NewError> {
    let reason = if name.is_empty() {
        "it is empty"
    } else if name.len() > 64 {
        "it is longer than 64 characters"
    } else if !name.starts_with(|c: char| c.is_ascii_alphabetic()) {
        "it has to start with a letter"
    } else if name.contains(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_') {
        "it may have only letters, digits, - and _"
    } else if TAKEN.contains(&name) {
        "Rust or a dependency of the project has that name"
    } else {
        return Ok(());
    };
    Err(NewError::Name { name: name.to_owned(), reason, suggestion: suggest(name) })
}

/// A name that follows the rules and resembles the given one.
fn suggest(name: &str) -> String {
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
    if TAKEN.contains(&&*suggestion) {
        suggestion.push_str("-task");
    }
    if !suggestion.starts_with(|c: char| c.is_ascii_alphabetic()) {
        suggestion.insert_str(0, "task-");
    }
    suggestion
}

/// Keywords, crates of Rust itself, and dependencies of the project.
#[rustfmt::skip]
const TAKEN: &[&str] = &[
    "abstract", "as", "async", "await", "become", "box", "break", "const", "continue", "crate", "do", "dyn", "else",
    "enum", "extern", "false", "final", "fn", "for", "gen", "if", "impl", "in", "let", "loop", "macro", "match", "mod",
    "move", "mut", "override", "priv", "pub", "ref", "return", "self", "Self", "static", "struct", "super", "trait",
    "true", "try", "type", "typeof", "union", "unsafe", "unsized", "use", "virtual", "where", "while", "yield",
    "alloc", "core", "proc_macro", "proc-macro", "std", "test",
    "serde", "serde_json", "serde_path_to_error", "task-host-sdk", "task_host_sdk", "wit-bindgen", "wit_bindgen",
];

#[cfg(test)]
mod tests {
    use super::*;

    /// Creates a project with that SDK, checks what both kinds have in common, and returns the
    /// manifest.
    fn check_project(project: &Path, sdk: Sdk) -> toml::Table {
        create(project, "edge-finder", sdk).unwrap();
        let read = |path: &str| fs::read_to_string(project.join(path)).unwrap();
        for (path, _) in TEMPLATE {
            assert!(!read(path).contains("{{"), "{path}");
        }
        assert!(read("README.md").contains("release/edge_finder.wasm --name edge-finder"));
        let manifest: toml::Table = read("Cargo.toml").parse().unwrap();
        assert_eq!(manifest["package"]["name"].as_str(), Some("edge-finder"));
        assert!(manifest.contains_key("workspace"));
        manifest
    }

    #[test]
    fn a_project_is_complete_and_has_no_placeholder_left() {
        let dir = tempfile::tempdir().unwrap();
        let project = dir.path().join("sub/edge-finder");
        let manifest = check_project(&project, Sdk::Copied);
        assert_eq!(manifest["dependencies"]["task-host-sdk"]["path"].as_str(), Some("sdk"));
        let wit = fs::read_to_string(project.join("sdk/wit/task.wit")).unwrap();
        assert_eq!(wit, include_str!("../../wit/task.wit"));
    }

    #[test]
    fn a_project_may_depend_on_the_published_sdk_of_this_version() {
        let dir = tempfile::tempdir().unwrap();
        let manifest = check_project(dir.path(), Sdk::Published);
        let version = manifest["dependencies"]["task-host-sdk"].as_str();
        assert_eq!(version, Some(env!("CARGO_PKG_VERSION")));
        assert!(!dir.path().join("sdk").exists());
        assert_eq!(Sdk::chosen(true), Sdk::Copied);
    }

    #[test]
    fn what_is_there_stays() {
        let dir = tempfile::tempdir().unwrap();
        create(dir.path(), "edges", Sdk::Copied).unwrap();
        assert!(matches!(create(dir.path(), "edges", Sdk::Copied), Err(NewError::NotEmpty(_))));
        let file = dir.path().join("Cargo.toml");
        assert!(matches!(create(&file, "edges", Sdk::Copied), Err(NewError::Io { .. })));
    }

    #[test]
    fn a_name_that_is_none_gets_one_that_is() {
        let check = |name: &str, expected: &str| match check_name(name) {
            Err(NewError::Name { suggestion, .. }) => {
                assert_eq!(suggestion, expected);
                check_name(&suggestion).unwrap();
            }
            result => panic!("{name}: {result:?}"),
        };
        for name in ["edges", "edge-finder", "NO_OP", "a1"] {
            check_name(name).unwrap();
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

    /// A file of the SDK that is not listed here would be missing in every new project.
    #[test]
    fn every_file_of_the_sdk_is_embedded() {
        let host = Path::new(env!("CARGO_MANIFEST_DIR"));
        for (kept, made) in [("sdk/src", "sdk/src"), ("wit", "sdk/wit")] {
            for entry in fs::read_dir(host.join(kept)).unwrap() {
                let path = format!("{made}/{}", entry.unwrap().file_name().to_str().unwrap());
                assert!(
                    SDK.iter().any(|(embedded, _)| *embedded == path),
                    "{path} is not embedded"
                );
            }
        }
    }

    #[test]
    fn the_sdk_manifest_stands_alone_and_says_the_same() {
        let own: toml::Table = sdk_manifest().parse().unwrap();
        let original: toml::Table = SDK_MANIFEST.parse().unwrap();
        let workspace: toml::Table = include_str!("../../../Cargo.toml").parse().unwrap();
        assert!(!own.contains_key("lints"));
        for table in ["dependencies", "features"] {
            assert_eq!(own[table], original[table]);
            assert!(!own[table].to_string().contains("workspace"));
        }
        for (key, value) in original["package"].as_table().unwrap() {
            let inherited = value.get("workspace").is_some();
            let expected = if inherited { &workspace["workspace"]["package"][key] } else { value };
            assert_eq!(&own["package"][key], expected, "{key}");
        }
    }
}
