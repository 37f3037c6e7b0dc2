//! A small web server, and a proxy that fails on request, for tests and `cargo xtask soak`.

pub mod faults;
pub mod http;
