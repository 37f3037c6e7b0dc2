//! What the sandbox costs: a fresh instance and its three calls, without and with files.
//!
//! `cargo bench --bench sandbox -- COMPONENT.wasm [DIRECTORY]`, with a component that copies
//! its inputs (the NO_OP of the examples). Prints microseconds per task, the median of five
//! rounds, on one and on two threads.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use task_host::key::{BucketKey, Prefix, TaskName};
use task_host::message::Task;
use task_host::sandbox::{self, Guest, Job, Limits, Sandbox};
use task_host::workspace::{Workspace, Workspaces};
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
        let limits = Limits {
            memory: ByteSize::gib(1),
            time: Duration::from_secs(60),
            output_bytes: ByteSize::gib(1),
            output_files: 1000,
            open_files: 1000,
        };
        let workspaces = Workspaces::new(&root).expect("work directories");
        let (inputs, outputs) = (workspaces.inputs_root(), workspaces.outputs_root());
        let sandbox = Sandbox::new(threads, limits, inputs, outputs);
        let sandbox = Arc::new(sandbox.expect("a sandbox"));
        let wasm = std::fs::read(component).expect("the component");
        let engine = sandbox::compiling_engine().expect("an engine");
        let code = engine.precompile_component(&wasm).expect("a component");
        // SAFETY: the code was made above.
        let loaded = unsafe { sandbox.load(&code) }.expect("compiled code");
        let guest = sandbox.link(&loaded).expect("a guest");
        for (what, inputs) in [("nothing", 0), ("4 KiB in, 4 KiB out", 1)] {
            let mut rounds = Vec::new();
            for _ in 0..ROUNDS {
                let tasks = (0..threads).map(|_| {
                    let workspace = workspaces.acquire().expect("a workspace");
                    tokio::spawn(rounds_of(sandbox.clone(), guest.clone(), workspace, inputs))
                });
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

/// Seconds per task of one of the threads.
async fn rounds_of(
    sandbox: Arc<Sandbox>,
    guest: Guest,
    workspace: Workspace,
    inputs: usize,
) -> f64 {
    const TASKS: u32 = 3000;
    let (input, output) = (&workspace.inputs, &workspace.outputs);
    input.create_dir_all("0_input").expect("a directory");
    input.write("0_input/1.dat", [7; 4096]).expect("an input");
    let task = Arc::new(Task {
        id: 1,
        name: TaskName::new("NO_OP").expect("a name"),
        base_directory: Prefix::new("d").expect("a prefix"),
        inputs: vec![BucketKey::new("0_input/1.dat").expect("a key"); inputs],
        payload: None,
    });
    let start = Instant::now();
    for _ in 0..TASKS {
        let execution = sandbox
            .run(Job {
                guest: guest.clone(),
                task: task.clone(),
                attempt: 1,
                directories: workspace.directories().expect("handles"),
                cancelled: CancellationToken::new(),
                tee: None,
            })
            .await;
        execution.result.expect("success");
        if inputs > 0 {
            output.remove_file("0_output/1.dat").expect("an output");
        }
    }
    start.elapsed().as_secs_f64() / f64::from(TASKS)
}
