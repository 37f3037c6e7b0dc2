//! A fleet of hosts on a virtual clock: what scale costs in requests and in time.
//!
//! Each host is real: its loop and admission, its leases and their renewals, the life of a task from
//! the message to the deletion, outages, and the SQS adapter on top of AWS's SDK. Three things are
//! simulated. SQS is `simulation/service.rs`, below the SDK. Guests are `simulation/machine.rs`: a
//! task takes a slot for its time. The clock is Tokio's, which jumps to the next timer whenever
//! every host waits. So an hour of a thousand hosts passes in seconds, and no figure depends on the
//! pace of the machine.
//!
//! `simulation/fleet.rs` runs a fleet, and `simulation/ideal.rs` has the schedule that it is
//! compared with.

mod figures;
mod fleet;
mod ideal;
mod machine;
mod service;
mod tests;
