//! `cargo xtask chaos`: runs thousands of tasks on hosts that are killed, stopped and restarted at
//! random, beside a real Python worker, and counts the results.
//!
//! All hosts share one directory queue, bucket and cache. The faults end when the queue is almost
//! empty. Then the hosts finish, and every output is compared with its input.

mod crew;
mod dice;
mod ledger;
mod place;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::ensure;
use clap::Args;

use crate::build::{self, Profile};
use crate::project::Project;
use crate::setup;
use crew::Crew;
use dice::Dice;
use place::Place;

/// How often the processes are checked.
const LOOK: Duration = Duration::from_millis(20);
/// How often the queue is counted.
const COUNT: Duration = Duration::from_millis(300);
/// The faults end when the queue holds less than this share of the tasks.
const LAST_PART: usize = 50;
/// The run fails if the queue does not change for this long.
const STANDSTILL: Duration = Duration::from_secs(300);

#[derive(Args)]
pub(crate) struct Options {
    /// Number of tasks
    #[arg(long, default_value_t = 30_000)]
    tasks: usize,
    /// Hosts that run at the same time
    #[arg(long, default_value_t = 4)]
    hosts: usize,
    /// Repeats the choices of an earlier run [default: a new seed, which is printed]
    #[arg(long)]
    seed: Option<u64>,
    /// Average milliseconds between two faults
    #[arg(long, default_value_t = 600)]
    every: u64,
    /// Lease in seconds, at least 2
    #[arg(long, default_value_t = 2)]
    lease: u64,
    /// Directory for queue, bucket and logs; cleared first [default: chaos in the build directory]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Print the results as one line of JSON
    #[arg(long)]
    json: bool,
    /// How the host is built
    #[arg(long, value_enum, default_value = "release")]
    profile: Profile,
    /// Build and install nothing
    #[arg(long)]
    built: bool,
}

pub(crate) fn run(project: &Project, options: &Options) -> anyhow::Result<()> {
    ensure!(options.tasks > 0 && options.hosts > 0, "--tasks and --hosts must be at least 1");
    let (host, python) = if options.built {
        (options.profile.host(project), project.target.join("python/bin/python"))
    } else {
        setup::wasm_target(project)?;
        let python = setup::python(project)?;
        build::guests(project)?;
        (build::host(project, options.profile)?, python)
    };
    let seed = options.seed.unwrap_or_else(|| u64::from(std::process::id()));
    let dir = options.dir.clone().unwrap_or_else(|| project.target.join("chaos"));
    let place = Place::new(&std::path::absolute(dir)?, &host)?;
    eprintln!(
        "{} tasks, {} hosts and a Python worker in {}; --seed {seed}",
        options.tasks,
        options.hosts,
        place.dir().display()
    );
    place.fill(&project.target.join("guests/misbehave.wasm"), options.tasks)?;

    let start = Instant::now();
    let mut crew = Crew::start(&place, &python, options.hosts, options.lease)?;
    disturb(&place, &mut crew, options, &mut Dice::new(seed))?;
    crew.mend()?;
    wait_until_empty(&place, &mut crew)?;
    let seconds = start.elapsed().as_secs_f64();
    let report = crew.end()?;
    // The next host that starts removes what killed hosts left behind.
    place.host(&[
        "run",
        "--fq",
        "./queue",
        "--cache-dir",
        "./cache",
        "-x",
        "--progress",
        "never",
    ])?;

    let ledger = place.ledger(options.tasks, seed, seconds, report)?;
    if options.json {
        println!("{}", ledger.to_json());
    } else {
        println!("{ledger}");
    }
    let wrong = ledger.problems();
    ensure!(
        wrong.is_empty(),
        "{}; queue, bucket and logs are in {}",
        wrong.join(", "),
        place.dir().display()
    );
    place.remove()
}

/// Kills and stops hosts until the queue is almost empty.
fn disturb(
    place: &Place,
    crew: &mut Crew<'_>,
    options: &Options,
    dice: &mut Dice,
) -> anyhow::Result<()> {
    let lease = options.lease * 1000;
    let mut progress = Progress::default();
    let mut next_fault = Instant::now();
    let mut next_count = Instant::now();
    loop {
        std::thread::sleep(LOOK);
        crew.look()?;
        let now = Instant::now();
        if now >= next_count {
            next_count = now + COUNT;
            let left = place.left()?;
            if left <= options.tasks / LAST_PART {
                return Ok(());
            }
            progress.is(left)?;
        }
        if now >= next_fault {
            next_fault = now + Duration::from_millis(dice.below(2 * options.every.max(1)));
            let running = crew.running();
            let which = dice.below(running.len() as u64) as usize;
            let Some(&host) = running.get(which) else { continue };
            if dice.below(5) < 3 {
                crew.kill(host, Duration::from_millis(dice.below(500)));
            } else {
                // From slightly less than the lease to twice as long.
                let time = lease * 3 / 4 + dice.below(lease * 5 / 4);
                crew.stop(host, Duration::from_millis(time))?;
            }
        }
    }
}

fn wait_until_empty(place: &Place, crew: &mut Crew<'_>) -> anyhow::Result<()> {
    let mut progress = Progress::default();
    loop {
        let left = place.left()?;
        if left == 0 {
            return Ok(());
        }
        progress.is(left)?;
        crew.look()?;
        std::thread::sleep(LOOK);
    }
}

/// Fails when the run makes no progress.
#[derive(Default)]
struct Progress(Option<(usize, Instant)>);

impl Progress {
    fn is(&mut self, left: usize) -> anyhow::Result<()> {
        match self.0 {
            Some((before, since)) if before == left => {
                ensure!(since.elapsed() < STANDSTILL, "{left} tasks are left and none finishes");
            }
            _ => self.0 = Some((left, Instant::now())),
        }
        Ok(())
    }
}
