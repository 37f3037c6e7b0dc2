//! The life of one task, from top to bottom.
