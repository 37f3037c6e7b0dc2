//! What a task needs of a sandbox, as a trait: a simulated host has machines that only pass the time.

use std::time::Duration;

use async_trait::async_trait;
use bytesize::ByteSize;

use super::{Confinement, Execution, Job, Mode, Sandbox};

/// Executes jobs, a fixed number at a time.
#[async_trait]
pub trait Execute: Send + Sync {
    /// Runs a job on the next free thread.
    async fn run(&self, job: Job) -> Execution;

    /// The same.
    ///
    /// # Errors
    /// Gives the job back if no thread was free within `patience`.
    async fn run_soon(&self, job: Job, patience: Duration) -> Result<Execution, Box<Job>>;

    /// The memory that all guests have now, and the most that they may have, if there is a limit.
    fn memory(&self) -> (ByteSize, Option<ByteSize>);

    /// Where guests get the time and random numbers from.
    fn mode(&self) -> Mode;

    /// What the kernel itself keeps guests from.
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
