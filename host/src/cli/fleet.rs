//! `host fleet`: starts, watches and stops workers on an existing engine.

mod options;
mod queues;
mod up;
mod watch;

use task_host::environment::Environment;
use task_host::fleet::policy::Event;
use task_host::fleet::{self, Counts, Engine, EngineError, FleetName, Reason};

use super::exit_code::{Advice, Exit};
use super::output;
use super::settings::{Flags, Group, Settings};
use options::EngineOption;

const RENDER_HELP: &str = "\
Examples:
  host fleet render tiles --on k8s://default --queue sqs://my-tasks --bucket s3://my-data
  host fleet render tiles --on slurm://main --queue fq:///lab/queue > tiles.sh";
const STATUS_HELP: &str = "\
Examples:
  host fleet status tiles --on slurm://main
  host fleet status tiles --on batch://my-queue --json";
const LOGS_HELP: &str = "\
Examples:
  host fleet logs tiles --on docker://";
const DOWN_HELP: &str = "\
Examples:
  host fleet down tiles --on slurm://main";

/// Commands of `host fleet`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Fleet {
    /// Start the workers that are not running yet, and wait until they run
    #[command(after_help = up::HELP)]
    Up(up::Up),
    /// Print the request that `up` would send, in the format of the engine
    #[command(after_help = RENDER_HELP)]
    Render(up::Render),
    /// Show the workers of a fleet, why some wait, and its queue
    #[command(after_help = STATUS_HELP)]
    Status(watch::Status),
    /// Wait until workers have started, until all have ended, or until the queue is empty
    #[command(after_help = watch::WAIT_HELP)]
    Wait(watch::Wait),
    /// Print the logs of workers
    #[command(after_help = LOGS_HELP)]
    Logs(watch::Logs),
    /// Stop workers: those that run may finish their tasks within --grace
    #[command(after_help = DOWN_HELP)]
    Down(watch::Down),
}

impl Fleet {
    pub(crate) fn run(self) -> anyhow::Result<Exit> {
        super::waiting_runtime()?.block_on(async {
            match self {
                Self::Up(command) => command.run().await,
                Self::Render(command) => command.run().await,
                Self::Status(command) => command.run().await,
                Self::Wait(command) => command.run().await,
                Self::Logs(command) => command.run().await,
                Self::Down(command) => command.run().await,
            }
        })
    }
}

/// The settings of commands about an existing fleet. The fleet's own settings come from the engine.
#[derive(Debug)]
pub(crate) struct FleetOnly;
impl Group for FleetOnly {
    const SETTINGS: Option<&'static [&'static str]> = Some(&["region", "progress"]);
}

/// A fleet, and its engine.
#[derive(Debug, clap::Args)]
pub(crate) struct Which {
    /// The fleet
    #[arg(value_name = "NAME", value_parser = name)]
    name: FleetName,
    #[command(flatten)]
    engine: EngineOption,
    #[command(flatten)]
    flags: Flags<FleetOnly>,
}

fn name(text: &str) -> Result<FleetName, String> {
    text.parse().map_err(|error: fleet::NameError| error.to_string())
}

/// Checks the table `[fleet]` of `host.toml`.
///
/// # Errors
/// If an option or a value is wrong. The error names it.
pub(crate) fn check_table(settings: &Settings) -> anyhow::Result<()> {
    options::Options::of_file(settings).map(drop)
}

impl Which {
    async fn open(&self) -> anyhow::Result<Box<dyn Engine>> {
        open(&self.engine, &self.flags.load()?).await
    }
}

async fn open(engine: &EngineOption, settings: &Settings) -> anyhow::Result<Box<dyn Engine>> {
    let address = engine.address(settings)?;
    let cloud: task_host::config::CloudSettings = settings.get()?;
    let access = fleet::Access { region: cloud.region, environment: Environment::of_process() };
    fleet::open(&address, &access).await.map_err(advice)
}

/// An error of an engine, with its exit code and hint.
fn advice(error: EngineError) -> anyhow::Error {
    let advice = match &error {
        EngineError::Unfit { .. } => Advice::usage(error.to_string()),
        EngineError::Failed { .. } => Advice::failed(error.to_string()),
    };
    match error.cure() {
        Some(cure) => advice.hint(cure).into(),
        None => advice.into(),
    }
}

/// Tells the user about an event of a fleet.
fn tell(fleet: &FleetName, engine: &dyn std::fmt::Display, wanted: Option<u32>, event: Event) {
    match event {
        Event::Scarce { capacity, limit } => output::tell(format_args!(
            "{fleet}: at most {} can run at the same time: {limit}",
            output::count(capacity.into(), "worker")
        )),
        Event::Exists(counts) => output::note(format_args!(
            "{fleet}: {} of this fleet already: {}",
            output::count(counts.alive().into(), "worker"),
            states(counts)
        )),
        Event::Asked(what) => output::note(format_args!("{fleet}: asked {engine} for {what}")),
        Event::Changed(status) => {
            let of = wanted.map_or(String::new(), |wanted| format!(" of {wanted}"));
            let reasons = said(&status.reasons);
            output::note(format_args!("{fleet}: {}{of}{reasons}", states(status.counts)));
        }
    }
}

/// `12 waiting, 88 running`
fn states(counts: Counts) -> String {
    let Counts { waiting, running, ended, failed } = counts;
    let all = [(waiting, "waiting"), (running, "running"), (ended, "ended"), (failed, "failed")];
    let some = all.iter().filter(|(n, _)| *n > 0).map(|(n, state)| format!("{n} {state}"));
    let some: Vec<String> = some.collect();
    if some.is_empty() { "no workers".to_owned() } else { some.join(", ") }
}

fn said(reasons: &[Reason]) -> String {
    match reasons {
        [] => String::new(),
        [reason] => format!("; {}", sentence(reason)),
        [first, ..] => format!("; {} (and other reasons)", sentence(first)),
    }
}

/// `12 wait: Priority`
fn sentence(reason: &Reason) -> String {
    let verb = match (reason.state, reason.workers) {
        (fleet::Trouble::Waiting, 1) => "waits",
        (fleet::Trouble::Waiting, _) => "wait",
        (fleet::Trouble::Failed, _) => "failed",
    };
    format!("{} {verb}: {}", reason.workers, reason.reason)
}
