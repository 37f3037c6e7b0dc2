//! The loop: a permit, a lease, a task; and how it drains.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use crate::ahead::Ahead;
use crate::bucket::{self, Access, Bucket, BucketError, DirSync};
use crate::cache::{Cache, CacheError, CacheOptions, Sharing};
use crate::catalog::Catalog;
use crate::config::{self, Config};
use crate::key::Prefix;
use crate::lease::{Lease, Leases};
use crate::outage::Outages;
use crate::prefetch::Prefetch;
use crate::publish;
use crate::queue::{self, Address, Queue, QueueError};
use crate::sandbox::{Confinement, Sandbox};
use crate::stats::Stats;
use crate::task::{self, Ended};
use crate::verdict::Policy;
use crate::workspace::{Workspace, WorkspaceError, Workspaces};
use quiet::Quiet;

mod health;
mod quiet;
mod services;

/// Messages that are leased in one go, at the most: what one SQS request brings.
const MOST_AT_ONCE: usize = 10;
/// How long one look at the queue waits for a message.
const LONG_POLL: Duration = Duration::from_secs(20);
/// The same when the host is to stop at an empty queue.
const SHORT_POLL: Duration = Duration::from_millis(500);
/// And when each look is a request.
const SHORT_PAID_POLL: Duration = Duration::from_secs(5);
/// How long a host that has to stop at once goes on giving back its tasks.
const GIVING_BACK: Duration = Duration::from_secs(10);
/// How long a host that stops waits for what its last poll may bring: as long as a poll, and
/// the answer's way.
const LAST_POLL: Duration = Duration::from_secs(25);
/// How often the pace of tasks is looked at, to hold as many ahead as are worth it.
const PACE: Duration = Duration::from_millis(200);
/// How much the newest look counts in the pace.
const NEWEST: f64 = 0.3;
/// The tasks that are held ahead end within this time at the pace of the host, in seconds.
const SECONDS_AHEAD: f64 = 5.0;
/// The most batches that are held ahead because tasks are short.
const BATCHES_AHEAD: usize = 4;

/// Everything that tasks need, opened.
pub struct Worker {
    pub(crate) stats: Arc<Stats>,
    pub(crate) outages: Arc<Outages>,
    pub(crate) inputs: Prefetch,
    /// Where outputs go.
    pub(crate) bucket: Arc<dyn Bucket>,
    /// Where tasks can't publish: what is there is run.
    pub(crate) components: Option<Prefix>,
    workspaces: RwLock<Workspaces>,
    pub(crate) catalog: Catalog,
    pub(crate) sandbox: Arc<Sandbox>,
    pub(crate) publish_limits: publish::Limits,
    pub(crate) policy: Policy,
    pub(crate) error_queue: Arc<dyn Queue>,
    pub(crate) done_queue: Option<Arc<dyn Queue>>,
    /// The disks of directory queues that get reports, by the names of the queues, where
    /// reports have to be on them before a message is deleted.
    pub(crate) report_disks: HashMap<String, DirSync>,
    /// One permit for each guest that may run.
    pub(crate) slots: Semaphore,
    /// One permit for each task that may be publishing.
    pub(crate) publishing: Semaphore,
    /// Cancelled when no further task is to begin.
    pub(crate) draining: CancellationToken,
    /// Cancelled when running guests are to end.
    pub(crate) killed: CancellationToken,
    queue: Arc<dyn Queue>,
    /// Told when no task is under way any more.
    idle: Notify,
    /// Tasks that have ended and whose messages could not be deleted.
    pub(crate) ended: Ended,
    /// Tasks that wait with their result for a queue or a bucket.
    waiting: AtomicU64,
    /// Objects that were used, to see whether others can be.
    known: health::Known,
    /// One permit for each task between its lease and the end of its guest.
    admitted: Arc<Semaphore>,
    /// Of those permits, the ones that are not for running tasks.
    prefetch: AtomicUsize,
    config: Config,
}

/// Why a host can't start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A queue.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The bucket.
    #[error(transparent)]
    Bucket(#[from] BucketError),
    /// The cache directory.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The directories of tasks.
    #[error(transparent)]
    Workspace(#[from] WorkspaceError),
    /// The sandbox.
    #[error("the sandbox could not be set up: {0}")]
    Sandbox(String),
}

/// Why a host stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// It did what it was asked to: the queue is empty, or so many tasks are done, or so
    /// much time is over.
    Finished,
    /// It was told to, and let the running tasks finish.
    Drained,
    /// It was told to, and had to give back running tasks.
    Killed,
}

impl Worker {
    /// Opens everything that `config` names. Connections to queues of services are driven on
    /// `services`, a runtime that file calls of tasks can't block.
    ///
    /// # Errors
    /// Names what could not be opened.
    pub async fn open(config: Config, services: &Handle) -> Result<Self, OpenError> {
        // The buckets first: who named a bad one is not to find queues made for nothing.
        let (bucket, inputs) = open_buckets(&config).await?;
        let access = &config.queue_access();
        let queue = queue::open_on(services, &config.queue, access).await?;
        let error_queue = queue::open_on(services, &config.error_queue, access).await?;
        let done_queue = match &config.done_queue {
            Some(address) => Some(queue::open_on(services, address, access).await?),
            None => None,
        };
        let cache = Cache::open(CacheOptions {
            dir: config.cache.dir.clone(),
            max_bytes: config.cache.size.as_u64(),
        })?;
        let workspaces = Workspaces::new(&config.cache.dir.join("work"))?;
        let sandbox = Sandbox::new(
            config.work.parallel,
            config.task.limits(),
            workspaces.inputs_root(),
            workspaces.outputs_root(),
        );
        let sandbox = Arc::new(sandbox.map_err(|e| OpenError::Sandbox(format!("{e:#}")))?);
        let sharing = if sandbox.confinement().files { Sharing::Link } else { Sharing::Copy };
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
        // A message that is only held may use up a delivery when the host stops.
        let least_prefetch = if queue.charges_for_holding() { 0 } else { config.least_prefetch() };
        Ok(Self {
            stats: Arc::default(),
            outages: Arc::default(),
            inputs: Prefetch {
                bucket: inputs,
                cache,
                freshness: config.cache.freshness,
                sharing,
                ahead: Ahead::new(config.work.prefetch_bytes),
            },
            bucket,
            components: match &config.data.components {
                Some(dir) => bucket::prefix_of(dir, &config.data.bucket)?,
                None => Some(config.data.component_prefix.clone()),
            },
            workspaces: RwLock::new(workspaces),
            catalog,
            sandbox,
            publish_limits: config.task.limits().into(),
            policy: config.retries.policy(),
            report_disks: report_disks(&config, [Some(&error_queue), done_queue.as_ref()]),
            error_queue,
            done_queue,
            slots: Semaphore::new(config.work.parallel),
            publishing: Semaphore::new(publishing(config.work.parallel)),
            draining: CancellationToken::new(),
            killed: CancellationToken::new(),
            queue,
            idle: Notify::new(),
            ended: Ended::default(),
            waiting: AtomicU64::new(0),
            known: health::Known::default(),
            admitted: Arc::new(Semaphore::new(config.work.parallel + least_prefetch)),
            prefetch: AtomicUsize::new(least_prefetch),
            config,
        })
    }

    /// What has been done so far.
    pub fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    /// What does not work at the moment.
    pub fn outages(&self) -> &Outages {
        &self.outages
    }

    /// The queue that tasks come from.
    pub fn queue(&self) -> &Arc<dyn Queue> {
        &self.queue
    }

    /// The configuration this worker was opened with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What the kernel keeps guests from, in addition to the sandbox.
    pub fn confinement(&self) -> Confinement {
        self.sandbox.confinement()
    }

    /// Tasks that may run at the same time.
    pub(crate) fn parallel(&self) -> u32 {
        u32::try_from(self.config.work.parallel).unwrap_or(u32::MAX)
    }

    /// Tasks that may publish at the same time.
    pub(crate) fn most_publishing(&self) -> u32 {
        u32::try_from(publishing(self.config.work.parallel)).unwrap_or(u32::MAX)
    }

    /// A workspace for a task.
    pub(crate) fn workspace(&self) -> Result<Workspace, WorkspaceError> {
        self.workspaces.read().unwrap_or_else(PoisonError::into_inner).acquire()
    }

    /// Works until there is a reason to stop. Cancelling `drain` lets running tasks finish
    /// within the grace period and releases the others; cancelling `kill` releases all.
    /// Leases are renewed on `renewals`, a runtime that file calls of tasks can't block.
    pub async fn run(
        self: Arc<Self>,
        drain: CancellationToken,
        kill: CancellationToken,
        renewals: &Handle,
    ) -> Stopped {
        let tasks = TaskTracker::new();
        let outages = self.outages.clone();
        let _probing =
            AbortOnDropHandle::new(tokio::spawn(async move { outages.keep_probing().await }));
        let leases =
            Leases::new(self.queue.clone(), self.config.work.lease, self.outages.clone(), renewals);
        let told = tokio::select! {
            () = self.take_tasks(&leases, &tasks) => false,
            never = self.keep_pace() => match never {},
            () = drain.cancelled() => true,
            () = kill.cancelled() => true,
        };
        self.draining.cancel();
        tasks.close();
        let stopped = self.end(&tasks, told, &drain, &kill).await;
        // The rest of a poll that was given up on; a person who does not want to wait for it
        // says so.
        let told_why = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            tracing::info!(
                "waiting up to {} s for the answer to the last poll of {}, so that nothing it \
                 brings is held for nobody; another signal does not wait",
                LAST_POLL.as_secs(),
                self.queue
            );
            std::future::pending::<std::convert::Infallible>().await
        };
        tokio::select! {
            closed = tokio::time::timeout(LAST_POLL, self.close_queues()) => if closed.is_err() {
                tracing::warn!("{} did not answer in time; what its last answer held comes back \
                    when its lease ends", self.queue);
            },
            never = told_why => match never {},
            () = kill.cancelled() => {}
        }
        if tokio::time::timeout(GIVING_BACK, self.bucket.close()).await.is_err() {
            tracing::warn!("{}: not all uploads could be aborted; their parts stay", self.bucket);
        }
        stopped
    }

    async fn close_queues(&self) {
        self.queue.close().await;
        self.error_queue.close().await;
        if let Some(queue) = &self.done_queue {
            queue.close().await;
        }
    }

    /// Sees the tasks under way to their end, or gives them back.
    async fn end(
        &self,
        tasks: &TaskTracker,
        told: bool,
        drain: &CancellationToken,
        kill: &CancellationToken,
    ) -> Stopped {
        if told {
            tokio::select! {
                () = tasks.wait() => {}
                () = tokio::time::sleep(self.config.stop.grace) => {
                    tracing::warn!("the grace period is over: running tasks are given back");
                }
                () = kill.cancelled() => {}
            }
        } else {
            // Asked to stop while the last tasks finish by themselves.
            tokio::select! {
                () = tasks.wait() => return Stopped::Finished,
                () = kill.cancelled() => {}
                () = async {
                    drain.cancelled().await;
                    tokio::time::sleep(self.config.stop.grace).await;
                } => {}
            }
        }
        if tasks.is_empty() {
            return Stopped::Drained;
        }
        self.killed.cancel();
        if tokio::time::timeout(GIVING_BACK, tasks.wait()).await.is_err() {
            tracing::warn!("not all tasks could be given back; they return when their leases end");
        }
        Stopped::Killed
    }

    /// A place for a task that gave back the one it had.
    pub(crate) async fn readmit(&self) -> OwnedSemaphorePermit {
        match self.admitted.clone().acquire_owned().await {
            Ok(permit) => permit,
            Err(_) => unreachable!("the semaphore is never closed"),
        }
    }

    /// Leases messages and starts their tasks, until there is nothing more to take.
    async fn take_tasks(self: &Arc<Self>, leases: &Leases, tasks: &TaskTracker) {
        let over = async {
            match self.config.stop.run_for {
                Some(time) => tokio::time::sleep(time).await,
                None => std::future::pending().await,
            }
        };
        let mut over = std::pin::pin!(over);
        let poll = match (self.config.stop.exit_when_empty, self.queue.batch()) {
            (false, _) => LONG_POLL,
            (true, 0..=1) => SHORT_POLL,
            (true, _) => SHORT_PAID_POLL,
        };
        let mut wait = poll;
        let mut quiet = Quiet::default();
        loop {
            let next = async {
                self.wait_for_services().await;
                let mut permits = self.admit(tasks).await;
                let leased = leases.lease(permits.len(), wait).await;
                if let Ok(leased) = &leased {
                    permits.truncate(leased.len());
                }
                (permits, leased)
            };
            let (permits, leased) = tokio::select! {
                biased;
                next = next => next,
                // The last task under way has ended. If there is nothing more to lease at
                // this moment either, the queue may be empty.
                () = self.idle.notified(), if self.config.stop.exit_when_empty => {
                    wait = Duration::ZERO;
                    continue;
                }
                () = &mut over => return,
            };
            wait = poll;
            match leased {
                Ok(leased) => {
                    self.outages.ends(&self.queue);
                    let none = leased.is_empty();
                    for (lease, permit) in leased.into_iter().zip(permits) {
                        self.begin(lease, permit, tasks);
                    }
                    if self.config.stop.exit_when_empty {
                        let is_idle = none && tasks.is_empty();
                        let is_quiet = quiet.lasts(Instant::now(), is_idle, leases.last_return());
                        if none && self.is_empty(is_quiet).await {
                            return;
                        }
                    }
                }
                Err(error) => {
                    drop(permits);
                    quiet = Quiet::default();
                    let wait = self.outages.begins(&self.queue, &error);
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        () = &mut over => return,
                    }
                }
            }
            if self.has_done_enough(tasks).await {
                return;
            }
        }
    }

    fn begin(self: &Arc<Self>, lease: Lease, permit: OwnedSemaphorePermit, tasks: &TaskTracker) {
        let worker = self.clone();
        let others = tasks.clone();
        tasks.spawn(async move {
            task::run(worker.clone(), lease, permit).await;
            if others.len() == 1 {
                worker.idle.notify_one();
            }
        });
    }

    /// Waits for as many permits as are worth a request, and takes as many more as are free.
    /// Meanwhile the running tasks and half of those made ready are still there to work on.
    async fn admit(&self, tasks: &TaskTracker) -> Vec<OwnedSemaphorePermit> {
        // While something does not work that can't be probed, one task at a time tries it.
        let at_once = if self.outages.any() { 1 } else { MOST_AT_ONCE as u64 };
        let most = self.still_wanted(tasks).min(at_once).max(1);
        let worth = self.queue.batch().min(self.prefetch.load(Relaxed) / 2);
        let least = (worth as u64).min(most).max(1);
        let mut permits = Vec::with_capacity(MOST_AT_ONCE);
        // The semaphore is never closed.
        if let Ok(mut many) = self.admitted.clone().acquire_many_owned(least as u32).await {
            while let Some(permit) = many.split(1) {
                permits.push(permit);
            }
        }
        while (permits.len() as u64) < most {
            match self.admitted.clone().try_acquire_owned() {
                Ok(permit) => permits.push(permit),
                Err(_) => break,
            }
        }
        permits
    }

    /// With a queue that is asked in batches: holds more tasks ahead while they are short, so
    /// that each request brings many, and few while they are long, so that none waits here
    /// although another host could do it. Never ends.
    async fn keep_pace(&self) -> std::convert::Infallible {
        let batch = self.queue.batch();
        let is_fixed = self.config.work.prefetch.is_some() || self.queue.charges_for_holding();
        if batch <= 1 || is_fixed {
            return std::future::pending().await;
        }
        let least = self.config.least_prefetch();
        let mut before = self.ended();
        // Tasks a second.
        let mut pace = 0.0;
        loop {
            tokio::time::sleep(PACE).await;
            let ended = self.ended();
            let newest = (ended - before) as f64 / PACE.as_secs_f64();
            pace = NEWEST * newest + (1.0 - NEWEST) * pace;
            before = ended;
            let wanted = (pace * SECONDS_AHEAD) as usize;
            let wanted = wanted.clamp(least, least + BATCHES_AHEAD * batch);
            let now = self.prefetch.load(Relaxed);
            if wanted > now {
                self.admitted.add_permits(wanted - now);
                self.prefetch.store(wanted, Relaxed);
            } else {
                let forgotten = self.admitted.forget_permits(now - wanted);
                self.prefetch.store(now - forgotten, Relaxed);
            }
        }
    }

    /// How many tasks may still begin before the number asked for is reached.
    fn still_wanted(&self, tasks: &TaskTracker) -> u64 {
        match self.config.stop.max_tasks {
            None => u64::MAX,
            Some(most) => most.saturating_sub(self.ended() + tasks.len() as u64),
        }
    }

    fn ended(&self) -> u64 {
        self.stats.done.load(Relaxed) + self.stats.failed.load(Relaxed)
    }

    /// With a number of tasks asked for: true once so many have ended; until then, waits as
    /// long as those under way may be the last.
    async fn has_done_enough(&self, tasks: &TaskTracker) -> bool {
        let Some(most) = self.config.stop.max_tasks else { return false };
        loop {
            if self.ended() >= most {
                return true;
            }
            if self.ended() + (tasks.len() as u64) < most {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// True when the queue holds no message at all, leased or waiting; of a queue that can't
    /// count, when it has been quiet for long enough.
    async fn is_empty(&self, is_quiet: bool) -> bool {
        match self.queue.counts().await {
            Ok(counts) => counts.enqueued.map_or(is_quiet, |enqueued| enqueued == 0),
            Err(error) => {
                tracing::warn!("{error}");
                false
            }
        }
    }
}

/// The disks that reports have to be on, if they have to.
fn report_disks(config: &Config, queues: [Option<&Arc<dyn Queue>>; 2]) -> HashMap<String, DirSync> {
    let disk = |queue: &Arc<dyn Queue>| match queue.to_string().parse() {
        Ok(Address::Directory(path)) => Some((queue.to_string(), DirSync::new(path))),
        _ => None,
    };
    queues.into_iter().flatten().filter(|_| config.data.durable).filter_map(disk).collect()
}

/// Tasks that may publish at the same time, while `parallel` others run.
fn publishing(parallel: usize) -> usize {
    parallel * 2 + 16
}

/// The bucket that outputs go to, and the one that inputs come from, each asked whether it
/// is there.
async fn open_buckets(config: &Config) -> Result<(Arc<dyn Bucket>, Arc<dyn Bucket>), BucketError> {
    let access = &config.bucket_access();
    let Some(url) = &config.data.input_bucket else {
        let bucket = bucket::open_for_outputs(&config.data.bucket, access).await?;
        bucket.check().await?;
        return Ok((bucket.clone(), bucket));
    };
    // Nobody may put outputs without credentials: what is open to everybody is the inputs.
    let own = Access { anonymous: false, ..access.clone() };
    let bucket = bucket::open_for_outputs(&config.data.bucket, &own).await?;
    bucket.check().await?;
    let inputs = bucket::open(url, access).await?;
    inputs.check().await?;
    Ok((bucket, inputs))
}
