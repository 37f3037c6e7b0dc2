//! What a host is doing now and what it has done, in memory, for those who ask.

pub mod snapshot;
