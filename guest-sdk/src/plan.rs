//! Guests that name their own inputs, and the inputs that they ask for.

use crate::planned_bindings::task_host::guest::planning;
use crate::{Guest, Result, Task};

/// A guest that names its own inputs, which it derives from the payload or from an index that it
/// reads first. Export it with `export!(Type, plan)`.
///
/// ```
/// use task_host_sdk::{Guest, Needs, Outcome, Plan, Result, Task};
///
/// #[derive(serde::Deserialize)]
/// struct Tile {
///     x: u32,
///     y: u32,
/// }
///
/// /// Copies a tile and the one to its left, if there is one.
/// #[derive(Default)]
/// struct Pair;
///
/// impl Plan for Pair {
///     fn plan(task: &Task<Tile>) -> Result<Needs> {
///         let Tile { x, y } = *task.payload();
///         let mut needs = Needs::new();
///         needs.key(format!("tiles/{x}-{y}.raw"));
///         if x > 0 {
///             needs.optional_key(format!("tiles/{}-{y}.raw", x - 1));
///         }
///         Ok(needs)
///     }
/// }
///
/// impl Guest for Pair {
///     type Payload = Tile;
///
///     fn execute(&mut self, task: &Task<Tile>) -> Result<Outcome> {
///         for tile in task.inputs() {
///             task.write(&format!("pair/{}", tile.file_name()), tile.read()?)?;
///         }
///         Ok(task.done())
///     }
/// }
///
/// task_host_sdk::export!(Pair, plan);
/// # fn main() -> Result<()> {
/// # let mut sandbox = task_host_sdk::testing::Sandbox::new()?;
/// # let needs = sandbox.payload(r#"{"x": 1, "y": 2}"#).plan::<Pair>()?;
/// # let mut want = Needs::new();
/// # want.key("tiles/1-2.raw").optional_key("tiles/0-2.raw");
/// # assert_eq!(needs, want);
/// # sandbox.input("tiles/1-2.raw", "x")?.run::<Pair>()?;
/// # Ok(())
/// # }
/// ```
pub trait Plan: Guest {
    /// Says which inputs the task needs. `task.inputs()` are the inputs of the message, and the
    /// inputs that earlier calls asked for with [`Needs::and_more`]. There are no outputs.
    ///
    /// The host calls `plan` on a separate instance, and may call it several times for one task. So
    /// the result should depend only on the task and its inputs.
    ///
    /// # Errors
    /// An error ends the task, as in [`Guest::prepare`].
    fn plan(task: &Task<Self::Payload>) -> Result<Needs>;
}

/// The inputs that a task asks for.
///
/// A key is relative to the task's base directory, and the task reads the object at `/inputs/KEY`.
/// A key that begins with a slash is relative to the bucket's root: the task reads `/models/a.bin`
/// as `/inputs/models/a.bin`. The operator of the host decides which keys outside the base
/// directory a task may ask for.
#[derive(Clone, Debug, Default)]
pub struct Needs {
    inputs: Vec<planning::Need>,
    more: bool,
}

impl Needs {
    /// No inputs.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks for an object that must exist. If it does not, the task is retried, because the object
    /// may be uploaded later.
    pub fn key(&mut self, key: impl Into<String>) -> &mut Self {
        self.inputs.push(planning::Need::Key(key.into()));
        self
    }

    /// Asks for an object that may be missing. If it is, [`Task::input`] returns `None`.
    pub fn optional_key(&mut self, key: impl Into<String>) -> &mut Self {
        self.inputs.push(planning::Need::OptionalKey(key.into()));
        self
    }

    /// Asks for all objects below a prefix, in the order of their keys.
    pub fn prefix(&mut self, prefix: impl Into<String>) -> &mut Self {
        self.inputs.push(planning::Need::Prefix(prefix.into()));
        self
    }

    /// Asks for another call of `plan` when these inputs are in `/inputs`. Use this for inputs that
    /// an index or a header names.
    pub fn and_more(&mut self) -> &mut Self {
        self.more = true;
        self
    }

    pub(crate) fn into_wire(self) -> planning::Needs {
        planning::Needs { inputs: self.inputs, more: self.more }
    }

    /// The inputs as text, for comparisons.
    fn shown(&self) -> (bool, Vec<(&'static str, &str)>) {
        let texts = self.inputs.iter().map(|need| match need {
            planning::Need::Key(key) => ("key", key.as_str()),
            planning::Need::OptionalKey(key) => ("optional key", key.as_str()),
            planning::Need::Prefix(prefix) => ("prefix", prefix.as_str()),
        });
        (self.more, texts.collect())
    }
}

impl PartialEq for Needs {
    fn eq(&self, other: &Self) -> bool {
        self.shown() == other.shown()
    }
}

impl Eq for Needs {}
