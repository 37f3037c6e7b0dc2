//! Reads standard JSON and Python's JSON without changing it, and writes JSON with escapes.
//!
//! Python's `json` module also writes and reads the numbers `NaN`, `Infinity` and `-Infinity`. The
//! standard does not have these numbers, and `serde_json` rejects them, so this module reads
//! messages. A [`Value`] is the text of a value: numbers keep their digits, and objects keep the
//! order and the spelling of their fields.

mod escaping;

use std::borrow::Cow;
use std::fmt;

pub use escaping::to_line;

/// The deepest nesting of arrays and objects that every reader accepts. `serde_json` reads 128
/// levels, and Python about a thousand.
const SAFE_DEPTH: usize = 100;
/// The longest number, in characters, that every reader accepts. Python reads integers of 4,300
/// digits, and Java's most used reader reads numbers of 1,000 characters.
const SAFE_NUMBER: usize = 1000;
/// Numbers without an exponent and of at most this many characters are within the range of a 64-bit
/// float, which is 1.8e308.
const FINITE: usize = 308;

/// The text of one JSON value, without the white space around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Value<'a>(&'a str);

/// The place where a text stops being JSON, and what was expected there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct SyntaxError {
    expected: &'static str,
    /// The text ended at this place.
    is_end: bool,
    line: usize,
    column: usize,
}

impl fmt::Display for SyntaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { expected, is_end, line, column } = self;
        if *is_end {
            write!(f, "the text ends where {expected} was expected")?;
        } else {
            write!(f, "expected {expected}")?;
        }
        write!(f, " at line {line} column {column}")
    }
}

/// Checks that a text is a JSON value.
///
/// # Errors
/// Says at which line and column the text is not JSON.
pub fn parse(text: &str) -> Result<Value<'_>, SyntaxError> {
    Scanner::new(text).whole()
}

impl<'a> Value<'a> {
    /// The text.
    pub fn text(self) -> &'a str {
        self.0
    }

    /// True if every reader of JSON accepts the value. False if it has numbers that only Python
    /// writes, numbers that are too long or too large, unpaired surrogates, or more than 100 levels.
    pub fn is_portable(self) -> bool {
        let mut scanner = Scanner::new(self.0);
        scanner.whole().is_ok()
            && !scanner.has_python_numbers
            && !scanner.has_half_pairs
            && !scanner.has_unsafe_numbers
            && scanner.depth <= SAFE_DEPTH
    }

    /// The fields of an object in their order, read lazily. None for other values.
    pub fn fields(self) -> Option<Fields<'a>> {
        let mut scanner = Scanner::new(self.0);
        scanner.eat(b'{').then_some(Fields(scanner))
    }

    /// The items of an array, read lazily. None for other values.
    pub fn items(self) -> Option<Items<'a>> {
        let mut scanner = Scanner::new(self.0);
        scanner.eat(b'[').then_some(Items(scanner))
    }

    /// True for a string, even if [`string`](Self::string) returns none.
    pub fn is_string(self) -> bool {
        self.0.starts_with('"')
    }

    /// The unescaped text of a string. None for other values, and for a string with an unpaired
    /// surrogate.
    pub fn string(self) -> Option<Cow<'a, str>> {
        let inside = self.0.strip_prefix('"')?.strip_suffix('"')?;
        if inside.contains('\\') {
            serde_json::from_str(self.0).ok().map(Cow::Owned)
        } else {
            Some(Cow::Borrowed(inside))
        }
    }

    /// True for a string with this unescaped text.
    pub fn is(self, text: &str) -> bool {
        self.string().is_some_and(|string| string == text)
    }
}

/// The fields of an object: names and values.
#[derive(Debug, Clone)]
pub struct Fields<'a>(Scanner<'a>);

/// The items of an array.
#[derive(Debug, Clone)]
pub struct Items<'a>(Scanner<'a>);

impl<'a> Iterator for Fields<'a> {
    type Item = (Value<'a>, Value<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let name = self.0.next_in(b'}')?;
        self.0.space();
        self.0.eat(b':');
        Some((name, self.0.value().ok()?))
    }
}

impl<'a> Iterator for Items<'a> {
    type Item = Value<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next_in(b']')
    }
}

/// Reads a text once. Each level of nesting takes one byte of the heap and no stack.
#[derive(Debug, Clone)]
struct Scanner<'a> {
    text: &'a str,
    at: usize,
    has_python_numbers: bool,
    has_half_pairs: bool,
    /// A number is longer than [`SAFE_NUMBER`], or out of the range of a 64-bit float.
    has_unsafe_numbers: bool,
    /// The deepest level so far.
    depth: usize,
}

impl<'a> Scanner<'a> {
    fn new(text: &'a str) -> Self {
        Self {
            text,
            at: 0,
            has_python_numbers: false,
            has_half_pairs: false,
            has_unsafe_numbers: false,
            depth: 0,
        }
    }

    /// The next value of an array or object that `closing` ends. None at its end.
    fn next_in(&mut self, closing: u8) -> Option<Value<'a>> {
        self.space();
        self.eat(b',');
        self.space();
        if self.peek() == Some(closing) { None } else { self.value().ok() }
    }

    /// The only value of the text.
    fn whole(&mut self) -> Result<Value<'a>, SyntaxError> {
        let value = self.value()?;
        self.space();
        match self.peek() {
            None => Ok(value),
            Some(_) => Err(self.expected("the end of the text")),
        }
    }

    /// The next value.
    fn value(&mut self) -> Result<Value<'a>, SyntaxError> {
        self.space();
        let start = self.at;
        self.skip()?;
        Ok(Value(self.text.get(start..self.at).unwrap_or_default()))
    }

    /// Moves to the end of a value.
    fn skip(&mut self) -> Result<(), SyntaxError> {
        // The closing byte of each open array or object.
        let mut open: Vec<u8> = Vec::new();
        loop {
            self.space();
            match self.peek() {
                Some(b'{') => {
                    self.at += 1;
                    self.depth = self.depth.max(open.len() + 1);
                    self.space();
                    if !self.eat(b'}') {
                        self.name()?;
                        open.push(b'}');
                        continue;
                    }
                }
                Some(b'[') => {
                    self.at += 1;
                    self.depth = self.depth.max(open.len() + 1);
                    self.space();
                    if !self.eat(b']') {
                        open.push(b']');
                        continue;
                    }
                }
                Some(b'"') => self.string()?,
                Some(b'-' | b'0'..=b'9') => self.number()?,
                _ => self.word()?,
            }
            // The value has ended. The arrays and objects around it may end here too.
            loop {
                let Some(&closing) = open.last() else { return Ok(()) };
                self.space();
                if self.eat(closing) {
                    open.pop();
                } else if self.eat(b',') {
                    if closing == b'}' {
                        self.space();
                        self.name()?;
                    }
                    break;
                } else {
                    let expected = if closing == b'}' { "`,` or `}`" } else { "`,` or `]`" };
                    return Err(self.expected(expected));
                }
            }
        }
    }

    /// The name of a field, and the colon.
    fn name(&mut self) -> Result<(), SyntaxError> {
        if self.peek() != Some(b'"') {
            return Err(self.expected("the name of a field in double quotes"));
        }
        self.string()?;
        self.space();
        if self.eat(b':') { Ok(()) } else { Err(self.expected("`:`")) }
    }

    fn string(&mut self) -> Result<(), SyntaxError> {
        self.at += 1;
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b'\\') => self.escape()?,
                Some(0..=0x1f) => {
                    return Err(self.expected("an escape such as `\\n`, not a control character"));
                }
                Some(_) => self.at += 1,
                None => return Err(self.expected("the end of a string")),
            }
        }
    }

    fn escape(&mut self) -> Result<(), SyntaxError> {
        self.at += 1;
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 1,
            Some(b'u') => match self.unit()? {
                0xd800..=0xdbff => {
                    let after = self.at;
                    let is_pair = self.eat(b'\\')
                        && self.peek() == Some(b'u')
                        && self.unit().is_ok_and(|unit| (0xdc00..=0xdfff).contains(&unit));
                    if !is_pair {
                        self.at = after;
                        self.has_half_pairs = true;
                    }
                }
                0xdc00..=0xdfff => self.has_half_pairs = true,
                _ => {}
            },
            _ => return Err(self.expected("one of the characters that JSON escapes")),
        }
        Ok(())
    }

    /// The UTF-16 code unit of an escape. Begins at its `u`.
    fn unit(&mut self) -> Result<u32, SyntaxError> {
        self.at += 1;
        let digits = self.text.as_bytes().get(self.at..self.at + 4).unwrap_or_default();
        let digits = std::str::from_utf8(digits).unwrap_or_default();
        if digits.len() == 4 && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            self.at += 4;
            Ok(u32::from_str_radix(digits, 16).unwrap_or_default())
        } else {
            Err(self.expected("four hexadecimal digits"))
        }
    }

    fn number(&mut self) -> Result<(), SyntaxError> {
        let start = self.at;
        if self.eat(b'-') && self.literal("Infinity") {
            self.has_python_numbers = true;
            return Ok(());
        }
        // No other digit may follow a leading zero.
        if !self.eat(b'0') {
            self.digits()?;
        }
        if self.eat(b'.') {
            self.digits()?;
        }
        if self.eat(b'e') || self.eat(b'E') {
            let _ = self.eat(b'+') || self.eat(b'-');
            self.digits()?;
        }
        let number = &self.text[start..self.at];
        self.has_unsafe_numbers |= number.len() > SAFE_NUMBER || !is_finite(number);
        Ok(())
    }

    fn digits(&mut self) -> Result<(), SyntaxError> {
        let start = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        if self.at == start { Err(self.expected("a digit")) } else { Ok(()) }
    }

    fn word(&mut self) -> Result<(), SyntaxError> {
        if ["true", "false", "null"].iter().any(|word| self.literal(word)) {
            return Ok(());
        }
        if self.literal("NaN") || self.literal("Infinity") {
            self.has_python_numbers = true;
            return Ok(());
        }
        Err(self.expected("a value"))
    }

    fn literal(&mut self, word: &str) -> bool {
        let is_there = self.text.as_bytes()[self.at..].starts_with(word.as_bytes());
        if is_there {
            self.at += word.len();
        }
        is_there
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn eat(&mut self, byte: u8) -> bool {
        let is_there = self.peek() == Some(byte);
        self.at += usize::from(is_there);
        is_there
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn expected(&self, expected: &'static str) -> SyntaxError {
        let before = &self.text.as_bytes()[..self.at.min(self.text.len())];
        let line = before.iter().filter(|&&b| b == b'\n').count() + 1;
        let start = before.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
        let column = String::from_utf8_lossy(&before[start..]).chars().count() + 1;
        SyntaxError { expected, is_end: self.at >= self.text.len(), line, column }
    }
}

/// True if a number is within the range of a 64-bit float. `serde_json` and Go reject other numbers.
fn is_finite(number: &str) -> bool {
    let is_small = number.len() <= FINITE && !number.contains(['e', 'E']);
    is_small || number.parse().is_ok_and(f64::is_finite)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::value::RawValue;

    use super::*;

    /// JSON, almost JSON, and random texts.
    fn almost_json() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            any::<f64>().prop_map(|n| serde_json::Value::from(n).to_string()),
            "-?0?[0-9]{0,3}[.]?[0-9]{0,2}[eE]?[+-]?[0-9]{0,3}",
            ".{0,8}".prop_map(|text| serde_json::Value::from(text).to_string()),
            r#""(\\u[dD][89abcdefABCDEF][0-9a-f]{2}|\\.|[a\t]){0,3}""#,
            "(true|false|null|nul|NaNs?|-?Infinity|)",
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            let items = proptest::collection::vec(inner.clone(), 0..4);
            let fields = proptest::collection::vec(("\"[a-c]?\"|a", inner), 0..4);
            prop_oneof![
                (items, "[ \n]?,?").prop_map(|(items, end)| format!("[{}{end}]", items.join(" ,"))),
                (fields, "[ \t]?,?").prop_map(|(fields, end)| {
                    let fields: Vec<_> = fields.iter().map(|(k, v)| format!("{k} : {v}")).collect();
                    format!("{{{}{end}}}", fields.join(","))
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_serde_json_reads_is_read_and_nothing_else(text in almost_json()) {
            let ours = parse(&text);
            let theirs = serde_json::from_str::<&RawValue>(&text);
            let has_python_numbers = text.contains("NaN") || text.contains("Infinity");
            prop_assert!(ours.is_ok() == theirs.is_ok() || has_python_numbers, "{text}: {ours:?}");
            if let (Ok(ours), Ok(theirs)) = (ours, theirs) {
                prop_assert_eq!(ours.text(), theirs.get());
            }
        }

        #[test]
        fn what_is_portable_is_a_value_of_serde_json(text in almost_json()) {
            let Ok(value) = parse(&text) else { return Ok(()) };
            let theirs = serde_json::from_str::<serde_json::Value>(&text);
            prop_assert_eq!(value.is_portable(), theirs.is_ok(), "{}", text);
        }

        #[test]
        fn parts_put_together_are_the_whole(text in almost_json()) {
            let Ok(value) = parse(&text) else { return Ok(()) };
            if let Some(items) = value.items() {
                let items: Vec<_> = items.map(Value::text).collect();
                let again = format!("[{}]", items.join(","));
                prop_assert_eq!(parse(&again).unwrap().items().unwrap().count(), items.len());
            }
            if let Some(fields) = value.fields() {
                for (name, value) in fields {
                    prop_assert!(name.is_string());
                    prop_assert_eq!(parse(value.text()), Ok(value));
                }
            }
        }

        #[test]
        fn any_text_is_read_or_refused(text: String) {
            if let Err(error) = parse(&text) {
                prop_assert!(!error.to_string().is_empty());
            }
        }
    }

    #[test]
    fn the_numbers_of_python_are_read_where_numbers_may_be() {
        let is_read = |text: &str| parse(text).is_ok();
        for text in ["NaN", "Infinity", "-Infinity", " [NaN,-Infinity] ", r#"{"a": Infinity}"#] {
            assert!(is_read(text), "{text}");
            assert!(!parse(text).unwrap().is_portable(), "{text}");
        }
        for text in ["nan", "-NaN", "+Infinity", "Infinit", "NaN1", "{NaN: 1}", "NaN NaN"] {
            assert!(!is_read(text), "{text}");
        }
        assert!(parse(r#"["NaN", "-Infinity"]"#).unwrap().is_portable());
    }

    #[test]
    fn what_some_reader_can_not_read_is_not_portable() {
        let check = |text: &str, want: bool| {
            assert_eq!(parse(text).unwrap().is_portable(), want, "{text:.80}");
        };
        check(r#"{"a": [1e300, "\ud83d\ude00", "\u0000"]}"#, true);
        check("[1e-400, 1.7e308, 0e999]", true);
        check("[1e400]", false);
        check("[-1e309]", false);
        check(r#""\ud83d""#, false);
        check(r#""\ude00""#, false);
        check(r#""\ud83d\u0041""#, false);
        check(r#""\\ud83d""#, true);
        check(&("[".repeat(100) + &"]".repeat(100)), true);
        check(&("[".repeat(101) + &"]".repeat(101)), false);
        // Deep nesting must not exhaust the stack.
        check(&("[".repeat(10_000_000) + &"]".repeat(10_000_000)), false);
        check(&format!("[-{}]", "9".repeat(308)), true);
        check(&format!("[-{}]", "9".repeat(309)), false);
        check(&format!("[0.{}]", "9".repeat(998)), true);
        check(&format!("[0.{}]", "9".repeat(999)), false);
        check(&format!("{{\"a\": 1.{}}}", "0".repeat(1_000_000)), false);
        check(&format!("\"{}\"", "9".repeat(1_000_000)), true);
    }

    #[test]
    fn an_error_says_where_and_what_was_expected() {
        let check = |text: &str, want: &str| {
            assert_eq!(parse(text).unwrap_err().to_string(), want, "{text}");
        };
        check("", "the text ends where a value was expected at line 1 column 1");
        check("no task", "expected a value at line 1 column 1");
        check(
            "{\"ü\": 1,\n 2}",
            "expected the name of a field in double quotes at line 2 column 2",
        );
        check("[1 2]", "expected `,` or `]` at line 1 column 4");
        check(
            "{\"a\": \"x",
            "the text ends where the end of a string was expected at line 1 column 9",
        );
        check(
            "\"a\tb\"",
            "expected an escape such as `\\n`, not a control character at line 1 column 3",
        );
        check("{} {}", "expected the end of the text at line 1 column 4");
        check("01", "expected the end of the text at line 1 column 2");
        check("\"\\x\"", "expected one of the characters that JSON escapes at line 1 column 3");
        check("\"\\u00g0\"", "expected four hexadecimal digits at line 1 column 4");
    }

    #[test]
    fn a_string_is_what_it_stands_for() {
        assert!(parse(r#""n\u0061me""#).unwrap().is("name"));
        assert!(parse("\"name\"").unwrap().is("name"));
        assert_eq!(parse(r#""\ud800""#).unwrap().string(), None);
        assert_eq!(parse("1").unwrap().string(), None);
    }
}
