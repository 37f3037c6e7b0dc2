//! Simulates the slots and guests of a host, and records the executions of all hosts.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytesize::ByteSize;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::sandbox::{
    CallTimes, Confinement, Execute, Execution, FileUse, Job, Log, Mode, RunError,
};

/// The slots of one host. A task occupies a slot for its duration and leaves no outputs.
pub(super) struct Machine {
    slots: Semaphore,
    /// Cancelled when the host dies.
    dead: CancellationToken,
    books: Arc<Books>,
}

/// All executions of the fleet.
pub(super) struct Books {
    /// The duration of each task, by its number.
    lengths: Vec<Duration>,
    entries: Mutex<Entries>,
}

/// The counts and times of executions.
#[derive(Debug, Clone)]
pub(super) struct Entries {
    /// The number of complete executions of each task.
    ended: Vec<u8>,
    /// Executions that are running.
    pub(super) running: usize,
    /// Complete executions.
    pub(super) whole: u64,
    /// Executions that were interrupted.
    pub(super) cut: u64,
    /// The total time of interrupted executions.
    pub(super) cut_time: Duration,
    /// When the last task completed its first execution.
    pub(super) last_end: Instant,
}

impl Books {
    pub(super) fn new(lengths: Vec<Duration>) -> Self {
        let entries = Mutex::new(Entries {
            ended: vec![0; lengths.len()],
            running: 0,
            whole: 0,
            cut: 0,
            cut_time: Duration::ZERO,
            last_end: Instant::now(),
        });
        Self { lengths, entries }
    }

    pub(super) fn entries(&self) -> Entries {
        self.entries.lock().clone()
    }

    pub(super) fn running(&self) -> usize {
        self.entries.lock().running
    }
}

impl Entries {
    /// Tasks without a complete execution.
    pub(super) fn undone(&self) -> usize {
        self.ended.iter().filter(|times| **times == 0).count()
    }

    /// Complete executions of tasks that had already been executed completely.
    pub(super) fn again(&self) -> u64 {
        self.ended.iter().map(|times| u64::from(times.saturating_sub(1))).sum()
    }
}

impl Machine {
    pub(super) fn new(slots: usize, dead: CancellationToken, books: Arc<Books>) -> Self {
        Self { slots: Semaphore::new(slots), dead, books }
    }

    async fn execute(&self, job: Job) -> Execution {
        let number = usize::try_from(job.task.id).expect("a task's number");
        let length = self.books.lengths[number];
        self.books.entries.lock().running += 1;
        let start = Instant::now();
        let is_whole = tokio::select! {
            biased;
            () = self.dead.cancelled() => false,
            () = job.cancelled.cancelled() => false,
            () = tokio::time::sleep(length) => true,
        };
        let elapsed = start.elapsed();
        let mut entries = self.books.entries.lock();
        entries.running -= 1;
        if is_whole {
            entries.whole += 1;
            entries.ended[number] = entries.ended[number].saturating_add(1);
            if entries.ended[number] == 1 {
                entries.last_end = Instant::now();
            }
        } else {
            entries.cut += 1;
            entries.cut_time += elapsed;
        }
        Execution {
            result: if is_whole { Ok(Vec::new()) } else { Err(RunError::Cancelled) },
            needs: None,
            outputs: Vec::new(),
            memory: 0,
            cpu_time: None,
            log: Log::default(),
            elapsed,
            times: CallTimes::default(),
            files: FileUse::default(),
            trace: None,
            failed_call: None,
        }
    }
}

#[async_trait]
impl Execute for Machine {
    async fn run(&self, job: Job) -> Execution {
        let _slot = self.slots.acquire().await.expect("slots");
        self.execute(job).await
    }

    async fn run_soon(&self, job: Job, patience: Duration) -> Result<Execution, Box<Job>> {
        match tokio::time::timeout(patience, self.slots.acquire()).await {
            Ok(slot) => {
                let _slot = slot.expect("slots");
                Ok(self.execute(job).await)
            }
            Err(_) => Err(Box::new(job)),
        }
    }

    fn memory(&self) -> (ByteSize, Option<ByteSize>) {
        (ByteSize(0), None)
    }

    fn mode(&self) -> Mode {
        Mode::Ordinary
    }

    fn confinement(&self) -> Confinement {
        Confinement { files: false, scopes: false, calls: false }
    }
}
