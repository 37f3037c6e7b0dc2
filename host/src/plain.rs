//! Detects and escapes characters that are invisible or that change how a text is shown.
//!
//! A text from outside may contain control characters, which change the state of a terminal, marks
//! that reverse the direction of writing, and characters without width. New names can't contain
//! such characters. Other texts are escaped where they are shown. Letters and combining marks of
//! all scripts, spaces and symbols are plain.

use std::borrow::Cow;
use std::fmt::Write;

use icu_properties::props::{
    DefaultIgnorableCodePoint, GeneralCategory, NoncharacterCodePoint, PrependedConcatenationMark,
};
use icu_properties::{CodePointMapData, CodePointSetData};

/// Indents the lines after the first.
const INDENT: &str = "    ";

/// True for a character that is visible, or a space, and does not change the text around it.
///
/// False for controls (general category Cc), format characters (Cf: direction marks, joiners,
/// spaces without width), line and paragraph separators (Zl, Zp), code points that are never shown
/// (`Default_Ignorable_Code_Point`: variation selectors, fillers, tags) and noncharacters.
/// Unassigned code points are plain, so that hosts with different versions of Unicode agree. The
/// visible format characters of some scripts (`Prepended_Concatenation_Mark`) are plain too.
pub fn is_plain(c: char) -> bool {
    if matches!(c, ' '..='~') {
        return true;
    }
    let is_shown = match CodePointMapData::<GeneralCategory>::new().get(c) {
        GeneralCategory::Control
        | GeneralCategory::LineSeparator
        | GeneralCategory::ParagraphSeparator => false,
        GeneralCategory::Format => {
            CodePointSetData::new::<PrependedConcatenationMark>().contains(c)
        }
        _ => true,
    };
    is_shown
        && !CodePointSetData::new::<DefaultIgnorableCodePoint>().contains(c)
        && !CodePointSetData::new::<NoncharacterCodePoint>().contains(c)
}

/// The first character of a text that is not plain.
pub fn first_odd(text: &str) -> Option<char> {
    text.chars().find(|c| !is_plain(*c))
}

/// The text on one line, with an escape such as `\n` or `\u{202e}` for each character that is not
/// plain. Backslashes are not escaped, because the result is for people and not for parsers.
pub fn escape(text: &str) -> Cow<'_, str> {
    if first_odd(text).is_none() {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        push_escaped(&mut escaped, c);
    }
    Cow::Owned(escaped)
}

/// As [`escape`], for a text of several lines. Keeps line feeds and tabs. Indents the lines after
/// the first, so that none looks like a separate log line.
pub fn escape_lines(text: &str) -> Cow<'_, str> {
    if first_odd(text).is_none() {
        return Cow::Borrowed(text);
    }
    let is_indented = |line: &str| line.is_empty() || line.starts_with([' ', '\t']);
    // Either all lines are indented or none, so that they stay aligned.
    let indent = if text.split('\n').skip(1).all(is_indented) { "" } else { INDENT };
    let mut escaped = String::with_capacity(text.len() + 16);
    for (number, line) in text.split('\n').enumerate() {
        if number > 0 {
            escaped.push('\n');
            escaped.push_str(if line.is_empty() { "" } else { indent });
        }
        for c in line.chars() {
            match c {
                '\t' => escaped.push(c),
                c => push_escaped(&mut escaped, c),
            }
        }
    }
    Cow::Owned(escaped)
}

/// Adds a character or its escape.
pub fn push_escaped(text: &mut String, c: char) {
    match c {
        '\n' => text.push_str("\\n"),
        '\r' => text.push_str("\\r"),
        '\t' => text.push_str("\\t"),
        c if is_plain(c) => text.push(c),
        // Writing to a string can't fail.
        c => drop(write!(text, "{}", c.escape_unicode())),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn invisible_characters_are_not_plain() {
        for c in [
            '\0',
            '\t',
            '\n',
            '\r',
            '\u{1b}',
            '\u{7f}',
            '\u{85}',
            '\u{9b}',
            '\u{ad}',
            '\u{34f}',
            '\u{61c}',
            '\u{115f}',
            '\u{180e}',
            '\u{200b}',
            '\u{200c}',
            '\u{200d}',
            '\u{200e}',
            '\u{200f}',
            '\u{2028}',
            '\u{2029}',
            '\u{202a}',
            '\u{202e}',
            '\u{2060}',
            '\u{2066}',
            '\u{2069}',
            '\u{3164}',
            '\u{fe0f}',
            '\u{feff}',
            '\u{fff9}',
            '\u{fffe}',
            '\u{ffff}',
            '\u{fdd0}',
            '\u{e0001}',
            '\u{e0041}',
            '\u{10ffff}',
        ] {
            assert!(!is_plain(c), "{c:?}");
        }
    }

    #[test]
    fn all_scripts_are_plain() {
        let texts = [
            "NO_OP",
            "ΔF/F",
            "é",
            "e\u{301}",
            "data set (2).tif",
            "\u{a0}\u{3000}",
            "日本語",
            "한국어",
            "العربية",
            "עברית",
            "हिन्दी",
            "ไทย",
            "🦀",
            "µm²",
            "\u{600}12",
            "\u{e000}",
            "\u{378}",
            "\u{fffd}",
        ];
        for text in texts {
            assert_eq!(first_odd(text), None, "{text:?}");
            assert!(matches!(escape(text), Cow::Borrowed(_)) && escape(text) == text);
        }
    }

    #[test]
    fn a_text_is_escaped_where_it_is_not_plain() {
        assert_eq!(escape("a\\n\u{1b}[2J\n\té\u{202e}"), "a\\n\\u{1b}[2J\\n\\té\\u{202e}");
        assert_eq!(
            escape_lines("one\ntwo\r\n\tthree\n  four\n\nERROR five\u{9b}"),
            "one\n    two\\r\n    \tthree\n      four\n\n    ERROR five\\u{9b}"
        );
        assert_eq!(escape_lines("one\n  two\n\tthree"), "one\n  two\n\tthree");
    }

    proptest! {
        #[test]
        fn escaped_text_is_plain(text: String) {
            prop_assert_eq!(first_odd(&escape(&text)), None);
            for (number, line) in escape_lines(&text).split('\n').enumerate() {
                prop_assert_eq!(first_odd(&line.replace('\t', "")), None);
                prop_assert!(number == 0 || line.is_empty() || line.starts_with([' ', '\t']));
            }
        }
    }
}
