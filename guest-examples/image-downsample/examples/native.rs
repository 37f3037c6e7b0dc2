//! Does the guest's work in a native program, to measure the cost of the sandbox:
//! `cargo run --release -p image-downsample --example native -- ROUNDS IMAGE...`
//!
//! Runs the three calls on each image, with files in the directory for temporary files. Prints the
//! mean time of a task and the bytes of one round's outputs as JSON.

use std::time::{Duration, Instant};

use guest::Downsample;
use task_host_sdk::testing::Sandbox;
use task_host_sdk::{Context, Error, Result};

// A native program can't link a component, so this compiles the same files.
#[path = "../src/lib.rs"]
mod guest;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let rounds: u32 = arguments
        .next()
        .and_then(|rounds| rounds.parse().ok())
        .filter(|rounds| *rounds > 0)
        .ok_or_else(|| Error::reject("give the number of rounds, and images"))?;
    let mut tasks = Vec::new();
    for image in arguments {
        let contents = std::fs::read(&image).with_context(|| image.clone())?;
        let mut task = Sandbox::new()?;
        task.input("0_input/image", contents)?;
        tasks.push(task);
    }
    if tasks.is_empty() {
        return Err(Error::reject("give images after the number of rounds"));
    }
    let (mut time, mut bytes) = (Duration::ZERO, 0);
    for round in 0..rounds {
        for task in &mut tasks {
            let start = Instant::now();
            let outcome = task.run::<Downsample>()?;
            time += start.elapsed();
            if round == 0 {
                for key in outcome.outputs() {
                    bytes += task.output(key)?.len();
                }
            }
        }
    }
    let milliseconds = time.as_secs_f64() * 1e3 / f64::from(rounds) / tasks.len() as f64;
    println!(
        "{{\"tasks\": {}, \"milliseconds_per_task\": {milliseconds:.3}, \"output_bytes\": {bytes}}}",
        tasks.len()
    );
    Ok(())
}
