//! Measures how long each operation on a directory queue takes, in microseconds per message, with
//! few and with many messages in the queue. The argument, or `BENCH_DIR`, is the work directory.

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use task_host::queue::Queue;
use task_host::queue::file::FileQueue;

const HOLD: Duration = Duration::from_secs(3600);

/// A task message of typical length.
const BODY: &str = r#"{"basic_info": {"id": 4, "name": "NO_OP", "base_directory": "datasets/noop_dataset", "inputs": ["0_input/4.dat", "0_input/5.dat"]}, "payload_info": "NoOp Task for 4:5"}"#;

fn main() {
    let argument = std::env::args().skip(1).find(|a| !a.starts_with('-'));
    let dir = argument.or_else(|| std::env::var("BENCH_DIR").ok());
    let dir = dir.map_or_else(std::env::temp_dir, Into::into);
    let runtime = tokio::runtime::Runtime::new().expect("no runtime");
    let dir = tempfile::tempdir_in(dir).expect("no directory");
    println!("{}: µs for each message", dir.path().display());
    println!("   queued   insert    lease    start   extend      ack");
    for queued in [100, 10_000, 100_000] {
        // The first run warms up.
        let times: Vec<_> = (0..3)
            .map(|n| dir.path().join(format!("{queued}-{n}")))
            .map(|dir| runtime.block_on(run(&dir, queued)))
            .collect();
        let best = |n: usize| times[1..].iter().map(|t| t[n]).fold(f64::MAX, f64::min);
        print!("{queued:9}");
        (0..5).for_each(|n| print!(" {:8.1}", best(n)));
        println!();
    }
}

/// Sends `queued` messages, and runs every operation once on each of up to 10,000 of them. Returns
/// the time of each operation.
async fn run(dir: &Path, queued: usize) -> [f64; 5] {
    let some = queued.min(10_000);
    let queue = FileQueue::open("fq://bench", dir).expect("no queue");
    let bodies = vec![Bytes::from_static(BODY.as_bytes()); queued];

    // The first message also creates the directories.
    queue.send(&bodies[..1]).await;
    let mut clock = Clock(Instant::now());
    for result in queue.send(&bodies).await {
        result.expect("not sent");
    }
    let insert = clock.lap(queued);
    let mut receipts = Vec::with_capacity(some);
    while receipts.len() < some {
        let found = queue.lease(1, HOLD, Duration::ZERO).await.expect("not leased");
        receipts.extend(found.into_iter().map(|m| m.receipt));
    }
    let lease = clock.lap(some);
    for receipt in &receipts {
        queue.start(receipt).await.expect("not started");
    }
    let start = clock.lap(some);
    for receipt in &mut receipts {
        *receipt = queue.extend(receipt, 2 * HOLD).await.expect("not extended");
    }
    let extend = clock.lap(some);
    for receipt in &receipts {
        queue.ack(receipt).await.expect("not deleted");
    }
    [insert, lease, start, extend, clock.lap(some)]
}

struct Clock(Instant);

impl Clock {
    /// The microseconds since the last lap, divided by `count`.
    fn lap(&mut self, count: usize) -> f64 {
        let micros = self.0.elapsed().as_secs_f64() * 1e6 / count as f64;
        self.0 = Instant::now();
        micros
    }
}
