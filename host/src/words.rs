//! Words that guests, components and messages have a say in, made short enough for memory, logs
//! and reports.

use std::borrow::Cow;
use std::fmt::{self, Write};

use crate::plain;

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
    plain::escape(&bounded(shown, most)).into_owned()
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
}
