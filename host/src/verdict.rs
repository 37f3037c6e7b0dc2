//! The one table that says what the end of an execution leads to.
