//! Task Host: the life of one task, and the modules in that order.
//!
//! 1. [`worker`] takes a permit and a [`lease`] on a message of the task [`queue`].
//! 2. [`message`] decodes it into a [`message::Task`]; names are checked in [`key`],
//!    their characters in [`plain`].
//! 3. [`prefetch`] brings its inputs from the [`bucket`] through the [`cache`] into a
//!    [`workspace`].
//! 4. [`catalog`] finds the component of that name, compiled once.
//! 5. [`sandbox`] runs its three calls in a fresh instance.
//! 6. [`publish`] puts what it left into the bucket.
//! 7. [`verdict`] decides what its end leads to, and the lease is settled accordingly.
//!
//! [`task`] is that list as one function.

pub mod ahead;
mod blocking;
pub mod bucket;
pub mod cache;
pub mod catalog;
pub mod config;
pub mod digest;
pub mod environment;
pub mod fit;
pub mod home;
pub mod json;
pub mod key;
pub mod lease;
pub mod message;
pub mod outage;
mod ownership;
pub mod plain;
pub mod prefetch;
pub mod publish;
pub mod queue;
pub mod report;
pub mod roots;
pub mod sandbox;
mod scratch;
pub mod shortage;
pub mod stats;
pub mod task;
pub mod transfer;
mod turns;
pub mod verdict;
pub mod words;
pub mod worker;
pub mod workspace;
