//! How this module reads the files beside compiled code, for the fuzz targets.

use super::compiled;
use super::quarantine;
use crate::digest::Digest;

/// The bytes to store for compiled code of that component.
pub fn seal(code: &[u8], component: Digest) -> Option<Vec<u8>> {
    let sum = compiled::checksum(code, component).ok()?;
    Some([code, &sum.0].concat())
}

/// The code in stored bytes, if they are whole and of that component.
pub fn unseal(stored: &[u8], component: Digest) -> Option<&[u8]> {
    compiled::unseal(stored, component)
}

/// The record of a component that can't be compiled, read and written again.
pub fn failure(text: &[u8]) -> Option<Vec<u8>> {
    serde_json::to_vec(&quarantine::parse_failed(text).ok()?).ok()
}

/// The record of a compilation under way, read and written again.
pub fn trying(text: &[u8]) -> Option<Vec<u8>> {
    serde_json::to_vec(&quarantine::parse_trying(text)).ok()
}
