//! Write a Task Host task in Rust.
