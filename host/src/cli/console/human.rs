//! The fields of a log line for people. Whatever is in them, the line stays one line to the eye,
//! and a terminal obeys nothing in it.

use std::fmt;

use task_host::plain;
use tracing::field::{Field, Visit};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::Writer;

/// Writes fields as `message name=value`. Further lines of a message are indented, and values of
/// other fields are on one line.
pub(super) struct PlainFields;

impl<'w> FormatFields<'w> for PlainFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut fields_of_line = Fields { writer, is_first: true, written: Ok(()) };
        fields.record(&mut fields_of_line);
        fields_of_line.written
    }
}

struct Fields<'w> {
    writer: Writer<'w>,
    is_first: bool,
    written: fmt::Result,
}

impl Fields<'_> {
    fn write(&mut self, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
        let name = field.name();
        if !self.is_first {
            self.writer.write_char(' ')?;
        }
        self.is_first = false;
        let value = format!("{value:?}");
        if name == "message" {
            return self.writer.write_str(&plain::escape_lines(&value));
        }
        let value = plain::escape(&value);
        match self.writer.has_ansi_escapes() {
            true => write!(self.writer, "\x1b[3m{name}\x1b[0m\x1b[2m=\x1b[0m{value}"),
            false => write!(self.writer, "{name}={value}"),
        }
    }
}

impl Visit for Fields<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.record_debug(field, &format_args!("{value}")),
            _ => self.record_debug(field, &value),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if self.written.is_ok() {
            self.written = self.write(field, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::json::tests::Written;
    use super::*;

    fn logged(colours: bool, log: impl FnOnce()) -> String {
        let written = Written::default();
        let writer = written.clone();
        let lines = tracing_subscriber::fmt().fmt_fields(PlainFields).without_time();
        let lines = lines.with_ansi(colours).with_target(false).compact();
        let subscriber = lines.with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(subscriber, log);
        written.text()
    }

    #[test]
    fn no_value_makes_a_line_of_its_own() {
        let odd = "\u{1b}[2J\r\u{9b}\u{7f}\u{202e}\nERROR forged";
        let log = || {
            let _in = tracing::info_span!("task", message_id = %odd, text = odd).entered();
            tracing::warn!(error = %odd, n = 1, "failed: {odd}");
            tracing::warn!(message = "told");
        };
        let shown = "\\u{1b}[2J\\r\\u{9b}\\u{7f}\\u{202e}";
        let text = logged(false, log);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[0].trim_start().starts_with("WARN task"), "{text}");
        assert!(lines[0].ends_with(&format!("failed: {shown}")), "{text}");
        assert!(lines[1].starts_with("    ERROR forged "), "{text}");
        assert!(lines[1].contains(&format!("error={shown}\\nERROR forged n=1")), "{text}");
        assert!(lines[1].contains(&format!("message_id={shown}\\nERROR forged")), "{text}");
        assert!(lines[2].contains(" told "), "{text}");
        assert!(text.chars().all(|c| plain::is_plain(c) || c == '\n'), "{text:?}");

        let text = logged(true, log);
        assert!(text.contains("\u{1b}[3mn\u{1b}[0m\u{1b}[2m=\u{1b}[0m1"), "{text:?}");
        assert!(!text.contains("\u{1b}[2J") && !text.contains(['\r', '\u{9b}']), "{text:?}");
    }
}
