//! The measurements that `cargo xtask bench --only scaling` compares with `host run`: the same host
//! with a queue in memory, a directory queue without a host, and plain computing. Prints the number
//! of finished tasks, messages or digests, and the number per second. Stops after a few seconds,
//! because a disk may be slow.
//!
//! The runtime has one thread for each core that this program may use, as in `host run`.

use std::fs::File;
use std::hint::black_box;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Parser;
use task_host::config::Config;
use task_host::digest::Digest;
use task_host::queue::Queue;
use task_host::queue::file::FileQueue;
use task_host::queue::memory::MemoryQueue;
use task_host::services::Services;
use task_host::worker::{Stopped, Worker};
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;

/// The longest time of a measurement.
const LONGEST: Duration = Duration::from_secs(4);

#[derive(Parser)]
enum Measurement {
    /// Runs tasks from a queue in memory
    Engine {
        /// The tasks, one per line
        #[arg(long)]
        tasks: PathBuf,
        #[command(flatten)]
        config: Box<Config>,
    },
    /// Leases, starts and deletes messages of a directory queue
    Queue {
        #[arg(long)]
        queue: PathBuf,
        /// How many messages to delete at most
        #[arg(long)]
        messages: u64,
        /// How many messages to hold at the same time
        #[arg(long)]
        parallel: usize,
    },
    /// Computes digests on threads that share nothing: what the machine's cores give at best
    Compute {
        #[arg(long)]
        parallel: usize,
    },
    /// What the host starts to compile a component
    CompileComponent,
}

fn main() {
    // `cargo bench` adds this argument.
    let arguments = std::env::args_os().filter(|argument| argument != "--bench");
    let (done, seconds) = match Measurement::parse_from(arguments) {
        Measurement::Engine { tasks, config } => engine(&tasks, *config),
        Measurement::Queue { queue, messages, parallel } => {
            let queue = FileQueue::open("fq://bench", &queue).expect("a queue");
            runtime(cores()).block_on(empty(Arc::new(queue), messages, parallel))
        }
        Measurement::Compute { parallel } => compute(parallel),
        Measurement::CompileComponent => {
            return task_host::catalog::compile_for_parent().expect("a host");
        }
    };
    println!("{done} {}", done as f64 / seconds);
}

fn runtime(threads: usize) -> Runtime {
    Builder::new_multi_thread().worker_threads(threads).enable_all().build().expect("a runtime")
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Runs tasks with a host. Returns the number of finished tasks, and the seconds.
fn engine(tasks: &Path, mut config: Config) -> (u64, f64) {
    let lines = BufReader::new(File::open(tasks).expect("tasks")).lines();
    let bodies: Vec<Bytes> = lines.map(|line| line.expect("a task").into()).collect();
    config.stop.max_tasks = Some(bodies.len() as u64);
    config.stop.run_for = Some(LONGEST);
    let renewals = runtime(1);
    let queue = Arc::new(MemoryQueue::new());
    runtime(cores()).block_on(async {
        for sent in queue.send(&bodies).await {
            sent.expect("a message is sent");
        }
        let services = Services::open(config, renewals.handle()).await.expect("services");
        let services = Arc::new(services.with_queue(queue));
        let worker = Arc::new(Worker::new(services.clone()));
        let never = CancellationToken::new;
        let renewals = renewals.handle().clone();
        let start = Instant::now();
        let run = tokio::spawn(async move { worker.run(never(), never(), &renewals).await });
        assert_eq!(run.await.expect("a run"), Stopped::Finished);
        let seconds = start.elapsed().as_secs_f64();
        let stats = services.stats();
        assert_eq!(stats.failed.load(Relaxed), 0, "a task failed");
        (stats.done.load(Relaxed), seconds)
    })
}

/// Leases, starts and deletes messages with `parallel` async tasks. Returns the number of messages,
/// and the seconds.
async fn empty(queue: Arc<FileQueue>, messages: u64, parallel: usize) -> (u64, f64) {
    const HOLD: Duration = Duration::from_secs(3600);
    const WAIT: Duration = Duration::from_secs(1);
    let deleted = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    let work = |queue: Arc<FileQueue>, deleted: Arc<AtomicU64>| async move {
        while deleted.load(Relaxed) < messages && start.elapsed() < LONGEST {
            let leased = queue.lease(1, HOLD, WAIT).await.expect("a lease");
            assert!(!leased.is_empty(), "the queue has too few messages");
            for message in leased {
                queue.start(&message.receipt).await.expect("a start");
                queue.ack(&message.receipt).await.expect("a deletion");
                deleted.fetch_add(1, Relaxed);
            }
        }
    };
    let tasks: Vec<_> =
        (0..parallel).map(|_| tokio::spawn(work(queue.clone(), deleted.clone()))).collect();
    for task in tasks {
        task.await.expect("a task");
    }
    (deleted.load(Relaxed), start.elapsed().as_secs_f64())
}

/// Computes digests on `threads` threads. Returns the number of digests, and the seconds.
fn compute(threads: usize) -> (u64, f64) {
    const TIME: Duration = Duration::from_secs(1);
    let bytes = [7; 4096];
    let start = Instant::now();
    let work = || {
        let mut computed = 0;
        while start.elapsed() < TIME {
            black_box(Digest::of(black_box(&bytes)));
            computed += 1;
        }
        computed
    };
    let computed = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().expect("a thread")).sum()
    });
    (computed, start.elapsed().as_secs_f64())
}
