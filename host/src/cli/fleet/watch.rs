//! `host fleet status`, `wait`, `logs` and `down`: commands about an existing fleet.

use std::io::Write;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use serde::Serialize;
use task_host::config::parse;
use task_host::fleet::policy::{self, Goal, Waited, Watched};
use task_host::fleet::{self, Engine, FleetName, Reason, Stop};
use task_host::queue::Counts;
use task_host::shell;

use super::super::exit_code::{Advice, Exit};
use super::super::output;
use super::super::settings::Flags;
use super::options::EngineOption;
use super::queues::Queues;
use super::{FleetOnly, Which, advice, name, open, said, sentence, states, tell};

pub(super) const WAIT_HELP: &str = "\
Exit codes:
  0  the condition was met
  1  the time is over, or the engine or a queue did not answer
  3  --for done: the queue is empty, and its error queue is not
  5  --for workers: the time is over, and workers still wait
  6  --for done: no worker is left, and the queue is not empty

Examples:
  host fleet wait tiles --on slurm://main
  host fleet wait tiles --on slurm://main --for done";

/// Options of `host fleet status`.
#[derive(Debug, clap::Args)]
pub(crate) struct Status {
    /// The fleet [default: all fleets of the engine]
    #[arg(value_name = "NAME", value_parser = name)]
    name: Option<FleetName>,
    #[command(flatten)]
    engine: EngineOption,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: Flags<FleetOnly>,
}

/// Options of `host fleet wait`.
#[derive(Debug, clap::Args)]
pub(crate) struct Wait {
    #[command(flatten)]
    which: Which,
    /// What to wait for: workers (none waits to be started), idle (all have ended) or done (the queue
    /// is empty)
    #[arg(long = "for", value_name = "WHAT", default_value = "done")]
    goal: GoalName,
    /// How long to wait [default: no limit]
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    timeout: Option<Duration>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum GoalName {
    Workers,
    Idle,
    Done,
}

/// Options of `host fleet logs`.
#[derive(Debug, clap::Args)]
pub(crate) struct Logs {
    #[command(flatten)]
    which: Which,
    /// Number of one worker [default: all]
    #[arg(long, value_name = "N", value_parser = parse::small)]
    worker: Option<u32>,
    /// Wait for more until the workers have ended
    #[arg(long, short)]
    follow: bool,
    /// Number of last lines of each worker [default: all]
    #[arg(long, value_name = "N", value_parser = parse::small)]
    tail: Option<u32>,
}

/// Options of `host fleet down`.
#[derive(Debug, clap::Args)]
pub(crate) struct Down {
    #[command(flatten)]
    which: Which,
    /// Only cancel workers that have not started
    #[arg(long)]
    waiting: bool,
    /// Do not wait until the workers have ended
    #[arg(long)]
    no_wait: bool,
}

/// A fleet as `--json` prints it.
#[derive(Serialize)]
struct Shown {
    fleet: String,
    #[serde(flatten)]
    status: fleet::Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_seconds_ago: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    queue: Option<ShownQueue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_queue: Option<ShownQueue>,
}

#[derive(Serialize)]
struct ShownQueue {
    queue: String,
    #[serde(flatten)]
    counts: Counts,
}

impl Status {
    pub(crate) async fn run(self) -> anyhow::Result<Exit> {
        let settings = self.flags.load()?;
        let address = self.engine.address(&settings)?.to_string();
        let engine = open(&self.engine, &settings).await?;
        let names = match &self.name {
            Some(name) => [name.clone()].into(),
            None => engine.fleets().await.map_err(advice)?,
        };
        let mut rows = vec![
            ["NAME", "ENGINE", "WAITING", "RUNNING", "ENDED", "FAILED", "SINCE"]
                .map(str::to_owned)
                .to_vec(),
        ];
        let mut notes = Vec::new();
        for fleet in &names {
            let status = match &self.name {
                Some(_) => existing(&*engine, fleet, &address).await?,
                // The engine may have deleted the fleet since it was listed.
                None => match engine.status(fleet).await.map_err(advice)? {
                    Some(status) => status,
                    None => continue,
                },
            };
            let since = status.since.and_then(|since| SystemTime::now().duration_since(since).ok());
            let queues = counted(&status).await;
            if self.json {
                let (queue, error_queue) = queues.ok().unzip();
                output::json(&Shown {
                    fleet: fleet.to_string(),
                    status,
                    started_seconds_ago: since.map(|time| time.as_secs()),
                    queue,
                    error_queue,
                })?;
                continue;
            }
            let counts = status.counts;
            let numbers = [counts.waiting, counts.running, counts.ended, counts.failed];
            let mut row = vec![fleet.to_string(), address.clone()];
            row.extend(numbers.map(|n| n.to_string()));
            row.push(since.map_or("-".to_owned(), output::time));
            rows.push(row);
            notes.extend(status.reasons.iter().map(|reason| note(fleet, &sentence(reason))));
            notes.push(note(fleet, &queue_line(queues)));
        }
        if self.json {
            return Ok(Exit::Done);
        }
        if names.is_empty() {
            output::note(format_args!("{address} has no fleets"));
            return Ok(Exit::Done);
        }
        let mut out = output::out();
        output::table(&mut out, &rows)?;
        for note in notes {
            writeln!(out, "{note}")?;
        }
        Ok(Exit::Done)
    }
}

fn note(fleet: &FleetName, text: &str) -> String {
    format!("  {fleet}: {text}")
}

fn queue_line(queues: anyhow::Result<(ShownQueue, ShownQueue)>) -> String {
    let number = |n: Option<u64>| n.map_or("an unknown number".to_owned(), |n| n.to_string());
    match queues {
        Ok((tasks, errors)) => {
            let Counts { enqueued, leased, .. } = tasks.counts;
            let waiting = enqueued.zip(leased).map(|(all, leased)| all.saturating_sub(leased));
            let reports = match errors.counts.enqueued {
                Some(0) => String::new(),
                n => format!("; {}: {} of reports", errors.queue, number(n)),
            };
            format!(
                "{}: {} waiting, {} leased{reports}",
                tasks.queue,
                number(waiting),
                number(leased)
            )
        }
        Err(error) => format!("its queue can't be counted: {error}"),
    }
}

async fn counted(status: &fleet::Status) -> anyhow::Result<(ShownQueue, ShownQueue)> {
    let queues = Queues::open(&status.environment).await?;
    let (tasks, errors) = queues.counts().await?;
    Ok((
        ShownQueue { queue: queues.tasks.to_string(), counts: tasks },
        ShownQueue { queue: queues.errors.to_string(), counts: errors },
    ))
}

/// The status of a fleet. An error if the fleet does not exist.
async fn existing(
    engine: &dyn Engine,
    fleet: &FleetName,
    address: &str,
) -> anyhow::Result<fleet::Status> {
    engine.status(fleet).await.map_err(advice)?.ok_or_else(|| {
        Advice::failed(format!("{address} has no fleet {fleet}"))
            .hint(format!("`host fleet status --on {}` lists its fleets", shell::word(address)))
            .into()
    })
}

impl Which {
    /// The engine, its address, and the fleet's status.
    async fn find(&self) -> anyhow::Result<(Box<dyn Engine>, String, fleet::Status)> {
        let address = self.engine.address(&self.flags.load()?)?.to_string();
        let engine = self.open().await?;
        let status = existing(&*engine, &self.name, &address).await?;
        Ok((engine, address, status))
    }
}

impl Wait {
    pub(crate) async fn run(self) -> anyhow::Result<Exit> {
        let fleet = &self.which.name;
        let (engine, address, status) = self.which.find().await?;
        let (goal, queues) = match self.goal {
            GoalName::Workers => (Goal::Workers, None),
            GoalName::Idle => (Goal::Idle, None),
            GoalName::Done => (Goal::Done, Some(Queues::open(&status.environment).await?)),
        };
        let watched = Watched {
            engine: &*engine,
            fleet,
            queue: queues.as_ref().map(|queues| (&*queues.tasks, queues.is_remote)),
            errors: queues.as_ref().map(|queues| &*queues.errors),
        };
        let mut events = |event| tell(fleet, &address, None, event);
        let waited = policy::wait(&watched, goal, self.timeout, &mut events).await;
        let waited = waited.map_err(|error| match error {
            policy::WatchError::Engine(error) => advice(error),
            policy::WatchError::Queue(error) => error.into(),
        })?;
        let queue = |queues: &Option<Queues>| {
            queues.as_ref().map_or(String::new(), |queues| queues.tasks.to_string())
        };
        Ok(match waited {
            Waited::Reached(status) => {
                let done = match goal {
                    Goal::Done => format!("{} is empty, without reports", queue(&queues)),
                    Goal::Workers | Goal::Idle => states(status.counts),
                };
                output::note(format_args!("{fleet}: {done}"));
                Exit::Done
            }
            Waited::Reports(reports) => {
                output::tell(format_args!(
                    "{fleet}: {} is empty, with {} in {}",
                    queue(&queues),
                    output::count(reports, "report"),
                    queues.map_or(String::new(), |queues| queues.errors.to_string())
                ));
                Exit::Partly
            }
            Waited::Abandoned(left, status) => {
                output::tell(format_args!(
                    "error: {fleet}: no worker is left ({}), and {} has {}{}",
                    states(status.counts),
                    queue(&queues),
                    output::count(left, "task"),
                    said(&status.reasons)
                ));
                Exit::Abandoned
            }
            Waited::TimedOut(status) => {
                output::tell(format_args!(
                    "error: {fleet}: the time is over: {}{}",
                    states(status.counts),
                    said(&status.reasons)
                ));
                if goal == Goal::Workers { Exit::TooFew } else { Exit::Failed }
            }
        })
    }
}

impl Logs {
    pub(crate) async fn run(self) -> anyhow::Result<Exit> {
        let (engine, _, _) = self.which.find().await?;
        let Self { which, worker, follow, tail } = self;
        let wanted = fleet::Logs { worker, follow, tail };
        let mut lines = engine.logs(&which.name, &wanted).await.map_err(advice)?;
        let mut out = output::out();
        while let Some(line) = lines.next().await {
            let fleet::Line { worker: of, text } = line.map_err(advice)?;
            match worker {
                Some(_) => writeln!(out, "{text}")?,
                None => writeln!(out, "{of} | {text}")?,
            }
        }
        Ok(Exit::Done)
    }
}

impl Down {
    pub(crate) async fn run(self) -> anyhow::Result<Exit> {
        let fleet = &self.which.name;
        let (engine, address, status) = self.which.find().await?;
        let counts = status.counts;
        let which = if self.waiting { Stop::Waiting } else { Stop::All };
        engine.stop(fleet, which).await.map_err(advice)?;
        let drains = match self.waiting {
            true => String::new(),
            false => format!(", {} told to drain", counts.running),
        };
        output::note(format_args!("{fleet}: {} waiting cancelled{drains}", counts.waiting));
        if self.waiting || self.no_wait {
            return Ok(Exit::Done);
        }
        let watched = Watched { engine: &*engine, fleet, queue: None, errors: None };
        let mut events = |event| tell(fleet, &address, None, event);
        let end = Some(TO_END);
        match policy::wait(&watched, Goal::Idle, end, &mut events).await {
            Ok(Waited::TimedOut(status)) => {
                let reasons: &[Reason] = &status.reasons;
                Err(Advice::failed(format!(
                    "{fleet}: not all workers have ended after {}: {}{}",
                    output::time(TO_END),
                    states(status.counts),
                    said(reasons)
                ))
                .into())
            }
            Ok(_) => Ok(Exit::Done),
            Err(error) => Err(error.into()),
        }
    }
}

/// How long `down` waits for workers to end.
const TO_END: Duration = Duration::from_secs(600);
