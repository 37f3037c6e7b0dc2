//! Which version of an object a store's answer names, as text that the index of a cache keeps.

use object_store::{GetResult, ObjectMeta};

use super::super::encoding::Coding;
use super::super::transport::Facts;
use super::super::{StoredEncoding, UNSIZED, Version};

/// How a version was told.
pub(super) enum Tag<'a> {
    Entity(&'a str),
    Time(&'a str),
    None,
}

/// What begins the tag of a version that only a time tells.
const TIME: &str = "time ";
/// What begins that of one that nothing tells: what follows is new each time.
const NOTHING: &str = "nothing ";
/// What begins the tag of an object that is stored as it is.
const PLAIN: &str = "plain ";
/// What begins that of an object that is stored compressed, and decoded on its way.
const DECODED: &str = "decoded ";
/// What begins that of one that is stored compressed, and kept so.
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

/// False for a version that was fetched when the other thing was done with what is stored
/// compressed, or by a host that knew nothing of it: the same tag may stand for other bytes then.
pub(super) fn is_ours(version: &Version, encoding: StoredEncoding) -> bool {
    let tag = version.tag.trim_start_matches(UNSIZED);
    tag.starts_with(PLAIN)
        || tag.starts_with(match encoding {
            StoredEncoding::Decode => DECODED,
            StoredEncoding::Keep => KEPT,
        })
}

/// Where nothing tells versions apart, only the size can be compared.
pub(super) fn is_same(a: &Version, b: &Version) -> bool {
    a == b || (a.size == b.size && matches!((Tag::of(a), Tag::of(b)), (Tag::None, Tag::None)))
}

pub(super) fn facts(got: &GetResult) -> Facts {
    got.extensions.get::<Facts>().cloned().unwrap_or_default()
}

/// The entity tag says it best. A web server may only have a time, or not even that.
pub(super) fn version(meta: &ObjectMeta, facts: &Facts, encoding: StoredEncoding) -> Version {
    let tag = match meta.e_tag.as_ref().or(facts.tag.as_ref()) {
        Some(tag) => tag.clone(),
        None if meta.last_modified.timestamp() > 0 => {
            format!("{TIME}{}", meta.last_modified.to_rfc3339())
        }
        None => format!("{NOTHING}{}", uuid::Uuid::new_v4()),
    };
    let stored = match (&facts.coding, encoding) {
        (Coding::Plain, _) => PLAIN,
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
