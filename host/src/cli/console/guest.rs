//! Passes the output of a guest to standard error.
//!
//! A file or a pipe gets the bytes unchanged. A terminal gets text, in which the only control
//! sequences are those for colours and styles.

use parking_lot::Mutex;
use task_host::plain;

use super::Console;

/// The maximum length of a style sequence that is passed on, in bytes.
const LONGEST: usize = 32;
const NO_STYLE: &str = "\x1b[0m";

/// Receives the output of one guest.
pub(crate) struct GuestOutput {
    console: Console,
    filter: Mutex<Filter>,
}

impl GuestOutput {
    pub(crate) fn new(console: Console) -> Self {
        Self { console, filter: Mutex::default() }
    }

    /// Passes bytes on at once.
    pub(crate) fn write(&self, bytes: &[u8]) {
        if !self.console.is_terminal {
            return self.console.write(bytes);
        }
        // Writing under the lock keeps the order.
        let mut filter = self.filter.lock();
        let text = filter.pass(bytes);
        self.console.write(text.as_bytes());
    }

    /// Ends the output, and resets the style of the terminal.
    pub(crate) fn end(&self) {
        let text = self.filter.lock().end();
        self.console.write(text.as_bytes());
    }
}

/// Turns bytes that arrive in pieces into text for a terminal.
#[derive(Debug, Default)]
struct Filter {
    /// The beginning of a character or an escape sequence whose rest may still arrive.
    rest: Vec<u8>,
    has_style: bool,
}

impl Filter {
    fn pass(&mut self, bytes: &[u8]) -> String {
        self.rest.extend_from_slice(bytes);
        self.take(false)
    }

    fn end(&mut self) -> String {
        let mut text = self.take(true);
        if std::mem::take(&mut self.has_style) {
            text.push_str(NO_STYLE);
        }
        text
    }

    /// Converts the complete characters and sequences in `rest`, or with `all` everything.
    fn take(&mut self, all: bool) -> String {
        let bytes = std::mem::take(&mut self.rest);
        let mut text = String::with_capacity(bytes.len());
        let mut chunks = bytes.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            let is_last = chunks.peek().is_none();
            let cut = is_last && !all && is_begun(chunk.invalid());
            let mut rest = chunk.valid();
            while let Some(c) = rest.chars().next() {
                let len = match c {
                    '\x1b' | '\r' => match Sequence::at(rest) {
                        Sequence::Begun if is_last && chunk.invalid().is_empty() && !all => {
                            self.rest.extend_from_slice(rest.as_bytes());
                            return text;
                        }
                        Sequence::Style(len) => {
                            self.has_style = true;
                            text.push_str(&rest[..len]);
                            len
                        }
                        Sequence::LineEnd => {
                            text.push('\n');
                            2
                        }
                        Sequence::Begun | Sequence::Other => {
                            plain::push_escaped(&mut text, c);
                            1
                        }
                    },
                    '\n' | '\t' => {
                        text.push(c);
                        1
                    }
                    c => {
                        plain::push_escaped(&mut text, c);
                        c.len_utf8()
                    }
                };
                rest = &rest[len..];
            }
            if cut {
                self.rest.extend_from_slice(chunk.invalid());
            } else {
                text.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
            }
        }
        text
    }
}

/// True for the beginning of a character whose rest may still arrive.
fn is_begun(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

/// The sequence that begins with an escape or a carriage return.
enum Sequence {
    /// A sequence for styles such as `ESC [ 1 ; 3 1 m`, and its length in bytes.
    Style(usize),
    /// A carriage return and a line feed.
    LineEnd,
    /// May become one of the above when more bytes arrive.
    Begun,
    Other,
}

impl Sequence {
    fn at(text: &str) -> Self {
        if let Some(rest) = text.strip_prefix('\r') {
            return match rest.as_bytes().first() {
                None => Self::Begun,
                Some(b'\n') => Self::LineEnd,
                Some(_) => Self::Other,
            };
        }
        let bytes = text.as_bytes();
        if bytes.len() > 1 && bytes[1] != b'[' {
            return Self::Other;
        }
        let is_parameter = |byte: &u8| byte.is_ascii_digit() || matches!(byte, b';' | b':');
        let parameters = bytes.iter().skip(2).take_while(|byte| is_parameter(byte)).count();
        match bytes.get(2 + parameters) {
            _ if 2 + parameters >= LONGEST => Self::Other,
            None => Self::Begun,
            Some(b'm') => Self::Style(2 + parameters + 1),
            Some(_) => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn passed(pieces: &[&[u8]]) -> String {
        let mut filter = Filter::default();
        let mut text: String = pieces.iter().map(|piece| filter.pass(piece)).collect();
        text.push_str(&filter.end());
        text
    }

    #[test]
    fn a_terminal_gets_text_and_colours() {
        let check = |bytes: &[u8], want: &str| {
            assert_eq!(passed(&[bytes]), want, "{bytes:?}");
            let bytewise: Vec<&[u8]> = bytes.chunks(1).collect();
            assert_eq!(passed(&bytewise), want, "{bytes:?} in pieces");
        };
        check("one\ttwo\nthree\r\né 日本\n".as_bytes(), "one\ttwo\nthree\né 日本\n");
        check(
            b"\x1b[1;31mred\x1b[m \x1b[38:2::1:2:3mx",
            "\x1b[1;31mred\x1b[m \x1b[38:2::1:2:3mx\x1b[0m",
        );
        check(
            b"\x1b]0;title\x07\x1b[2J\x1b[?1049h\x1bc",
            "\\u{1b}]0;title\\u{7}\\u{1b}[2J\\u{1b}[?1049h\\u{1b}c",
        );
        check(b"done 1%\rdone 2%", "done 1%\\rdone 2%");
        check(
            "\u{202e}\u{200b}\u{9b}2J\u{7f}\u{8}".as_bytes(),
            "\\u{202e}\\u{200b}\\u{9b}2J\\u{7f}\\u{8}",
        );
        check(b"\xff\x9b2J \xe2\x82", "\\xff\\x9b2J \\xe2\\x82");
        check(b"\x1b[1", "\\u{1b}[1");
        check(b"\x1b\xc3", "\\u{1b}\\xc3");
        let long = format!("\x1b[{}m", "1;".repeat(LONGEST));
        check(long.as_bytes(), &long.replace('\x1b', "\\u{1b}"));
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference_and_nothing_else_gets_through(pieces: Vec<Vec<u8>>) {
            let whole = passed(&[&pieces.concat()]);
            let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            prop_assert_eq!(&passed(&pieces), &whole);
            let rest: Vec<&str> = whole.split('\x1b').collect();
            for (n, part) in rest.iter().enumerate() {
                prop_assert!(n == 0 || part.starts_with('['));
                prop_assert!(part.chars().all(|c| plain::is_plain(c) || "\n\t".contains(c)));
            }
        }
    }
}
