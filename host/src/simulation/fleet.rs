//! Runs a simulated fleet until its queue is empty, and collects the figures.

use std::iter::repeat_n;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use aws_sdk_sqs::config::IntoShared;
use clap::Parser;
use futures_util::future::join_all;
use tokio::runtime::{Builder, Handle};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::figures::Figures;
use super::ideal;
use super::machine::{Books, Machine};
use super::service::{Line, Service};
use crate::cache::{Cache, CacheOptions};
use crate::catalog::{self, Catalog};
use crate::config::Config;
use crate::queue::Queue;
use crate::queue::memory::MemoryQueue;
use crate::queue::sqs;
use crate::services::{Opened, Services};
use crate::spill::SpillDir;
use crate::worker::{Stopped, Worker};

/// The name of every task.
const NAME: &str = "WAIT";
/// The number of samples of the free slots during the time of the ideal schedule.
const LOOKS: u32 = 2_000;

/// The parameters of a simulation.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) hosts: usize,
    /// Slots of each host.
    pub(super) slots: usize,
    pub(super) tasks: usize,
    /// The mean duration of a task. Durations vary by a fifth.
    pub(super) length: Duration,
    /// Determines the durations of tasks and the random choices of the service.
    pub(super) seed: u64,
    /// Sorted by time.
    pub(super) waves: Vec<Wave>,
    /// The period in which all requests to SQS fail.
    pub(super) outage: Option<Range<Duration>>,
    /// Additional arguments of `host run`.
    pub(super) arguments: Vec<String>,
}

/// Hosts that are killed at the same time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wave {
    pub(super) at: Duration,
    /// The share of the remaining hosts that this wave kills.
    pub(super) share: f64,
    /// The time between the notice to a host and its end.
    pub(super) notice: Option<Duration>,
}

impl Wave {
    /// When the hosts are killed.
    pub(super) fn death(&self) -> Duration {
        self.at + self.notice.unwrap_or_default()
    }
}

impl Plan {
    /// For each host, the wave that kills it, if any.
    fn fates(&self) -> Vec<Option<Wave>> {
        let mut fates = Vec::new();
        for wave in &self.waves {
            let taken = (self.hosts - fates.len()) as f64 * wave.share;
            fates.extend(repeat_n(Some(*wave), taken.round() as usize));
        }
        fates.resize(self.hosts, None);
        fates
    }

    /// The duration of each task, in whole milliseconds, because the clock has no finer resolution.
    fn lengths(&self) -> Vec<Duration> {
        let mut random = fastrand::Rng::with_seed(self.seed);
        let millis = self.length.as_secs_f64() * 1e3;
        let mut length = || (millis * (0.8 + 0.4 * random.f64())).round() as u64;
        (0..self.tasks).map(|_| Duration::from_millis(length())).collect()
    }

    /// The messages of the tasks.
    fn bodies(&self) -> impl Iterator<Item = String> {
        (0..self.tasks).map(|number| {
            format!(
                r#"{{"basic_info": {{"id": {number}, "name": "{NAME}", "base_directory": "data"}}}}"#
            )
        })
    }

    /// The settings of each host.
    fn config(&self) -> Config {
        /// The command line of a host.
        #[derive(Parser)]
        struct Arguments {
            #[command(flatten)]
            config: Config,
        }
        let slots = self.slots.to_string();
        let usual = ["host", "--queue", "sqs://tasks", "--error-queue", "sqs://tasks-errors"];
        let own = self.arguments.iter().map(String::as_str);
        Arguments::parse_from(usual.into_iter().chain(["--parallel", &slots]).chain(own)).config
    }
}

/// The parts that all hosts of the process share.
struct Common {
    config: Config,
    cache: Cache,
    spill: Arc<SpillDir>,
    catalog: Arc<Catalog>,
    reports: Arc<MemoryQueue>,
    service: Service,
    books: Arc<Books>,
}

/// A host that has opened its queue and has not started to work.
struct Ready {
    services: Arc<Services>,
    dead: CancellationToken,
}

/// A running host.
struct Host {
    services: Arc<Services>,
    drain: CancellationToken,
    kill: CancellationToken,
    dead: CancellationToken,
    run: JoinHandle<Stopped>,
}

/// Runs a fleet in its own runtime, until the queue is empty.
pub(super) fn run(plan: &Plan) -> Figures {
    fastrand::seed(plan.seed);
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(simulate(plan))
}

async fn simulate(plan: &Plan) -> Figures {
    let root = tempfile::tempdir().expect("a directory");
    let lengths = plan.lengths();
    let common = Common::open(plan, &lengths, root.path()).await;
    let ready = join_all((0..plan.hosts).map(|_| common.host())).await;
    let fates = plan.fates();
    let slots: Vec<_> = fates.iter().flat_map(|fate| repeat_n(*fate, plan.slots)).collect();
    let ideal = ideal::time(&lengths, &slots);

    let start = Instant::now();
    let outage = plan.outage.as_ref();
    common.service.start(outage.map(|outage| start + outage.start..start + outage.end));
    let hosts: Vec<Host> = ready.into_iter().map(Ready::start).collect();
    let all = async {
        let waves = join_all(hosts.iter().zip(&fates).map(|(host, fate)| host.meet(*fate)));
        tokio::join!(common.service.emptied(), waves);
    };
    let free_while_held = common.watch(all, &slots, ideal).await;

    let entries = common.books.entries();
    assert_eq!(entries.undone(), 0, "tasks are lost");
    let mut figures = Figures {
        tasks: plan.tasks,
        time: entries.last_end - start,
        ideal,
        emptied: start.elapsed(),
        requests: common.service.requests(),
        entries,
        free_while_held,
        duplicates: common.service.duplicates(),
        charged: 0,
        given_up: 0,
        lost: 0,
        released: 0,
    };
    hosts.iter().for_each(|host| host.drain.cancel());
    for Host { services, run, .. } in hosts {
        run.await.expect("a host");
        let stats = services.stats();
        figures.charged += stats.retried.load(Relaxed) + stats.failed.load(Relaxed);
        figures.lost += stats.lost.load(Relaxed);
        figures.released += stats.returned.load(Relaxed);
    }
    let reports = common.reports.counts().await.expect("reports");
    figures.given_up = reports.enqueued.expect("a count");
    figures
}

impl Common {
    /// Opens the parts that hosts share, and makes the clock virtual.
    async fn open(plan: &Plan, lengths: &[Duration], root: &Path) -> Self {
        let cache = CacheOptions { dir: root.join("cache"), max_bytes: 1 << 30 };
        let cache = Cache::open(cache).expect("a cache");
        let spill = Arc::new(SpillDir::new(&root.join("work")).expect("a directory"));
        let catalog = catalog::tests::with_component(NAME, root, cache.clone(), spill.clone());
        let catalog = Arc::new(catalog.await);
        tokio::time::pause();
        Self {
            config: plan.config(),
            cache,
            spill,
            catalog,
            reports: Arc::new(MemoryQueue::new()),
            service: Service::new(plan.seed, plan.bodies()),
            books: Arc::new(Books::new(lengths.to_vec())),
        }
    }

    async fn host(&self) -> Ready {
        let dead = CancellationToken::new();
        let line = Line { service: self.service.clone(), dead: dead.clone() };
        let queue = sqs::tests::open_over(line.into_shared()).await;
        let bucket = self.catalog.bucket().clone();
        let slots = self.config.work.parallel;
        let opened = Opened {
            inputs: bucket.clone(),
            bucket,
            receipts: None,
            queue: Arc::new(queue),
            error_queue: self.reports.clone(),
            done_queue: None,
            cache: self.cache.clone(),
            spill: self.spill.clone(),
            catalog: self.catalog.clone(),
            sandbox: Arc::new(Machine::new(slots, dead.clone(), self.books.clone())),
        };
        let services = Services::of(self.config.clone(), opened).expect("services");
        Ready { services: Arc::new(services), dead }
    }

    /// Waits until `all` is over. Returns the share of slot time in which a slot was free while
    /// another host held a task for it.
    async fn watch(
        &self,
        all: impl Future<Output = ()>,
        slots: &[Option<Wave>],
        ideal: Duration,
    ) -> f64 {
        let start = Instant::now();
        let look = (ideal / LOOKS).max(Duration::from_millis(1));
        // A fleet that makes no progress would never end.
        let longest = ideal * 4 + Duration::from_secs(7200);
        let mut all = std::pin::pin!(tokio::time::timeout(longest, all));
        let (mut free_while_held, mut known) = (0, 0);
        loop {
            tokio::select! {
                ended = &mut all => {
                    assert!(ended.is_ok(), "{} messages are left", self.service.left());
                    return free_while_held as f64 / known.max(1) as f64;
                }
                () = tokio::time::sleep(look) => {
                    let now = start.elapsed();
                    let lives = |fate: &&Option<Wave>| fate.is_none_or(|wave| now < wave.at);
                    let living = slots.iter().filter(lives).count();
                    let running = self.books.running();
                    let held = self.service.in_flight().saturating_sub(running);
                    free_while_held += living.saturating_sub(running).min(held);
                    known += living;
                }
            }
        }
    }
}

impl Ready {
    fn start(self) -> Host {
        let Self { services, dead } = self;
        let (drain, kill) = (CancellationToken::new(), CancellationToken::new());
        let worker = Arc::new(Worker::new(services.clone()));
        let run = {
            let (drain, kill) = (drain.clone(), kill.clone());
            async move { worker.run(drain, kill, &Handle::current()).await }
        };
        Host { services, drain, kill, dead, run: tokio::spawn(run) }
    }
}

impl Host {
    /// Lets the wave kill this host, if there is one.
    async fn meet(&self, fate: Option<Wave>) {
        let Some(Wave { at, notice, .. }) = fate else { return };
        tokio::time::sleep(at).await;
        if let Some(notice) = notice {
            self.drain.cancel();
            tokio::time::sleep(notice).await;
        }
        // From now on the host's requests reach nothing.
        self.dead.cancel();
        self.kill.cancel();
    }
}
