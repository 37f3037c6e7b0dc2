//! Support for end-to-end tests: the real `host`, the real guests, the real python-task-queue, and
//! a separate place for each test.
//!
//! `cargo xtask test` builds host, guests and python-task-queue before it runs the tests. The tests
//! find them in their own build directory. A missing program is an error, never a reason to skip a
//! test.

mod browser;
mod built;
mod cloud;
pub mod components;
pub mod engines;
mod mount;
mod place;
mod process;
mod python;
mod signing;
mod stack;
/// The steps of a task's life at which a host with fault points can fail.
#[path = "../../host/src/fault/step.rs"]
pub mod step;
mod watched;

pub use browser::check_page;
pub use built::{fleet_tool, guest, helm, host, host_with_fault_points, python, target};
pub use cloud::{Cloud, aws_variables, google_key, server, unique};
pub use mount::{FaultyDisk, SmallDisk};
pub use place::{Place, files, misbehaviour, no_op};
pub use process::{Finished, Running};
pub use python::Script;
pub use signing::Signer;
pub use stack::Stacks;
pub use task_host_test_network::wait::{eventually, within};
pub use task_host_test_network::{faults, http};
pub use watched::Watched;
