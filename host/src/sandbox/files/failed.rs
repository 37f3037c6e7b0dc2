//! The last file call of a guest that failed. The errors of most languages don't name the file.

use super::types::ErrorCode;
use crate::words;

/// The most bytes that are kept of a path.
const MOST_OF_PATH: usize = 300;

/// A file call that failed.
#[derive(Debug, Clone)]
pub(in super::super) struct FailedCall {
    /// The call, its path, and why: `open /inputs/a.png: no such file`.
    text: String,
    /// The last name in the path.
    name: String,
    code: ErrorCode,
}

impl FailedCall {
    /// `call` is a verb, and `directory` ends with a slash.
    pub(super) fn new(call: &str, directory: &str, path: &str, code: ErrorCode) -> Self {
        let name = path.rsplit('/').find(|name| !name.is_empty()).unwrap_or(path);
        let path = words::cut(path.trim_start_matches('/'), MOST_OF_PATH);
        let text = format!("{call} {directory}{path}: {}", reason(code));
        Self { text, name: words::cut(name, MOST_OF_PATH).into_owned(), code }
    }

    /// The call, its path, and why it failed.
    pub(in super::super) fn text(&self) -> &str {
        &self.text
    }

    /// Replaces the system's error text at the end of `error` by this call. None if `error` does
    /// not end with it or already names the file.
    pub(in super::super) fn put_into(&self, error: &str) -> Option<String> {
        let (words, number) = error.strip_suffix(')')?.rsplit_once(" (os error ")?;
        if number.parse() != Ok(errno(self.code)?) || error.contains(&self.name) {
            return None;
        }
        let context = words.rfind(": ").map_or("", |at| &words[..at + 2]);
        Some(format!("{context}{}", self.text))
    }
}

fn reason(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::Access | ErrorCode::NotPermitted => "not permitted",
        ErrorCode::Exist => "it exists",
        ErrorCode::InsufficientSpace | ErrorCode::Quota => "no room",
        ErrorCode::Invalid => "not allowed",
        ErrorCode::IsDirectory => "it is a directory",
        ErrorCode::NameTooLong => "the name is too long",
        ErrorCode::NoEntry => "no such file",
        ErrorCode::NotDirectory => "not a directory",
        ErrorCode::NotEmpty => "the directory is not empty",
        ErrorCode::ReadOnly => "it is read-only",
        code => code.name(),
    }
}

/// The error number of a code in wasi-libc, for the codes that calls with a path return.
fn errno(code: ErrorCode) -> Option<u32> {
    Some(match code {
        ErrorCode::Access => 2,
        ErrorCode::Quota => 19,
        ErrorCode::Exist => 20,
        ErrorCode::Invalid => 28,
        ErrorCode::Io => 29,
        ErrorCode::IsDirectory => 31,
        ErrorCode::NameTooLong => 37,
        ErrorCode::NoEntry => 44,
        ErrorCode::InsufficientSpace => 51,
        ErrorCode::NotDirectory => 54,
        ErrorCode::NotEmpty => 55,
        ErrorCode::NotPermitted => 63,
        ErrorCode::ReadOnly => 69,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_the_system_gets_the_call_that_it_is_about() {
        let call = FailedCall::new("open", "/inputs/", "a/nothing.png", ErrorCode::NoEntry);
        let check = |error: &str, want: Option<&str>| {
            assert_eq!(call.put_into(error).as_deref(), want, "{error}");
        };
        let text = "open /inputs/a/nothing.png: no such file";
        assert_eq!(call.text(), text);
        check("No such file or directory (os error 44)", Some(text));
        check(
            "the mask: No such file or directory (os error 44)",
            Some("the mask: open /inputs/a/nothing.png: no such file"),
        );
        check("input nothing.png: No such file or directory (os error 44)", None);
        check("Permission denied (os error 2)", None);
        check("No such file or directory", None);
        check("no image", None);
    }
}
