//! Fuzz targets for the parsers of foreign data: messages, queues, buckets, components and settings
//! files.
//!
//! A target takes any bytes and panics if a guarantee is broken: accepted data are within their
//! documented limits, written data are read again as the same, two readers of one format agree, and
//! memory is bounded. `cargo xtask fuzz` searches for inputs that break a guarantee.
//! `fuzz/corpus/TARGET` contains the inputs that reached new code, and `cargo test` runs each of
//! them.

mod memory;
mod targets;

/// A check of one kind of foreign data.
#[derive(Debug)]
pub struct Target {
    /// The name of the target and of the directory of its corpus.
    pub name: &'static str,
    /// Panics if an input breaks a guarantee.
    pub check: fn(&[u8]),
}

impl Target {
    /// All targets.
    pub fn all() -> &'static [Self] {
        targets::ALL
    }

    /// The target with this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        Self::all().iter().find(|target| target.name == name)
    }
}
