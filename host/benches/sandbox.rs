//! Measures the cost of the sandbox: a fresh instance and its three calls, without and with files.
//!
//! Run `cargo bench --bench sandbox -- COMPONENT.wasm [DIRECTORY]` with a component that copies its
//! inputs, such as the example NO_OP. Prints microseconds per task on one and on two threads: the
//! median of five rounds.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use task_host::catalog;
use task_host::key::{BucketKey, Prefix, TaskName};
use task_host::message::Task;
use task_host::sandbox::{self, Calls, Guest, Input, InputContent, Job, Limits, Mode, Sandbox};
use task_host::spill::SpillDir;
use tokio_util::sync::CancellationToken;

const ROUNDS: usize = 5;

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|a| !a.starts_with("--"));
    let component = arguments.next().map(PathBuf::from).expect("a component");
    let directory = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("tokio");
    runtime.block_on(bench(&component, &directory));
}

async fn bench(component: &Path, directory: &Path) {
    let root = directory.join(format!("sandbox-bench-{}", std::process::id()));
    for threads in [1, 2] {
        let spill = Arc::new(SpillDir::new(&root).expect("a work directory"));
        let sandbox = Sandbox::new(threads, spill, Mode::Ordinary);
        let sandbox = Arc::new(sandbox.expect("a sandbox"));
        let wasm = std::fs::read(component).expect("the component");
        let wasm = catalog::component_of(&wasm).expect("a component");
        let engine = sandbox::compiling_engine(Mode::Ordinary).expect("an engine");
        let code = engine.precompile_component(&wasm).expect("a component");
        // SAFETY: the engine compiled the code above, and nothing has changed it since.
        let loaded = unsafe { sandbox.load(&code) }.expect("compiled code");
        let guest = sandbox.link(&loaded).expect("a guest");
        for (what, inputs) in [("nothing", 0), ("4 KiB in, 4 KiB out", 1)] {
            let mut rounds = Vec::new();
            for _ in 0..ROUNDS {
                let tasks = (0..threads)
                    .map(|_| tokio::spawn(rounds_of(sandbox.clone(), guest.clone(), inputs)));
                let spent = futures_util::future::join_all(tasks).await;
                let spent: Vec<f64> = spent.into_iter().map(|s| s.expect("a round")).collect();
                rounds.push(spent.iter().sum::<f64>() / spent.len() as f64 / threads as f64);
            }
            rounds.sort_by(f64::total_cmp);
            println!(
                "{threads} thread(s), {what}: {:.1} us per task, {:.0} tasks a second (the kernel {})",
                rounds[ROUNDS / 2] * 1e6,
                1.0 / rounds[ROUNDS / 2],
                sandbox.confinement(),
            );
        }
    }
    std::fs::remove_dir_all(root).expect("the directory to be removed");
}

/// Runs tasks one after another. Returns the seconds per task.
async fn rounds_of(sandbox: Arc<Sandbox>, guest: Guest, inputs: usize) -> f64 {
    const TASKS: u32 = 3000;
    let path = BucketKey::new("0_input/1.dat").expect("a key");
    let bytes = bytes::Bytes::from(vec![7; 4096]);
    let input = || Input { path: path.clone(), content: InputContent::Bytes(bytes.clone()) };
    let task = Arc::new(Task {
        id: 1,
        name: TaskName::new("NO_OP").expect("a name"),
        base_directory: Prefix::new("d").expect("a prefix"),
        inputs: vec![path.clone(); inputs],
        payload: None,
    });
    let limits = Arc::new(Limits {
        memory: ByteSize::gib(1),
        time: Duration::from_secs(60),
        output_bytes: ByteSize::gib(1),
        output_files: 1000,
        output_memory: ByteSize::mib(16),
        output_file_memory: ByteSize::mib(4),
        open_files: 1000,
        process_files: 1000,
        cpu_time: None,
        log: ByteSize::kib(64),
        host_memory: ByteSize::mib(64),
        table: None,
    });
    let start = Instant::now();
    for _ in 0..TASKS {
        let execution = sandbox
            .run(Job {
                calls: Calls::Task,
                guest: guest.clone(),
                task: task.clone(),
                attempt: 1,
                limits: limits.clone(),
                inputs: (0..inputs).map(|_| input()).collect(),
                cancelled: CancellationToken::new(),
                tee: None,
                profiler: None,
                watched: None,
                slot: None,
            })
            .await;
        execution.result.expect("success");
        assert_eq!(execution.outputs.len(), inputs);
    }
    start.elapsed().as_secs_f64() / f64::from(TASKS)
}
