//! Why an attempt at a task did not end with its outputs in the bucket.

use std::time::Duration;

use crate::catalog::CatalogError;
use crate::message::DecodeError;
use crate::needs::PlanError;
use crate::prefetch::PrefetchError;
use crate::publish::PublishError;
use crate::queue::QueueError;
use crate::sandbox::{Phase, RunError};

/// Why an attempt failed. [`crate::verdict`] decides what each failure leads to.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The message is not a task.
    #[error("the message is not a task: {0}")]
    Decode(#[from] DecodeError),
    /// Too many executions did not end: their hosts were killed or lost.
    #[error(
        "{deaths} executions of the task did not end, because the host was killed or lost each \
         time; the task may be the cause (memory?)"
    )]
    Deaths {
        /// Executions that started and whose end was not recorded.
        deaths: u32,
    },
    /// The message was delivered too often, and no delivery had a recorded end.
    #[error(
        "the message was delivered {deliveries} times and no delivery had a recorded end: the \
         host was killed or lost, or its lease ran out; the task may be the cause (memory?)"
    )]
    Unaccounted {
        /// Deliveries without a recorded end.
        deliveries: u32,
    },
    /// An input could not be fetched.
    #[error(transparent)]
    Prefetch(#[from] PrefetchError),
    /// The task's plan asked for something that it may not have.
    #[error(transparent)]
    Plan(PlanError),
    /// The task has no usable component.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The component is still compiling or may not run, and the host can work on other tasks
    /// meanwhile.
    #[error("{source}")]
    NotYet {
        /// Why the component is not ready.
        source: CatalogError,
        /// When to try again.
        after: Duration,
    },
    /// The queue did not record that the task started.
    #[error("the start of the task could not be recorded: {0}")]
    Start(#[source] QueueError),
    /// The guest failed.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The outputs could not be published.
    #[error("publishing the outputs failed: {0}")]
    Publish(#[from] PublishError),
    /// The guest listed an output that does not exist.
    #[error("the guest listed the output {0:?}, and /outputs has no such file")]
    Missing(String),
    /// A service or a resource of the host did not work, so no task could have succeeded.
    #[error("{0}")]
    Outage(String),
    /// The files of large outputs were removed before they were published.
    #[error("the work directory was removed while the task used it")]
    Homeless,
    /// The host is stopping, and the task had not started.
    #[error("the host is stopping")]
    Draining,
    /// The task has waited for a slot and no slot will be free soon. Another host may have one.
    #[error("the slots of this host stay busy for longer than expected; another host may be free")]
    SlotsBusy,
    /// The lease is lost.
    #[error("the lease was lost")]
    LeaseLost,
}

impl Failure {
    /// The guest's call in which the attempt failed, if it failed in one.
    pub fn phase(&self) -> Option<Phase> {
        match self {
            Self::Run(error) => error.phase(),
            Self::Plan(_) => Some(Phase::Plan),
            _ => None,
        }
    }
}

impl From<PlanError> for Failure {
    fn from(error: PlanError) -> Self {
        match error {
            PlanError::Bucket(error) => error.into(),
            refused => Self::Plan(refused),
        }
    }
}
