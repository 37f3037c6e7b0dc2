//! Task Host. The modules, in the order in which a task passes through them:
//!
//! 1. [`worker`] takes a permit ([`hold`]) and a [`lease`] on a message of the task [`queue`].
//! 2. [`message`] decodes the message into a [`message::Task`]. [`key`] checks names, and
//!    [`plain`] checks their characters.
//! 3. [`prefetch`] fetches the inputs from the [`bucket`] through the [`cache`].
//! 4. [`catalog`] finds the task's component and compiles it once.
//! 5. [`sandbox`] runs the component's three calls in a fresh instance.
//! 6. [`publish`] writes the outputs to the bucket.
//! 7. [`verdict`] decides whether the message is acknowledged, released or rejected.
//!
//! [`task`] runs these steps for one task. [`services`] holds what all tasks share. [`fleet`]
//! starts workers on other machines.

pub mod activity;
pub mod ahead;
pub mod ask;
mod aws;
mod blocking;
pub mod bucket;
pub mod cache;
pub mod catalog;
pub mod cause;
pub mod config;
pub mod confinement;
pub mod digest;
mod dirs;
pub mod environment;
pub mod failure;
pub mod fault;
pub mod fit;
pub mod fleet;
pub mod heartbeat;
pub mod hold;
pub mod identity;
pub mod json;
pub mod key;
pub mod lease;
pub mod machine;
pub mod message;
pub mod metrics;
pub mod needs;
pub mod notice;
pub mod outage;
pub mod overview;
mod ownership;
pub mod pace;
pub mod plain;
pub mod prefetch;
mod process_dir;
pub mod protection;
pub mod publish;
pub mod queue;
pub mod receipt;
pub mod report;
pub mod roots;
pub mod sandbox;
mod scheme;
pub mod services;
pub mod shell;
pub mod shortage;
#[cfg(test)]
mod simulation;
pub mod spill;
pub mod stats;
pub mod system;
pub mod task;
pub mod telemetry;
pub mod transfer;
mod turns;
pub mod verdict;
pub mod words;
pub mod worker;
