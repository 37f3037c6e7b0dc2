//! The project in Rust that `host new` creates.
//!
//! The SDK comes from crates.io, or the project contains a copy of the sources that this binary was
//! built with. Both have the interface version of this host.

/// The command that builds the project and runs it once.
const TRY: &str = "host try . --input sample/tyger.txt --payload '{\"top\": 5}'";

/// Commands that build the project and run it once, in its directory.
pub(super) const STEPS: &[&str] = &["rustup target add wasm32-wasip2", TRY];

/// True if crates.io has this version of the SDK. Set this with the first release that is published
/// there (`docs/releasing.md`).
const SDK_IS_PUBLISHED: bool = false;

/// The source of a project's SDK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sdk {
    /// crates.io, in the version of this host.
    Published,
    /// A copy in the directory `sdk` of the project.
    Copied,
}

impl Sdk {
    pub(super) fn chosen(offline: bool) -> Self {
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

/// Paths in the project, and contents with placeholders. In this repository `Cargo.toml` and
/// `.gitignore` have other names, because tools would apply them.
const TEMPLATE: &[(&str, &str)] = &[
    ("Cargo.toml", include_str!("../../../templates/rust/Cargo.toml.in")),
    (".cargo/config.toml", include_str!("../../../templates/rust/.cargo/config.toml")),
    (".gitignore", include_str!("../../../templates/rust/gitignore.in")),
    ("README.md", include_str!("../../../templates/rust/README.md")),
    ("src/lib.rs", include_str!("../../../templates/rust/src/lib.rs")),
    ("sample/tyger.txt", include_str!("../../../templates/rust/sample/tyger.txt")),
];

macro_rules! sdk {
    ($($path:literal,)+) => {
        &[
            ("sdk/LICENSE-APACHE", include_str!("../../../LICENSE-APACHE")),
            ("sdk/LICENSE-MIT", include_str!("../../../LICENSE-MIT")),
            ("sdk/wit/task.wit", include_str!("../../../wit/task.wit")),
            $(($path, include_str!(concat!("../../../", $path)))),+
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

/// The manifest has another name, because cargo does not package a directory with a `Cargo.toml`.
const SDK_MANIFEST: &str = include_str!("../../../sdk/Cargo.toml.in");

/// The keys and values that the SDK's manifest inherits from the workspace, which a project does
/// not have. This package inherits the same values. Cargo sets no variable for the edition, so a
/// test compares it.
const INHERITED: &[(&str, &str)] = &[
    ("version", env!("CARGO_PKG_VERSION")),
    ("edition", "2024"),
    ("rust-version", env!("CARGO_PKG_RUST_VERSION")),
    ("license", env!("CARGO_PKG_LICENSE")),
    ("repository", env!("CARGO_PKG_REPOSITORY")),
];

/// The files of a project called `name`: paths and contents.
pub(super) fn files(name: &str, sdk: Sdk) -> Vec<(&'static str, String)> {
    // Cargo writes the component to a file of this name, with `.wasm`.
    let component = name.replace('-', "_");
    let names = [("{{name}}", name), ("{{component}}", &*component)];
    let placeholders: Vec<_> = names.into_iter().chain(sdk.placeholders()).collect();
    let fill = |text: &str| {
        let filled = |text: String, (mark, value): &(&str, &str)| text.replace(mark, value);
        placeholders.iter().fold(text.to_owned(), filled)
    };
    let mut files: Vec<_> = TEMPLATE.iter().map(|(path, text)| (*path, fill(text))).collect();
    if sdk == Sdk::Copied {
        files.extend(SDK.iter().map(|(path, text)| (*path, (*text).to_owned())));
        files.push(("sdk/Cargo.toml", sdk_manifest()));
    }
    files
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

/// Keywords, crates of Rust's standard library, and dependencies of the project.
#[rustfmt::skip]
pub(super) const TAKEN: &[&str] = &[
    "abstract", "as", "async", "await", "become", "box", "break", "const", "continue", "crate", "do", "dyn", "else",
    "enum", "extern", "false", "final", "fn", "for", "gen", "if", "impl", "in", "let", "loop", "macro", "match", "mod",
    "move", "mut", "override", "priv", "pub", "ref", "return", "self", "Self", "static", "struct", "super", "trait",
    "true", "try", "type", "typeof", "union", "unsafe", "unsized", "use", "virtual", "where", "while", "yield",
    "alloc", "core", "proc_macro", "proc-macro", "std", "test",
    "serde", "serde_json", "serde_path_to_error", "task-host-sdk", "task_host_sdk", "wit-bindgen", "wit_bindgen",
];

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    /// The manifest of a project with this SDK.
    fn manifest(sdk: Sdk) -> toml::Table {
        let files = files("edge-finder", sdk);
        let (_, text) = files.iter().find(|(path, _)| *path == "Cargo.toml").unwrap();
        let manifest: toml::Table = text.parse().unwrap();
        assert_eq!(manifest["package"]["name"].as_str(), Some("edge-finder"));
        assert!(manifest.contains_key("workspace"));
        manifest
    }

    #[test]
    fn a_project_has_a_copy_of_the_sdk_or_the_published_sdk_of_this_version() {
        let copied = manifest(Sdk::Copied);
        assert_eq!(copied["dependencies"]["task-host-sdk"]["path"].as_str(), Some("sdk"));
        let published = manifest(Sdk::Published);
        let version = published["dependencies"]["task-host-sdk"].as_str();
        assert_eq!(version, Some(env!("CARGO_PKG_VERSION")));
        let files = files("edge-finder", Sdk::Published);
        assert!(!files.iter().any(|(path, _)| path.starts_with("sdk/")));
        assert_eq!(Sdk::chosen(true), Sdk::Copied);
    }

    /// A file of the SDK that is not in `SDK` would be missing in every new project.
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
        let workspace: toml::Table = include_str!("../../../../Cargo.toml").parse().unwrap();
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
