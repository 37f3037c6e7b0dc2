//! Runs a fleet until its queue is empty, and counts.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use aws_sdk_sqs::config::IntoShared;
use clap::Parser;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::runtime::{Builder, Handle};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::ideal;
use super::machine::{Books, Entries, Machine};
use super::service::{Line, Requests, Service};
use crate::cache::{Cache, CacheOptions};
use crate::catalog::{self, Catalog};
use crate::config::Config;
use crate::queue::Queue;
use crate::queue::memory::MemoryQueue;
use crate::queue::sqs;
use crate::services::{Opened, Services};
use crate::spill::SpillDir;
use crate::worker::{Stopped, Worker};

/// The name of all tasks.
const NAME: &str = "WAIT";
/// How often it is looked which slots idle.
const LOOKS: u32 = 2_000;

/// What is simulated.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) hosts: usize,
    /// Slots of each host.
    pub(super) slots: usize,
    pub(super) tasks: usize,
    /// The mean time of a task. Times vary by a fifth.
    pub(super) length: Duration,
    /// Decides the times of tasks, and what the service does.
    pub(super) seed: u64,
    pub(super) wave: Option<Wave>,
    /// When all requests to SQS fail.
    pub(super) outage: Option<Range<Duration>>,
    /// More arguments of `host run`.
    pub(super) arguments: Vec<String>,
}

/// Hosts that are taken away.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wave {
    pub(super) at: Duration,
    /// The part of all hosts.
    pub(super) share: f64,
    /// How long before its end a host is told to stop.
    pub(super) notice: Option<Duration>,
}

impl Wave {
    /// When the hosts are gone.
    pub(super) fn death(&self) -> Duration {
        self.at + self.notice.unwrap_or_default()
    }
}

/// What a fleet did.
#[derive(Debug)]
pub(super) struct Figures {
    pub(super) tasks: usize,
    /// From the start to the end of the last task.
    pub(super) time: Duration,
    /// The same of the ideal schedule.
    pub(super) ideal: Duration,
    /// From the start until the queue was empty.
    pub(super) emptied: Duration,
    pub(super) requests: Requests,
    pub(super) entries: Entries,
    /// The part of the slots' time for which a slot was free and a task for it was held elsewhere.
    pub(super) free_while_held: f64,
    /// Deliveries of messages that were held, which the service does.
    pub(super) duplicates: u64,
    /// Attempts that were charged to tasks.
    pub(super) charged: u64,
    /// Tasks that were given up.
    pub(super) reports: u64,
    /// Leases that were lost.
    pub(super) lost: u64,
    /// Tasks that were released.
    pub(super) released: u64,
}

impl Figures {
    pub(super) fn requests_per_task(&self) -> f64 {
        self.requests.all() as f64 / self.tasks as f64
    }

    /// The time beyond the ideal schedule, as a part of it.
    pub(super) fn time_lost(&self) -> f64 {
        self.time.as_secs_f64() / self.ideal.as_secs_f64() - 1.0
    }
}

    /// All figures, as `cargo xtask bench` reads them.
    pub(super) fn to_json(&self) -> Value {
        let Requests { receive, empty, delete, change, send, other, failed } = self.requests;
        let all = self.requests.all();
        json!({
            "tasks": self.tasks,
            "seconds": self.time.as_secs_f64(),
            "ideal": self.ideal.as_secs_f64(),
            "time_lost": self.time_lost(),
            "emptied": self.emptied.as_secs_f64(),
            "free_while_held": self.free_while_held,
            "requests_per_task": self.requests_per_task(),
            "requests": {
                "all": all, "receive": receive, "empty": empty, "delete": delete,
                "change": change, "send": send, "other": other, "failed": failed,
            },
            "whole": self.entries.whole,
            "again": self.entries.again(),
            "cut": self.entries.cut,
            "cut_seconds": self.entries.cut_time.as_secs_f64(),
            "duplicates": self.duplicates,
            "charged": self.charged,
            "given_up": self.reports,
            "leases_lost": self.lost,
            "released": self.released,
        })
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_json().fmt(f)
    }
}

/// The command line of a host.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    config: Config,
}

/// One host.
struct Host {
    services: Arc<Services>,
    drain: CancellationToken,
    kill: CancellationToken,
    dead: CancellationToken,
    run: JoinHandle<Stopped>,
}

/// What all hosts of the process share.
struct Common {
    cache: Cache,
    spill: Arc<SpillDir>,
    catalog: Arc<Catalog>,
    reports: Arc<MemoryQueue>,
    config: Config,
    service: Service,
    books: Arc<Books>,
}

/// Runs a fleet on a thread of its own, until the queue is empty.
pub(super) fn run(plan: &Plan) -> Figures {
    fastrand::seed(plan.seed);
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(simulate(plan))
}

async fn simulate(plan: &Plan) -> Figures {
    let root = tempfile::tempdir().expect("a directory");
    let cache = Cache::open(CacheOptions { dir: root.path().join("cache"), max_bytes: 1 << 30 });
    let cache = cache.expect("a cache");
    let spill = Arc::new(SpillDir::new(&root.path().join("work")).expect("a directory"));
    let catalog =
        catalog::tests::with_component(NAME, root.path(), cache.clone(), spill.clone()).await;
    // What follows happens on the virtual clock.
    tokio::time::pause();
    let mut random = fastrand::Rng::with_seed(plan.seed);
    // The clock knows whole milliseconds.
    let mut length = || {
        let millis = plan.length.as_secs_f64() * 1e3 * (0.8 + 0.4 * random.f64());
        Duration::from_millis(millis.round() as u64)
    };
    let lengths: Vec<Duration> = (0..plan.tasks).map(|_| length()).collect();
    let bodies = (0..plan.tasks).map(|number| {
        format!(
            r#"{{"basic_info": {{"id": {number}, "name": "{NAME}", "base_directory": "data", "inputs": []}}}}"#
        )
    });
    let slots = plan.slots.to_string();
    let arguments = ["host", "--queue", "sqs://tasks", "--error-queue", "sqs://tasks-errors"];
    let own = plan.arguments.iter().map(String::as_str);
    let arguments = arguments.into_iter().chain(["--parallel", &slots]).chain(own);
    let common = Common {
        cache,
        spill,
        catalog: Arc::new(catalog),
        reports: Arc::new(MemoryQueue::new()),
        config: Arguments::parse_from(arguments).config,
        service: Service::new(plan.seed, bodies),
        books: Arc::new(Books::new(lengths.clone())),
    };
    let ready = join_all((0..plan.hosts).map(|_| common.host())).await;
    let start = Instant::now();
    let outage = plan.outage.as_ref();
    common.service.start(outage.map(|outage| start + outage.start..start + outage.end));
    let hosts: Vec<Host> = ready.into_iter().map(Ready::start).collect();

    let ideal = ideal::time(&lengths, plan.hosts * plan.slots, plan.wave.as_ref());
    let taken = plan.wave.map_or(0, |wave| (plan.hosts as f64 * wave.share) as usize);
    let free_while_held = {
        let slots_at = |time: Duration| match plan.wave {
            Some(wave) if time >= wave.at => (plan.hosts - taken) * plan.slots,
            _ => plan.hosts * plan.slots,
        };
        let wave = take_away(&hosts[..taken], plan.wave);
        let all = async {
            tokio::join!(common.service.emptied(), wave);
        };
        // A fleet that stands still would never end.
        let all = tokio::time::timeout(ideal * 4 + Duration::from_secs(7200), all);
        let look = (ideal / LOOKS).max(Duration::from_millis(1));
        let mut all = std::pin::pin!(all);
        let (mut hoarded, mut known) = (0.0, 0.0);
        loop {
            tokio::select! {
                ended = &mut all => {
                    ended.unwrap_or_else(|_| panic!("{} messages are left", common.service.left()));
                    break if known > 0.0 { hoarded / known } else { 0.0 };
                }
                () = tokio::time::sleep(look) => {
                    let running = common.books.running();
                    let slots = slots_at(start.elapsed());
                    let free = slots.saturating_sub(running);
                    let held = common.service.in_flight().saturating_sub(running);
                    hoarded += free.min(held) as f64;
                    known += slots as f64;
                }
            }
        }
    };
    let emptied = start.elapsed();
    let requests = common.service.requests();
    for host in &hosts {
        host.drain.cancel();
    }
    let mut figures = Figures {
        tasks: plan.tasks,
        time: Duration::ZERO,
        ideal,
        emptied,
        requests,
        free_while_held,
        duplicates: common.service.duplicates(),
        entries: common.books.entries(),
        charged: 0,
        reports: common.reports.counts().await.ok().and_then(|counts| counts.enqueued).unwrap_or(0),
        lost: 0,
        released: 0,
    };
    for host in hosts {
        let Host { services, run, .. } = host;
        run.await.expect("a host");
        let stats = services.stats();
        figures.charged += stats.retried.load(Relaxed) + stats.failed.load(Relaxed);
        figures.lost += stats.lost.load(Relaxed);
        figures.released += stats.returned.load(Relaxed);
    }
    figures.time = figures.entries.last_end - start;
    assert_eq!(figures.entries.undone(), 0, "tasks are lost");
    figures
}

/// Takes these hosts away at their time.
async fn take_away(hosts: &[Host], wave: Option<Wave>) {
    let Some(Wave { at, notice, .. }) = wave else { return };
    tokio::time::sleep(at).await;
    if let Some(notice) = notice {
        hosts.iter().for_each(|host| host.drain.cancel());
        tokio::time::sleep(notice).await;
    }
    for host in hosts {
        // From now on nobody hears of it.
        host.dead.cancel();
        host.kill.cancel();
    }
}

/// A host that has opened its queue.
struct Ready {
    services: Arc<Services>,
    dead: CancellationToken,
}

impl Common {
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
}

impl Ready {
    fn start(self) -> Host {
        let Self { services, dead } = self;
        let (drain, kill) = (CancellationToken::new(), CancellationToken::new());
        let worker = Arc::new(Worker::new(services.clone()));
        let (draining, killed) = (drain.clone(), kill.clone());
        let run = tokio::spawn(async move {
            worker.run(draining, killed, &Handle::current()).await
        });
        Host { services, drain, kill, dead, run }
    }
}
