//! An engine for tests, in memory.
