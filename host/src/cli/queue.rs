//! `host queue`: inspects and repairs queues. The commands have the same names as those of `ptq`.

mod errors;
mod ls;
mod redrive;
mod status;
mod transfer;

pub(crate) use redrive::redrive_error;

use std::io::Write;

use serde::Serialize;
use task_host::config::parse;
use task_host::queue::{self, Address, Admin, Counts};

use super::confirm::confirm;
use super::console::Console;
use super::exit_code::{Advice, Exit};
use super::output;
use super::progress_line::ProgressLine;
use super::settings::{DisplaySettings, Flags, Group, QueueOnly, Settings};

/// Commands of `host queue`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Queue {
    /// Show how many tasks wait, are held, wait for a retry, are done, and have failed
    #[command(after_help = STATUS_HELP)]
    Status(Simple),
    /// List messages or error reports
    #[command(after_help = LS_HELP)]
    Ls(ls::Ls),
    /// List error reports by cause: how many, since when, and an example
    #[command(after_help = errors::HELP)]
    Errors(errors::Errors),
    /// End all leases, so that any worker can take the messages now
    #[command(after_help = RELEASE_HELP)]
    Release(Change),
    /// Reset the counters of inserted and completed messages
    #[command(after_help = REZERO_HELP)]
    Rezero(Change),
    /// Delete all messages and reset the counters
    #[command(after_help = PURGE_HELP)]
    Purge(Change),
    /// Copy all messages to another queue
    #[command(after_help = transfer::COPY_HELP)]
    Cp(transfer::Transfer),
    /// Move all messages that are not leased to another queue
    #[command(after_help = transfer::MOVE_HELP)]
    Mv(transfer::Transfer),
    /// Send tasks of an error queue or a dead-letter queue back to their queue
    Redrive(redrive::Redrive),
}

const LS_HELP: &str = "\
Examples:
  host queue ls ./queue
  host queue ls ./queue-errors --long -n 3
  host queue ls sqs://my-tasks-errors --json > reports.jsonl";
const STATUS_HELP: &str = "\
Examples:
  host queue status ./queue
  host queue status sqs://my-tasks --json";
const RELEASE_HELP: &str = "\
Hosts that hold a message lose its lease: they publish nothing more for it, and another host runs
its task again. Attempts stay counted. SQS and Pub/Sub don't have this.

Examples:
  host queue release ./queue --dry-run
  host queue release ./queue --yes";
const REZERO_HELP: &str = "\
The counters are those of `host queue status` and `ptq status`. No message changes. SQS and Pub/Sub
have no counters.

Examples:
  host queue rezero ./queue
  host queue rezero ./queue --yes";
const PURGE_HELP: &str = "\
Messages that hosts hold are deleted too; what those hosts still publish stays.

Examples:
  host queue purge ./queue-errors --dry-run
  host queue purge ./queue-errors --yes";

/// Options of commands that change a whole queue.
#[derive(Debug, clap::Args)]
pub(crate) struct Change {
    #[command(flatten)]
    simple: Simple,
    /// Do not ask for confirmation
    #[arg(long, short)]
    yes: bool,
    /// Say what would be done, and change nothing
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,
}

impl Change {
    /// Opens the queue, and asks for confirmation. In a dry run, shows the counts of the queue and
    /// returns none.
    async fn begin(&self, question: &str) -> anyhow::Result<Option<(Box<dyn Admin>, Console)>> {
        let (queue, console) = self.simple.queue.open().await?;
        if self.yes {
            return Ok(Some((queue, console)));
        }
        let counts = queue.counts().await?;
        let there = match counts.enqueued {
            Some(n) if queue.to_string().parse::<Address>()?.is_remote() => {
                format!("about {}", output::count(n, "message"))
            }
            Some(n) => output::count(n, "message"),
            None => "messages that can't be counted".to_owned(),
        };
        if self.dry_run {
            let queue = queue.to_string();
            if self.simple.json {
                output::json(&WouldChange { queue, dry_run: true, counts })?;
            } else {
                writeln!(output::out(), "{queue} has {there}; nothing was changed")?;
            }
            return Ok(None);
        }
        confirm(false, &format!("{queue} has {there}"), question)?;
        Ok(Some((queue, console)))
    }
}

/// The result of a dry run, as `--json` prints it.
#[derive(Serialize)]
struct WouldChange {
    queue: String,
    dry_run: bool,
    #[serde(flatten)]
    counts: Counts,
}

/// Options of commands for one queue.
#[derive(Debug, clap::Args)]
pub(crate) struct Simple {
    #[command(flatten)]
    queue: Which,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The queue of a command.
#[derive(Debug, clap::Args)]
pub(crate) struct Which {
    /// URL or directory of the queue [default: as for `host run`]
    #[arg(value_name = "QUEUE", conflicts_with_all = ["queue", "fq"])]
    url: Option<String>,
    #[command(flatten)]
    flags: Flags<QueueOnly>,
}

impl Which {
    fn address(&self, settings: &Settings) -> anyhow::Result<Address> {
        match &self.url {
            Some(url) => Ok(parse::queue(url).map_err(|e| Advice::usage(format!("QUEUE: {e}")))?),
            None => settings.queue(),
        }
    }

    /// The queue of the tasks and its error queue. QUEUE may be either of them. `from` names the
    /// error queue if it is given.
    fn with_errors(
        &self,
        settings: &Settings,
        from: Option<&str>,
    ) -> anyhow::Result<(Address, Address)> {
        let given = self.address(settings)?;
        if let Some(from) = from {
            let from = parse::queue(from).map_err(|e| Advice::usage(format!("--from: {e}")))?;
            return Ok((given, from));
        }
        if let Some(tasks) = given.tasks() {
            return Ok((tasks, given));
        }
        let errors = settings.error_queue(&given)?;
        Ok((given, errors))
    }

    async fn open(&self) -> anyhow::Result<(Box<dyn Admin>, Console)> {
        let (settings, console) = load(&self.flags)?;
        let address = self.address(&settings)?;
        Ok((queue::admin(&address, &settings.queue_access()?).await?, console))
    }
}

/// Loads the settings, and opens the console with their progress setting.
fn load<G: Group>(flags: &Flags<G>) -> anyhow::Result<(Settings, Console)> {
    let settings = flags.load()?;
    let console = Console::plain(settings.get::<DisplaySettings>()?.progress);
    Ok((settings, console))
}

impl Queue {
    pub(crate) fn run(self) -> anyhow::Result<Exit> {
        super::waiting_runtime()?.block_on(self.act())
    }

    async fn act(self) -> anyhow::Result<Exit> {
        match self {
            Self::Status(command) => status::show(&command.queue, command.json).await,
            Self::Ls(command) => command.run().await,
            Self::Errors(command) => command.run().await,
            Self::Release(command) => {
                let question = "End the leases of all of them?";
                let Some((queue, console)) = command.begin(question).await? else {
                    return Ok(Exit::Done);
                };
                let busy =
                    ProgressLine::busy(&console, format!("releasing the messages of {queue}"));
                let count = queue.release_all().await?;
                drop(busy);
                let released = output::count(count, "message");
                let said = format!("{released} released in {queue}");
                let queue = queue.to_string();
                let summary = Done { queue, released: Some(count), deleted: None };
                done(command.simple.json, &said, &summary)
            }
            Self::Rezero(command) => {
                let question = "Reset its counters?";
                let Some((queue, _)) = command.begin(question).await? else {
                    return Ok(Exit::Done);
                };
                queue.rezero().await?;
                let said = format!("the counters of {queue} are zero");
                let summary = Done { queue: queue.to_string(), released: None, deleted: None };
                done(command.simple.json, &said, &summary)
            }
            Self::Purge(command) => {
                let question = "Delete them all?";
                let Some((queue, console)) = command.begin(question).await? else {
                    return Ok(Exit::Done);
                };
                purge(&*queue, &console, command.simple.json).await
            }
            Self::Cp(command) => command.copy().await,
            Self::Mv(command) => command.mv().await,
            Self::Redrive(command) => command.run().await,
        }
    }
}

/// The result of a change to a queue, as `--json` prints it.
#[derive(Serialize)]
struct Done {
    queue: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    released: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deleted: Option<u64>,
}

/// Prints the result of a change on standard output.
fn done(json: bool, what: &str, summary: &impl Serialize) -> anyhow::Result<Exit> {
    if json {
        output::json(summary)?;
    } else {
        writeln!(output::out(), "{}", output::name(what))?;
    }
    Ok(Exit::Done)
}

async fn purge(queue: &dyn Admin, console: &Console, json: bool) -> anyhow::Result<Exit> {
    let busy = ProgressLine::busy(console, format!("deleting the messages of {queue}"));
    let count = queue.purge().await?;
    drop(busy);
    let deleted = count.map_or("all messages".to_owned(), |count| output::count(count, "message"));
    let said = format!("{deleted} deleted from {queue}");
    done(json, &said, &Done { queue: queue.to_string(), released: None, deleted: count })
}
