//! `host queue redrive`: tasks that were given up, back into their queue.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use task_host::config::parse;

use super::super::exit_code::{Advice, Exit};
use super::super::output;
use super::super::redrive::{self, Filter, Redriven};
use super::{Which, load};

/// Options of `host queue redrive`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Sends the original task messages, and then deletes their reports. If the command is killed, a task
may be in both queues, but it is never lost. Messages that do not match stay unchanged. A
dead-letter queue of the service holds task messages instead of reports, so --match, --older-than
and --newer-than do not apply.

Examples:
  host queue redrive ./queue --dry-run
  host queue redrive ./queue --match 'is not in the bucket' --newer-than 1h
  host queue redrive sqs://my-tasks --from sqs://my-tasks-dead --limit 10")]
pub(crate) struct Redrive {
    #[command(flatten)]
    queue: Which,
    /// Queue with the reports or dead letters [default: the error queue of QUEUE]
    #[arg(long, value_name = "URL")]
    from: Option<String>,
    /// Only tasks with this name
    #[arg(long, help_heading = "Which tasks")]
    name: Option<String>,
    /// Only tasks with this id
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = "Which tasks")]
    id: Option<i64>,
    /// Only tasks whose error contains this text
    #[arg(long = "match", value_name = "TEXT", help_heading = "Which tasks")]
    text: Option<String>,
    /// Only tasks that failed longer ago than this
    #[arg(long, value_name = "TIME", value_parser = parse::duration, help_heading = "Which tasks")]
    older_than: Option<Duration>,
    /// Only tasks that failed more recently than this
    #[arg(long, value_name = "TIME", value_parser = parse::duration, help_heading = "Which tasks")]
    newer_than: Option<Duration>,
    /// Maximum number of tasks to send back
    #[arg(long, value_name = "N", help_heading = "Which tasks")]
    limit: Option<u64>,
    /// Show which tasks would be sent, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Print a summary as JSON
    #[arg(long)]
    json: bool,
}

/// What was done, as `--json` prints it.
#[derive(Serialize)]
struct Summary<'a> {
    queue: &'a str,
    from: &'a str,
    /// Tasks that are in the queue now; with `dry_run`, that would be.
    sent: u64,
    /// The same by the tasks' names.
    names: &'a BTreeMap<String, u64>,
    /// Messages that do not match.
    left: u64,
    /// Messages that are neither a task nor a report of one, or that could not be sent.
    refused: u64,
    dry_run: bool,
}

impl Redrive {
    pub(crate) async fn run(self) -> anyhow::Result<Exit> {
        let (settings, screen) = load(&self.queue.flags)?;
        let to = self.queue.address(&settings)?;
        let from = match &self.from {
            Some(from) => parse::queue(from).map_err(|e| Advice::usage(format!("--from: {e}")))?,
            None => settings.error_queue(&to)?,
        };
        let (from, to) = (from.to_string(), to.to_string());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let ago = |age: Duration| now.saturating_sub(age);
        let filter = Filter {
            name: self.name,
            id: self.id,
            text: self.text,
            before: self.older_than.map(ago),
            after: self.newer_than.map(ago),
        };
        let redrive = redrive::Redrive {
            from: from.clone(),
            to: to.clone(),
            filter,
            limit: self.limit,
            dry_run: self.dry_run,
        };
        let done = redrive.run(&screen, &settings.queue_access()?).await?;
        let Redriven { sent, left, refused, names, .. } = &done;
        if self.json {
            let (sent, left, refused, dry_run) = (*sent, *left, *refused, self.dry_run);
            output::json(&Summary {
                queue: &to,
                from: &from,
                sent,
                names,
                left,
                refused,
                dry_run,
            })?;
        } else {
            tell(&done, &from, &to, self.dry_run)?;
        }
        let is_part = done.refused > 0 || done.is_interrupted || done.is_cut_short;
        Ok(if is_part { Exit::Partly } else { Exit::Done })
    }
}

fn tell(done: &Redriven, from: &str, to: &str, dry_run: bool) -> io::Result<()> {
    let mut out = output::out();
    let sent = output::count(done.sent, "task");
    let verb = if dry_run { "would be put" } else { "put" };
    let mut rest = String::new();
    if done.left > 0 {
        rest.push_str(&format!("; {} that do not match left", output::number(done.left)));
    }
    if done.refused > 0 {
        rest.push_str(&format!("; {} that can't be put back left", output::number(done.refused)));
    }
    writeln!(out, "{sent} {verb} back from {from} to {to}{rest}")?;
    for (name, count) in &done.names {
        writeln!(out, "  {} of {name}", output::number(*count))?;
    }
    if !done.examples.is_empty() {
        writeln!(out, "such as")?;
    }
    for example in &done.examples {
        writeln!(out, "  {example}")?;
    }
    if done.is_cut_short {
        writeln!(
            out,
            "so many messages do not match that not all were looked at: the others are as they were"
        )?;
    }
    Ok(())
}
