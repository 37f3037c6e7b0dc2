//! `host fleet` on real engines.

mod stack;
