//! The links of a Markdown page.

use std::ops::Range;

use anyhow::Context;
use pulldown_cmark::{CowStr, Event, LinkType, Options, Parser, Tag};

pub(super) fn parser(text: &str) -> Parser<'_> {
    Parser::new_ext(text, Options::ENABLE_TABLES | Options::ENABLE_FOOTNOTES)
}

/// The positions of the targets of links and images, in order.
///
/// # Errors
/// If a target is written with escapes.
pub(super) fn links(text: &str) -> anyhow::Result<Vec<Range<usize>>> {
    let mut links = Vec::new();
    // A link ends with its target or with a title, so the last match is the target.
    let mut add = |target: &CowStr, within: Range<usize>| {
        let at = text[within.clone()].rfind(&**target);
        let at =
            within.start + at.with_context(|| format!("`{target}` is written with escapes"))?;
        links.push(at..at + target.len());
        anyhow::Ok(())
    };
    let parser = parser(text);
    for (_, definition) in parser.reference_definitions().iter() {
        add(&definition.dest, definition.span.clone())?;
    }
    for (event, range) in parser.into_offset_iter() {
        match event {
            Event::Start(
                Tag::Link { link_type: LinkType::Inline, dest_url, .. }
                | Tag::Image { link_type: LinkType::Inline, dest_url, .. },
            ) => add(&dest_url, range)?,
            Event::Html(html) | Event::InlineHtml(html) => {
                for attribute in ["src", "srcset", "href"] {
                    for value in values(&html, attribute) {
                        add(&CowStr::from(value), range.clone())?;
                    }
                }
            }
            _ => {}
        }
    }
    links.sort_by_key(|range| range.start);
    Ok(links)
}

/// The values of an attribute in HTML.
pub(super) fn values(html: &str, attribute: &str) -> Vec<String> {
    let begin = format!(" {attribute}=\"");
    let values = html.split(&begin).skip(1);
    values.filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())).collect()
}
