//! Limits the length of texts from guests, components and messages, for memory, logs and reports.

use std::borrow::Cow;
use std::fmt::{self, Write};

use crate::plain;

/// The first `most` bytes of a text, and how many bytes were cut.
pub fn cut(text: &str, most: usize) -> Cow<'_, str> {
    if text.len() <= most {
        return text.into();
    }
    let end = text.floor_char_boundary(most);
    format!("{} … ({} bytes cut)", &text[..end], text.len() - end).into()
}

/// The first `most` bytes that `shown` writes, with a mark if there is more. The rest is not
/// formatted, because writing fails at the limit.
pub fn bounded(shown: &dyn fmt::Display, most: usize) -> String {
    let mut words = Bounded::new(most);
    // The error means that the limit was reached, which the mark already shows.
    let _ = write!(words, "{shown}");
    words.finish()
}

/// As [`bounded`], on one line, with escapes for characters that are not plain.
pub fn bounded_line(shown: &dyn fmt::Display, most: usize) -> String {
    plain::escape(&bounded(shown, most)).into_owned()
}

/// Collects text up to a limit. Writing more fails.
pub struct Bounded {
    words: String,
    most: usize,
    is_cut: bool,
}

impl Bounded {
    /// Collects up to `most` bytes.
    pub fn new(most: usize) -> Self {
        Self { words: String::new(), most, is_cut: false }
    }

    /// The text that was written, with a mark if it was cut.
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
    fn long_texts_are_cut_between_characters_with_a_mark() {
        assert_eq!(cut("short", 5), "short");
        assert_eq!(cut("éé", 3), "é … (2 bytes cut)");
        assert_eq!(bounded(&"short", 5), "short");
        assert_eq!(bounded(&"éé", 3), "é … (cut)");
    }

    #[test]
    fn an_endless_text_is_cut() {
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
}
