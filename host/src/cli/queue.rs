//! `host queue`: looks into a queue and sets it right. The words are `ptq`'s.

mod ls;
mod transfer;

use std::io::{self, BufRead, IsTerminal, Write};

use serde::Serialize;
use task_host::queue::{self, Access, Admin, Counts};

use super::exit::{Advice, Exit};
use super::settings::{Flags, QueueOnly, fq_path, queue_url};
use super::show;
use super::telemetry::Screen;
use super::values::When;

/// Commands of `host queue`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Queue {
    /// Count the messages
    Status {
        #[command(flatten)]
        queue: Which,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List the messages, or the reports of an error queue
    Ls(ls::Ls),
    /// Make all messages available at once; who holds one loses it
    Release {
        #[command(flatten)]
        queue: Which,
    },
    /// Set the counters of messages inserted and completed to zero
    Rezero {
        #[command(flatten)]
        queue: Which,
    },
    /// Delete all messages, and set the counters to zero
    Purge {
        #[command(flatten)]
        queue: Which,
        /// Don't ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Copy all messages to another queue, leased or not
    Cp(transfer::Transfer),
    /// Move all messages that nobody holds to another queue
    Mv(transfer::Transfer),
}

/// The queue that a command is about.
#[derive(Debug, clap::Args)]
pub(crate) struct Which {
    /// The queue: fq://DIR, or a directory [default: as for `host run`]
    #[arg(value_name = "QUEUE", conflicts_with_all = ["queue", "fq"])]
    url: Option<String>,
    #[command(flatten)]
    flags: Flags<QueueOnly>,
}

impl Which {
    async fn open(self) -> anyhow::Result<Box<dyn Admin>> {
        let settings = self.flags.load()?;
        let url = match self.url {
            Some(url) => queue_url(&url).map_err(|e| Advice::usage(format!("QUEUE: {e}")))?,
            None => settings.queue()?,
        };
        Ok(queue::admin(&url, &settings.queue_access()?).await?)
    }
}

impl Queue {
    pub(crate) fn run(self) -> anyhow::Result<Exit> {
        super::runtime()?.block_on(self.act())
    }

    async fn act(self) -> anyhow::Result<Exit> {
        match self {
            Self::Status { queue, json } => status(&*queue.open().await?, json).await,
            Self::Ls(command) => command.run().await,
            Self::Release { queue } => {
                let queue = queue.open().await?;
                let released = show::count(queue.release_all().await?, "message");
                done(&format!("{released} released in {queue}"))
            }
            Self::Rezero { queue } => {
                let queue = queue.open().await?;
                queue.rezero().await?;
                done(&format!("the counters of {queue} are zero"))
            }
            Self::Purge { queue, yes } => purge(&*queue.open().await?, yes).await,
            Self::Cp(command) => command.copy(&Screen::plain(When::Auto)).await,
            Self::Mv(command) => command.mv(&Screen::plain(When::Auto)).await,
        }
    }
}

/// Says on standard output what has been done.
fn done(what: &str) -> anyhow::Result<Exit> {
    writeln!(io::stdout().lock(), "{what}")?;
    Ok(Exit::Done)
}

/// The four figures of `ptq status`, in its words.
async fn status(queue: &dyn Admin, json: bool) -> anyhow::Result<Exit> {
    let counts = queue.counts().await?;
    if json {
        #[derive(Serialize)]
        struct Status {
            queue: String,
            #[serde(flatten)]
            counts: Counts,
        }
        show::json(&Status { queue: queue.to_string(), counts })?;
        return Ok(Exit::Done);
    }
    let mut out = io::stdout().lock();
    for line in figures(&counts) {
        writeln!(out, "{line}")?;
    }
    Ok(Exit::Done)
}

fn figures(counts: &Counts) -> Vec<String> {
    let share = |part: Option<u64>, whole: Option<u64>| match (part, whole) {
        (Some(part), Some(whole @ 1..)) => format!("{:.1}%", part as f64 / whole as f64 * 100.0),
        _ => "--%".to_owned(),
    };
    let Counts { enqueued, leased, inserted, completed } = *counts;
    let mut lines = Vec::new();
    if let Some(n) = inserted {
        lines.push(format!("Inserted: {n}"));
    }
    if let Some(n) = enqueued {
        lines.push(format!("Enqueued: {n} ({} left)", share(enqueued, inserted)));
    }
    if let Some(n) = completed {
        lines.push(format!("Completed: {n} ({})", share(completed, inserted)));
    }
    if let Some(n) = leased {
        lines.push(format!("Leased: {n} ({} of queue)", share(leased, enqueued)));
    }
    lines
}

async fn purge(queue: &dyn Admin, yes: bool) -> anyhow::Result<Exit> {
    let there = queue.counts().await?.enqueued.unwrap_or(0);
    if !yes {
        if !io::stdin().is_terminal() {
            return Err(Advice::usage(format!(
                "{queue} holds {}; deleting them has to be confirmed",
                show::count(there, "message")
            ))
            .hint("add --yes")
            .into());
        }
        let question = format!("Delete all {} of {queue}? [y/N] ", show::count(there, "message"));
        let mut err = io::stderr().lock();
        err.write_all(question.as_bytes()).and_then(|()| err.flush())?;
        let mut answer = String::new();
        io::stdin().lock().read_line(&mut answer)?;
        if !matches!(answer.trim(), "y" | "Y" | "yes") {
            return Err(Advice::failed("nothing was deleted").into());
        }
    }
    let deleted = match queue.purge().await? {
        Some(count) => show::count(count, "message"),
        None => "all messages".to_owned(),
    };
    done(&format!("{deleted} deleted from {queue}"))
}

/// A queue that has to be there, for commands that would otherwise make one.
async fn existing(url: &str, access: &Access) -> anyhow::Result<()> {
    match fq_path(url) {
        Some(_) => Ok(queue::admin(url, access).await.map(drop)?),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_read_as_those_of_ptq() {
        let counts = |inserted, enqueued, completed, leased| Counts {
            inserted: Some(inserted),
            enqueued: Some(enqueued),
            completed: Some(completed),
            leased: Some(leased),
        };
        assert_eq!(
            figures(&counts(8, 3, 5, 1)),
            [
                "Inserted: 8",
                "Enqueued: 3 (37.5% left)",
                "Completed: 5 (62.5%)",
                "Leased: 1 (33.3% of queue)"
            ]
        );
        assert_eq!(
            figures(&counts(0, 0, 0, 0)),
            [
                "Inserted: 0",
                "Enqueued: 0 (--% left)",
                "Completed: 0 (--%)",
                "Leased: 0 (--% of queue)"
            ]
        );
    }
}
