//! Log lines as JSON objects in which each key is unique.
//!
//! Parsers disagree about objects with duplicate keys. The fields of an event may have any name, so
//! a field whose name is taken is renamed.

use std::fmt;

use serde::ser::{Serialize, Serializer};
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

use super::super::output;

/// Writes events as lines of JSON. Expects the fields of spans to be JSON.
pub(super) struct JsonLines;

impl<S, N> FormatEvent<S, N> for JsonLines
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
        let metadata = event.metadata();
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let mut line = Line::default();
        line.add("timestamp", time.into());
        line.add("level", metadata.level().as_str().into());
        event.record(&mut line);
        line.add("target", metadata.target().into());
        if let Some(span) = context.lookup_current() {
            let extensions = span.extensions();
            let fields =
                extensions.get::<FormattedFields<N>>().map(|fields| fields.fields.as_str());
            let mut fields: Map<String, Value> =
                fields.and_then(|fields| serde_json::from_str(fields).ok()).unwrap_or_default();
            fields.entry("name").or_insert_with(|| span.name().into());
            line.add("span", Value::Object(fields));
        }
        let line = output::json_line(&line).map_err(|_| fmt::Error)?;
        writeln!(writer, "{}", String::from_utf8_lossy(&line))
    }
}

/// The keys of every line. A field of an event with one of these names is renamed.
const RESERVED: [&str; 4] = ["timestamp", "level", "target", "span"];

/// The keys and values of a line, in order.
#[derive(Default)]
struct Line(Vec<(String, Value)>);

impl Line {
    fn add(&mut self, key: &str, value: Value) {
        self.0.push((key.to_owned(), value));
    }

    fn add_field(&mut self, field: &Field, value: Value) {
        let mut key = field.name().to_owned();
        while RESERVED.contains(&&*key) || self.0.iter().any(|(taken, _)| *taken == key) {
            key.push('_');
        }
        self.0.push((key, value));
    }
}

impl Visit for Line {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add_field(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add_field(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add_field(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add_field(field, value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add_field(field, value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add_field(field, format!("{value:?}").into());
    }
}

impl Serialize for Line {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::fmt::format::JsonFields;

    use super::*;

    /// A writer that collects the log.
    #[derive(Clone, Default)]
    pub(in super::super) struct Written(Arc<Mutex<Vec<u8>>>);

    impl Written {
        pub(in super::super) fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_key_is_there_once_whatever_fields_are_called() {
        let written = Written::default();
        let writer = written.clone();
        let subscriber = tracing_subscriber::fmt()
            .fmt_fields(JsonFields::new())
            .event_format(JsonLines)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let span = tracing::info_span!("task", id = tracing::field::Empty, name = "N");
            span.record("id", 1);
            span.record("id", 2);
            let _in = span.enter();
            tracing::warn!(
                message = 7,
                level = "mine",
                rate = f64::NAN,
                "a \"line\"\n{}\u{202e}",
                '\u{0}'
            );
        });
        let text = written.text();
        assert_eq!(text.matches('\n').count(), 1, "{text}");
        assert!(text.contains("\\u202e") && !text.contains('\u{202e}'), "{text}");
        for key in ["message", "message_", "level", "level_", "timestamp", "target", "span", "id"] {
            assert_eq!(text.matches(&format!("\"{key}\":")).count(), 1, "{key}: {text}");
        }
        let line: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["level"], "WARN");
        assert_eq!(line["rate"], Value::Null);
        assert_eq!((&line["span"]["id"], &line["span"]["name"]), (&2.into(), &"N".into()));
        let words = [&line["message"], &line["message_"]];
        assert!(words.contains(&&Value::from("a \"line\"\n\u{0}\u{202e}")), "{text}");
    }
}
