//! The settings of a host. Each field below is a flag, a `HOST_*` variable and a key of
//! `host.toml`, all with the same name.
//!
//! A field's doc comment is its help text in `--help` and in the docs. `cli` collects the values
//! from all sources, and clap parses them into these structs. `config/tasks.rs` has the settings
//! for the tasks of one name.

pub mod parse;
mod tasks;

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;
use globset::GlobMatcher;

use crate::bucket::{self, StoredEncoding};
use crate::catalog::{CompileLimits, Compiler, Keys};
use crate::confinement::Confine;
use crate::environment::{Environment, default_cache_dir};
use crate::hold::HeldAhead;
use crate::identity::{self, Engine};
use crate::key::Prefix;
use crate::machine::Machine;
use crate::notice::Notices;
use crate::queue::{self, Queue};
use crate::report;
use crate::sandbox::{Limits, Mode};
use crate::system;
use crate::verdict::Policy;

pub use tasks::{NamedTask, TaskLimits, Tasks};

/// How many more tasks a host prefetches from a queue whose requests lease several messages: a few
/// full responses.
pub const MORE_PREFETCH: usize = 40;

/// The settings of `host run`.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Queues")]
pub struct Config {
    /// Task queue: a directory, fq://DIR, sqs://NAME, the URL or ARN of an SQS queue, or
    /// pubsub://projects/P/topics/T/subscriptions/S
    #[arg(long, value_name = "URL", value_parser = parse::queue)]
    pub queue: queue::Address,
    /// Queue for reports of rejected tasks [default: the task queue's name plus
    /// `-errors`]
    #[arg(long, value_name = "URL", value_parser = parse::queue)]
    pub error_queue: queue::Address,
    /// Queue for reports of tasks that succeeded [default: none]
    #[arg(long, value_name = "URL", value_parser = parse::queue)]
    pub done_queue: Option<queue::Address>,
    #[command(flatten)]
    pub queue_options: QueueSettings,
    #[command(flatten)]
    pub data: DataSettings,
    #[command(flatten)]
    pub cloud: CloudSettings,
    #[command(flatten)]
    pub work: WorkSettings,
    #[command(flatten)]
    pub stop: StopSettings,
    #[command(flatten)]
    pub retries: RetrySettings,
    #[command(flatten)]
    pub task: TaskSettings,
    /// The tables `[tasks.NAME]` of `host.toml`. Only the file has them.
    #[arg(skip)]
    pub tasks: Tasks,
    #[command(flatten)]
    pub compile: CompileSettings,
    #[command(flatten)]
    pub cache: CacheSettings,
    #[command(flatten)]
    pub trust: TrustSettings,
    #[command(flatten)]
    pub confinement: ConfinementSettings,
}

/// How queues are used.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Queues")]
pub struct QueueSettings {
    /// Create SQS queues and Pub/Sub topics and subscriptions that do not exist
    #[arg(long)]
    pub create_queues: bool,
    /// Bucket for messages too large for SQS, as s3://NAME/PREFIX; messages in other buckets are
    /// not read
    #[arg(long, value_name = "URL", value_parser = parse::message_bucket)]
    pub message_bucket: Option<bucket::Address>,
    /// Message group of the messages that are sent: the order in a FIFO queue, the tenant in a fair
    /// queue
    #[arg(long, value_name = "NAME")]
    pub message_group: Option<String>,
}

/// Where data are, and how they are stored.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Data")]
pub struct DataSettings {
    /// Bucket of inputs, outputs and components: a directory, or s3://, gs:// or az://NAME/PREFIX
    #[arg(long, value_name = "URL", default_value = "./bucket", value_parser = parse::bucket)]
    pub bucket: bucket::Address,
    /// Bucket to read inputs from; may also be https://HOST/PATH [default: the bucket]
    #[arg(long, value_name = "URL", value_parser = parse::bucket)]
    pub input_bucket: Option<bucket::Address>,
    /// Directory to take components from, as DIR/NAME.wasm, instead of the bucket
    #[arg(long, value_name = "DIR", value_parser = parse::path())]
    pub components: Option<PathBuf>,
    /// Prefix of the components in the bucket: PREFIX/NAME.wasm
    #[arg(long, value_name = "PREFIX", default_value = "components", value_parser = parse::component_prefix)]
    pub component_prefix: Prefix,
    /// Prefixes in the bucket that the plan of a task may read outside of its base directory,
    /// separated by colons, or / for the whole bucket [default: none]
    #[arg(long, value_name = "PREFIXES", value_parser = parse::readable)]
    pub readable: Option<Prefixes>,
    /// Write a receipt for each finished task, below _receipts in the bucket, and do not run a task
    /// that has a receipt
    #[arg(long)]
    pub receipts: bool,
    /// Like --receipts, but run a task again if its component or an input has changed
    #[arg(long)]
    pub skip_unchanged: bool,
    /// Store the log of each attempt below this prefix in the bucket, as
    /// PREFIX/NAME/ID/MESSAGE.ATTEMPT.log [default: none]
    #[arg(long, value_name = "PREFIX", value_parser = parse::component_prefix)]
    pub logs: Option<Prefix>,
    /// Sync outputs in a directory bucket to disk before acknowledging their task
    #[arg(long)]
    pub durable: bool,
    /// Without --durable, how often to sync outputs in a directory bucket to disk; 0 means never
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse::duration)]
    pub sync_every: Duration,
    /// How to read inputs stored with Content-Encoding: gzip: decode them, or keep the stored bytes
    #[arg(
        long, value_name = "HOW", default_value = "decode", value_parser = parse::stored_encoding
    )]
    pub stored_encoding: StoredEncoding,
    /// Outputs to store compressed, with Content-Encoding: gzip, such as '**/*.json' [default:
    /// none]
    #[arg(long, value_name = "GLOB", value_parser = parse::glob)]
    pub gzip_outputs: Option<GlobMatcher>,
}

/// How cloud services are reached.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Cloud access")]
pub struct CloudSettings {
    /// AWS region of SQS queues and S3 buckets [default: as for the AWS tools]
    #[arg(long, value_name = "REGION")]
    pub region: Option<String>,
    /// Read public buckets without credentials
    #[arg(long)]
    pub anonymous: bool,
    /// Pay for requests to requester-pays buckets
    #[arg(long)]
    pub requester_pays: bool,
}

/// How many tasks are worked on at a time.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Work")]
pub struct WorkSettings {
    /// Number of tasks to run at the same time [default: the number of cores, fewer where memory is
    /// short]
    #[arg(
        long, value_name = "N", default_value_t = Machine::of_process().cores(), hide_default_value = true,
        value_parser = parse::parallel
    )]
    pub parallel: usize,
    /// Number of tasks to hold and prefetch while others run, however long they wait [default:
    /// those that are expected to start within seconds]
    #[arg(long, value_name = "N", value_parser = parse::prefetch)]
    pub prefetch: Option<usize>,
    /// The most tasks to prefetch. Not a setting: it follows from the process's limit of files.
    #[arg(skip = usize::MAX)]
    pub most_prefetch: usize,
    /// Maximum bytes of inputs to prefetch for waiting tasks
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = parse::size)]
    pub prefetch_bytes: ByteSize,
    /// Lease duration, from 2s to 12h; the host renews the leases of the tasks it holds
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = parse::lease)]
    pub lease: Duration,
    /// Give tasks random numbers and times that depend only on the task, so that each run of a task
    /// does the same
    #[arg(long)]
    pub deterministic: bool,
}

/// When a host stops.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Stopping")]
pub struct StopSettings {
    /// Stop when the queue is empty and no worker holds a task of it
    #[arg(short = 'x', long)]
    pub exit_when_empty: bool,
    /// Stop when no task could be leased for this time, even if other workers hold tasks; worker 0 of
    /// a fleet stays until the queue is empty
    #[arg(long, value_name = "TIME", value_parser = parse::positive_duration)]
    pub exit_when_idle: Option<Duration>,
    /// Stop after this many tasks are done or rejected
    #[arg(long, value_name = "N", value_parser = parse::positive)]
    pub max_tasks: Option<u64>,
    /// Take no new tasks after this time, then stop
    #[arg(long = "for", value_name = "TIME", value_parser = parse::positive_duration)]
    pub run_for: Option<Duration>,
    /// How long running tasks may take to finish after SIGTERM or Ctrl-C [default: 30s; 10s in AWS
    /// Batch, ECS, Kubernetes and Slurm; 5s in another container]
    #[arg(
        long, value_name = "TIME", default_value = default_grace(), hide_default_value = true,
        value_parser = parse::duration
    )]
    pub grace: Duration,
    /// Cloud whose notices make the host drain before it takes the machine away: aws, google, azure,
    /// none, or auto, which is the cloud that the machine is in
    #[arg(long, value_name = "CLOUD", default_value = "auto", value_parser = parse::notices)]
    pub notice: Notices,
    /// Exit with code 0 even if tasks were rejected, or were released because the host was told to
    /// stop
    #[arg(long)]
    pub exit_zero: bool,
}

/// How tasks are retried.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Retries")]
pub struct RetrySettings {
    /// Number of failed attempts after which a task is rejected
    #[arg(long, value_name = "N", default_value = "5", value_parser = parse::small_positive)]
    pub max_attempts: u32,
    /// Wait before the second attempt; doubles with each further attempt
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse::duration)]
    pub retry_after: Duration,
}

/// What one execution of a task may use.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Limits of a task")]
pub struct TaskSettings {
    /// Maximum memory of a task
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = parse::task_memory)]
    pub memory: ByteSize,
    /// Maximum time of an attempt
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse::positive_duration)]
    pub timeout: Duration,
    /// Maximum processor time of an attempt [default: none]
    #[arg(long, value_name = "TIME", value_parser = parse::positive_duration)]
    pub cpu_time: Option<Duration>,
    /// Maximum bytes a task may have in /outputs
    #[arg(long, value_name = "SIZE", default_value = "4GiB", value_parser = parse::size)]
    pub max_output: ByteSize,
    /// Maximum number of files and directories a task may have in /outputs
    #[arg(long, value_name = "N", default_value = "10000", value_parser = parse::whole)]
    pub max_output_files: u64,
    /// Maximum memory for a task's outputs; the others go to files in the cache directory
    #[arg(long, value_name = "SIZE", default_value = "16MiB", value_parser = parse::size)]
    pub output_memory: ByteSize,
    /// Maximum size of an output that is kept in memory; a larger one goes to a file
    #[arg(long, value_name = "SIZE", default_value = "4MiB", value_parser = parse::size)]
    pub output_file_memory: ByteSize,
    /// Maximum number of files and directories a task may have open
    #[arg(long, value_name = "N", default_value = "1000", value_parser = parse::open_files)]
    pub max_open_files: u64,
    /// Maximum size of the log of an attempt; its end is kept
    #[arg(long, value_name = "SIZE", default_value = "64KiB", value_parser = parse::log)]
    pub max_log: ByteSize,
    /// Maximum memory of the host for a task, beside its outputs [default: 24MiB, and 3KiB more for
    /// each of --max-output-files]
    #[arg(long, value_name = "SIZE", value_parser = parse::host_memory)]
    pub host_memory: Option<ByteSize>,
    /// Files that each guest may have open. Not a setting: it follows from the process's limit.
    #[arg(skip = u64::MAX)]
    pub process_files: u64,
}

/// What the compilation of one component may use.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Limits of compiling a component")]
pub struct CompileSettings {
    /// Maximum memory for compiling a component; its compiled code may take up to 1/16 of this
    /// [default: 2GiB, less where memory is short]
    #[arg(
        id = "compile-memory", long, value_name = "SIZE", default_value = "2GiB",
        hide_default_value = true, value_parser = parse::compile_memory
    )]
    pub memory: ByteSize,
    /// Maximum CPU time for compiling a component; the elapsed time may be four times this
    #[arg(
        id = "compile-timeout", long, value_name = "TIME", default_value = "5m",
        value_parser = parse::positive_duration
    )]
    pub timeout: Duration,
}

/// The cache of inputs and components.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Cache")]
pub struct CacheSettings {
    /// Directory for cached inputs and compiled components [default: task-host in the user's cache
    /// directory]
    #[arg(
        id = "cache-dir", long, value_name = "DIR",
        default_value = default_cache_dir().into_os_string(),
        hide_default_value = true, value_parser = parse::path()
    )]
    pub dir: PathBuf,
    /// Maximum bytes in the cache; a fifth of this is for compiled code
    #[arg(
        id = "cache-size", long, value_name = "SIZE", default_value = "10GiB",
        value_parser = parse::size
    )]
    pub size: ByteSize,
    /// How long to use a cached input without asking the bucket whether it has changed
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = parse::duration)]
    pub freshness: Duration,
}

/// Which components may run.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Trust in components")]
pub struct TrustSettings {
    /// File with minisign public keys: only components with a signature NAME.wasm.minisig by one of
    /// them run [default: none]
    #[arg(long, value_name = "FILE", value_parser = parse::component_keys)]
    pub component_keys: Option<Keys>,
    /// Reject tasks of names that have no table [tasks.NAME] in host.toml
    #[arg(long)]
    pub listed_tasks_only: bool,
}

/// What a host gives up before it reads its first message.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Confinement")]
pub struct ConfinementSettings {
    /// Restrict the host to the files, TCP ports and system calls that it needs: on (as far as the
    /// kernel can), require (do not start if the kernel can't) or off
    #[arg(long, value_name = "HOW", default_value = "on", value_parser = parse::confine)]
    pub confine: Confine,
    /// More files and directories that the host may use, separated by colons, such as the targets of
    /// links in the bucket [default: none]
    #[arg(long, value_name = "PATHS", value_parser = parse::paths)]
    pub confine_allow: Option<Paths>,
}

/// Several files and directories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths(pub Vec<PathBuf>);

/// Several prefixes of keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefixes(pub Vec<Prefix>);

impl Config {
    /// How many tasks a host with this queue holds beyond those that run.
    pub fn held_ahead(&self, queue: &dyn Queue) -> HeldAhead {
        match self.work.prefetch {
            // Such a queue may count a delivery of a message that was held and never executed.
            _ if queue.charges_for_holding() => HeldAhead::Always(0),
            Some(_) => HeldAhead::Always(self.usual_prefetch()),
            None => {
                // This is a maximum. How fast tasks end decides how many of them are held.
                let more = if queue.batch() > 1 { MORE_PREFETCH } else { 0 };
                HeldAhead::Soon(self.work.most_prefetch.min(self.work.parallel * 2 + more))
            }
        }
    }

    /// The number of tasks to prefetch, if it is set. Otherwise the maximum for a queue whose
    /// requests lease one message each.
    pub fn usual_prefetch(&self) -> usize {
        self.work.prefetch.unwrap_or(self.work.parallel * 2).min(self.work.most_prefetch)
    }

    /// How a host reaches its queues. A host leases tasks and does not read reports.
    pub fn queue_access(&self) -> queue::Access {
        queue::Access { is_report: None, ..self.queue_options.access(&self.cloud) }
    }

    /// How a host reaches its buckets. Only a host publishes outputs and may compress them.
    pub fn bucket_access(&self) -> bucket::Access {
        bucket::Access {
            gzip_outputs: self.data.gzip_outputs.clone(),
            ..self.data.access(&self.cloud, &self.cache)
        }
    }
}

impl QueueSettings {
    /// How commands that read tasks and reports reach queues.
    pub fn access(&self, cloud: &CloudSettings) -> queue::Access {
        queue::Access {
            region: cloud.region.clone(),
            create: self.create_queues,
            body_bucket: self.message_bucket.as_ref().map(ToString::to_string),
            is_report: Some(report::is_report),
            group: self.message_group.clone(),
            environment: Environment::of_process(),
        }
    }
}

impl DataSettings {
    /// Describes to people where components are.
    pub fn components_place(&self) -> String {
        match &self.components {
            Some(dir) => dir.display().to_string(),
            None => {
                let bucket = self.bucket.to_string();
                format!("{}/{}", bucket.trim_end_matches('/'), self.component_prefix)
            }
        }
    }

    /// How commands reach buckets. A decoded input has to fit into the cache.
    pub fn access(&self, cloud: &CloudSettings, cache: &CacheSettings) -> bucket::Access {
        bucket::Access {
            region: cloud.region.clone(),
            anonymous: cloud.anonymous,
            requester_pays: cloud.requester_pays,
            sync_every: self.sync_every,
            environment: Environment::of_process(),
            stored_encoding: self.stored_encoding,
            largest_decoded: cache.size.as_u64(),
            gzip_outputs: None,
        }
    }
}

impl CacheSettings {
    /// The most bytes of blobs in the cache. The rest is for compiled code.
    pub fn for_blobs(&self) -> u64 {
        let all = self.size.as_u64();
        all - all / 5
    }
}

impl RetrySettings {
    /// The policy for failed tasks.
    pub fn policy(&self) -> Policy {
        Policy {
            max_attempts: self.max_attempts,
            max_deaths: self.max_attempts.saturating_mul(2),
            first_retry: self.retry_after,
            longest_retry: Policy::default().longest_retry.max(self.retry_after),
        }
    }
}

impl WorkSettings {
    /// Whether the times and random numbers of tasks are deterministic.
    pub fn mode(&self) -> Mode {
        if self.deterministic { Mode::Deterministic } else { Mode::Ordinary }
    }
}

impl TaskSettings {
    /// The sandbox's limits.
    pub fn limits(&self) -> Limits {
        Limits {
            memory: self.memory,
            time: self.timeout,
            cpu_time: self.cpu_time,
            output_bytes: self.max_output,
            output_files: self.max_output_files,
            output_memory: self.output_memory,
            output_file_memory: self.output_file_memory,
            open_files: self.max_open_files,
            process_files: self.process_files,
            log: self.max_log,
            host_memory: self
                .host_memory
                .unwrap_or_else(|| Limits::default_host_memory(self.max_output_files)),
            table: None,
        }
    }
}

impl TaskLimits {
    /// How many tasks should run at a time on this machine.
    pub fn places(&self, machine: &Machine) -> usize {
        machine.places(self.most(Limits::of_the_host).of_the_host())
    }

    /// The memory that a machine needs for `parallel` tasks at a time.
    pub fn memory_for(&self, parallel: usize) -> ByteSize {
        Machine::needed(parallel, self.most(Limits::of_the_host).of_the_host())
    }

    /// The total memory for the guests of `parallel` tasks on this machine, if the machine's memory
    /// is known.
    pub fn for_guests(&self, machine: &Machine, parallel: usize) -> Option<ByteSize> {
        machine.for_guests(parallel, self.most(Limits::beside_the_guest).beside_the_guest())
    }
}

impl CompileSettings {
    /// The compiler's limits.
    pub fn limits(&self) -> CompileLimits {
        CompileLimits { memory: self.memory, time: self.timeout }
    }
}

/// The program that compiles components, and its arguments. This is the running program, even if
/// its file has been replaced since the start. Its hidden command calls
/// [`compile_for_parent`](crate::catalog::compile_for_parent).
pub fn compiler(limits: CompileLimits) -> Compiler {
    Compiler::new(system::this_program(), vec!["compile-component".into()], limits)
}

/// The grace period that suits the engine that started this host, or 30 s.
fn default_grace() -> String {
    let engine = identity::of_process().engine();
    let grace = engine.map_or(Duration::from_secs(30), Engine::grace);
    humantime::format_duration(grace).to_string()
}
