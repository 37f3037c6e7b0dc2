//! `host queue`: inspects and repairs queues. Commands are named as those of `ptq`.

mod errors;
mod ls;
mod redrive;
mod status;
mod transfer;

pub(crate) use redrive::redrive_error;

use std::io::{self, BufRead, IsTerminal, Write};

use serde::Serialize;
use task_host::config::parse;
use task_host::queue::{self, Address, Admin};

use super::console::Console;
use super::exit_code::{Advice, Exit};
use super::output;
use super::progress_line::ProgressLine;
use super::settings::{DisplaySettings, Flags, Group, QueueOnly, Settings};

/// Commands of `host queue`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Queue {
    /// Show how many tasks wait, are held, wait for a retry, are done, and have failed
    Status(Simple),
    /// List messages or error reports
    Ls(ls::Ls),
    /// List error reports by cause: how many, since when, and an example
    #[command(after_help = errors::HELP)]
    Errors(errors::Errors),
    /// End all leases, so that any worker can take the messages now
    Release(Simple),
    /// Reset the counters of inserted and completed messages
    Rezero(Simple),
    /// Delete all messages and reset the counters
    Purge {
        #[command(flatten)]
        simple: Simple,
        /// Do not ask for confirmation
        #[arg(long, short)]
        yes: bool,
    },
    /// Copy all messages to another queue
    #[command(after_help = transfer::COPY_HELP)]
    Cp(transfer::Transfer),
    /// Move all messages that are not leased to another queue
    #[command(after_help = transfer::MOVE_HELP)]
    Mv(transfer::Transfer),
    /// Send tasks of an error queue or a dead-letter queue back to their queue
    Redrive(redrive::Redrive),
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

    async fn open(&self) -> anyhow::Result<(Box<dyn Admin>, Console)> {
        let (settings, console) = load(&self.flags)?;
        let address = self.address(&settings)?;
        Ok((queue::admin(&address, &settings.queue_access()?).await?, console))
    }
}

/// The settings, and the console with progress as they say.
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
            Self::Release(Simple { queue, json }) => {
                let (queue, console) = queue.open().await?;
                let busy =
                    ProgressLine::busy(&console, format!("releasing the messages of {queue}"));
                let count = queue.release_all().await?;
                drop(busy);
                let released = output::count(count, "message");
                let said = format!("{released} released in {queue}");
                done(
                    json,
                    &said,
                    &Done { queue: queue.to_string(), released: Some(count), deleted: None },
                )
            }
            Self::Rezero(Simple { queue, json }) => {
                let (queue, _) = queue.open().await?;
                queue.rezero().await?;
                let said = format!("the counters of {queue} are zero");
                done(json, &said, &Done { queue: queue.to_string(), released: None, deleted: None })
            }
            Self::Purge { simple: Simple { queue, json }, yes } => {
                let (queue, console) = queue.open().await?;
                purge(&*queue, &console, yes, json).await
            }
            Self::Cp(command) => command.copy().await,
            Self::Mv(command) => command.mv().await,
            Self::Redrive(command) => command.run().await,
        }
    }
}

/// What was done to a queue, as `--json` prints it.
#[derive(Serialize)]
struct Done {
    queue: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    released: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deleted: Option<u64>,
}

/// Says on standard output what was done.
fn done(json: bool, what: &str, summary: &impl Serialize) -> anyhow::Result<Exit> {
    if json {
        output::json(summary)?;
    } else {
        writeln!(output::out(), "{what}")?;
    }
    Ok(Exit::Done)
}

async fn purge(
    queue: &dyn Admin,
    console: &Console,
    yes: bool,
    json: bool,
) -> anyhow::Result<Exit> {
    if !yes {
        let there = match queue.counts().await?.enqueued {
            Some(n) if queue.to_string().parse::<Address>()?.is_remote() => {
                format!("about {}", output::count(n, "message"))
            }
            Some(n) => output::count(n, "message"),
            None => "messages that can't be counted".to_owned(),
        };
        if !io::stdin().is_terminal() {
            return Err(Advice::usage(format!(
                "{queue} has {there}; confirm that they are to be deleted"
            ))
            .hint("add --yes")
            .into());
        }
        output::ask(&format!("{queue} has {there}. Delete them all? [y/N]"))?;
        let mut answer = String::new();
        io::stdin().lock().read_line(&mut answer)?;
        if !matches!(answer.trim(), "y" | "Y" | "yes") {
            return Err(Advice::failed("nothing was deleted").into());
        }
    }
    let busy = ProgressLine::busy(console, format!("deleting the messages of {queue}"));
    let count = queue.purge().await?;
    drop(busy);
    let deleted = count.map_or("all messages".to_owned(), |count| output::count(count, "message"));
    let said = format!("{deleted} deleted from {queue}");
    done(json, &said, &Done { queue: queue.to_string(), released: None, deleted: count })
}
