//! Fuzz targets for the parsers of foreign data: what messages, queues, buckets, components and files
//! of settings may contain.
//!
//! A target takes any bytes and panics if a promise is broken: what is accepted keeps its documented
//! limits, what is written is read again as the same, two readers of one format agree, and memory is
//! bounded. `cargo xtask fuzz` looks for such bytes. `fuzz/corpus/TARGET` keeps the inputs that
//! reached new code, and `cargo test` runs each of them.

mod memory;
mod targets;

/// What is done with an input.
#[derive(Debug)]
pub struct Target {
    /// The name, which is that of the directory of its corpus.
    pub name: &'static str,
    /// Panics if a promise is broken.
    pub check: fn(&[u8]),
}

impl Target {
    /// All targets.
    pub fn all() -> &'static [Self] {
        targets::ALL
    }

    /// The target of that name.
    pub fn named(name: &str) -> Option<&'static Self> {
        Self::all().iter().find(|target| target.name == name)
    }
}
