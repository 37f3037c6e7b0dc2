//! The functions that read the files in the directory of compiled code, for the fuzz targets.

use super::compiled;
use super::quarantine;
use crate::digest::Digest;

/// The bytes to store for the compiled code of a component.
pub fn seal(code: &[u8], component: Digest) -> Option<Vec<u8>> {
    let sum = compiled::checksum(code, component).ok()?;
    Some([code, &sum.0].concat())
}

/// The code in stored bytes, if they are undamaged and belong to that component.
pub fn unseal(stored: &[u8], component: Digest) -> Option<&[u8]> {
    compiled::unseal(stored, component)
}

/// Parses the record of a component that can't be compiled, and writes it again.
pub fn failure(text: &[u8]) -> Option<Vec<u8>> {
    serde_json::to_vec(&quarantine::parse_failed(text).ok()?).ok()
}

/// Parses the record of a compilation under way, and writes it again.
pub fn trying(text: &[u8]) -> Option<Vec<u8>> {
    serde_json::to_vec(&quarantine::parse_trying(text)).ok()
}
