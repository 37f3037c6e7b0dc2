//! Removes keys that are not valid here from a listing before `object_store` parses it, because one
//! such key would end the listing.

use std::collections::HashSet;

use parking_lot::Mutex;

use super::address::Service;
use crate::key::BucketKey;

/// The maximum number of skipped keys that are logged by name.
const NAMED: usize = 10;

/// The skipped keys of one bucket. Each is logged once.
#[derive(Debug)]
pub(super) struct Skipped {
    bucket: String,
    named: Mutex<HashSet<String>>,
}

impl Skipped {
    pub(super) fn new(bucket: String) -> Self {
        Self { bucket, named: Mutex::default() }
    }

    pub(super) fn note(&self, key: &str, problem: &str) {
        let mut named = self.named.lock();
        if named.len() > NAMED || named.contains(key) {
            return;
        }
        let bucket = &self.bucket;
        if named.len() < NAMED {
            tracing::warn!(%bucket, "skipped key {key:?}: it {problem}");
        } else {
            tracing::warn!(%bucket, "skipped more keys that are not valid here");
        }
        named.insert(key.to_owned());
    }
}

/// True for the query string of a listing request.
pub(super) fn is_listing(query: &str) -> bool {
    query.split('&').any(|part| part == "list-type=2" || part == "comp=list")
}

/// The listing without unusable keys; `None` if all are usable.
pub(super) fn prune(service: Service, xml: &str, skipped: &Skipped) -> Option<String> {
    let (open, close, name) = match service {
        Service::S3 | Service::Google => ("<Contents>", "</Contents>", "Key"),
        Service::Azure => ("<Blob>", "</Blob>", "Name"),
        Service::Http => return None,
    };
    let mut pruned: Option<String> = None;
    let mut copied = 0;
    let mut at = 0;
    while let Some(start) = xml[at..].find(open).map(|found| at + found) {
        // Leaves text that is not XML for the client to report. Removing the object from
        // `<C<Contents>…</Contents>…` could create the start of another object.
        if !xml[..start].trim_ascii_end().ends_with('>') && start > 0 {
            break;
        }
        let Some(end) = xml[start..].find(close).map(|found| start + found + close.len()) else {
            break;
        };
        if !is_usable(&xml[start..end], name, skipped) {
            pruned.get_or_insert_default().push_str(&xml[copied..start]);
            copied = end;
        }
        at = end;
    }
    let mut pruned = pruned?;
    pruned.push_str(&xml[copied..]);
    Some(pruned)
}

fn is_usable(object: &str, name: &str, skipped: &Skipped) -> bool {
    // Objects of an unknown form are left to the client.
    let Some((attributes, key)) = element(object, name) else { return true };
    let Some(key) = unescape(key) else { return true };
    if attributes.contains("Encoded") {
        skipped.note(&key, "has characters that XML can't carry");
        return false;
    }
    let is_empty = ["Size", "Content-Length"]
        .iter()
        .find_map(|size| element(object, size))
        .is_some_and(|(_, size)| size.trim() == "0");
    // Web consoles and Hadoop create such objects for folders.
    if is_empty && (key.ends_with('/') || key.ends_with("_$folder$")) {
        return false;
    }
    match BucketKey::new(&key) {
        Ok(_) => true,
        Err(error) => {
            skipped.note(&key, &error.to_string());
            false
        }
    }
}

/// The attributes and the text of the first element of this name.
fn element<'a>(xml: &'a str, name: &str) -> Option<(&'a str, &'a str)> {
    let mut rest = xml;
    loop {
        let (_, after) = rest.split_once('<')?;
        rest = after;
        let Some(after) = after.strip_prefix(name) else { continue };
        if after.starts_with('>') || after.starts_with(char::is_whitespace) {
            let (attributes, after) = after.split_once('>')?;
            return Some((attributes, after.split_once("</")?.0));
        }
    }
}

/// Decodes XML entities.
fn unescape(xml: &str) -> Option<String> {
    let mut text = String::with_capacity(xml.len());
    let mut rest = xml;
    while let Some((before, after)) = rest.split_once('&') {
        let (entity, after) = after.split_once(';')?;
        text.push_str(before);
        text.push(match entity {
            "amp" => '&',
            "lt" => '<',
            "gt" => '>',
            "quot" => '"',
            "apos" => '\'',
            _ => {
                let number = entity.strip_prefix('#')?;
                let code = match number.strip_prefix('x') {
                    Some(hex) => u32::from_str_radix(hex, 16),
                    None => number.parse(),
                };
                char::from_u32(code.ok()?)?
            }
        });
        rest = after;
    }
    text.push_str(rest);
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(key: &str, size: u64) -> String {
        format!("<Contents><Key>{key}</Key><Size>{size}</Size></Contents>")
    }

    #[test]
    fn a_key_that_can_not_be_ours_is_taken_out_and_the_others_stay() {
        let skipped = Skipped::new("b".into());
        let keys = [
            ("d/1", 3, true),
            ("d/", 0, false),
            ("d/full/", 5, false),
            ("d/sub_$folder$", 0, false),
            ("d/sub_$folder$", 1, true),
            ("d//2", 1, false),
            ("/e", 1, false),
            ("d/../f", 1, false),
            ("a&amp;b&#228;&#xe4;", 1, true),
            ("a&#10;b", 1, false),
            ("empty", 0, true),
        ];
        let listing = |all: bool| -> String {
            let kept = keys.iter().filter(|(.., kept)| all || *kept);
            let objects: String = kept.map(|(key, size, _)| object(key, *size)).collect();
            format!("<?xml?><List><KeyCount>9</KeyCount>{objects}<Next>x</Next></List>")
        };
        for service in [Service::S3, Service::Google] {
            let pruned = prune(service, &listing(true), &skipped).unwrap();
            assert_eq!(pruned, listing(false));
        }
        assert_eq!(prune(Service::S3, &listing(false), &skipped), None, "nothing is copied");
        let named = skipped.named.lock();
        assert_eq!(named.len(), 5, "each once, and no folder: {named:?}");
    }

    #[test]
    fn azures_listing_is_understood_too() {
        let skipped = Skipped::new("c".into());
        let blob = |name: &str| {
            format!(
                "<Blob><Name{name}</Name><Properties><Content-Length>0</Content-Length>\
                 </Properties></Blob>"
            )
        };
        let xml = |names: &[&str]| {
            let blobs: String = names.iter().map(|name| blob(name)).collect();
            format!("<E><Blobs>{blobs}</Blobs><NextMarker /></E>")
        };
        let all = xml(&[">a//b", ">c", " Encoded=\"true\">a%EF%BF%BE", ">d/"]);
        assert_eq!(prune(Service::Azure, &all, &skipped).unwrap(), xml(&[">c"]));
    }

    #[test]
    fn the_log_does_not_grow_with_the_bucket() {
        let skipped = Skipped::new("b".into());
        for i in 0..1000 {
            skipped.note(&i.to_string(), "is wrong");
        }
        assert_eq!(skipped.named.lock().len(), NAMED + 1);
    }

    #[test]
    fn requests_that_list_are_known_by_their_query() {
        assert!(is_listing("list-type=2&prefix=a%2F"));
        assert!(is_listing("restype=container&comp=list"));
        assert!(!is_listing("uploads") && !is_listing("comp=block&blockid=x") && !is_listing(""));
    }
}
