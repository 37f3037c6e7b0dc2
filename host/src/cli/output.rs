//! Prints text, tables and JSON. Control characters are escaped, so that text can't control a
//! terminal.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicI8, Ordering::Relaxed};
use std::time::Duration;

use indicatif::HumanCount;
use task_host::{json, plain};

/// The number of `-v` flags, or -1 for `-q`. Set once, before any output.
static VERBOSITY: AtomicI8 = AtomicI8::new(0);

/// Sets the verbosity to that of the flags `-q` and `-v`.
pub(crate) fn set_verbosity(is_quiet: bool, verbose: u8) {
    let more = i8::try_from(verbose).unwrap_or(i8::MAX);
    VERBOSITY.store(if is_quiet { -1 } else { more }, Relaxed);
}

/// True if only warnings and errors are printed.
pub(crate) fn is_quiet() -> bool {
    verbosity() < 0
}

pub(crate) fn verbosity() -> i8 {
    VERBOSITY.load(Relaxed)
}

/// Writes a line to standard error. Ignores failures, because there is no other place to report
/// them.
pub(crate) fn tell(line: fmt::Arguments<'_>) {
    let _ = writeln!(Plain(io::stderr().lock()), "{line}");
}

/// Like [`tell`], but silent with `--quiet`. For lines that are neither results nor problems.
pub(crate) fn note(line: fmt::Arguments<'_>) {
    if !is_quiet() {
        tell(line);
    }
}

/// Writes a question to standard error. The answer follows on the same line.
pub(crate) fn ask(question: &str) -> io::Result<()> {
    let mut err = Plain(io::stderr().lock());
    write!(err, "{question} ")?;
    err.flush()
}

/// Standard error, for use as the standard output of a child process that the user asked for, such
/// as a build.
pub(crate) fn of_program() -> Stdio {
    io::stderr().into()
}

/// Standard output. Its errors name standard output.
pub(crate) struct Stdout<W = io::StdoutLock<'static>>(W);

fn stdout() -> Stdout {
    Stdout(io::stdout().lock())
}

impl<W: Write> Write for Stdout<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(of_stdout)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(of_stdout)
    }
}

/// Keeps the kind of the error: a broken pipe is not reported, and an interrupted write is
/// repeated.
fn of_stdout(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("can't write to standard output: {error}"))
}

/// Standard output, with escapes.
pub(crate) fn out() -> Plain<Stdout> {
    Plain(stdout())
}

/// Writes a shell script to standard output unchanged. It must have no text from outside.
pub(crate) fn script(text: &[u8]) -> io::Result<()> {
    stdout().write_all(text)
}

/// Buffered standard output, with escapes. The caller must flush it.
pub(crate) fn long_out() -> Plain<io::BufWriter<Stdout>> {
    Plain(io::BufWriter::new(stdout()))
}

/// Standard output for messages that another command reads, one per line. A terminal gets them with
/// escapes. A file or a pipe gets them unchanged, because escapes would change the tasks.
pub(crate) struct Messages {
    out: io::BufWriter<Stdout<io::Stdout>>,
    is_terminal: bool,
}

impl Messages {
    pub(crate) fn new() -> Self {
        let out = io::stdout();
        let is_terminal = out.is_terminal();
        Self { out: io::BufWriter::new(Stdout(out)), is_terminal }
    }

    pub(crate) fn write(&mut self, message: &[u8]) -> io::Result<()> {
        match self.is_terminal {
            true => writeln!(Plain(&mut self.out), "{}", String::from_utf8_lossy(message)),
            false => {
                self.out.write_all(message)?;
                self.out.write_all(b"\n")
            }
        }
    }

    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Escapes characters that are not plain, so that the text can't control a terminal.
///
/// The text of one `writeln!` counts as one line. If a value in it has line feeds, the lines after
/// them are indented.
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

/// A value as one line of JSON with escapes for characters that are not plain.
pub(crate) fn json_line(value: &impl serde::Serialize) -> serde_json::Result<Vec<u8>> {
    json::to_line(value, |c| !plain::is_plain(c))
}

/// Bytes in binary units: `1.5 MiB`.
pub(crate) fn bytes(count: u64) -> impl fmt::Display {
    bytesize::ByteSize(count).display().iec()
}

/// Escapes a name for use in a sentence, so that a line feed in it does not start a new line.
pub(crate) fn name(name: impl fmt::Display) -> String {
    plain::escape(&name.to_string()).into_owned()
}

/// Escapes a path for use in a sentence.
pub(crate) fn path(path: impl AsRef<Path>) -> String {
    name(path.as_ref().display())
}

/// `1 task`, `2 tasks`
pub(crate) fn count(n: u64, noun: &str) -> String {
    format!("{} {noun}{}", HumanCount(n), if n == 1 { "" } else { "s" })
}

/// A time with two or three digits: `340 ms`, `4.2 s`, `3m 12s`. indicatif's `HumanDuration` would
/// print only `3 minutes`.
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

/// `n` per second; zero if no time has passed.
pub(crate) fn rate(n: u64, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { n as f64 / time.as_secs_f64() }
}

/// A text on one line, truncated to `most` characters.
pub(crate) fn cut(text: &str, most: usize) -> String {
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(most) {
        None => line,
        Some(_) => line.chars().take(most.saturating_sub(1)).chain(['…']).collect(),
    }
}

/// Prints rows with aligned columns, each on one line.
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
    fn a_name_stays_on_its_line() {
        assert_eq!(name("fq://a\nb"), "fq://a\\nb");
        assert_eq!(path("é\n\u{1b}"), "é\\n\\u{1b}");
    }

    #[test]
    fn nouns_agree_with_their_numbers() {
        assert_eq!(count(1, "task"), "1 task");
        assert_eq!(count(0, "task"), "0 tasks");
        assert_eq!(count(1_234_567, "task"), "1,234,567 tasks");
    }

    #[test]
    fn printed_text_has_nothing_that_a_terminal_obeys() {
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
    fn a_long_text_is_cut_between_characters() {
        assert_eq!(cut("a\n b", 9), "a b");
        assert_eq!(cut("ééééé", 3), "éé…");
        assert_eq!(cut("ééé", 3), "ééé");
    }
}
