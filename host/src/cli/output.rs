//! Sizes, numbers and tables as people read them, and writing that survives a closed pipe and
//! leaves a terminal alone.

use std::fmt;
use std::io::{self, Write};
use std::time::Duration;

use serde_json::ser::Formatter;
use task_host::plain;

/// Writes a line to standard error. Nobody can be told when that fails.
pub(crate) fn tell(line: fmt::Arguments<'_>) {
    let _ = writeln!(Plain(io::stderr().lock()), "{line}");
}

/// Writes a question to standard error, for an answer on the same line.
pub(crate) fn ask(question: &str) -> io::Result<()> {
    let mut err = Plain(io::stderr().lock());
    write!(err, "{question} ")?;
    err.flush()
}

/// Standard output, for people.
pub(crate) fn out() -> Plain<io::StdoutLock<'static>> {
    Plain(io::stdout().lock())
}

/// The same for much of it, which has to be flushed.
pub(crate) fn long_out() -> Plain<io::BufWriter<io::StdoutLock<'static>>> {
    Plain(io::BufWriter::new(io::stdout().lock()))
}

/// Text for people, who may be at a terminal: whatever is in it, the terminal obeys none of it.
///
/// Characters that are not plain are escaped. What is written by one `writeln!` is one line; if
/// its values have line feeds, the further lines are indented.
pub(crate) struct Plain<W>(W);

impl<W: Write> Plain<W> {
    /// Writes a value as one line of JSON.
    pub(crate) fn json(&mut self, value: &impl serde::Serialize) -> anyhow::Result<()> {
        let mut line = json_line(value)?;
        line.push(b'\n');
        self.0.write_all(&line)?;
        Ok(())
    }
}

impl<W: Write> Write for Plain<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_fmt(format_args!("{}", String::from_utf8_lossy(bytes)))?;
        Ok(bytes.len())
    }

    fn write_fmt(&mut self, text: fmt::Arguments<'_>) -> io::Result<()> {
        let text = text.to_string();
        let line = text.strip_suffix('\n').unwrap_or(&text);
        self.0.write_all(plain::escape_lines(line).as_bytes())?;
        self.0.write_all(&text.as_bytes()[line.len()..])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Prints a value as one line of JSON on standard output.
pub(crate) fn json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    out().json(value)
}

/// A value as one line of JSON in which characters that are not plain are escaped.
pub(crate) fn json_line(value: &impl serde::Serialize) -> serde_json::Result<Vec<u8>> {
    let mut line = Vec::with_capacity(256);
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut line, PlainJson))?;
    Ok(line)
}

/// JSON on one line that a terminal shows as it is: `\u202e` stands for that character.
struct PlainJson;

impl Formatter for PlainJson {
    fn write_string_fragment<W>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()>
    where
        W: ?Sized + io::Write,
    {
        let mut rest = fragment;
        while let Some(at) = rest.find(|c| !plain::is_plain(c)) {
            let (before, odd) = rest.split_at(at);
            writer.write_all(before.as_bytes())?;
            let mut chars = odd.chars();
            for unit in chars.next().iter().flat_map(|c| c.encode_utf16(&mut [0; 2]).to_vec()) {
                write!(writer, "\\u{unit:04x}")?;
            }
            rest = chars.as_str();
        }
        writer.write_all(rest.as_bytes())
    }

    fn write_raw_fragment<W>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()>
    where
        W: ?Sized + io::Write,
    {
        // In JSON, line feeds and tabs stand between values and not in strings, where all else
        // that is not plain is.
        self.write_string_fragment(writer, &fragment.replace(['\n', '\r', '\t'], " "))
    }
}

/// Bytes in binary units, `1.5 MiB`.
pub(crate) fn bytes(count: u64) -> impl fmt::Display {
    bytesize::ByteSize(count).display().iec()
}

/// `12,345`
pub(crate) fn number(n: u64) -> String {
    let digits = n.to_string();
    let mut shown = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            shown.push(',');
        }
        shown.push(digit);
    }
    shown
}

/// `1 task`, `2 tasks`
pub(crate) fn count(n: u64, noun: &str) -> String {
    format!("{} {noun}{}", number(n), if n == 1 { "" } else { "s" })
}

/// A time to the precision that matters: `340 ms`, `4.2 s`, `3m 12s`.
pub(crate) fn time(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 0.001 {
        format!("{:.0} µs", seconds * 1e6)
    } else if seconds < 1.0 {
        format!("{:.0} ms", seconds * 1e3)
    } else if seconds < 60.0 {
        format!("{seconds:.1} s")
    } else {
        humantime::format_duration(Duration::from_secs(time.as_secs())).to_string()
    }
}

/// `412.3` a second; `n` of no time is zero.
pub(crate) fn rate(n: u64, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { n as f64 / time.as_secs_f64() }
}

/// A text cut to so many characters, on one line.
pub(crate) fn cut(text: &str, most: usize) -> String {
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(most) {
        None => line,
        Some(_) => line.chars().take(most.saturating_sub(1)).chain(['…']).collect(),
    }
}

/// Rows whose columns but the last are aligned, one a line whatever is in them.
pub(crate) fn table(mut out: impl Write, rows: &[Vec<String>]) -> io::Result<()> {
    let rows: Vec<Vec<_>> =
        rows.iter().map(|row| row.iter().map(|text| plain::escape(text)).collect()).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| {
        rows.iter().filter_map(|r| r.get(c)).map(|t| t.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in &rows {
        let mut line = String::new();
        for (text, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{text:width$}  "));
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_and_nouns_agree() {
        assert_eq!(number(0), "0");
        assert_eq!(number(999), "999");
        assert_eq!(number(1_234_567), "1,234,567");
        assert_eq!(count(1, "task"), "1 task");
        assert_eq!(count(0, "task"), "0 tasks");
    }

    #[test]
    fn what_people_read_has_nothing_that_a_terminal_obeys() {
        let odd = "a\u{1b}]0;title\u{7}\u{9b}2J\u{7f}\u{202e}\u{200b}\r\nERROR b";
        let mut written = Vec::new();
        writeln!(Plain(&mut written), "{odd}, é").unwrap();
        table(&mut written, &[vec![odd.into(), "x".into()], vec!["short".into(), "y".into()]])
            .unwrap();
        let text = String::from_utf8(written).unwrap();
        let shown = "a\\u{1b}]0;title\\u{7}\\u{9b}2J\\u{7f}\\u{202e}\\u{200b}\\r";
        let want = format!(
            "{shown}\n    ERROR b, é\n{shown}\\nERROR b  x\nshort{}  y\n",
            " ".repeat(shown.len() + 9 - 5)
        );
        assert_eq!(text, want);
    }

    #[test]
    fn json_is_the_same_value_on_one_plain_line() {
        let raw = "{\"a\u{202e}\" :\n\t[1.50, \"\u{7f}\u{9b}\u{e0001}é\"]\r}";
        let raw = serde_json::value::RawValue::from_string(raw.to_owned()).unwrap();
        let value = (&raw, "b\u{1b}\u{feff}\n\u{10ffff}日");
        let line = String::from_utf8(json_line(&value).unwrap()).unwrap();
        assert_eq!(plain::first_odd(&line), None, "{line}");
        let read = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(read(&line), serde_json::json!([read(raw.get()), value.1]));
        assert!(line.contains("1.50") && line.contains("\\udb40\\udc01é"), "{line}");
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        assert_eq!(cut("a\n b", 9), "a b");
        assert_eq!(cut("ééééé", 3), "éé…");
        assert_eq!(cut("ééé", 3), "ééé");
    }
}
