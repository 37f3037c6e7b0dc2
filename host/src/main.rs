//! The command line of Task Host.
fn main() {}
