//! The cause of an error: one short line, without the parts that differ between tasks.
//!
//! Failures with the same cause can be counted, listed and sent back together. [`fingerprint`]
//! finds the line of an error that tells the cause (`line.rs`), and replaces numbers, ids, digests,
//! paths, addresses and quoted names in it (`token.rs`).

mod line;
mod token;

use std::borrow::Cow;

use crate::plain;
use token::{Kind, NUMBER, OTHER};

/// The most bytes of a cause.
pub const LONGEST: usize = 300;
/// The cause of an error that has no text.
pub const UNKNOWN: &str = "no reason was given";
/// The most bytes of an error that are read.
const READ: usize = 64 << 10;
/// The most bytes of the line that are read. The rest of a longer line is data, not an error.
const LINE: usize = 4 << 10;
const CUT: &str = "…";

/// The cause of an error: one line of at most [`LONGEST`] bytes without hidden or control
/// characters. `#` stands for numbers, and `…` for other things that differ between tasks.
///
/// Takes time in proportion to the text. Reads only the beginning of a very long text.
pub fn fingerprint(text: &str) -> String {
    let line = line(text);
    let line = &line[..line.floor_char_boundary(LINE)];
    let mut cause = Cause::default();
    cause.read(line);
    let cause = plain::escape(cause.text.trim());
    match cause.len() {
        0 => UNKNOWN.to_owned(),
        1..=LONGEST => cause.into_owned(),
        _ => {
            let end = cause.floor_char_boundary(LONGEST - CUT.len());
            format!("{}{CUT}", &cause[..end])
        }
    }
}

/// The line of an error that tells the cause, without the traceback, thread name or source position
/// before it.
pub fn line(text: &str) -> &str {
    line::of(&text[..text.floor_char_boundary(READ)])
}

/// A cause while it is written.
#[derive(Default)]
struct Cause<'a> {
    text: String,
    /// The last two words, the later one last. They tell whether a number is a code.
    words: [&'a str; 2],
    /// Quotation marks known to have no closing mark, so that they are searched for only once.
    unclosed: String,
}

impl<'a> Cause<'a> {
    fn read(&mut self, line: &'a str) {
        let mut rest = line;
        // Where a quoted sentence ends: the length of the text that follows it.
        let mut end_of_quote = None;
        while let Some(c) = rest.chars().next() {
            let after = &rest[c.len_utf8()..];
            if c.is_whitespace() {
                if !self.text.ends_with(' ') {
                    self.text.push(' ');
                }
                rest = after;
            } else if end_of_quote == Some(rest.len()) {
                self.text.push(c);
                (end_of_quote, rest) = (None, after);
            } else if let Some(quoted) = self.quoted(c, rest, line) {
                // A sentence in quotation marks is an error within an error.
                if quoted.split_whitespace().nth(2).is_some() && end_of_quote.is_none() {
                    end_of_quote = Some(after.len() - quoted.len());
                    self.text.push(c);
                    rest = after;
                } else {
                    match c == '`' && token::is_code(quoted) {
                        true => self.text.push_str(&format!("`{quoted}`")),
                        false => self.mark(&format!("{c}{OTHER}{c}")),
                    }
                    rest = &after[quoted.len() + 1..];
                }
            } else if token::is_part(c) {
                let len = token::len(rest);
                let (token, next) = rest.split_at(len);
                self.token(token);
                rest = next;
                if self.text.ends_with(NUMBER) {
                    rest = token::without_unit(rest);
                }
            } else {
                self.text.push(c);
                rest = after;
            }
        }
    }

    /// The text in quotation marks at the start of `rest`, if there is one. An apostrophe within a
    /// word is not a quotation mark.
    fn quoted<'t>(&mut self, mark: char, rest: &'t str, line: &str) -> Option<&'t str> {
        if !matches!(mark, '"' | '\'' | '`') || self.unclosed.contains(mark) {
            return None;
        }
        let before = line[..line.len() - rest.len()].chars().next_back();
        if mark == '\'' && before.is_some_and(char::is_alphanumeric) {
            return None;
        }
        let inside = &rest[1..];
        let bytes = inside.as_bytes();
        let closes = |&(at, found): &(usize, char)| {
            let next = inside[at + found.len_utf8()..].chars().next();
            found == mark
                && (at == 0 || bytes[at - 1] != b'\\')
                && (mark != '\'' || !next.is_some_and(char::is_alphanumeric))
        };
        match inside.char_indices().find(closes) {
            Some((end, _)) => Some(&inside[..end]),
            None => {
                self.unclosed.push(mark);
                None
            }
        }
    }

    /// Adds a token, or the mark that replaces it. Keeps the punctuation after it.
    fn token(&mut self, token: &'a str) {
        let is_around = |c: char| matches!(c, '.' | ':' | '!' | '?' | '…');
        let word = token.trim_end_matches(is_around);
        let end = &token[word.len()..];
        match token::kind(word, self.words) {
            Kind::Number => self.mark(NUMBER),
            Kind::Other => self.mark(OTHER),
            Kind::Word(word) => self.text.push_str(&word),
        }
        self.text.push_str(end);
        if word.chars().any(char::is_alphabetic) {
            self.words = [self.words[1], word];
        }
    }

    /// Adds a mark, unless it would continue a list of the same mark.
    fn mark(&mut self, mark: &str) {
        for separator in [", ", ",", " "] {
            let list = self.text.strip_suffix(separator).filter(|list| list.ends_with(mark));
            if let Some(len) = list.map(str::len) {
                self.text.truncate(len);
                return;
            }
        }
        self.text.push_str(mark);
    }
}

/// True if an error has this cause. `cause` may also be the text of an error with the cause.
pub fn is_of(text: &str, cause: &str) -> bool {
    let of_text = fingerprint(text);
    let wanted: Cow<'_, str> = plain::escape(cause.trim());
    of_text == wanted || of_text == fingerprint(cause)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_cause_has_none_of_what_differs_between_tasks() {
        let check = |text: &str, want: &str| assert_eq!(fingerprint(text), want, "{text:?}");
        check(
            "panicked at src/lib.rs:10:44: index out of bounds: the len is 10 but the index is 14",
            "index out of bounds: the len is # but the index is #",
        );
        check(
            "thread 'main' panicked at src/lib.rs:10:44:\nindex out of bounds: the len is 3",
            "index out of bounds: the len is #",
        );
        check("KeyError: 'class' (app.py:12)", "KeyError: '…' (app.py:#)");
        check("open /inputs/nothing.png: no such file", "open …: no such file");
        check("can't open 'a 1.png': it isn't there", "can't open '…': it isn't there");
        check(
            "called `Option::unwrap()` on a `None` value",
            "called `Option::unwrap()` on a `None` value",
        );
        check("unknown field `alpha`, expected `beta`", "unknown field `…`, expected `…`");
        check("input `my cat`: file:///b has no object `my cat`", "input `…`: … has no object `…`");
        check("it took 1 s; `--timeout` allows more", "it took #; `--timeout` allows more");
        check(
            "Custom { kind: Other, error: \"bad header at byte 12\" }",
            "Custom { kind: Other, error: \"bad header at byte #\" }",
        );
        check("Input/output error (os error 5)", "Input/output error (os error 5)");
        check("HTTP 404 for https://example.com/a?b=1", "HTTP 404 for …");
        check("HTTP Error 503: Service Unavailable", "HTTP Error 503: Service Unavailable");
        check("connect 10.0.0.7:8080: refused", "connect #: refused");
        check("task 550e8400-e29b-41d4-a716-446655440000 is late", "task … is late");
        check("digest e3b0c44298fc1c149afbf4c8996fb924 differs", "digest … differs");
        check("it took 1.5 s, and 20ms are allowed", "it took #, and # are allowed");
        check("at 2026-11-26T23:14:39Z: [1, 2, 3] is not [4]", "at #: [#] is not [#]");
        check("expected u8, got f64 in tile17", "expected u8, got f64 in tile#");
        check("invalid UTF-8 at 12", "invalid UTF-8 at #");
        check("", UNKNOWN);
        check(" \n\t", UNKNOWN);
        check("\u{1b}[31mred\u{202e}", "\\u{1b}[#mred\\u{202e}");
    }

    #[test]
    fn errors_with_other_words_have_other_causes() {
        let errors = [
            "index out of bounds: the len is 1 but the index is 2",
            "attempt to divide by zero",
            "HTTP 404 for https://example.com",
            "HTTP 500 for https://example.com",
            "exit code 1",
            "exit code 137",
            "KeyError: 'a'",
            "ValueError: 'a'",
            "Error: \"the header is too short\"",
            "Error: \"the header is too long\"",
        ];
        let causes: Vec<String> = errors.iter().map(|error| fingerprint(error)).collect();
        for (n, cause) in causes.iter().enumerate() {
            assert!(!causes[..n].contains(cause), "{cause}");
        }
    }

    /// The error text of a task, for one of twelve causes. `word` is a random name.
    fn failure(kind: usize, n: u64, word: &str) -> String {
        let digest =
            format!("{:064x}", u128::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060));
        let key = format!("datasets/{word}/{n}_input/{word}-{n}.tif");
        match kind {
            0 => format!(
                "panicked at src/lib.rs:10:44: index out of bounds: the len is {n} but the index is {}",
                n + 3
            ),
            1 => format!(
                "thread 'main' panicked at src/tile.rs:{n}:9:\nattempt to divide by zero\nnote: run with a flag"
            ),
            2 => format!(
                "panicked at src/read.rs:7:1: called `Result::unwrap()` on an `Err` value: Os {{ code: 2, kind: NotFound, message: \"{word}\" }}"
            ),
            3 => format!(
                "Traceback (most recent call last):\n  File \"/app/{word}.py\", line {n}, in run\n    return d[k]\nKeyError: '{word}{n}'"
            ),
            4 => {
                format!("ValueError: could not convert string to float: '{word} {n}' (app.py:{n})")
            }
            5 => format!(
                "json.decoder.JSONDecodeError: Expecting value: line {n} column 1 (char {n})"
            ),
            6 => format!("open /inputs/{key}: no such file"),
            7 => format!("input {key} is not in the bucket s3://{word}-{n}/data"),
            8 => format!("GET https://{word}.example.com/{n}?id={digest}: HTTP 404"),
            9 => format!("HTTP status 503 from 10.0.{}.{}:{}", n % 256, n / 256 % 256, n % 60_000),
            10 => format!("digest mismatch: expected {digest}, got {}", &digest[16..]),
            _ => format!("{key}: {n} bytes of {} are missing after {n}.5 s", n + 100),
        }
    }

    #[test]
    fn ten_thousand_failures_of_twelve_causes_are_twelve_groups() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut groups: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for task in 0..10_000 {
            let kind = task % 12;
            let letters = (0..random.usize(1..12)).map(|_| random.lowercase()).collect::<String>();
            let cause = fingerprint(&failure(kind, random.u64(0..10_000_000), &letters));
            groups.entry(cause).or_default().push(kind);
        }
        assert_eq!(groups.len(), 12, "{:#?}", groups.keys());
        for (cause, kinds) in groups {
            assert!(kinds.iter().all(|kind| *kind == kinds[0]), "{cause}");
        }
    }

    #[test]
    fn a_cause_and_its_error_select_the_same() {
        let error = "open /inputs/a.png: no such file";
        for wanted in ["open …: no such file", "open /inputs/b.png: no such file", error] {
            assert!(is_of(error, wanted), "{wanted}");
        }
        assert!(!is_of(error, "no such file"));
    }

    proptest! {
        #[test]
        fn a_cause_is_one_short_plain_line(text: String) {
            let cause = fingerprint(&text);
            prop_assert!(!cause.is_empty() && cause.len() <= LONGEST);
            prop_assert_eq!(plain::first_odd(&cause), None);
        }

        #[test]
        fn odd_texts_have_causes(text in "[ '\"`0-9a-f.:/#,…\\\\\n-]{0,200}") {
            prop_assert!(fingerprint(&text).len() <= LONGEST);
        }
    }
}
