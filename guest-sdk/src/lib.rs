//! Write a Task Host task in Rust: implement [`Guest`], export it with [`export!`].
//!
//! A guest sees one task: its inputs, which it reads, and its outputs, which it writes.
//! It sees nothing else: no network, no environment, no other files, no other task.
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
//! # // What follows runs the example as a unit test of a user would.
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
//! `[lib] crate-type = ["cdylib"]`. The result is a component that `host try` runs on the spot and
//! `host component push` makes available to queued tasks.
//!
//! # The map
//! - [`Guest`]: the three calls, and when each is made.
//! - [`Task`]: the payload, the inputs ([`Input`]) and the outputs ([`Output`]) of a task.
//! - [`Outcome`]: what became of the task.
//! - [`Error`]: why not, and whether trying again makes sense. `?` makes one of any error.
//! - [`info!`] and its sisters: a line in the task's log.
//! - [`testing`]: a task in an ordinary unit test, on the machine that builds it.

mod error;
mod guest;
mod logging;
mod outcome;
mod output;
mod task;
#[cfg(not(target_family = "wasm"))]
pub mod testing;

pub use error::{Classify, Context, Error, Result, Verdict};
pub use guest::Guest;
pub use outcome::Outcome;
pub use output::Output;
pub use task::{Input, Task};

/// A payload that nobody looks at: it accepts whatever the message says, and nothing at all.
pub use serde::de::IgnoredAny as Ignored;
/// The JSON that a [`Guest::Payload`] of no fixed shape can be.
pub use serde_json::Value;

/// What a task needs in nearly every file.
pub mod prelude {
    pub use crate::{Classify, Context, Error, Guest, Input, Outcome, Output, Result, Task};
}

/// The component's side of the world, made from `wit/`. For [`export!`] alone.
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

/// The records that cross to the host, as the world has them; [`Task`] and [`Outcome`] are ours.
use bindings::task_host::guest::types as wire;

#[doc(hidden)]
pub use guest::Exported;
#[doc(hidden)]
pub use logging::line;
