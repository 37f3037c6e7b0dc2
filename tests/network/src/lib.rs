//! A small web server, a proxy that fails on request, waiting for what can be observed, and an image of
//! the host: for tests and `cargo xtask soak`.

pub mod faults;
pub mod http;
pub mod image;
pub mod wait;
