//! Simulates a fleet of hosts on a virtual clock, to measure the requests and the time that a large
//! fleet needs.
//!
//! Each host is real: its loop and admission, its leases and renewals, the processing of a task
//! from its message to the deletion, outages, and the SQS adapter on top of AWS's SDK. Three parts
//! are simulated. `simulation/service.rs` simulates SQS, below the SDK. `simulation/machine.rs`
//! simulates guests: a task occupies a slot for its duration. The clock is Tokio's paused clock,
//! which jumps to the next timer whenever every host waits. Therefore an hour of a thousand hosts
//! takes seconds, and the figures do not depend on the speed of the machine.
//!
//! `simulation/fleet.rs` runs a fleet, and `simulation/ideal.rs` computes the ideal schedule to
//! compare it with.

mod figures;
mod fleet;
mod ideal;
mod machine;
mod service;
mod tests;
