//! `cargo xtask book`: builds the documentation site with mdBook.
//!
//! The Markdown is written for GitHub and links to files anywhere in the repository. mdBook gets a
//! copy whose links lead to pages of the site or to files on GitHub.

mod links;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail, ensure};

use crate::command::run;
use crate::project::Project;
use crate::setup;

/// The address of files that are not pages of the book.
const REPOSITORY: &str = "https://github.com/task-host/task-host";

/// The table of contents.
const SUMMARY: &str = "docs/SUMMARY.md";

/// Builds the site as `target/book`.
pub(crate) fn build(project: &Project) -> anyhow::Result<()> {
    let mdbook = setup::mdbook(project)?;
    let source = project.target.join("book-source");
    let site = project.target.join("book");
    for old in [&source, &site] {
        if old.exists() {
            fs::remove_dir_all(old).with_context(|| format!("{}", old.display()))?;
        }
    }
    fs::create_dir_all(&source)?;
    fs::copy(project.root.join("book.toml"), source.join("book.toml"))?;
    for (path, contents) in staged(&project.root)? {
        let path = source.join("docs").join(path);
        fs::create_dir_all(path.parent().context("a file is in a directory")?)?;
        fs::write(&path, contents).with_context(|| format!("{}", path.display()))?;
    }
    run(Command::new(mdbook).args(["build", "--dest-dir"]).args([&site, &source]))?;
    println!("The site: {}", site.join("index.html").display());
    Ok(())
}

/// The files for mdBook, by their paths below its `docs`.
fn staged(root: &Path) -> anyhow::Result<BTreeMap<String, Vec<u8>>> {
    let mut files: Vec<String> = Vec::new();
    list(root, "docs", &mut files)?;
    let summary = fs::read_to_string(root.join(SUMMARY)).context(SUMMARY)?;
    for link in links::links(&summary)? {
        let file = resolve(SUMMARY, &summary[link]);
        if file.as_ref().is_some_and(|file| !file.contains('/')) {
            files.extend(file);
        }
    }
    let places: BTreeMap<String, String> =
        files.into_iter().map(|file| (file.clone(), place(&file))).collect();
    let mut staged = BTreeMap::new();
    for (file, place) in &places {
        let contents = fs::read(root.join(file)).with_context(|| file.clone())?;
        let contents = if file.ends_with(".md") {
            let text = String::from_utf8(contents).with_context(|| file.clone())?;
            moved(root, file, &text, &places).with_context(|| file.clone())?.into_bytes()
        } else {
            contents
        };
        ensure!(staged.insert(place.clone(), contents).is_none(), "two pages would be {place}");
    }
    Ok(staged)
}

/// The path of a repository's file in the book. Top-level pages get a directory of their own,
/// because `SECURITY.md` and `docs/security.md` are different pages. `README.md` becomes the site's
/// first page, `index`.
fn place(file: &str) -> String {
    match file.strip_prefix("docs/") {
        Some(below) => below.to_owned(),
        None if file == "README.md" => "index.md".to_owned(),
        None => format!("repository/{}", file.to_lowercase()),
    }
}

/// The text of a page, with its links changed for the book.
fn moved(
    root: &Path,
    file: &str,
    text: &str,
    places: &BTreeMap<String, String>,
) -> anyhow::Result<String> {
    let mut moved = text.to_owned();
    // Starts at the end, so that the ranges of the remaining links stay valid.
    for range in links::links(text)?.into_iter().rev() {
        let link = &text[range.clone()];
        let Some(to) = resolve(file, link) else { continue };
        let fragment = link.find('#').map_or("", |at| &link[at..]);
        // The table of contents is not a page of the book.
        let to = match places.get(&to).filter(|_| to != SUMMARY) {
            Some(there) => relative(&place(file), there),
            None if root.join(&to).is_dir() => format!("{REPOSITORY}/tree/main/{to}"),
            None if root.join(&to).is_file() => format!("{REPOSITORY}/blob/main/{to}"),
            None => bail!("the link `{link}` leads nowhere"),
        };
        moved.replace_range(range, &format!("{to}{fragment}"));
    }
    Ok(moved)
}

/// The path from the top of the repository that a link leads to; `None` for other sites and for the
/// same page.
fn resolve(file: &str, link: &str) -> Option<String> {
    let path = link.split('#').next().unwrap_or_default();
    if path.is_empty() || path.contains("://") || path.starts_with("mailto:") {
        return None;
    }
    let mut segments: Vec<&str> = file.split('/').collect();
    segments.pop();
    for segment in path.split('/') {
        match segment {
            ".." => drop(segments.pop()),
            "." | "" => {}
            name => segments.push(name),
        }
    }
    Some(segments.join("/"))
}

/// The relative link from one file to another. Both paths are from the top of the repository.
fn relative(from: &str, to: &str) -> String {
    let up = from.matches('/').count();
    let shared = from.split('/').zip(to.split('/')).take_while(|(a, b)| a == b).count().min(up);
    let below: Vec<&str> = to.split('/').skip(shared).collect();
    "../".repeat(up - shared) + &below.join("/")
}

/// Lists all files below a directory, by their paths from the top of the repository.
fn list(root: &Path, directory: &str, files: &mut Vec<String>) -> anyhow::Result<()> {
    for entry in fs::read_dir(root.join(directory)).with_context(|| directory.to_owned())? {
        let entry = entry?;
        let path = format!("{directory}/{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            list(root, &path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}
