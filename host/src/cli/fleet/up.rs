//! `host fleet up` and `host fleet render`.

use std::time::{Duration, Instant};

use bytesize::ByteSize;
use task_host::config::parse;
use task_host::fleet::policy::{self, Launched, Wanted};
use task_host::fleet::{Engine, FleetName, Spec};
use task_host::queue;

use super::super::exit_code::{Advice, Exit};
use super::super::output;
use super::super::settings::{Flags, OfWorkers, Settings};
use super::options::{Options, Workers};
use super::{advice, name, open, said, states, tell};

/// The default image: the public image of this version.
const IMAGE: &str = concat!("ghcr.io/task-host/task-host:", env!("CARGO_PKG_VERSION"));

pub(super) const HELP: &str = "\
The options of `host run` are options of the workers. They are checked here, before anything is
started. The engine keeps all state: the other commands find the fleet by its name from any machine.

Examples:
  host fleet up night --on docker:// --workers 4 --fq ./queue --bucket ./bucket
  host fleet up night --on slurm://main --workers 10..40 --cpus 8 --walltime 4h --fq /lab/queue
  host fleet up night --on batch://spot --workers auto..100 --queue sqs://tasks --bucket s3://data";

/// Options of `host fleet up`.
#[derive(Debug, clap::Args)]
pub(crate) struct Up {
    #[command(flatten)]
    workers: WorkersOfFleet,
    /// How long to wait until all workers run; 0s does not wait [default: by engine]
    #[arg(long, value_name = "TIME", value_parser = parse::duration, help_heading = "Fleet")]
    wait: Option<Duration>,
    /// Keep the workers if fewer than MIN run in time
    #[arg(long, help_heading = "Fleet")]
    keep: bool,
}

/// Options of `host fleet render`.
#[derive(Debug, clap::Args)]
pub(crate) struct Render {
    #[command(flatten)]
    workers: WorkersOfFleet,
}

/// A fleet, and what its workers are.
#[derive(Debug, clap::Args)]
struct WorkersOfFleet {
    /// Name of the fleet: lower-case letters, digits and hyphens
    #[arg(value_name = "NAME", value_parser = name)]
    name: FleetName,
    #[command(flatten)]
    options: Options,
    #[command(flatten)]
    flags: Flags<OfWorkers>,
}

/// The workers to start, and their engine.
struct Plan {
    engine: Box<dyn Engine>,
    address: String,
    spec: Spec,
    wanted: Wanted,
    /// The queues that are directories.
    queues: Vec<queue::Address>,
}

impl Up {
    pub(crate) async fn run(self) -> anyhow::Result<Exit> {
        let Plan { engine, address, spec, wanted, queues } = self.workers.plan().await?;
        // Create the queues, which the workers would do later: `status` and `wait` count their
        // messages.
        for queue in &queues {
            queue::open(queue, &queue::Access::default()).await?;
        }
        let start = Instant::now();
        let patience = self.wait.unwrap_or(engine.times().start);
        let fleet = &spec.fleet;
        let mut events = |event| tell(fleet, &address, Some(wanted.most), event);
        let up = policy::up(&*engine, &spec, wanted, patience, self.keep, &mut events);
        match up.await.map_err(advice)? {
            Launched::All(_) => Ok(Exit::Done),
            Launched::Enough(status) => {
                output::tell(format_args!(
                    "warning: {fleet}: only {} of {} workers have started{}",
                    status.counts.started(),
                    wanted.most,
                    said(&status.reasons)
                ));
                Ok(Exit::Done)
            }
            Launched::TooFew(status) => {
                let then = match self.keep {
                    true => "they are kept",
                    false => "all are stopped; --keep would keep them",
                };
                output::tell(format_args!(
                    "error: {fleet}: {} after {}, fewer than {} have started{}; {then}",
                    states(status.counts),
                    output::time(start.elapsed()),
                    wanted.least,
                    said(&status.reasons)
                ));
                Ok(Exit::TooFew)
            }
        }
    }
}

impl Render {
    pub(crate) async fn run(self) -> anyhow::Result<Exit> {
        let Plan { engine, spec, wanted, .. } = self.workers.plan().await?;
        let document = engine.render(&spec, wanted.most).map_err(advice)?;
        // Unchanged, because another program reads it.
        let mut out = output::Messages::new();
        for line in document.trim_end_matches('\n').split('\n') {
            out.write(line.as_bytes())?;
        }
        out.flush()?;
        Ok(Exit::Done)
    }
}

impl WorkersOfFleet {
    /// Checks all options, as a worker would.
    async fn plan(self) -> anyhow::Result<Plan> {
        let mut settings = self.flags.load()?;
        for slip in settings.misspelt() {
            output::tell(format_args!("warning: {slip}"));
        }
        let options = self.options.complete(&settings)?;
        let address = options.engine.address(&settings)?;
        let engine = open(&options.engine, &settings).await?;

        let first = settings.config_to_run()?;
        let slots = match (settings.has("parallel"), options.cpus) {
            (true, _) => first.work.parallel,
            (false, cpus) => cpus.unwrap_or(1) as usize,
        };
        settings.or("parallel", slots.to_string());
        let usual = first.stop.grace;
        let given = settings.has("grace").then_some(usual);
        let (grace, stop_time) = policy::grace(given, usual, engine.times()).map_err(advice)?;
        settings.or("grace", humantime::format_duration(grace).to_string());
        if !ENDS.iter().any(|name| settings.has(name)) {
            settings.or("exit-when-idle", "60s");
        }
        settings.or("exit-zero", "true");
        settings.or("log-format", "json");
        let config = settings.config_to_run()?;

        let needed = in_steps(config.limits().memory_for(slots));
        let memory = options.mem.unwrap_or(needed);
        if memory < needed {
            return Err(Advice::usage(format!(
                "--mem: a worker with {} does not have the memory for {} of {} at the same time",
                memory.display().iec(),
                output::count(slots as u64, "task"),
                config.task.memory.display().iec()
            ))
            .hint(format!(
                "use --mem {}, or a lower --parallel or --memory",
                needed.display().iec().to_string().replace(' ', "")
            ))
            .into());
        }
        let queues = [Some(&config.queue), Some(&config.error_queue), config.done_queue.as_ref()];
        let queues = queues.into_iter().flatten().filter(|queue| !queue.is_remote()).cloned();
        let queues = queues.collect();
        let mut environment = settings.variables(&config)?;
        environment.insert("HOST_FLEET".to_owned(), self.name.to_string());
        let program = match options.program {
            Some(program) => std::path::absolute(program)?,
            None => std::env::current_exe()?,
        };
        let spec = Spec {
            fleet: self.name,
            cpus: options.cpus.unwrap_or(u32::try_from(slots).unwrap_or(u32::MAX)),
            memory,
            image: options.image.unwrap_or_else(|| IMAGE.to_owned()),
            program,
            walltime: options.walltime,
            relay: options.relay.unwrap_or(1),
            stop_time,
            directory: std::env::current_dir()?,
            paths: settings.paths(&config)?,
            environment,
            pass: options.pass_env.into_iter().collect(),
            options: grouped(options.options),
        };
        let wanted = match options.workers {
            None => Wanted { least: 1, most: 1 },
            Some(Workers::Number(wanted)) => wanted,
            Some(Workers::Auto(most)) => {
                let each = options.tasks_per_slot.unwrap_or(10);
                let workers = workers_for_queue(&settings, slots, each).await?;
                let most = most.map_or(workers, |most| workers.min(most));
                Wanted { least: most.min(1), most }
            }
        };
        Ok(Plan { engine, address: address.to_string(), spec, wanted, queues })
    }
}

/// Settings that make a worker end by itself.
const ENDS: [&str; 4] = ["exit-when-empty", "exit-when-idle", "max-tasks", "for"];

/// Rounds memory up to a multiple of 256 MiB, which has a short notation.
fn in_steps(memory: ByteSize) -> ByteSize {
    const STEP: u64 = 256 << 20;
    ByteSize::b(memory.as_u64().div_ceil(STEP).saturating_mul(STEP))
}

/// The number of workers for the tasks that are in the queue now.
async fn workers_for_queue(settings: &Settings, slots: usize, each: u64) -> anyhow::Result<u32> {
    let queue = queue::admin(&settings.queue()?, &settings.queue_access()?).await?;
    let counts = queue.counts().await?;
    let Some(enqueued) = counts.enqueued else {
        return Err(Advice::usage(format!("--workers auto: {queue} can't count its tasks"))
            .hint("give a number, such as --workers 10")
            .into());
    };
    let workers = policy::workers_for(enqueued, slots as u64, each);
    output::note(format_args!(
        "{queue}: {}, so {}",
        output::count(enqueued, "task"),
        output::count(workers.into(), "worker")
    ));
    Ok(workers)
}

fn grouped(pairs: Vec<(String, String)>) -> std::collections::BTreeMap<String, Vec<String>> {
    let mut options = std::collections::BTreeMap::<String, Vec<String>>::new();
    for (name, value) in pairs {
        options.entry(name).or_default().push(value);
    }
    options
}

#[cfg(test)]
mod tests {
    use clap::{Args, Command};

    use super::super::super::settings::reference;
    use super::*;

    /// True for options of a fleet. Settings of workers and global flags are documented elsewhere.
    fn is_own(option: &&clap::Arg) -> bool {
        option.get_help_heading() == Some("Fleet")
    }

    #[test]
    fn the_reference_lists_every_option_of_a_fleet() {
        let command = Up::augment_args(Command::new("host"));
        let rows = command.get_arguments().filter(is_own).map(reference::row);
        let table = format!("{}{}", reference::HEADER, rows.collect::<String>());
        reference::is_on_the_page("settings of a fleet", &table);
    }
}
