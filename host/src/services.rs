//! The services that tasks use: the bucket, the cache, the catalog, the sandbox, the report queues,
//! and the state of each.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::activity::Activity;
use crate::ahead::Ahead;
use crate::bucket::{self, Access, Bucket, BucketError, DirSync};
use crate::cache::{Cache, CacheError, CacheOptions};
use crate::catalog::Catalog;
use crate::config::{self, Config, DataSettings, TaskLimits};
use crate::heartbeat::Place;
use crate::key::Prefix;
use crate::machine::Machine;
use crate::needs::Reach;
use crate::outage::Outages;
use crate::prefetch::Prefetch;
use crate::publish::Protected;
use crate::queue::{self, Address, Queue, QueueError};
use crate::receipt::Receipts;
use crate::sandbox::{Confinement, Execute, Sandbox};
use crate::spill::{SpillDir, SpillError};
use crate::stats::Stats;
use crate::telemetry::Telemetry;
use crate::verdict::Policy;
use crowded::Crowded;
use slots::Slots;
use undeleted::Undeleted;

pub(crate) mod crowded;
mod diagnosis;
pub(crate) mod slots;
pub(crate) mod undeleted;
mod view;
mod waits;

/// The services that all tasks of a host share.
pub struct Services {
    pub(crate) stats: Arc<Stats>,
    /// The activity of the host, now and in the past.
    pub(crate) activity: Activity,
    /// An additional destination for traces and durations of attempts.
    pub(crate) telemetry: OnceLock<Telemetry>,
    pub(crate) outages: Arc<Outages>,
    pub(crate) inputs: Prefetch,
    /// The bucket for outputs.
    pub(crate) bucket: Arc<dyn Bucket>,
    /// The parts of that bucket where tasks can't publish.
    pub(crate) protected: Vec<Protected>,
    /// The parts of the bucket that plans may read.
    pub(crate) reach: Reach,
    /// True while task logs can't be stored.
    pub(crate) logs_fail: AtomicBool,
    /// Receipts of finished tasks, if enabled.
    pub(crate) receipts: Option<Receipts>,
    /// The directory of large outputs until they are published.
    spill: Arc<SpillDir>,
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) sandbox: Arc<dyn Execute>,
    pub(crate) limits: TaskLimits,
    pub(crate) policy: Policy,
    /// The task queue.
    pub(crate) queue: Arc<dyn Queue>,
    pub(crate) error_queue: Arc<dyn Queue>,
    pub(crate) done_queue: Option<Arc<dyn Queue>>,
    /// For durable outputs: the disks of report queues that are directories, by queue name. A
    /// report must be on its disk before the message is deleted.
    pub(crate) report_disks: HashMap<String, DirSync>,
    /// The permits to start tasks.
    pub(crate) slots: Slots,
    /// One permit per task that may publish.
    pub(crate) publishing: Semaphore,
    /// Cancelled when no further task may start.
    pub(crate) draining: CancellationToken,
    /// Cancelled when running guests must end.
    pub(crate) killed: CancellationToken,
    /// Tasks that have ended but whose messages could not be deleted.
    pub(crate) undeleted: Undeleted,
    /// Tasks that lacked memory while other tasks ran.
    pub(crate) crowded: Crowded,
    /// The number of tasks that have a result and wait for a queue or a bucket.
    waiting: AtomicU64,
    /// Objects that recently worked or failed.
    objects: diagnosis::RecentObjects,
    pub(crate) config: Config,
}

/// The parts of the services. Several hosts in one process may share all parts except the queues.
pub(crate) struct Opened {
    /// The bucket for outputs.
    pub(crate) bucket: Arc<dyn Bucket>,
    /// The bucket for inputs.
    pub(crate) inputs: Arc<dyn Bucket>,
    pub(crate) receipts: Option<Receipts>,
    pub(crate) queue: Arc<dyn Queue>,
    pub(crate) error_queue: Arc<dyn Queue>,
    pub(crate) done_queue: Option<Arc<dyn Queue>>,
    pub(crate) cache: Cache,
    pub(crate) spill: Arc<SpillDir>,
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) sandbox: Arc<dyn Execute>,
}

/// Why a host can't start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A queue can't be opened.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// A bucket can't be opened.
    #[error(transparent)]
    Bucket(#[from] BucketError),
    /// Receipts can't be kept in the bucket.
    #[error("receipts can't be kept: {0}")]
    Receipts(#[source] BucketError),
    /// The cache directory can't be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The directory for large outputs can't be created.
    #[error(transparent)]
    Spill(#[from] SpillError),
    /// The sandbox can't be set up.
    #[error("the sandbox could not be set up: {0}")]
    Sandbox(String),
}

impl Services {
    /// Opens all services that `config` names. Connections to remote queues run on `network`, a
    /// runtime that tasks' file calls can't block.
    ///
    /// # Errors
    /// Names the service that could not be opened.
    pub async fn open(config: Config, network: &Handle) -> Result<Self, OpenError> {
        // Buckets are opened before queues, because a wrong bucket must not leave a new queue
        // behind.
        let (bucket, inputs) = open_buckets(&config).await?;
        let receipts = match config.data.receipts || config.data.skip_unchanged {
            true => {
                let receipts = Receipts::new(bucket.clone());
                receipts.check().await.map_err(OpenError::Receipts)?;
                Some(receipts)
            }
            false => None,
        };
        let access = &config.queue_access();
        let queue = queue::open_on(network, &config.queue, access).await?;
        let error_queue = queue::open_on(network, &config.error_queue, access).await?;
        let done_queue = match &config.done_queue {
            Some(url) => Some(queue::open_on(network, url, access).await?),
            None => None,
        };
        let cache = Cache::open(CacheOptions {
            dir: config.cache.dir.clone(),
            max_bytes: config.cache.for_blobs(),
        })?;
        let spill = Arc::new(SpillDir::new(&config.cache.dir.join("work"))?);
        let (parallel, mode) = (config.work.parallel, config.work.mode());
        let sandbox = Sandbox::new(parallel, spill.clone(), mode);
        let sandbox = sandbox.map_err(|e| OpenError::Sandbox(format!("{e:#}")))?;
        let limits = config.limits();
        let memory = limits.for_guests(Machine::of_process(), parallel);
        let sandbox = Arc::new(sandbox.with_memory(memory));
        let (component_bucket, component_prefix) = match &config.data.components {
            Some(dir) => (bucket::open_dir(dir)?, Prefix::root()),
            None => (bucket.clone(), config.data.component_prefix.clone()),
        };
        let catalog = Catalog::new(
            component_bucket,
            component_prefix,
            cache.clone(),
            sandbox.clone(),
            config::compiler(config.compile.limits()),
            &config.cache.dir.join("compiled"),
        );
        let catalog = Arc::new(catalog.with_policy(config.component_policy()));
        let opened = Opened {
            bucket,
            inputs,
            receipts,
            queue,
            error_queue,
            done_queue,
            cache,
            spill,
            catalog,
            sandbox,
        };
        Ok(Self::of(config, opened)?)
    }

    /// The services of one host.
    ///
    /// # Errors
    /// When the directory of components and the bucket can't be compared.
    pub(crate) fn of(config: Config, opened: Opened) -> Result<Self, BucketError> {
        let Opened { bucket, inputs, receipts, queue, error_queue, done_queue, .. } = opened;
        Ok(Self {
            stats: Arc::default(),
            activity: Activity::default(),
            telemetry: OnceLock::new(),
            outages: Arc::default(),
            inputs: Prefetch {
                bucket: inputs,
                cache: opened.cache,
                freshness: config.cache.freshness,
                ahead: Ahead::new(config.work.prefetch_bytes),
            },
            bucket,
            protected: protected(&config.data)?,
            reach: reach(&config.data)?,
            logs_fail: AtomicBool::new(false),
            receipts,
            spill: opened.spill,
            catalog: opened.catalog,
            sandbox: opened.sandbox,
            limits: config.limits(),
            policy: config.retries.policy(),
            report_disks: report_disks(&config, [Some(&error_queue), done_queue.as_ref()]),
            queue,
            error_queue,
            done_queue,
            slots: Slots::new(config.work.parallel),
            publishing: Semaphore::new(max_publishing(config.work.parallel)),
            draining: CancellationToken::new(),
            killed: CancellationToken::new(),
            undeleted: Undeleted::default(),
            crowded: Crowded::default(),
            waiting: AtomicU64::new(0),
            objects: diagnosis::RecentObjects::default(),
            config,
        })
    }

    /// These services with another queue than the configured one, such as
    /// [`MemoryQueue`](crate::queue::memory::MemoryQueue).
    pub fn with_queue(self, queue: Arc<dyn Queue>) -> Self {
        Self { queue, ..self }
    }

    /// Counters and durations since the start.
    pub fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    /// The activity of the host, now and in the past.
    pub fn activity(&self) -> &Activity {
        &self.activity
    }

    /// From now on, exports ended attempts to OpenTelemetry. Only the first call has an effect.
    pub fn export_to(&self, telemetry: Telemetry) {
        let _ = self.telemetry.set(telemetry);
    }

    /// The current outages.
    pub fn outages(&self) -> &Outages {
        &self.outages
    }

    /// The task queue.
    pub fn queue(&self) -> &Arc<dyn Queue> {
        &self.queue
    }

    /// The place of this host's heartbeat: the directory of the queue, or else the bucket.
    pub fn heartbeat_place(&self) -> Place {
        let queue = &self.config.queue;
        let in_bucket = || Place::in_bucket(self.bucket.clone(), queue);
        Place::in_queue(queue).unwrap_or_else(in_bucket)
    }

    /// The configuration of these services.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The kernel's restrictions on guest threads.
    pub fn confinement(&self) -> Confinement {
        self.sandbox.confinement()
    }

    /// The number of tasks that are done or rejected so far.
    pub(crate) fn ended(&self) -> u64 {
        self.stats.done.load(Relaxed) + self.stats.failed.load(Relaxed)
    }

    /// Waits for the last answers of all queues, so that no message stays leased without a host
    /// that knows of it.
    pub(crate) async fn close_queues(&self) {
        self.queue.close().await;
        self.error_queue.close().await;
        if let Some(queue) = &self.done_queue {
            queue.close().await;
        }
    }
}

/// The parts of the bucket that tasks can't write to.
///
/// # Errors
/// When the directory of components and the bucket can't be compared.
pub fn protected(data: &DataSettings) -> Result<Vec<Protected>, BucketError> {
    let components = match &data.components {
        Some(dir) => bucket::prefix_of(dir, &data.bucket)?,
        None => Some(data.component_prefix.clone()),
    };
    let logs = data.logs.clone().map(Protected::logs);
    Ok(components.map(Protected::components).into_iter().chain(logs).collect())
}

/// The parts of the bucket that plans may read.
///
/// # Errors
/// As [`protected`].
pub fn reach(data: &DataSettings) -> Result<Reach, BucketError> {
    let readable = data.readable.clone().map_or_else(Vec::new, |prefixes| prefixes.0);
    Ok(Reach { readable, protected: protected(data)? })
}

/// For durable outputs: the disks of report queues that are directories.
fn report_disks(config: &Config, queues: [Option<&Arc<dyn Queue>>; 2]) -> HashMap<String, DirSync> {
    let disk = |queue: &Arc<dyn Queue>| match queue.to_string().parse() {
        Ok(Address::Directory(path)) => Some((queue.to_string(), DirSync::new(path))),
        _ => None,
    };
    queues.into_iter().flatten().filter(|_| config.data.durable).filter_map(disk).collect()
}

/// The number of tasks that may publish at the same time, while `parallel` others run.
fn max_publishing(parallel: usize) -> usize {
    parallel * 2 + 16
}

/// Opens and checks the bucket for outputs and the bucket for inputs.
async fn open_buckets(config: &Config) -> Result<(Arc<dyn Bucket>, Arc<dyn Bucket>), BucketError> {
    let access = &config.bucket_access();
    let Some(url) = &config.data.input_bucket else {
        let bucket = bucket::open_for_outputs(&config.data.bucket, access).await?;
        bucket.check().await?;
        return Ok((bucket.clone(), bucket));
    };
    // Anonymous access is only for the inputs: writing outputs needs credentials.
    let own = Access { anonymous: false, ..access.clone() };
    let bucket = bucket::open_for_outputs(&config.data.bucket, &own).await?;
    bucket.check().await?;
    let inputs = bucket::open(url, access).await?;
    inputs.check().await?;
    Ok((bucket, inputs))
}
