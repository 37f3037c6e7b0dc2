//! The two directories that a task sees, emptied between tasks.
