//! The queues of an existing fleet, from the variables that its engine keeps.

use std::collections::BTreeMap;

use task_host::queue::{self, Admin, Counts};

use super::super::settings::Settings;

/// The queue of a fleet and its error queue.
pub(super) struct Queues {
    pub(super) tasks: Box<dyn Admin>,
    pub(super) errors: Box<dyn Admin>,
    /// Whether the counts are approximate.
    pub(super) is_remote: bool,
}

impl Queues {
    /// Opens the queues that the environment variables of the workers name.
    pub(super) async fn open(environment: &BTreeMap<String, String>) -> anyhow::Result<Self> {
        let settings = Settings::of_variables(environment);
        let access = settings.queue_access()?;
        let tasks = settings.queue()?;
        let errors = queue::admin(&settings.error_queue(&tasks)?, &access).await?;
        Ok(Self {
            is_remote: tasks.is_remote(),
            tasks: queue::admin(&tasks, &access).await?,
            errors,
        })
    }

    /// The counts of both queues.
    pub(super) async fn counts(&self) -> anyhow::Result<(Counts, Counts)> {
        Ok((self.tasks.counts().await?, self.errors.counts().await?))
    }
}
