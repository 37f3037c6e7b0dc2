//! The result of a guest's `execute`.

/// The result of a task that ran to its end: whether it succeeded, and which outputs it lists.
///
/// [`Task::done`](crate::Task::done) returns the usual outcome: a success that lists every output
/// written through the task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    success: bool,
    outputs: Vec<String>,
}

impl Outcome {
    /// The task succeeded. `outputs` are keys: paths relative to the outputs directory. The task
    /// fails if one does not exist at the end, which catches forgotten files. The host publishes
    /// unlisted files too.
    pub fn success<S: Into<String>>(outputs: impl IntoIterator<Item = S>) -> Self {
        Self { success: true, outputs: outputs.into_iter().map(Into::into).collect() }
    }

    /// The task ran to its end, but its result is unusable. The host publishes nothing and rejects
    /// the task. Write the reason to the log, or return an
    /// [`Error::reject`](crate::Error::reject) instead, whose text goes into the report.
    pub fn unsuccessful() -> Self {
        Self { success: false, outputs: Vec::new() }
    }

    /// Whether the task succeeded.
    pub fn is_success(&self) -> bool {
        self.success
    }

    /// The keys of the outputs that the task intends to leave.
    pub fn outputs(&self) -> &[String] {
        &self.outputs
    }
}
