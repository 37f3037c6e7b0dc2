//! What a host is told to do, checked. Opens nothing.

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;

use crate::bucket;
use crate::catalog::{CompileLimits, Compiler};
use crate::key::Prefix;
use crate::queue;
use crate::sandbox::Limits;
use crate::verdict::Policy;

/// A checked configuration of `host run`.
#[derive(Debug, Clone)]
pub struct Config {
    /// URL of the queue that tasks are leased from.
    pub queue: String,
    /// URL of the queue that gets the reports of tasks that are given up.
    pub error_queue: String,
    /// URL of the queue that gets the reports of tasks that are done, if any.
    pub done_queue: Option<String>,
    /// How these queues are reached.
    pub queue_access: queue::Access,
    /// URL of the bucket with inputs and outputs.
    pub bucket: String,
    /// URL of the bucket that inputs are in, if it is another.
    pub input_bucket: Option<String>,
    /// How these buckets are reached.
    pub bucket_access: bucket::Access,
    /// For how long an object of a remote bucket is taken to be what it was when it was last
    /// looked at.
    pub freshness: Duration,
    /// A directory that components are taken from, instead of the bucket.
    pub components: Option<PathBuf>,
    /// Where in the bucket components are.
    pub component_prefix: Prefix,
    /// Where inputs, components and compiled code are kept.
    pub cache_dir: PathBuf,
    /// What the inputs and components in the cache may take.
    pub cache_size: ByteSize,
    /// Guests that run at the same time.
    pub parallel: usize,
    /// Tasks beyond those running that are leased and made ready ahead. None: twice as many
    /// as run, and more while tasks are short and the queue is asked in batches.
    pub prefetch: Option<usize>,
    /// Bytes of inputs that may be coming in ahead of execution.
    pub prefetch_bytes: ByteSize,
    /// Whether outputs are on the disk before their task is acknowledged, where the bucket is
    /// a directory.
    pub durable: bool,
    /// How long a lease lasts when it is not renewed.
    pub lease: Duration,
    /// What one execution may use.
    pub limits: Limits,
    /// What compiling one component may use.
    pub compile_limits: CompileLimits,
    /// How often and how fast a task is tried again.
    pub policy: Policy,
    /// Stop when the queue holds no message any more.
    pub exit_when_empty: bool,
    /// Stop after this many tasks are done or given up.
    pub max_tasks: Option<u64>,
    /// Stop leasing after this time.
    pub run_for: Option<Duration>,
    /// How long running tasks may go on when the host is told to stop.
    pub grace: Duration,
}

impl Config {
    /// The fewest tasks that are made ready ahead.
    pub fn least_prefetch(&self) -> usize {
        self.prefetch.unwrap_or(self.parallel * 2)
    }
}

/// The program that compiles components, and its arguments: this one, whatever its file has become
/// since it was started. Its hidden command calls
/// [`compile_for_parent`](crate::catalog::compile_for_parent).
pub fn compiler(limits: CompileLimits) -> Compiler {
    Compiler::new(PathBuf::from("/proc/self/exe"), vec!["compile-component".into()], limits)
}

/// The number of guests that run at the same time unless it is given: one for each core.
pub fn default_parallel() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}
