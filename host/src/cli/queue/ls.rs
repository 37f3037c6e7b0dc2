//! `host queue ls`: lists the messages of a queue, one a line.

use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::StreamExt;
use serde::Serialize;
use serde_json::value::RawValue;
use task_host::json;
use task_host::queue::Address;
use task_host::report::Report;

use super::super::exit_code::Exit;
use super::super::output;
use super::Which;

/// The messages of a service that are shown by default. Each is leased to be shown.
const LEASED: usize = 100;

/// Options of `host queue ls`.
#[derive(Debug, clap::Args)]
pub(crate) struct Ls {
    #[command(flatten)]
    queue: Which,
    /// Maximum number of messages to show [default: all; 100 for a cloud queue, where each message
    /// must be leased to be read]
    #[arg(long, short = 'n', value_name = "N")]
    limit: Option<usize>,
    /// Show full errors and messages, on as many lines as they need
    #[arg(long, short)]
    long: bool,
    /// Print one JSON object per line: id, due and sent (in seconds since 1970), message
    #[arg(long, conflicts_with = "long")]
    json: bool,
}

impl Ls {
    pub(crate) async fn run(self) -> anyhow::Result<Exit> {
        let (queue, console) = self.queue.open().await?;
        let is_leasing = queue.to_string().parse::<Address>()?.is_remote();
        let most = self.limit.unwrap_or(if is_leasing { LEASED } else { usize::MAX });
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // Each message is written as it is read, because a queue may be long.
        let mut out = output::long_out();
        let mut messages = queue.messages();
        let mut shown = 0;
        while shown < most
            && let Some(message) = messages.next().await.transpose()?
        {
            shown += 1;
            let text = String::from_utf8_lossy(&message.body);
            if self.json {
                let portable = portable(&text);
                let line = Json {
                    id: &message.id,
                    due: message.due.map(|due| due.as_secs()),
                    sent: message.sent.map(|sent| sent.as_secs()),
                    message: portable,
                    text: portable.is_none().then_some(&text),
                    unread: message.unread.as_deref(),
                };
                out.json(&line)?;
            } else {
                let due = due(message.due, now);
                let what = match message.unread {
                    Some(problem) => format!("can't be read: {problem}"),
                    None => describe(&text),
                };
                if self.long {
                    writeln!(
                        out,
                        "{}  {due}\n  {}\n  {text}",
                        message.id,
                        what.replace('\n', "\n  ")
                    )?;
                } else {
                    writeln!(out, "{}  {due:<14}  {}", message.id, output::cut(&what, 120))?;
                }
            }
        }
        out.flush()?;
        drop(messages);
        queue.close().await;
        if is_leasing && shown > 0 {
            let more = if shown == most { "; use -n N to see more" } else { "" };
            let shown = output::count(shown as u64, "message");
            console.tell(format_args!("{shown} leased to be shown, and released{more}"));
        }
        Ok(Exit::Done)
    }
}

#[derive(Serialize)]
struct Json<'a> {
    id: &'a str,
    due: Option<u64>,
    /// Null if the queue does not know it.
    sent: Option<u64>,
    /// The message; null if it is not JSON that every reader accepts.
    message: Option<&'a RawValue>,
    /// The text of such a message.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    /// Why the message could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    unread: Option<&'a str>,
}

/// A message as JSON, if every reader accepts it.
fn portable(text: &str) -> Option<&RawValue> {
    let is_portable = json::parse(text).is_ok_and(json::Value::is_portable);
    serde_json::from_str(text).ok().filter(|_| is_portable)
}

fn due(due: Option<Duration>, now: Duration) -> String {
    match due.unwrap_or_default().checked_sub(now) {
        Some(wait) if wait.as_secs() > 0 => {
            format!("in {}", humantime::format_duration(Duration::from_secs(wait.as_secs())))
        }
        _ => "now".to_owned(),
    }
}

/// Describes a message for people: the task, or the error that is reported.
fn describe(text: &str) -> String {
    let task = |text: &str| match task_host::message::decode(text.as_bytes()) {
        Ok(task) => {
            let inputs = output::count(task.inputs.len() as u64, "input");
            format!("{} {} in {:?}, {inputs}", task.name, task.id, task.base_directory)
        }
        Err(error) => format!("not a task: {error}"),
    };
    let Some(report) = Report::parse(text.as_bytes()) else { return task(text) };
    let what = match report.message() {
        Ok(message) => task(&message),
        Err(omitted) => omitted.to_string(),
    };
    match report.exception() {
        Some(exception) => format!("{what}: {exception}"),
        None => what,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_tells_its_error_and_a_task_what_it_is() {
        let task =
            r#"{"basic_info": {"id": 3, "name": "A", "base_directory": "d", "inputs": ["x"]}}"#;
        assert_eq!(describe(task), "A 3 in \"d\", 1 input");
        let report = format!(r#"{{"task": {task}, "exception": "execute: no"}}"#);
        assert_eq!(describe(&report), "A 3 in \"d\", 1 input: execute: no");
        let as_text = serde_json::Value::from(format!("{task} "));
        let report = format!(r#"{{"task": {as_text}, "exception": "execute: no"}}"#);
        assert_eq!(describe(&report), "A 3 in \"d\", 1 input: execute: no");
        assert!(describe("x").starts_with("not a task: message: is not JSON"));
    }

    #[test]
    fn what_some_reader_can_not_read_is_shown_as_text() {
        assert!(portable(r#"{"a": [1.50]}"#).is_some());
        for text in [&"[".repeat(100_000), "NaN", r#""\ud800""#, &"9".repeat(10_000), "x", ""] {
            assert!(portable(text).is_none(), "{text:.80}");
        }
        assert!(portable(&("[".repeat(100_000) + &"]".repeat(100_000))).is_none());
    }
}
