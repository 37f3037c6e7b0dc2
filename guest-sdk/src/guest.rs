//! The trait that a task implements, and the component's exports that call it.

use std::any::Any;
use std::cell::RefCell;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use crate::planned_bindings::task_host::guest::planning;
use crate::wire::{self, Failure};
use crate::{Error, Needs, Outcome, Plan, Result, Task, Verdict, logging};
use crate::{bindings, planned_bindings};

/// The code of a task. Export the implementation with [`export!`](crate::export).
///
/// For each execution of a task, the host creates a fresh instance and calls `prepare`, `execute`
/// and `finalize`, in this order. All three calls see the same value of the implementing type,
/// created by [`Default`], so `prepare` can store results in its fields.
///
/// ```
/// use task_host_sdk::{Error, Guest, Input, Outcome, Result, Task};
///
/// #[derive(serde::Deserialize)]
/// struct Lines {
///     #[serde(default = "ten")]
///     first: usize,
/// }
///
/// fn ten() -> usize {
///     10
/// }
///
/// /// Keeps the first lines of a text.
/// #[derive(Default)]
/// struct Head {
///     text: Option<Input>,
/// }
///
/// impl Guest for Head {
///     type Payload = Lines;
///
///     fn prepare(&mut self, task: &Task<Lines>) -> Result<()> {
///         if task.payload().first == 0 {
///             return Err(Error::reject("`first` is 0: nothing to keep"));
///         }
///         self.text = Some(task.single_input()?);
///         Ok(())
///     }
///
///     fn execute(&mut self, task: &Task<Lines>) -> Result<Outcome> {
///         let Some(text) = &self.text else { unreachable!("prepare was called") };
///         let all = text.read_to_string()?;
///         let head: Vec<&str> = all.lines().take(task.payload().first).collect();
///         task.write(&format!("1_head/{}", text.file_name()), head.join("\n"))?;
///         Ok(task.done())
///     }
/// }
/// # task_host_sdk::export!(Head);
/// # let mut sandbox = task_host_sdk::testing::Sandbox::new().unwrap();
/// # sandbox.input("0_input/a.txt", b"a\nb\nc").unwrap().payload(r#"{"first": 2}"#);
/// # sandbox.run::<Head>().unwrap();
/// # assert_eq!(sandbox.output("1_head/a.txt").unwrap(), b"a\nb");
/// ```
pub trait Guest: Default + 'static {
    /// The task's own parameters: any type that serde can deserialize from JSON. If a payload does
    /// not match, the task is rejected before `prepare`; the error names the position and what was
    /// expected. A missing payload is read as `null`, which `Option<P>`, [`Value`](crate::Value)
    /// and [`Ignored`](crate::Ignored) accept, or else as `{}`, which a type accepts if all of its
    /// fields have defaults.
    type Payload: DeserializeOwned + 'static;

    /// Checks the payload and the inputs, which are already present.
    ///
    /// # Errors
    /// An error ends the task; the other calls are not made.
    fn prepare(&mut self, task: &Task<Self::Payload>) -> Result<()> {
        let _ = task;
        Ok(())
    }

    /// Reads the inputs and writes the outputs.
    ///
    /// # Errors
    /// An error ends the task; `finalize` is not called, and nothing is published.
    fn execute(&mut self, task: &Task<Self::Payload>) -> Result<Outcome>;

    /// Completes the outputs or removes temporary files. If this call succeeds and the outcome is a
    /// success, the host publishes the outputs. Called for an unsuccessful outcome too, but not
    /// after an error or a panic.
    ///
    /// # Errors
    /// An error ends the task; nothing is published.
    fn finalize(&mut self, task: &Task<Self::Payload>, outcome: &Outcome) -> Result<()> {
        let _ = (task, outcome);
        Ok(())
    }
}

/// Exports a [`Guest`] from this component. Use it once, at the top level of the crate.
///
/// `export!(Type, plan)` exports a guest that names its own inputs: see [`Plan`].
///
/// On targets other than WebAssembly, the macro only checks that the type is a guest, so that the
/// crate's unit tests can be built for them.
#[macro_export]
macro_rules! export {
    ($guest:ty, plan) => {
        const _: () = {
            type __TaskHostGuest = $crate::Exported<$guest>;
            #[cfg(target_family = "wasm")]
    $crate::planned_bindings::export!(__TaskHostGuest with_types_in $crate::planned_bindings);
            #[cfg(not(target_family = "wasm"))]
            const _: fn(&$crate::Task<<$guest as $crate::Guest>::Payload>)
                -> $crate::Result<$crate::Needs> = <$guest as $crate::Plan>::plan;
            #[cfg(not(target_family = "wasm"))]
            const _: ::core::marker::PhantomData<__TaskHostGuest> = ::core::marker::PhantomData;
        };
    };
    ($guest:ty) => {
        const _: () = {
            use $crate::NoPlan as _;
            assert!(
                !$crate::HasPlan::<$guest>::VALUE,
                "this guest implements `Plan`: export it with `export!(Type, plan)`"
            );
        };
        const _: () = {
            type __TaskHostGuest = $crate::Exported<$guest>;
            #[cfg(target_family = "wasm")]
    $crate::bindings::export!(__TaskHostGuest with_types_in $crate::bindings);
            #[cfg(not(target_family = "wasm"))]
            const _: fn() -> $guest = <$guest as ::core::default::Default>::default;
            #[cfg(not(target_family = "wasm"))]
            const _: ::core::marker::PhantomData<__TaskHostGuest> = ::core::marker::PhantomData;
        };
    };
}

/// One execution of a task: the value that all three calls share.
pub(crate) struct Execution<G: Guest> {
    guest: G,
    task: Task<G::Payload>,
}

impl<G: Guest> Execution<G> {
    pub(crate) fn prepare(task: wire::Task, inputs: PathBuf, outputs: PathBuf) -> Result<Self> {
        logging::install();
        logging::report_panics();
        let mut execution = Self { guest: G::default(), task: Task::new(task, inputs, outputs)? };
        execution.guest.prepare(&execution.task)?;
        Ok(execution)
    }

    pub(crate) fn execute(&mut self) -> Result<Outcome> {
        let outcome = self.guest.execute(&self.task)?;
        // The SDK checks for unfinished outputs after `finalize`, because the guest may keep an
        // output in its fields and finish it there.
        Ok(outcome)
    }

    pub(crate) fn finalize(mut self, outcome: &Outcome) -> Result<()> {
        self.guest.finalize(&self.task, outcome)?;
        if outcome.is_success() { self.task.check_outputs() } else { Ok(()) }
    }
}

/// The component's exports for the guest `G`. The world defines the directories' names.
#[doc(hidden)]
#[derive(Debug)]
pub struct Exported<G>(PhantomData<G>);

/// Says whether a guest implements [`Plan`]: if it does, the inherent constant takes precedence
/// over the constant of [`NoPlan`].
#[doc(hidden)]
#[derive(Debug)]
pub struct HasPlan<G>(PhantomData<G>);

impl<G: Plan> HasPlan<G> {
    pub const VALUE: bool = true;
}

/// The constant for all other guests.
#[doc(hidden)]
pub trait NoPlan {
    const VALUE: bool = false;
}

impl<G> NoPlan for HasPlan<G> {}

thread_local! {
    /// The current [`Execution`], as `Any` because a static cannot be generic. An instance serves
    /// one task and one call at a time.
    static EXECUTION: RefCell<Option<Box<dyn Any>>> = const { RefCell::new(None) };
}

impl<G: Guest> bindings::Guest for Exported<G> {
    fn prepare(task: wire::Task) -> Result<(), Failure> {
        let (inputs, outputs) = (Path::new("/inputs"), Path::new("/outputs"));
        let execution = Execution::<G>::prepare(task, inputs.to_owned(), outputs.to_owned())?;
        EXECUTION.set(Some(Box::new(execution)));
        Ok(())
    }

    fn execute(_: wire::Task) -> Result<wire::Outcome, Failure> {
        let mut execution = take::<G>("execute")?;
        let outcome = execution.execute()?;
        EXECUTION.set(Some(execution));
        Ok(wire::Outcome { success: outcome.is_success(), outputs: outcome.outputs().to_vec() })
    }

    fn finalize(_: wire::Task, outcome: wire::Outcome) -> Result<(), Failure> {
        let execution = take::<G>("finalize")?;
        let outcome = if outcome.success {
            Outcome::success(outcome.outputs)
        } else {
            Outcome::unsuccessful()
        };
        Ok(execution.finalize(&outcome)?)
    }
}

impl<G: Plan> planned_bindings::Guest for Exported<G> {
    fn prepare(task: wire::Task) -> Result<(), Failure> {
        <Self as bindings::Guest>::prepare(task)
    }

    fn execute(task: wire::Task) -> Result<wire::Outcome, Failure> {
        <Self as bindings::Guest>::execute(task)
    }

    fn finalize(task: wire::Task, outcome: wire::Outcome) -> Result<(), Failure> {
        <Self as bindings::Guest>::finalize(task, outcome)
    }

    fn plan(task: wire::Task) -> Result<planning::Needs, Failure> {
        let (inputs, outputs) = (Path::new("/inputs"), Path::new("/outputs"));
        let needs = plan::<G>(task, inputs.to_owned(), outputs.to_owned())?;
        Ok(needs.into_wire())
    }
}

/// Calls a guest's plan.
pub(crate) fn plan<G: Plan>(task: wire::Task, inputs: PathBuf, outputs: PathBuf) -> Result<Needs> {
    logging::install();
    logging::report_panics();
    G::plan(&Task::new(task, inputs, outputs)?)
}

fn take<G: Guest>(call: &str) -> Result<Box<Execution<G>>> {
    let execution = EXECUTION.take().and_then(|execution| execution.downcast().ok());
    execution.ok_or_else(|| {
        Error::reject(format!("the host called {call} without a prepare that succeeded"))
    })
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let text = error.text().to_owned();
        match error.verdict() {
            Verdict::Retry => Self::Retry(text),
            Verdict::Reject => Self::Reject(text),
        }
    }
}
