//! Write a Task Host task in Rust: implement [`Guest`], export it with [`export!`].
//!
//! A guest reads the inputs and writes the outputs of one task. It has access to nothing else: no
//! network, no environment, no other files, no other task.
//!
//! ```
//! use task_host_sdk::{Guest, Outcome, Result, Task};
//!
//! #[derive(serde::Deserialize)]
//! struct Prefix {
//!     prefix: String,
//! }
//!
//! /// Copies each input under a prefix.
//! #[derive(Default)]
//! struct Copy;
//!
//! impl Guest for Copy {
//!     type Payload = Prefix;
//!
//!     fn execute(&mut self, task: &Task<Prefix>) -> Result<Outcome> {
//!         for input in task.inputs() {
//!             let key = format!("{}/{}", task.payload().prefix, input.file_name());
//!             task.write(&key, input.read()?)?;
//!         }
//!         Ok(task.done())
//!     }
//! }
//!
//! task_host_sdk::export!(Copy);
//! # // This runs the example as a user's unit test would.
//! # fn main() -> Result<()> {
//! let mut sandbox = task_host_sdk::testing::Sandbox::new()?;
//! sandbox.input("0_input/4.dat", b"four")?.payload(r#"{"prefix": "copies"}"#);
//! let outcome = sandbox.run::<Copy>()?;
//! assert_eq!(outcome.outputs(), ["copies/4.dat"]);
//! assert_eq!(sandbox.output("copies/4.dat")?, b"four");
//! # Ok(())
//! # }
//! ```
//!
//! Build it with `cargo build --target wasm32-wasip2 --release`; the package needs
//! `[lib] crate-type = ["cdylib"]`. `host try` runs the resulting component, and
//! `host component push` uploads it for queued tasks.
//!
//! # Overview
//! - [`Guest`]: the three calls, and when the host makes each.
//! - [`Plan`]: for a task that names its own inputs.
//! - [`Task`]: the payload, the inputs ([`Input`]) and the outputs ([`Output`]) of a task.
//! - [`Outcome`]: the result of a task that ran to its end.
//! - [`Error`]: why a task failed, and whether to retry it. `?` converts any error.
//! - [`info!`], `warn!`, `error!` and `debug!` write a line to the task's log.
//! - [`testing`] runs a task in a unit test, without WebAssembly.

mod error;
mod guest;
mod logging;
mod outcome;
mod output;
mod plan;
mod task;
#[cfg(not(target_family = "wasm"))]
pub mod testing;

pub use error::{Classify, Context, Error, Result, Verdict};
pub use guest::Guest;
pub use outcome::Outcome;
pub use output::Output;
pub use plan::{Needs, Plan};
pub use task::{Input, Task};

/// A payload that the task does not use: accepts any payload, or none.
pub use serde::de::IgnoredAny as Ignored;
/// Any JSON: a [`Guest::Payload`] without a fixed shape.
pub use serde_json::Value;

/// The items that most tasks need.
pub mod prelude {
    pub use crate::{
        Classify, Context, Error, Guest, Input, Needs, Outcome, Output, Plan, Result, Task,
    };
}

/// The guest side of the world, generated from `wit/`. Only [`export!`] uses it.
#[doc(hidden)]
pub mod bindings {
    #![expect(clippy::too_many_arguments, reason = "generated: a record is passed flat")]
    wit_bindgen::generate!({
        path: "wit",
        world: "task",
        pub_export_macro: true,
        default_bindings_module: "task_host_sdk::bindings",
    });
}

/// The guest side of the world with `plan`. Only [`export!`] uses it.
#[doc(hidden)]
pub mod planned_bindings {
    #![expect(clippy::too_many_arguments, reason = "generated: a record is passed flat")]
    wit_bindgen::generate!({
        path: "wit",
        world: "task-with-plan",
        pub_export_macro: true,
        default_bindings_module: "task_host_sdk::planned_bindings",
        with: { "task-host:guest/types@0.1.1": crate::bindings::task_host::guest::types },
    });
}

/// The records that the world defines; [`Task`] and [`Outcome`] are the SDK's own types.
use bindings::task_host::guest::types as wire;

#[doc(hidden)]
pub use guest::{Exported, HasPlan, NoPlan};
#[doc(hidden)]
pub use logging::line;
