//! Writes JSON on one line, with escapes for chosen characters.

use std::io;

use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

/// A value as one line of JSON. Characters for which `is_escaped` is true are written as `\uXXXX`.
///
/// A [`RawValue`](serde_json::value::RawValue) within the value keeps its spelling, except that
/// these characters are escaped. If they include line feeds or tabs, such a character between
/// values becomes a space.
///
/// # Errors
/// The errors of the value's `Serialize`.
pub fn to_line(
    value: &impl Serialize,
    is_escaped: fn(char) -> bool,
) -> serde_json::Result<Vec<u8>> {
    let mut line = Vec::with_capacity(256);
    value.serialize(&mut Serializer::with_formatter(&mut line, Escaping(is_escaped)))?;
    Ok(line)
}

struct Escaping(fn(char) -> bool);

impl Formatter for Escaping {
    fn write_string_fragment<W>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()>
    where
        W: ?Sized + io::Write,
    {
        let mut rest = fragment;
        while let Some(at) = rest.find(self.0) {
            let (before, found) = rest.split_at(at);
            writer.write_all(before.as_bytes())?;
            let mut chars = found.chars();
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
        // JSON strings can't contain line feeds and tabs, so these characters are between values.
        let is_space = |c| matches!(c, '\n' | '\r' | '\t') && (self.0)(c);
        let fragment = fragment.replace(is_space, " ");
        self.write_string_fragment(writer, &fragment)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;
    use crate::plain;

    #[test]
    fn json_is_the_same_value_on_one_plain_line() {
        let raw = "{\"a\u{202e}\" :\n\t[1.50, \"\u{7f}\u{9b}\u{e0001}é\"]\r}";
        let raw = RawValue::from_string(raw.to_owned()).unwrap();
        let value = (&raw, "b\u{1b}\u{feff}\n\u{10ffff}日");
        let line = to_line(&value, |c| !plain::is_plain(c)).unwrap();
        let line = String::from_utf8(line).unwrap();
        assert_eq!(plain::first_odd(&line), None, "{line}");
        let read = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(read(&line), serde_json::json!([read(raw.get()), value.1]));
        assert!(line.contains("1.50") && line.contains("\\udb40\\udc01é"), "{line}");
    }

    #[test]
    fn only_characters_of_the_set_are_escaped() {
        let raw = RawValue::from_string("[1,\n\t\"\u{ffff}é\"]".to_owned()).unwrap();
        let line = to_line(&raw, |c| c == '\u{ffff}').unwrap();
        assert_eq!(String::from_utf8(line).unwrap(), "[1,\n\t\"\\uffffé\"]");
    }
}
