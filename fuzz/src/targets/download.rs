//! Objects and listings as servers send them: headers, checksums, gzip, and XML.
//!
//! An input consists of headers as lines such as `name: value`, an empty line, and the body.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use flate2::read::MultiGzDecoder;
use task_host::bucket::foreign::{Decoded, content_encoding, gunzip, has_checksum, prune_listing};

use super::headers;
use crate::memory::bounded;

/// The most decoded bytes.
const LIMIT: u64 = 64 << 10;
/// The most memory of a decoder.
const MEMORY: usize = 1 << 20;

pub(crate) fn check(input: &[u8]) {
    let (headers, body) = headers(input);
    for (_, value) in &headers {
        let encoding = content_encoding(value);
        assert!(encoding.chars().count() <= 40, "{encoding}");
    }
    if let Ok(text) = std::str::from_utf8(body) {
        listing(text);
    }
    let is_right = has_checksum(body, &headers);
    let (whole, bytes) = decode([body].into_iter(), &headers);
    let (pieces, same) = decode(body.chunks(7), &headers);
    let is_whole = |decoded: &Decoded| matches!(decoded, Decoded::Whole(_));
    // If an object has two faults, either may be reported.
    let is_same = pieces == whole || !(is_whole(&pieces) || is_whole(&whole));
    assert!(is_same, "it depends on how the bytes arrive: {whole:?}, {pieces:?}");
    match whole {
        Decoded::Whole(size) => {
            assert!(is_right != Some(false) && size <= LIMIT);
            assert_eq!(bytes, same);
            let mut theirs = Vec::new();
            if !body.is_empty() {
                MultiGzDecoder::new(body).read_to_end(&mut theirs).expect("flate2 reads it too");
            }
            assert_eq!(bytes, theirs);
        }
        Decoded::NotGzip => assert!(is_right != Some(false)),
        Decoded::Refused => {}
    }
}

/// A pruned listing has no key that pruning would remove, and nothing is added to it.
fn listing(xml: &str) {
    for is_azure in [false, true] {
        let pruned = bounded(4 * xml.len() + 4096, || prune_listing(xml, is_azure));
        let Some(pruned) = pruned else { continue };
        assert!(pruned.len() < xml.len());
        let mut all = xml.bytes();
        assert!(pruned.bytes().all(|byte| all.any(|other| other == byte)), "{pruned}");
        assert_eq!(prune_listing(&pruned, is_azure), None, "{pruned}");
    }
}

/// Decodes pieces into a file, and returns the file's bytes.
fn decode<'a>(
    pieces: impl Iterator<Item = &'a [u8]>,
    headers: &[(&str, &str)],
) -> (Decoded, Vec<u8>) {
    let file = Arc::new(temporary());
    let decoded = bounded(MEMORY, || gunzip(pieces, headers, file.clone(), LIMIT));
    let decoded = decoded.expect("a file in memory");
    let size = file.metadata().expect("a file in memory").len();
    assert!(size <= LIMIT, "{size} bytes were written");
    let mut bytes = vec![0; size as usize];
    file.read_exact_at(&mut bytes, 0).expect("a file in memory");
    (decoded, bytes)
}

/// A file in memory.
fn temporary() -> File {
    let file = rustix::fs::memfd_create(c"object", rustix::fs::MemfdFlags::CLOEXEC);
    File::from(file.expect("a file in memory"))
}
