//! `host queue`: looks into a queue and sets it right. The words are `ptq`'s.

mod ls;
mod transfer;

use std::io::{self, BufRead, IsTerminal, Write};

use serde::Serialize;
use task_host::queue::{self, Counts, file};

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
    fn url(self) -> anyhow::Result<String> {
        match self.url {
            Some(url) => Ok(queue_url(&url).map_err(|e| Advice::usage(format!("QUEUE: {e}")))?),
            None => self.flags.load()?.queue(),
        }
    }

    fn open(self) -> anyhow::Result<file::Admin> {
        Ok(queue::admin(&self.url()?)?)
    }
}

impl Queue {
    pub(crate) fn run(self) -> anyhow::Result<Exit> {
        match self {
            Self::Status { queue, json } => status(&queue.open()?, json),
            Self::Ls(command) => command.run(),
            Self::Release { queue } => {
                let queue = queue.open()?;
                done(&format!(
                    "{} released in {queue}",
                    show::count(queue.release_all()?, "message")
                ))
            }
            Self::Rezero { queue } => {
                let queue = queue.open()?;
                queue.rezero()?;
                done(&format!("the counters of {queue} are zero"))
            }
            Self::Purge { queue, yes } => purge(&queue.open()?, yes),
            Self::Cp(command) => command.copy(&Screen::plain(When::Auto)),
            Self::Mv(command) => command.mv(&Screen::plain(When::Auto)),
        }
    }
}

/// Says on standard output what has been done.
fn done(what: &str) -> anyhow::Result<Exit> {
    writeln!(io::stdout().lock(), "{what}")?;
    Ok(Exit::Done)
}

/// The four figures of `ptq status`, in its words.
fn status(queue: &file::Admin, json: bool) -> anyhow::Result<Exit> {
    let counts = queue.counts()?;
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

fn purge(queue: &file::Admin, yes: bool) -> anyhow::Result<Exit> {
    let there = queue.counts()?.enqueued.unwrap_or(0);
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
    done(&format!("{} deleted from {queue}", show::count(queue.purge()?, "message")))
}

/// A queue that has to be there, for commands that would otherwise make one.
fn existing(url: &str) -> anyhow::Result<()> {
    match fq_path(url) {
        Some(_) => Ok(queue::admin(url).map(drop)?),
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
