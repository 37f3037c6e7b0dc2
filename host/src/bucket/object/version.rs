//! The version of an object, taken from a store's response, as text for the cache's index.

use object_store::{GetResult, ObjectMeta};

use super::super::encoding::ContentEncoding;
use super::super::transport::ResponseFacts;
use super::super::{StoredEncoding, UNSIZED, Version};

/// What identifies a version.
pub(super) enum Tag<'a> {
    Entity(&'a str),
    Time(&'a str),
    None,
}

/// The prefix of the tag of a version that only a time identifies.
const TIME: &str = "time ";
/// The prefix of the tag of a version that nothing identifies. A unique text follows.
const NOTHING: &str = "nothing ";
/// The prefix of the tag of an object that is stored without encoding.
const PLAIN: &str = "plain ";
/// The prefix of the tag of an object that is stored compressed and decoded during the download.
const DECODED: &str = "decoded ";
/// The prefix of the tag of an object that is stored compressed and not decoded.
const KEPT: &str = "kept ";

impl<'a> Tag<'a> {
    pub(super) fn of(version: &'a Version) -> Self {
        let tag = version.tag.trim_start_matches(UNSIZED);
        let stored = [PLAIN, DECODED, KEPT].iter().find_map(|stored| tag.strip_prefix(stored));
        let tag = stored.unwrap_or(tag);
        match tag.strip_prefix(TIME) {
            Some(time) => Self::Time(time),
            None if tag.starts_with(NOTHING) => Self::None,
            None => Self::Entity(tag),
        }
    }
}

/// The tag as the store gave it.
pub(in crate::bucket) fn stored_tag(version: &Version) -> &str {
    match Tag::of(version) {
        Tag::Entity(tag) | Tag::Time(tag) => tag,
        Tag::None => "",
    }
}

/// False for a version that was fetched under the other setting of `--stored-encoding`, or by a
/// host without this setting. The same entity tag may then stand for other bytes.
pub(super) fn is_ours(version: &Version, encoding: StoredEncoding) -> bool {
    let tag = version.tag.trim_start_matches(UNSIZED);
    tag.starts_with(PLAIN)
        || tag.starts_with(match encoding {
            StoredEncoding::Decode => DECODED,
            StoredEncoding::Keep => KEPT,
        })
}

/// Compares two versions. If nothing identifies them, only their sizes are compared.
pub(super) fn is_same(a: &Version, b: &Version) -> bool {
    a == b || (a.size == b.size && matches!((Tag::of(a), Tag::of(b)), (Tag::None, Tag::None)))
}

pub(super) fn facts(got: &GetResult) -> ResponseFacts {
    got.extensions.get::<ResponseFacts>().cloned().unwrap_or_default()
}

/// The version, identified by its entity tag. A web server may send only a time, or neither.
pub(super) fn version(
    meta: &ObjectMeta,
    facts: &ResponseFacts,
    encoding: StoredEncoding,
) -> Version {
    let tag = match meta.e_tag.as_ref().or(facts.tag.as_ref()) {
        Some(tag) => tag.clone(),
        None if meta.last_modified.timestamp() > 0 => {
            format!("{TIME}{}", meta.last_modified.to_rfc3339())
        }
        None => format!("{NOTHING}{}", uuid::Uuid::new_v4()),
    };
    let stored = match (&facts.encoding, encoding) {
        (ContentEncoding::Plain, _) => PLAIN,
        (_, StoredEncoding::Decode) => DECODED,
        (_, StoredEncoding::Keep) => KEPT,
    };
    let tag = if facts.has_length && stored != DECODED {
        format!("{stored}{tag}")
    } else {
        format!("{UNSIZED}{stored}{tag}")
    };
    Version { tag, size: meta.size }
}
