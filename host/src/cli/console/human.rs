//! Formats log lines for people. Control characters and line breaks in values are escaped, so that
//! no value looks like another log line or controls the terminal.
//!
//! On a terminal, a line fits the screen, and failures with the same cause are counted instead of
//! repeated. In a file, every line is complete.

use std::fmt::{self, Write};

use console::Term;
use serde_json::{Map, Value};
use task_host::{cause, plain};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

use super::super::output;
use super::repeats::{Repeats, Said};

/// The minimum number of characters for a message, even on a narrow screen.
const LEAST: usize = 20;
/// The field with the cause of a failure. The message of such an event states first the consequence
/// and then the reason: `failed, retry in 1s: no image`.
const CAUSE: &str = "cause";
/// The field with the seconds until the next attempt.
const RETRY: &str = "retry_seconds";

/// Writes events as `23:59:00 WARN blur 53 (attempt 1): message name=value`. Expects the fields of
/// spans to be JSON.
pub(super) struct HumanLines {
    /// Counts failures instead of repeating them. None in a file.
    repeats: Option<Repeats>,
    /// The maximum number of characters of a line, if there is a limit.
    width: fn() -> Option<usize>,
}

impl HumanLines {
    pub(super) fn of(is_terminal: bool) -> Self {
        match is_terminal {
            true => Self { repeats: Some(Repeats::default()), width: screen },
            false => Self { repeats: None, width: || None },
        }
    }
}

/// The width of the terminal on standard error.
fn screen() -> Option<usize> {
    Term::stderr().size_checked().map(|(_, columns)| usize::from(columns))
}

impl<S, N> FormatEvent<S, N> for HumanLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let level = *event.metadata().level();
        let mut fields = Fields::default();
        event.record(&mut fields);
        let cause = fields.take(CAUSE);
        let (message, next) = fields.message(cause.is_some());
        if next.is_some() {
            // The message has the time too.
            fields.take(RETRY);
        }
        let mut more = String::new();
        if let (Some(repeats), Some(cause)) = (&self.repeats, cause) {
            match repeats.say(level, &cause) {
                Said::First => {}
                Said::Again(count) => {
                    more = format!("{} more: ", output::count(count, "failure"));
                }
                Said::Nothing => return Ok(()),
            }
        }
        let span = context.lookup_current().and_then(|span| {
            let extensions = span.extensions();
            let fields = extensions.get::<FormattedFields<N>>()?;
            serde_json::from_str::<Map<String, Value>>(&fields.fields).ok()
        });
        let message = match self.repeats {
            Some(_) if next.is_some() => cause::line(&message),
            _ => &message,
        };
        let line = Line {
            before: span.as_ref().map(subject).unwrap_or_default(),
            message: more + message,
            after: fields.rest(next.as_deref()),
        };
        let now = humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
        let (width, is_short) = ((self.width)(), self.repeats.is_some());
        // A terminal shows the time without the date, which its user knows.
        let time = if is_short { now[11..19].to_owned() } else { now };
        line.write(&mut writer, &time, level, width)
    }
}

/// The task that a line is about: `blur 53 (attempt 1): `. Empty if the span is not a task's.
fn subject(span: &Map<String, Value>) -> String {
    let text = |key: &str| match span.get(key) {
        Some(Value::String(text)) => Some(text.clone()),
        Some(value) => Some(value.to_string()),
        None => None,
    };
    let Some(attempt) = text("attempt") else { return String::new() };
    let task = match (text("task_name"), text("id"), text("message_id")) {
        (Some(name), Some(id), _) => format!("{name} {id}"),
        (_, _, Some(message)) => format!("message {message}"),
        _ => return String::new(),
    };
    format!("{} (attempt {attempt}): ", plain::escape(&task))
}

/// The parts of a line. Only the message is cut to fit.
struct Line {
    before: String,
    message: String,
    after: String,
}

impl Line {
    fn write(
        self,
        writer: &mut Writer<'_>,
        time: &str,
        level: Level,
        width: Option<usize>,
    ) -> fmt::Result {
        let Self { before, message, after } = self;
        let around = [time, &before, &after].iter().map(|part| part.chars().count()).sum::<usize>();
        // Five characters for the level, and two spaces.
        let message = match width.map(|width| width.saturating_sub(around + 7).max(LEAST)) {
            Some(room) => plain::escape(&output::cut(&message, room)).into_owned(),
            None => plain::escape_lines(&message).into_owned(),
        };
        if !writer.has_ansi_escapes() {
            return writeln!(writer, "{time} {level:<5} {before}{message}{after}");
        }
        let colour = match level {
            Level::ERROR => 31,
            Level::WARN => 33,
            Level::INFO => 32,
            _ => 34,
        };
        writeln!(
            writer,
            "\x1b[2m{time}\x1b[0m \x1b[{colour}m{level:<5}\x1b[0m {before}{message}\x1b[2m{after}\x1b[0m"
        )
    }
}

/// The fields of an event as text.
#[derive(Default)]
struct Fields(Vec<(&'static str, String)>);

impl Fields {
    fn take(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|(field, _)| *field == name)?;
        Some(self.0.remove(at).1)
    }

    /// The message. For a failure: its reason, and separately the consequence.
    fn message(&mut self, is_failure: bool) -> (String, Option<String>) {
        let message = self.take("message").unwrap_or_default();
        match message.split_once(": ").filter(|_| is_failure) {
            Some((next, reason)) => {
                let next = next.strip_prefix("failed, ").unwrap_or(next);
                (reason.to_owned(), Some(next.to_owned()))
            }
            None => (message, None),
        }
    }

    /// The consequence and all other fields, on one line.
    fn rest(self, next: Option<&str>) -> String {
        let mut rest = next.map(|next| format!("; {}", plain::escape(next))).unwrap_or_default();
        for (name, value) in self.0 {
            // Writing to a string can't fail.
            let _ = write!(rest, " {name}={}", plain::escape(&value));
        }
        rest
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.push((field.name(), value.to_owned()));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.push((field.name(), format!("{value:?}")));
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::fmt::format::JsonFields;

    use super::super::json::tests::Written;
    use super::*;

    fn logged(lines: HumanLines, colours: bool, log: impl FnOnce()) -> String {
        let written = Written::default();
        let writer = written.clone();
        let subscriber = tracing_subscriber::fmt()
            .fmt_fields(JsonFields::new())
            .with_ansi(colours)
            .event_format(lines)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, log);
        written.text()
    }

    #[test]
    fn no_value_makes_a_line_of_its_own() {
        let odd = "\u{1b}[2J\r\u{9b}\u{7f}\u{202e}\nERROR forged";
        let log = || {
            let span =
                tracing::info_span!("task", message_id = odd, attempt = 1, task_name = odd, id = 7);
            let _in = span.entered();
            tracing::warn!(error = %odd, n = 1, "failed: {odd}");
            tracing::warn!(message = "told");
        };
        let shown = "\\u{1b}[2J\\r\\u{9b}\\u{7f}\\u{202e}";
        let text = logged(HumanLines::of(false), false, log);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        let subject = format!(" WARN  {shown}\\nERROR forged 7 (attempt 1): ");
        assert!(lines[0].contains(&format!("{subject}failed: {shown}")), "{text}");
        assert_eq!(lines[1], format!("    ERROR forged error={shown}\\nERROR forged n=1"));
        assert!(lines[2].ends_with("(attempt 1): told"), "{text}");
        assert!(text.chars().all(|c| plain::is_plain(c) || c == '\n'), "{text:?}");

        let narrow = HumanLines { repeats: None, width: || Some(100) };
        let text = logged(narrow, true, log);
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(!text.contains("\u{1b}[2J") && !text.contains(['\r', '\u{9b}']), "{text:?}");
    }

    #[test]
    fn a_failure_is_one_line_that_fits_the_screen_and_the_next_ones_are_counted() {
        let lines = HumanLines { repeats: Some(Repeats::default()), width: || Some(72) };
        let text = logged(lines, false, || {
            for id in [53, 54, 55] {
                let span = tracing::info_span!("task", attempt = 1, task_name = "panicky", id);
                let _in = span.entered();
                let reason =
                    format!("panicked at src/lib.rs:10:44: index out of bounds: the index is {id}");
                let cause = "index out of bounds: the index is #";
                tracing::warn!(cause, retry_seconds = 1.006, "failed, retry in 1s: {reason}");
            }
            tracing::error!(cause = "no image", "rejected: no image");
        });
        let lines: Vec<&str> = text.lines().map(|line| &line[8..]).collect();
        assert_eq!(
            lines,
            [
                " WARN  panicky 53 (attempt 1): index out of bounds…; retry in 1s",
                " ERROR no image; rejected"
            ],
            "{text}"
        );
        assert!(text.lines().all(|line| line.chars().count() <= 72), "{text}");
    }
}
