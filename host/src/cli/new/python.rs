//! The project in Python that `host new` creates.
//!
//! The project contains a copy of the package `task_host_guest`, from the sources that this binary
//! was built with. The copy fits this host and does not depend on a package index.

/// Commands that build the project and run it once, in its directory.
pub(super) const STEPS: &[&str] =
    &["host try . --input sample/stars.csv --payload '{\"min_rows\": 1}'"];

/// Paths in the project, and contents with placeholders. In this repository some files have other
/// names, because tools would apply them.
const TEMPLATE: &[(&str, &str)] = &[
    (".gitignore", include_str!("../../../templates/python/gitignore.in")),
    ("README.md", include_str!("../../../templates/python/README.md")),
    ("app.py", include_str!("../../../templates/python/app.py")),
    ("pyproject.toml", include_str!("../../../templates/python/pyproject.toml.in")),
    ("requirements.txt", include_str!("../../../templates/python/requirements.txt")),
    ("sample/stars.csv", include_str!("../../../templates/python/sample/stars.csv")),
    ("test_app.py", include_str!("../../../templates/python/test_app.py")),
];

macro_rules! package {
    ($($path:literal,)+) => {
        &[
            ("sdk/LICENSE-APACHE", include_str!("../../../LICENSE-APACHE")),
            ("sdk/LICENSE-MIT", include_str!("../../../LICENSE-MIT")),
            ("sdk/src/task_host_guest/wit/task.wit", include_str!("../../../wit/task.wit")),
            $((concat!("sdk/", $path), include_str!(concat!("../../../sdk-python/", $path)))),+
        ]
    };
}

/// The package: paths in the project, and contents as in the repository. `sdk-python` in this
/// crate's directory links to them, and `cargo package` follows links.
const PACKAGE: &[(&str, &str)] = package![
    "README.md",
    "pyproject.toml",
    "src/task_host_guest/__init__.py",
    "src/task_host_guest/__main__.py",
    "src/task_host_guest/_build.py",
    "src/task_host_guest/_component.py",
    "src/task_host_guest/_failures.py",
    "src/task_host_guest/_guest.py",
    "src/task_host_guest/_payload.py",
    "src/task_host_guest/_plan.py",
    "src/task_host_guest/_task.py",
    "src/task_host_guest/py.typed",
    "src/task_host_guest/testing.py",
];

/// The files of a project called `name`: paths and contents.
pub(super) fn files(name: &str) -> Vec<(&'static str, String)> {
    let component = name.replace('-', "_");
    let fill = |text: &str| text.replace("{{name}}", name).replace("{{component}}", &component);
    let own = TEMPLATE.iter().map(|(path, text)| (*path, fill(text)));
    own.chain(PACKAGE.iter().map(|(path, text)| (*path, (*text).to_owned()))).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::*;

    /// A file of the package that is not in `PACKAGE` would be missing in every new project.
    #[test]
    fn every_file_of_the_package_is_embedded() {
        let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("sdk-python");
        let mut directories = vec![PathBuf::from("src")];
        let mut found = BTreeSet::from(["README.md".to_owned(), "pyproject.toml".to_owned()]);
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(package.join(&directory)).unwrap() {
                let path = directory.join(entry.unwrap().file_name());
                if package.join(&path).is_file() {
                    found.insert(path.to_str().unwrap().to_owned());
                } else if !path.ends_with("__pycache__") {
                    directories.push(path);
                }
            }
        }
        let embedded = PACKAGE.iter().map(|(path, _)| path.trim_start_matches("sdk/").to_owned());
        let embedded = embedded.filter(|path| !path.starts_with("LICENSE")).collect();
        assert_eq!(found, embedded);
    }

    #[test]
    fn the_package_has_the_version_and_the_licence_of_the_host() {
        let manifest = include_str!("../../../sdk-python/pyproject.toml");
        let manifest: toml::Table = manifest.parse().unwrap();
        let project = &manifest["project"];
        assert_eq!(project["version"].as_str(), Some(env!("CARGO_PKG_VERSION")));
        assert_eq!(project["license"].as_str(), Some(env!("CARGO_PKG_LICENSE")));
        let repository = project["urls"]["Repository"].as_str();
        assert_eq!(repository, Some(env!("CARGO_PKG_REPOSITORY")));
    }
}
