//! A small web server, a proxy that fails on request, and waiting for what can be observed: for tests and
//! `cargo xtask soak`.

pub mod faults;
pub mod http;
pub mod wait;
