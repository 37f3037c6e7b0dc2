//! What a task needs from a sandbox, as a trait, so that a simulated host can replace executions by
//! waits.

use std::time::Duration;

use async_trait::async_trait;
use bytesize::ByteSize;

use super::{Confinement, Execution, Job, Mode, Sandbox};

/// Executes jobs, a fixed number at a time.
#[async_trait]
pub trait Execute: Send + Sync {
    /// Runs a job on the next free thread.
    async fn run(&self, job: Job) -> Execution;

    /// Runs a job like [`Execute::run`], but does not wait longer than `patience` for a thread.
    ///
    /// # Errors
    /// Gives the job back if no thread was free within `patience`.
    async fn run_soon(&self, job: Job, patience: Duration) -> Result<Execution, Box<Job>>;

    /// The memory that all guests have now, and the limit for all of them together, if there is
    /// one.
    fn memory(&self) -> (ByteSize, Option<ByteSize>);

    /// Where guests get the time and random numbers from.
    fn mode(&self) -> Mode;

    /// What the kernel prevents guests from doing.
    fn confinement(&self) -> Confinement;
}

#[async_trait]
impl Execute for Sandbox {
    async fn run(&self, job: Job) -> Execution {
        self.run(job).await
    }

    async fn run_soon(&self, job: Job, patience: Duration) -> Result<Execution, Box<Job>> {
        self.run_soon(job, patience).await
    }

    fn memory(&self) -> (ByteSize, Option<ByteSize>) {
        self.memory()
    }

    fn mode(&self) -> Mode {
        self.mode()
    }

    fn confinement(&self) -> Confinement {
        self.confinement()
    }
}
