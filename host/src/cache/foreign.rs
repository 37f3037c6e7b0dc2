//! How this module reads the files of a cache, for the fuzz targets.

use super::index;

/// An entry of the index, parsed and written again.
pub fn index_entry(text: &[u8]) -> Option<Vec<u8>> {
    serde_json::to_vec(&index::parse(text)?).ok()
}
