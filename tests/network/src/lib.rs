//! Tools for tests and `cargo xtask soak`: a small web server, a proxy with faults, functions that
//! wait for a condition, and a container image of the host.

pub mod faults;
pub mod http;
pub mod image;
pub mod wait;
