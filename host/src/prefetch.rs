//! A task's inputs, from the bucket through the cache into its inputs directory.
