//! Classifies the tokens of an error: words, numbers, and things that differ between tasks.

use std::borrow::Cow;

/// Stands for numbers.
pub(super) const NUMBER: &str = "#";
/// Stands for ids, digests, paths, addresses and names.
pub(super) const OTHER: &str = "…";

/// Words with a slash that are not paths.
const SLASHED: [&str; 6] = ["and/or", "i/o", "input/output", "n/a", "read/write", "tcp/ip"];
/// Words after which a number names an error: an HTTP status, an exit code, a signal.
const CODES: [&str; 6] = ["code", "errno", "exit", "http", "signal", "status"];
/// Names of types, hashes and encodings that end with a number.
const TYPES: [&str; 12] =
    ["base", "bool", "complex", "f", "float", "i", "int", "latin-", "sha-", "u", "uint", "utf-"];
/// Units of numbers. They are removed, because they differ with the size of the number.
const UNITS: [&str; 20] = [
    "B", "GB", "GiB", "KB", "KiB", "MB", "MiB", "PiB", "TB", "TiB", "h", "hours", "kB", "m", "min",
    "ms", "ns", "s", "us", "µs",
];
/// Extensions of source files. The names of these files are the same for all tasks.
const SOURCES: [&str; 14] =
    ["c", "cc", "cpp", "cs", "go", "h", "java", "jl", "js", "mjs", "py", "rb", "rs", "ts"];
/// The most digits of a number that may be a code.
const CODE: usize = 3;
/// The fewest characters of an id with digits and letters.
const ID: usize = 16;
/// The fewest digits and letters of a hexadecimal id.
const HEX: usize = 4;

/// The kind of a token.
pub(super) enum Kind<'a> {
    Number,
    Other,
    /// A word, in which `#` stands for numbers.
    Word(Cow<'a, str>),
}

/// True for a character that can be part of a token. All others separate tokens.
pub(super) fn is_part(c: char) -> bool {
    c.is_alphanumeric()
        || matches!(c, '_' | '-' | '.' | '/' | ':' | '@' | '~' | '+' | '\\' | '?' | '&' | '*')
        || matches!(c, '!' | '\u{300}'..='\u{36f}' | '…')
}

/// The length of the token at the start of a text. A URL ends at white space, a quotation mark or a
/// bracket.
pub(super) fn len(text: &str) -> usize {
    let len = text.find(|c| !is_part(c)).unwrap_or(text.len());
    let is_end = |c: char| c.is_whitespace() || "\"'`()<>[]{}".contains(c);
    match text[..len].contains("://") {
        true => text.find(is_end).unwrap_or(text.len()),
        false => len,
    }
}

/// Classifies a token. `before` are the two words before it.
pub(super) fn kind<'a>(token: &'a str, before: [&str; 2]) -> Kind<'a> {
    let has_digit = token.bytes().any(|byte| byte.is_ascii_digit());
    let is_digit = |c: char| c.is_ascii_digit();
    if has_digit && is_number(token) {
        return match token.len() <= CODE && token.chars().all(is_digit) && is_code_after(before) {
            true => Kind::Word(token.into()),
            false => Kind::Number,
        };
    }
    // A position in a file, or a port.
    let name = token.trim_end_matches(|c: char| c.is_ascii_digit() || c == ':');
    let numbers = &token[name.len()..];
    if numbers.starts_with(':') && !name.is_empty() {
        return match kind(name, before) {
            Kind::Word(word) => Kind::Word(format!("{word}:{NUMBER}").into()),
            kind => kind,
        };
    }
    if let Some(source) = source(token) {
        return Kind::Word(with_marks(source));
    }
    if is_place(token) || is_file(token) || is_id(token) {
        return Kind::Other;
    }
    Kind::Word(match has_digit && !is_type(token) {
        true => with_marks(token),
        false => token.into(),
    })
}

/// True for numbers, times, addresses in digits, and numbers with a unit.
fn is_number(token: &str) -> bool {
    if token.starts_with("0x") {
        return true;
    }
    let unit = token.trim_start_matches(|c: char| {
        c.is_ascii_digit() || matches!(c, '-' | '+' | '.' | ':' | '/' | '_' | 'T' | 'Z')
    });
    let is_exponent = || {
        let rest = unit.strip_prefix(['e', 'E']).unwrap_or("x");
        rest.trim_start_matches(['-', '+']).bytes().all(|byte| byte.is_ascii_digit())
    };
    let has_digit = token[..token.len() - unit.len()].bytes().any(|byte| byte.is_ascii_digit());
    has_digit && (unit.is_empty() || UNITS.contains(&unit) || is_exponent())
}

fn is_code_after([first, second]: [&str; 2]) -> bool {
    let is = |word: &str, wanted: &str| word.eq_ignore_ascii_case(wanted);
    CODES.iter().any(|code| is(second, code))
        || second.get(..5).is_some_and(|start| is(start, "http/"))
        || is(second, "error") && (is(first, "os") || is(first, "http"))
}

/// The name of a source file, without its directories.
fn source(token: &str) -> Option<&str> {
    let name = token.rsplit(['/', '\\']).next()?;
    let (stem, ending) = name.rsplit_once('.')?;
    let is_source = !stem.is_empty() && SOURCES.contains(&ending) && !token.contains("://");
    is_source.then_some(name)
}

/// True for paths, URLs and addresses.
fn is_place(token: &str) -> bool {
    let is_slashed = || SLASHED.iter().any(|word| token.eq_ignore_ascii_case(word));
    token.contains('/') && token.len() > 1 && !is_slashed()
        || token.starts_with("\\\\")
        || token.get(1..3) == Some(":\\")
        || token.split_once('@').is_some_and(|(user, host)| !user.is_empty() && !host.is_empty())
}

/// True for a file name: a stem, and an extension of two to five lower-case letters or digits.
fn is_file(token: &str) -> bool {
    let is_ending = |ending: &str| {
        (2..=5).contains(&ending.len())
            && ending.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
            && ending.bytes().any(|byte| byte.is_ascii_lowercase())
    };
    let is_stem = |stem: &str| stem.chars().any(char::is_alphanumeric) && !stem.ends_with('.');
    token.rsplit_once('.').is_some_and(|(stem, ending)| is_stem(stem) && is_ending(ending))
}

/// True for ids: hexadecimal numbers, and runs of mixed digits and letters.
fn is_id(token: &str) -> bool {
    let (mut changes, mut digits, mut letters, mut is_hex) = (0, 0, 0, true);
    let mut last = None;
    for c in token.chars().filter(|c| c.is_alphanumeric()) {
        let is_digit = c.is_ascii_digit();
        changes += usize::from(last.is_some_and(|last| last != is_digit));
        last = Some(is_digit);
        *if is_digit { &mut digits } else { &mut letters } += 1;
        is_hex &= c.is_ascii_hexdigit();
    }
    let is_mixed = digits > 0 && letters > 0;
    is_mixed && (is_hex && digits + letters >= HEX || changes >= 3)
        || is_mixed && token.len() >= ID && changes >= 2
        || is_hex && digits + letters >= 2 * ID
}

/// True if a text in backticks is code: a path such as `Option::unwrap()`, a variant such as
/// `None`, or an option such as `--timeout`.
pub(super) fn is_code(quoted: &str) -> bool {
    let is_of_option = |c: char| c.is_ascii_lowercase() || c == '-';
    if quoted.strip_prefix("--").is_some_and(|name| name.chars().all(is_of_option)) {
        return true;
    }
    let is_plain = quoted.chars().all(|c| c.is_ascii_alphabetic() || "_:()<>".contains(c));
    is_plain && (quoted.contains("::") || ["None", "Some", "Ok", "Err"].contains(&quoted))
}

fn is_type(token: &str) -> bool {
    let name = token.trim_end_matches(|c: char| c.is_ascii_digit());
    let is = |kind: &&str| name.eq_ignore_ascii_case(kind);
    TYPES.iter().any(is)
        && matches!(&token[name.len()..], "1" | "8" | "16" | "32" | "64" | "128" | "256" | "512")
}

/// The token with `#` for each run of digits.
fn with_marks(token: &str) -> Cow<'_, str> {
    if !token.bytes().any(|byte| byte.is_ascii_digit()) {
        return token.into();
    }
    let mut marked = String::with_capacity(token.len());
    for c in token.chars() {
        match c.is_ascii_digit() {
            true if marked.ends_with(NUMBER) => {}
            true => marked.push_str(NUMBER),
            false => marked.push(c),
        }
    }
    marked.into()
}

/// The text after a number, without the number's unit.
pub(super) fn without_unit(rest: &str) -> &str {
    let Some(after) = rest.strip_prefix(' ') else { return rest };
    let len = after.find(|c: char| !c.is_alphanumeric()).unwrap_or(after.len());
    match UNITS.contains(&&after[..len]) {
        true => &after[len..],
        false => rest,
    }
}
