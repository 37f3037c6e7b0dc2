//! `host queue redrive`: sends the tasks of an error queue back to their queue.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use indicatif::HumanCount;
use serde::Serialize;
use task_host::config::parse;
use task_host::transfer::redrive::{self, Filter, RedriveError, Redriven};

use super::super::exit_code::{Advice, Exit};
use super::super::output;
use super::super::transfer_display::{Stop, TransferDisplay, forward_error, stop_on_signal};
use super::{Which, load};

/// Options of `host queue redrive`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Sends the original task messages, and then deletes their reports. If the command is killed, a task
may be in both queues, but it is never lost. Messages that do not match stay unchanged, and so do
reports of tasks that are done. A dead-letter queue of the service holds task messages instead of
reports, so --match, --cause, --older-than and --newer-than do not apply.

Examples:
  host queue redrive ./queue --dry-run
  host queue redrive ./queue --match 'is not in the bucket' --newer-than 1h
  host queue redrive ./queue --cause 'HTTP 503 from …'
  host queue redrive sqs://my-tasks --from sqs://my-tasks-dead --limit 10")]
pub(crate) struct Redrive {
    #[command(flatten)]
    queue: Which,
    /// Queue with the reports or dead letters [default: QUEUE if its name ends in `-errors`, or else
    /// the error queue of QUEUE]
    #[arg(long, value_name = "URL")]
    from: Option<String>,
    /// Only tasks with this name
    #[arg(long, help_heading = "Which tasks")]
    name: Option<String>,
    /// Only tasks with this id
    #[arg(long, value_name = "N", value_parser = parse::id, help_heading = "Which tasks")]
    id: Option<i64>,
    /// Only tasks whose error, its cause, or log contains this text
    #[arg(long = "match", value_name = "TEXT", help_heading = "Which tasks")]
    text: Option<String>,
    /// Only tasks that failed for this reason, as `host queue errors` shows it
    #[arg(long, value_name = "CAUSE", help_heading = "Which tasks")]
    cause: Option<String>,
    /// Only tasks that failed longer ago than this
    #[arg(long, value_name = "TIME", value_parser = parse::duration, help_heading = "Which tasks")]
    older_than: Option<Duration>,
    /// Only tasks that failed more recently than this
    #[arg(long, value_name = "TIME", value_parser = parse::duration, help_heading = "Which tasks")]
    newer_than: Option<Duration>,
    /// Maximum number of tasks to send back
    #[arg(long, value_name = "N", value_parser = parse::whole, help_heading = "Which tasks")]
    limit: Option<u64>,
    /// Show which tasks would be sent, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Print a summary as JSON
    #[arg(long)]
    json: bool,
}

/// The result of a redrive, as `--json` prints it.
#[derive(Serialize)]
struct Summary<'a> {
    queue: &'a str,
    from: &'a str,
    /// Tasks that were sent, or would be sent in a dry run.
    sent: u64,
    /// `sent` by the name of the task.
    names: &'a BTreeMap<String, u64>,
    /// Messages that do not match.
    left: u64,
    /// Reports of tasks that are done, which are never sent back.
    done: u64,
    /// Messages that are neither a task nor a report of a task, or that could not be sent.
    refused: u64,
    dry_run: bool,
}

impl Redrive {
    pub(crate) async fn run(self) -> anyhow::Result<Exit> {
        let (settings, console) = load(&self.queue.flags)?;
        let (to, from) = self.queue.with_errors(&settings, self.from.as_deref())?;
        // An age that reaches back before the earliest time of the clock means 1970.
        let now = SystemTime::now();
        let ago = |age: Duration| now.checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH);
        let filter = Filter {
            name: self.name,
            id: self.id,
            text: self.text,
            cause: self.cause,
            before: self.older_than.map(ago),
            after: self.newer_than.map(ago),
        };
        let dry_run = self.dry_run;
        let (shown_from, shown_to) = (from.to_string(), to.to_string());
        let redrive = redrive::Redrive { from, to, filter, limit: self.limit, dry_run };
        let (verb, stop) = match dry_run {
            true => ("looked at", Stop::default()),
            false => ("sent back", stop_on_signal(&console)),
        };
        let access = settings.queue_access()?;
        let display = TransferDisplay::new(&console, "messages", verb);
        let done = display.follow(redrive.run(&access, display.clone(), &stop.token)).await;
        let done = done.map_err(redrive_error)?;
        let messages = &done.messages;
        if self.json {
            let (sent, left, refused) = (messages.sent, messages.left, messages.refused);
            let skipped = messages.done;
            let names = &messages.names;
            output::json(&Summary {
                queue: &shown_to,
                from: &shown_from,
                sent,
                names,
                left,
                done: skipped,
                refused,
                dry_run,
            })?;
        } else {
            tell(&done, &shown_from, &shown_to, dry_run)?;
        }
        let is_part = messages.refused > 0 || messages.is_interrupted || messages.is_cut_short;
        Ok(if is_part { Exit::Partly } else { Exit::Done })
    }
}

/// The error of a failed redrive, with a hint.
pub(crate) fn redrive_error(error: RedriveError) -> Advice {
    match error {
        RedriveError::SameQueue(_) => Advice::usage(error.to_string())
            .hint("the queue is --fq or --queue; its error queue has the same name and `-errors`"),
        RedriveError::NoQueue(_) => Advice::failed(error.to_string()),
        RedriveError::Forward(error) => forward_error(&error, "sent back"),
    }
}

fn tell(done: &Redriven, from: &str, to: &str, dry_run: bool) -> io::Result<()> {
    let mut out = output::out();
    let messages = &done.messages;
    let sent = output::count(messages.sent, "task");
    let verb = if dry_run { "would be sent" } else { "sent" };
    let mut rest = String::new();
    if messages.left > 0 {
        let verb = if messages.left == 1 { "does" } else { "do" };
        rest.push_str(&format!("; {} left that {verb} not match", HumanCount(messages.left)));
    }
    if messages.done > 0 {
        rest.push_str(&format!(
            "; {} skipped of tasks that are done",
            output::count(messages.done, "report")
        ));
    }
    if messages.refused > 0 {
        rest.push_str(&format!("; {} left that can't be sent back", HumanCount(messages.refused)));
    }
    let (from, to) = (output::name(from), output::name(to));
    writeln!(out, "{sent} {verb} back from {from} to {to}{rest}")?;
    for (name, count) in &messages.names {
        writeln!(out, "  {} of {name}", HumanCount(*count))?;
    }
    if !done.examples.is_empty() {
        writeln!(out, "for example")?;
    }
    for example in &done.examples {
        writeln!(out, "  {}", output::cut(&example.to_string(), 120))?;
    }
    if messages.is_cut_short {
        writeln!(out, "not all messages were read, because too many do not match")?;
    }
    Ok(())
}
