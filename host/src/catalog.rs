//! From a task name to a compiled component, ready to instantiate.
