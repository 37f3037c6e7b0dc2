//! What `execute` made of a task.

/// What became of a task: whether its result is good, and which outputs it means to leave.
///
/// [`Task::done`](crate::Task::done) makes the usual one: a good result, with every output that
/// was written through the task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    success: bool,
    outputs: Vec<String>,
}

impl Outcome {
    /// The task ran and its result is good. `outputs` are keys: paths relative to the outputs
    /// directory. The host fails the task if one of them is not there at the end, so a file that
    /// was forgotten is seen; it publishes files that are not listed too.
    pub fn success<S: Into<String>>(outputs: impl IntoIterator<Item = S>) -> Self {
        Self { success: true, outputs: outputs.into_iter().map(Into::into).collect() }
    }

    /// The task ran to its end and its result is no good: nothing is published, and the host
    /// reports the task without another try. Say why in the log; where a reason for people is all
    /// there is to say, prefer an [`Error::reject`](crate::Error::reject), which goes into the
    /// report.
    pub fn unsuccessful() -> Self {
        Self { success: false, outputs: Vec::new() }
    }

    /// Whether the result is good.
    pub fn is_success(&self) -> bool {
        self.success
    }

    /// The keys of the outputs that the task means to leave.
    pub fn outputs(&self) -> &[String] {
        &self.outputs
    }
}
