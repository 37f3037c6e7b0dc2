//! `cargo xtask soak`: runs many tasks on hosts that are killed, stopped and restarted at random,
//! while their network and their disks fail, and counts the results.
//!
//! All hosts share one queue, bucket and cache. The faults end when the queue is almost empty. Then
//! the hosts finish. The run compares every output with its input, and every receipt with its
//! outputs.

mod aws;
mod crew;
mod dice;
mod faults;
mod fleet;
mod ledger;
mod place;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::ensure;
use clap::Args;

use crate::build::{self, Profile};
use crate::project::Project;
use crate::setup;
use crew::Crew;
use dice::Dice;
use faults::Faults;
use ledger::Ledger;
use place::Place;

/// How often the processes are checked.
const LOOK: Duration = Duration::from_millis(20);
/// The faults end when the queue holds less than this share of the tasks.
const LAST_PART: usize = 50;
/// The run fails if the queue does not change for this long.
const STANDSTILL: Duration = Duration::from_secs(300);

/// Where the queue and the bucket are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum On {
    /// Directories.
    Directory,
    /// SQS and S3, of a server on this machine.
    Aws,
    /// Directories, with a fleet on Docker instead of hosts; it loses workers only
    Docker,
    /// The same on Slurm, where workers follow one another each minute
    Slurm,
}

impl On {
    /// Whether the workers are a fleet of an engine.
    fn is_engine(self) -> bool {
        matches!(self, Self::Docker | Self::Slurm)
    }
}

#[derive(Clone, Args)]
pub(crate) struct Options {
    /// Number of tasks
    #[arg(long, default_value_t = 100_000)]
    tasks: usize,
    /// Where the queue and the bucket are
    #[arg(long, value_enum, default_value = "directory")]
    on: On,
    /// Hosts that run at the same time
    #[arg(long, default_value_t = 4)]
    hosts: usize,
    /// Tasks that each host runs at the same time
    #[arg(long, default_value_t = 8)]
    parallel: usize,
    /// Minutes that all tasks together take on all hosts: tasks sleep as long as that needs
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Repeats the choices of an earlier run [default: a new seed, which is printed]
    #[arg(long)]
    seed: Option<u64>,
    /// Average milliseconds between two kills or stops of a host
    #[arg(long, default_value_t = 2000)]
    every: u64,
    /// Lease in seconds, at least 2
    #[arg(long, default_value_t = 4)]
    lease: u64,
    /// A Python worker works on the same queue; then there are no receipts
    #[arg(long, conflicts_with = "on")]
    python: bool,
    /// Without faults of the network
    #[arg(long)]
    no_network_faults: bool,
    /// The disks do not fail; without this option, the command needs root to mount them
    #[arg(long)]
    no_disk_faults: bool,
    /// Directory for queue, bucket and logs; cleared first [default: soak in the build directory]
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
    let mut options = options.clone();
    // Only hosts that this program starts run with faults.
    options.no_network_faults |= options.on.is_engine();
    options.no_disk_faults |= options.on.is_engine();
    let options = &options;
    let (host, python) = if options.built {
        (options.profile.host(project), project.target.join("python/bin/python"))
    } else {
        setup::wasm_target(project)?;
        let python = setup::python(project)?;
        build::guests(project)?;
        (build::host(project, options.profile)?, python)
    };
    let seed = options.seed.unwrap_or_else(|| u64::from(std::process::id()));
    let dir = options.dir.clone().unwrap_or_else(|| project.target.join("soak"));
    let place = Place::new(&std::path::absolute(dir)?, &host, options, project)?;
    eprintln!(
        "{} tasks, {} hosts{} in {}; --seed {seed}",
        options.tasks,
        options.hosts,
        if options.python { " and a Python worker" } else { "" },
        place.dir().display()
    );
    let python = options.python.then_some(&*python);
    let guest = project.target.join("guests/misbehave.wasm");
    let ledger = match soak(project, &place, &guest, python, options, seed) {
        Ok(ledger) => ledger,
        Err(error) => return Err(error.context(place.keep()?)),
    };
    if options.json {
        println!("{}", ledger.to_json());
    } else {
        println!("{ledger}");
    }
    let wrong = ledger.problems();
    if !wrong.is_empty() {
        anyhow::bail!("{}; {}", wrong.join(", "), place.keep()?);
    }
    place.remove()
}

fn soak(
    project: &Project,
    place: &Place,
    guest: &Path,
    python: Option<&Path>,
    options: &Options,
    seed: u64,
) -> anyhow::Result<Ledger> {
    place.fill(guest, options)?;
    let start = Instant::now();
    let mut dice = Dice::new(seed);
    if options.on.is_engine() {
        let mut fleet = fleet::Fleet::start(place, project, options)?;
        fleet.disturb(options, &mut dice)?;
        let mut ledger = fleet.end()?;
        ledger.seed = seed;
        ledger.seconds = start.elapsed().as_secs_f64();
        place.run_until_empty()?;
        place.count(options, &mut ledger)?;
        return Ok(ledger);
    }
    let mut crew = Crew::start(place, python, options)?;
    let mut faults = Faults::new(place);
    disturb(place, &mut crew, &mut faults, options, &mut dice)?;
    faults.end()?;
    crew.mend()?;
    wait_until_empty(place, &mut crew, &faults)?;
    let seconds = start.elapsed().as_secs_f64();
    let mut ledger = crew.end()?;
    ledger.seed = seed;
    ledger.seconds = seconds;
    faults.count(&mut ledger);
    // The next host that starts removes the files that killed hosts left.
    place.run_until_empty()?;
    place.count(options, &mut ledger)?;
    Ok(ledger)
}

/// Kills and stops hosts, and makes networks and disks fail, until the queue is almost empty.
fn disturb(
    place: &Place,
    crew: &mut Crew<'_>,
    faults: &mut Faults<'_>,
    options: &Options,
    dice: &mut Dice,
) -> anyhow::Result<()> {
    let lease = options.lease * 1000;
    let mut progress = Progress::default();
    let mut next_fault = Instant::now();
    let mut next_count = Instant::now();
    loop {
        std::thread::sleep(LOOK);
        faults.look(options.every, dice)?;
        crew.look(faults.are_recent())?;
        let now = Instant::now();
        if now >= next_count {
            next_count = now + place.count_every();
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
                // From slightly less than the lease duration to twice that.
                let time = lease * 3 / 4 + dice.below(lease * 5 / 4);
                crew.stop(host, Duration::from_millis(time))?;
            }
        }
    }
}

fn wait_until_empty(place: &Place, crew: &mut Crew<'_>, faults: &Faults<'_>) -> anyhow::Result<()> {
    let mut progress = Progress::default();
    loop {
        let left = place.left()?;
        if left == 0 {
            return Ok(());
        }
        progress.is(left)?;
        crew.look(faults.are_recent())?;
        std::thread::sleep(place.count_every());
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
