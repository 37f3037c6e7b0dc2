//! `host queue ls`: lists the messages in a queue, one per line.

use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::StreamExt;
use serde::Serialize;
use serde_json::value::RawValue;
use task_host::config::parse;
use task_host::json;
use task_host::queue::Address;
use task_host::report::Report;

use super::super::exit_code::Exit;
use super::super::output;
use super::Which;

/// The default maximum number of messages that are shown from a service. Each must be leased to be
/// read.
const LEASED: usize = 100;

/// The maximum number of characters of a host's name.
const HOST: usize = 16;

/// Options of `host queue ls`.
#[derive(Debug, clap::Args)]
pub(crate) struct Ls {
    #[command(flatten)]
    queue: Which,
    /// Maximum number of messages to show [default: all; 100 for a cloud queue, where each message
    /// must be leased to be read]
    #[arg(long, short = 'n', value_name = "N", value_parser = parse::whole)]
    limit: Option<u64>,
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
        let most = self.limit.map_or(if is_leasing { LEASED } else { usize::MAX }, |limit| {
            usize::try_from(limit).unwrap_or(usize::MAX)
        });
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // Write each message as soon as it is read, because a queue may be long.
        let mut out = output::long_out();
        let mut messages = queue.messages();
        let mut shown = 0;
        let mut columns = None;
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
                let row = match message.unread {
                    Some(problem) => Row::new(format!("can't be read: {problem}")),
                    None => Row::of(&text),
                };
                if self.long {
                    row.write_long(&mut out, &message.id, &due, &text)?;
                } else {
                    let columns = match &columns {
                        Some(columns) => columns,
                        None => {
                            let chosen = columns.insert(Columns { has_reports: row.is_report });
                            chosen.write_header(&mut out)?;
                            chosen
                        }
                    };
                    columns.write(&mut out, &message.id, &due, &row)?;
                }
            }
        }
        out.flush()?;
        drop(messages);
        queue.close().await;
        if is_leasing && shown > 0 {
            let more = if shown == most { "; use -n N to see more" } else { "" };
            let shown = output::count(shown as u64, "message");
            console.note(format_args!("{shown} leased to be shown, and released{more}"));
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
    /// The message; null if it is not JSON that every parser accepts.
    message: Option<&'a RawValue>,
    /// The text of a message that is not such JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    /// Why the message could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    unread: Option<&'a str>,
}

/// The message as JSON, if every parser accepts it.
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

/// A message for people.
#[derive(Debug, Default)]
struct Row {
    is_report: bool,
    /// The time of the report, in UTC.
    time: String,
    attempt: String,
    host: String,
    /// The task.
    what: String,
    /// Why the task failed.
    exception: Option<String>,
    trace: Option<String>,
    log: Option<String>,
}

impl Row {
    fn new(what: String) -> Self {
        Self { what, ..Self::default() }
    }

    fn of(text: &str) -> Self {
        let Some(report) = Report::parse(text.as_bytes()) else { return Self::new(task(text)) };
        let time = report.time().map(|time| {
            let time = humantime::format_rfc3339_seconds(time).to_string();
            time.replace('T', " ").trim_end_matches('Z').to_owned()
        });
        Self {
            is_report: true,
            time: time.unwrap_or_default(),
            attempt: report.attempt().map(|n| n.to_string()).unwrap_or_default(),
            host: output::cut(report.host().unwrap_or_default(), HOST),
            what: match report.message() {
                Ok(message) => task(&message),
                Err(omitted) => omitted.to_string(),
            },
            exception: report.exception(),
            trace: report.trace().map(str::to_owned),
            log: report.log().map(str::to_owned),
        }
    }

    /// The task, and why it failed.
    fn line(&self) -> String {
        let Self { what, exception, .. } = self;
        match exception {
            Some(exception) => {
                format!("{what}: {}", exception.lines().next().unwrap_or_default())
            }
            None => what.clone(),
        }
    }

    fn write_long(
        &self,
        out: &mut impl Write,
        id: &str,
        due: &str,
        text: &str,
    ) -> std::io::Result<()> {
        let Self { time, attempt, host, what, exception, trace, log, .. } = self;
        let indented = |text: &str| text.trim_end().replace('\n', "\n    ");
        writeln!(out, "{id}  {due}")?;
        if self.is_report {
            writeln!(out, "  reported {time} by {host} after attempt {attempt}")?;
        }
        writeln!(out, "  {what}")?;
        for (name, value) in [("error", exception), ("trace", trace), ("log", log)] {
            if let Some(value) = value {
                writeln!(out, "  {name}:\n    {}", indented(value))?;
            }
        }
        writeln!(out, "  {text}")
    }
}

/// The columns of a list. They follow from the first message, because few queues have both tasks
/// and reports.
struct Columns {
    has_reports: bool,
}

impl Columns {
    fn write_header(&self, out: &mut impl Write) -> std::io::Result<()> {
        let id = "ID";
        match self.has_reports {
            true => writeln!(
                out,
                "{id:<36}  {:<19}  {:>7}  {:<HOST$}  TASK AND ERROR",
                "REPORTED (UTC)", "ATTEMPT", "HOST"
            ),
            false => writeln!(out, "{id:<36}  {:<14}  TASK", "DUE"),
        }
    }

    fn write(&self, out: &mut impl Write, id: &str, due: &str, row: &Row) -> std::io::Result<()> {
        let line = output::cut(&row.line(), 120);
        let Row { time, attempt, host, .. } = row;
        match self.has_reports {
            true => writeln!(out, "{id:<36}  {time:<19}  {attempt:>7}  {host:<HOST$}  {line}"),
            false => writeln!(out, "{id:<36}  {due:<14}  {line}"),
        }
    }
}

/// A description of a task for people.
fn task(text: &str) -> String {
    match task_host::message::decode(text.as_bytes()) {
        Ok(task) => {
            let inputs = output::count(task.inputs.len() as u64, "input");
            format!("{} {} in {:?}, {inputs}", task.name, task.id, task.base_directory)
        }
        Err(error) => format!("not a task: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line_of(text: &str) -> String {
        Row::of(text).line()
    }

    #[test]
    fn a_report_tells_its_error_and_a_task_what_it_is() {
        let task =
            r#"{"basic_info": {"id": 3, "name": "A", "base_directory": "d", "inputs": ["x"]}}"#;
        assert_eq!(line_of(task), "A 3 in \"d\", 1 input");
        let report = format!(r#"{{"task": {task}, "exception": "no"}}"#);
        assert_eq!(line_of(&report), "A 3 in \"d\", 1 input: no");
        let as_text = serde_json::Value::from(format!("{task} "));
        let report = format!(r#"{{"task": {as_text}, "exception": "no"}}"#);
        assert_eq!(line_of(&report), "A 3 in \"d\", 1 input: no");
        assert!(line_of("x").starts_with("not a task: message: is not JSON"));
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
