//! Collects the licences of everything that is linked into the program.
//!
//! cargo-deny checks that the licences are permissive. Most of them require that the program comes
//! with their text and the names of the authors, so this module collects these files from the
//! sources of each package.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use serde_json::Value;

use super::release::metadata;
use super::target::Target;
use crate::project::Project;

/// The name of the file.
pub(crate) const FILE: &str = "LICENSES-OF-DEPENDENCIES.txt";

/// The beginnings of the names of files with licences, notices and authors.
const FILES: [&str; 6] = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "AUTHORS"];

/// Lists the packages, each with its licence, and then each licence text once.
pub(crate) fn of_dependencies(project: &Project, target: Target) -> anyhow::Result<String> {
    let metadata = metadata(project, &["--filter-platform", target.rust()])?;
    let packages = linked(&metadata)?;
    ensure!(packages.len() > 100, "Cargo reports hardly any dependency: {}", packages.len());
    let mut by_repository: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut found = Vec::new();
    for package in packages.values() {
        let package = Package::read(package)?;
        if !package.texts.is_empty() {
            by_repository.insert(package.repository, package.texts.clone());
        }
        found.push(package);
    }

    let mut list = String::new();
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for Package { name, licence, repository, texts: own } in found {
        // Some packages leave out the licence files of their repository.
        let of_repository = || by_repository.get(repository).cloned().unwrap_or_default();
        let texts_of = if own.is_empty() { of_repository() } else { own };
        let without = if texts_of.is_empty() { " (no licence text found)" } else { "" };
        let _ = writeln!(list, "{name}: {licence} <{repository}>{without}");
        for text in texts_of {
            texts.entry(text).or_default().push(name.clone());
        }
    }
    texts.entry(MUSL.to_owned()).or_default().push("musl".to_owned());
    let mut texts: Vec<(Vec<String>, String)> =
        texts.into_iter().map(|(text, names)| (names, text)).collect();
    texts.sort();

    let mut all = format!(
        "host is linked with these Rust packages, with Rust's standard library (MIT OR Apache-2.0,\n\
         <https://github.com/rust-lang/rust>), and with the C library musl (MIT,\n\
         <https://musl.libc.org>). Their licences follow.\n\n{list}"
    );
    for (names, text) in texts {
        let line = "-".repeat(78);
        let _ = write!(all, "\n{line}\n{}\n{line}\n\n{text}\n", names.join(", "));
    }
    Ok(all)
}

/// A package that the host is linked with.
struct Package<'m> {
    /// Its name and version.
    name: String,
    licence: &'m str,
    repository: &'m str,
    /// The texts of its licence files.
    texts: Vec<String>,
}

impl<'m> Package<'m> {
    fn read(package: &'m Value) -> anyhow::Result<Self> {
        let text = |name: &str| package[name].as_str().unwrap_or_default();
        let manifest = Path::new(text("manifest_path"));
        Ok(Self {
            name: format!("{} {}", text("name"), text("version")),
            licence: text("license"),
            repository: repository(text("repository")),
            texts: files(manifest.parent().context("a manifest is in a directory")?)?,
        })
    }
}

/// The address of the repository, without the path of one package in it.
fn repository(address: &str) -> &str {
    let address = address.split_once("/tree/").map_or(address, |(repository, _)| repository);
    address.trim_end_matches(".git")
}

/// The packages that the host is linked with, by their identifiers. Excludes the host's own
/// packages, and packages that only builds or tests use.
fn linked(metadata: &Value) -> anyhow::Result<BTreeMap<&str, &Value>> {
    let nodes = by_id(&metadata["resolve"]["nodes"]);
    let packages = by_id(&metadata["packages"]);
    let (host, _) = packages
        .iter()
        .find(|(_, package)| package["name"] == "task-host")
        .context("cargo metadata has no package task-host")?;
    let mut next = vec![*host];
    let mut seen = BTreeSet::new();
    while let Some(id) = next.pop() {
        let package = packages.get(id).with_context(|| format!("cargo metadata has no {id}"))?;
        if runs_in_compiler(package) || !seen.insert(id) {
            continue;
        }
        let node = nodes.get(id).with_context(|| format!("cargo metadata has no node {id}"))?;
        for dependency in node["deps"].as_array().into_iter().flatten() {
            let kinds = dependency["dep_kinds"].as_array();
            // The kind of a normal dependency is null. Others are "build" and "dev".
            if kinds.is_some_and(|kinds| kinds.iter().any(|kind| kind["kind"].is_null())) {
                next.extend(dependency["pkg"].as_str());
            }
        }
    }
    seen.remove(host);
    Ok(packages.into_iter().filter(|(id, _)| seen.contains(id)).collect())
}

/// Whether a package is a procedural macro, which is not linked into the program.
fn runs_in_compiler(package: &Value) -> bool {
    let targets = package["targets"].as_array().into_iter().flatten();
    targets.into_iter().any(|target| target["kind"][0] == "proc-macro")
}

fn by_id(list: &Value) -> BTreeMap<&str, &Value> {
    let items = list.as_array().into_iter().flatten();
    items.filter_map(|item| Some((item["id"].as_str()?, item))).collect()
}

/// The texts of the licence files in a directory.
fn files(directory: &Path) -> anyhow::Result<Vec<String>> {
    let mut texts = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("{}", directory.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().to_uppercase();
        let is_file = fs::metadata(entry.path()).is_ok_and(|file| file.is_file());
        if is_file && FILES.iter().any(|begin| name.starts_with(begin)) {
            let text = String::from_utf8_lossy(&fs::read(entry.path())?).replace('\r', "");
            texts.push(text.trim_matches('\n').to_owned());
        }
    }
    texts.sort();
    Ok(texts)
}

/// From the file COPYRIGHT of musl.
const MUSL: &str = "\
musl as a whole is licensed under the following standard MIT license:

Copyright © 2005-2020 Rich Felker, et al.

Permission is hereby granted, free of charge, to any person obtaining
a copy of this software and associated documentation files (the
\"Software\"), to deal in the Software without restriction, including
without limitation the rights to use, copy, modify, merge, publish,
distribute, sublicense, and/or sell copies of the Software, and to
permit persons to whom the Software is furnished to do so, subject to
the following conditions:

The above copyright notice and this permission notice shall be
included in all copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED \"AS IS\", WITHOUT WARRANTY OF ANY KIND,
EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF
MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT.
IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY
CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT,
TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE
SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.";
