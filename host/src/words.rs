//! Words that guests, components and messages have a say in, made short enough for memory, logs
//! and reports.

use std::borrow::Cow;
use std::fmt::{self, Write};

/// At most `most` bytes of `text`, and how many were cut.
pub fn cut(text: &str, most: usize) -> Cow<'_, str> {
    if text.len() <= most {
        return text.into();
    }
    let end = text.floor_char_boundary(most);
    format!("{} … ({} bytes cut)", &text[..end], text.len() - end).into()
}

/// At most `most` bytes of what `shown` writes, and a mark if more was to come. What is cut is
/// never made: writing ends with an error there.
pub fn bounded(shown: &dyn fmt::Display, most: usize) -> String {
    let mut words = Bounded::new(most);
    // An error only says that the bound was reached, which the mark says too.
    let _ = write!(words, "{shown}");
    words.finish()
}

/// The same for a name or a message in one line: without what a terminal acts on, a reader
/// can't see, or lines are ended by.
pub fn bounded_line(shown: &dyn fmt::Display, most: usize) -> String {
    escape(&bounded(shown, most)).into_owned()
}

/// Escapes control characters, and those that are invisible or turn the order of others.
pub fn escape(text: &str) -> Cow<'_, str> {
    if !text.contains(is_hidden) {
        return text.into();
    }
    let mut plain = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_hidden(c) {
            plain.extend(c.escape_default());
        } else {
            plain.push(c);
        }
    }
    plain.into()
}

fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Takes words up to a bound, and fails then.
pub struct Bounded {
    words: String,
    most: usize,
    is_cut: bool,
}

impl Bounded {
    /// Room for `most` bytes.
    pub fn new(most: usize) -> Self {
        Self { words: String::new(), most, is_cut: false }
    }

    /// What was written, with a mark if that is not all.
    pub fn finish(mut self) -> String {
        if self.is_cut {
            self.words.push_str(" … (cut)");
        }
        self.words
    }
}

impl Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.is_cut {
            return Err(fmt::Error);
        }
        let end = text.floor_char_boundary(self.most - self.words.len());
        self.words.push_str(&text[..end]);
        self.is_cut = end < text.len();
        if self.is_cut { Err(fmt::Error) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_words_are_cut_between_characters_and_say_so() {
        assert_eq!(cut("short", 5), "short");
        assert_eq!(cut("éé", 3), "é … (2 bytes cut)");
        assert_eq!(bounded(&"short", 5), "short");
        assert_eq!(bounded(&"éé", 3), "é … (cut)");
    }

    #[test]
    fn what_would_never_end_is_not_made() {
        struct Endless;
        impl fmt::Display for Endless {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                loop {
                    f.write_str("word ")?;
                }
            }
        }
        assert_eq!(bounded(&Endless, 8), "word wor … (cut)");
    }

    #[test]
    fn what_acts_on_a_terminal_or_hides_is_escaped() {
        assert_eq!(escape("plain – é 日本"), "plain – é 日本");
        assert_eq!(escape("a\x1b[2J\nb"), "a\\u{1b}[2J\\nb");
        assert_eq!(escape("\u{202e}gpj\u{200b}.exe"), "\\u{202e}gpj\\u{200b}.exe");
    }
}
