//! Logs what a guest prints, line by line, as it prints.
//!
//! The SDK's macros and most log libraries put a level before each line. A line without a level is
//! logged at level DEBUG.

use std::sync::Arc;

use parking_lot::Mutex;
use tracing::{Level, Span};

use crate::sandbox::{Limits, Tee};

/// The most bytes of a log line. A longer line is logged in pieces.
const LINE: usize = 8 << 10;
/// The target of these log lines.
const TARGET: &str = "guest";

/// Logs a guest's output within the current span. None if no level of the target is enabled.
pub(super) fn tee(limits: &Limits) -> Option<Tee> {
    if !tracing::enabled!(target: TARGET, Level::ERROR) {
        return None;
    }
    let log = GuestLog {
        span: Span::current(),
        left: limits.log.as_u64(),
        lines: Mutex::new(Lines::default()),
    };
    Some(Arc::new(move |bytes: &[u8]| log.take(bytes)))
}

/// The output of one guest.
struct GuestLog {
    span: Span,
    /// The most bytes of output that are logged.
    left: u64,
    lines: Mutex<Lines>,
}

/// Cuts bytes into lines.
#[derive(Debug, Default)]
struct Lines {
    /// The beginning of a line that has not ended yet.
    begun: Vec<u8>,
    /// Bytes taken so far.
    taken: u64,
}

impl GuestLog {
    fn take(&self, bytes: &[u8]) {
        let mut lines = self.lines.lock();
        lines.take(bytes, self.left, |line| self.log(line));
    }

    fn log(&self, line: &[u8]) {
        let text = String::from_utf8_lossy(line);
        self.span.in_scope(|| match level(&text) {
            (Level::ERROR, text) => tracing::error!(target: TARGET, "{text}"),
            (Level::WARN, text) => tracing::warn!(target: TARGET, "{text}"),
            (Level::INFO, text) => tracing::info!(target: TARGET, "{text}"),
            (Level::DEBUG, text) => tracing::debug!(target: TARGET, "{text}"),
            (_, text) => tracing::trace!(target: TARGET, "{text}"),
        });
    }
}

impl Drop for GuestLog {
    fn drop(&mut self) {
        let begun = std::mem::take(&mut self.lines.get_mut().begun);
        if !begun.is_empty() {
            self.log(&begun);
        }
    }
}

impl Lines {
    /// Calls `each` for every complete line. After `most` bytes, passes one warning to `each` and
    /// ignores further bytes.
    fn take(&mut self, bytes: &[u8], most: u64, each: impl Fn(&[u8])) {
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            if self.taken > most {
                return;
            }
            self.taken += piece.len() as u64;
            if self.taken > most {
                self.begun.clear();
                return each(
                    format!(
                        "WARN the task has printed more than {most} bytes; the rest is not logged"
                    )
                    .as_bytes(),
                );
            }
            let end = piece.strip_suffix(b"\n");
            for part in end.unwrap_or(piece).chunks(LINE) {
                let room = LINE - self.begun.len();
                let (now, later) = part.split_at(room.min(part.len()));
                self.begun.extend_from_slice(now);
                if !later.is_empty() {
                    each(&std::mem::take(&mut self.begun));
                    self.begun.extend_from_slice(later);
                }
            }
            if end.is_some() {
                let line = std::mem::take(&mut self.begun);
                let line = line.strip_suffix(b"\r").unwrap_or(&line);
                if !line.is_empty() {
                    each(line);
                }
            }
        }
    }
}

/// The level that a line begins with, such as `WARN ` or `[error] `, and the rest of the line.
/// DEBUG and the whole line if there is no level.
fn level(line: &str) -> (Level, &str) {
    let word_end = line.find([' ', ':']).unwrap_or(line.len());
    let word = line[..word_end].trim_start_matches('[').trim_end_matches(']');
    let levels = [
        (["ERROR", "CRITICAL"], Level::ERROR),
        (["WARN", "WARNING"], Level::WARN),
        (["INFO", "NOTICE"], Level::INFO),
        (["DEBUG", "DEBUG"], Level::DEBUG),
        (["TRACE", "TRACE"], Level::TRACE),
    ];
    let is = |names: &[&str; 2]| names.iter().any(|name| word.eq_ignore_ascii_case(name));
    match levels.iter().find(|(names, _)| is(names)) {
        Some((_, level)) => (*level, line[word_end..].trim_start_matches([':', ' '])),
        None => (Level::DEBUG, line),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn taken(pieces: &[&[u8]], most: u64) -> (Vec<String>, String) {
        let (mut lines, got) = (Lines::default(), RefCell::new(Vec::new()));
        for piece in pieces {
            lines.take(piece, most, |line| {
                got.borrow_mut().push(String::from_utf8_lossy(line).into_owned());
            });
        }
        (got.into_inner(), String::from_utf8_lossy(&lines.begun).into_owned())
    }

    #[test]
    fn lines_are_logged_when_they_end() {
        let (lines, rest) = taken(&[b"on", b"e\n\ntwo\r\nthr", b"ee"], 100);
        assert_eq!((lines, rest.as_str()), (vec!["one".into(), "two".into()], "three"));
    }

    #[test]
    fn a_long_line_is_logged_in_pieces_and_a_long_log_is_cut() {
        let long = "é".repeat(LINE);
        let (lines, rest) = taken(&[long.as_bytes(), b"x\n"], 1 << 20);
        assert!(lines.iter().all(|line| line.len() <= LINE + 4));
        assert_eq!((lines.concat() + &rest).len(), long.len() + 1);
        let (lines, rest) = taken(&[b"one\ntwo\nthree\n", b"four\n"], 8);
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert!(lines[2].contains("more than 8 bytes") && rest.is_empty());
    }

    #[test]
    fn the_level_of_a_line_is_its_first_word() {
        let check = |line: &str, want: Level, rest: &str| assert_eq!(level(line), (want, rest));
        check("ERROR no image", Level::ERROR, "no image");
        check("WARNING: old", Level::WARN, "old");
        check("[info] x", Level::INFO, "x");
        check("DEBUG x", Level::DEBUG, "x");
        check("TRACE", Level::TRACE, "");
        check("errors: 3", Level::DEBUG, "errors: 3");
        check("tile 3 of 9", Level::DEBUG, "tile 3 of 9");
    }
}
