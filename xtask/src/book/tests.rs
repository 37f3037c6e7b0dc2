//! Checks that every link in the repository's Markdown leads somewhere, on GitHub and in the book.

use std::collections::BTreeSet;

use pulldown_cmark::{Event, Tag, TagEnd};

use super::*;
use crate::command::capture;

fn project() -> Project {
    Project::find().unwrap()
}

/// All pages of the repository and their texts.
fn pages(root: &Path) -> BTreeMap<String, String> {
    let list = ["ls-files", "--cached", "--others", "--exclude-standard", "*.md"];
    let files = capture(Command::new("git").args(list).current_dir(root)).unwrap();
    let is_there = |file: &&str| root.join(file).is_file() && !root.join(file).is_symlink();
    files
        .lines()
        .filter(is_there)
        .map(|file| (file.to_owned(), fs::read_to_string(root.join(file)).unwrap()))
        .collect()
}

/// The valid fragments of a page: headings, named as GitHub and mdBook do, and elements with an
/// `id`.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    let mut heading: Option<String> = None;
    for event in links::parser(text) {
        match event {
            Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
            Event::End(TagEnd::Heading(_)) => {
                let name = slug(&heading.take().unwrap_or_default());
                let numbered = (1..).map(|n| format!("{name}-{n}"));
                let mut names = std::iter::once(name.clone()).chain(numbered);
                anchors.extend(names.find(|name| !anchors.contains(name)));
            }
            Event::Text(text) | Event::Code(text) => {
                if let Some(heading) = &mut heading {
                    heading.push_str(&text);
                }
            }
            Event::Html(html) | Event::InlineHtml(html) => {
                anchors.extend(links::values(&html, "id"))
            }
            _ => {}
        }
    }
    anchors
}

fn slug(heading: &str) -> String {
    let kept = |c: char| match c {
        ' ' => Some('-'),
        c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
        _ => None,
    };
    heading.trim().to_lowercase().chars().filter_map(kept).collect()
}

/// The broken links of these pages. `exists` says whether a path is a file that is not a page.
fn broken(pages: &BTreeMap<String, String>, exists: impl Fn(&str) -> bool) -> Vec<String> {
    let mut broken = Vec::new();
    for (page, text) in pages {
        for range in links::links(text).unwrap() {
            let link = &text[range];
            let to = match link.strip_prefix(REPOSITORY) {
                // GitHub generates this page.
                Some("/releases") => continue,
                Some(path) => {
                    path.trim_start_matches("/blob/main/").trim_start_matches("/tree/main/")
                }
                None => link,
            };
            let to = if to == link { resolve(page, link) } else { resolve("", to) };
            let fragment = link.split_once('#').map(|(_, fragment)| fragment);
            // The target is another site, or a place on this page.
            let to = match to {
                Some(to) => to,
                None if link.starts_with('#') => page.clone(),
                None => continue,
            };
            if !exists(&to) && !pages.contains_key(&to) {
                broken.push(format!("{page}: `{link}` leads nowhere"));
            } else if let (Some(fragment), Some(text)) = (fragment, pages.get(&to))
                && !anchors(text).contains(fragment)
            {
                broken.push(format!("{page}: `{link}`: {to} has no `{fragment}`"));
            }
        }
    }
    broken
}

#[test]
fn every_link_leads_somewhere_on_github() {
    let root = project().root;
    let pages = pages(&root);
    assert!(pages.len() > 10, "hardly any pages: {:?}", pages.keys());
    let issues = |path: &str| ["", "issues", "security/advisories/new"].contains(&path);
    let broken = broken(&pages, |path| issues(path) || root.join(path).exists());
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn every_link_leads_somewhere_in_the_book() {
    let staged = staged(&project().root).unwrap();
    let (pages, others): (BTreeMap<_, _>, BTreeMap<_, _>) =
        staged.into_iter().partition(|(path, _)| path.ends_with(".md"));
    let pages: BTreeMap<String, String> = pages
        .into_iter()
        .map(|(path, text)| (path, String::from_utf8(text).unwrap()))
        // Another test checks links that leave the book.
        .map(|(path, text)| (path, text.replace(REPOSITORY, "https://elsewhere")))
        .collect();
    let mut broken = broken(&pages, |path| others.contains_key(path));
    for (page, text) in &pages {
        let links = links::links(text).unwrap().into_iter().map(|range| &text[range]);
        let inside = links.filter(|link| !link.contains("://"));
        let summary = inside.filter(|link| link.ends_with("SUMMARY.md"));
        broken.extend(summary.map(|link| format!("{page}: `{link}` is no page")));
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn every_page_is_in_the_table_of_contents_once() {
    let staged = staged(&project().root).unwrap();
    let summary = String::from_utf8(staged["SUMMARY.md"].clone()).unwrap();
    let listed: Vec<&str> =
        links::links(&summary).unwrap().into_iter().map(|range| &summary[range]).collect();
    let once: BTreeSet<&str> = listed.iter().copied().collect();
    assert_eq!(once.len(), listed.len(), "{listed:?}");
    let pages = staged.keys().map(String::as_str);
    let pages: BTreeSet<&str> =
        pages.filter(|path| path.ends_with(".md") && *path != "SUMMARY.md").collect();
    assert_eq!(once, pages);
}

#[test]
fn links_are_found_wherever_they_are() {
    let check = |text: &str, want: &[&str]| {
        let found = links::links(text).unwrap();
        let found: Vec<&str> = found.into_iter().map(|range| &text[range]).collect();
        assert_eq!(found, want, "{text}");
    };
    check("[a](b.md) and ![c](d.png \"title\")", &["b.md", "d.png"]);
    check("[![a](b.png)](c.md#d)", &["b.png", "c.md#d"]);
    check("[a][r]\n\n[r]: b.md\n", &["b.md"]);
    check("<img alt=\"\" src=\"a.png\" width=\"9\">\n", &["a.png"]);
    check("`[a](b.md)`\n\n```\n[a](b.md)\n```\n", &[]);
    check("| a |\n|---|\n| [b](c.md) |\n", &["c.md"]);
}

#[test]
fn headings_are_anchors() {
    let text = "# A `b`, c\n## Twice\n## Twice\n<a id=\"own\"></a>\n```\n# none\n```\n";
    let anchors = anchors(text);
    assert_eq!(anchors.into_iter().collect::<Vec<_>>(), ["a-b-c", "own", "twice", "twice-1"]);
}

#[test]
fn links_are_moved_with_their_pages() {
    let check = |file: &str, link: &str, want: &str| {
        let root = project().root;
        let files = ["README.md", "docs/security.md", "docs/cloud/aws.md", "docs/images/run.png"];
        let places = files.into_iter().map(|file| (file.to_owned(), place(file))).collect();
        let text = format!("[text]({link})");
        let moved = moved(&root, file, &text, &places).unwrap();
        assert_eq!(moved, format!("[text]({want})"), "{file}");
    };
    check("README.md", "docs/security.md#limits", "security.md#limits");
    check("README.md", "docs/images/run.png", "images/run.png");
    check("README.md", "LICENSE-MIT", &format!("{REPOSITORY}/blob/main/LICENSE-MIT"));
    check("docs/security.md", "../README.md", "index.md");
    check("docs/security.md", "cloud/aws.md", "cloud/aws.md");
    check("docs/security.md", "#limits", "#limits");
    check("docs/security.md", "SUMMARY.md", &format!("{REPOSITORY}/blob/main/docs/SUMMARY.md"));
    check("docs/cloud/aws.md", "../security.md", "../security.md");
    check("docs/cloud/aws.md", "../../deploy", &format!("{REPOSITORY}/tree/main/deploy"));
    check("docs/cloud/aws.md", "https://example.com/a.md", "https://example.com/a.md");
}
