//! A task's errors, and whether the host retries or rejects the task.

use std::error::Error as StdError;
use std::fmt;
use std::io;

/// A `Result` whose default error is [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the host does with a task that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Run the task again later, in a fresh instance, until its attempts are used up.
    Retry,
    /// Report the task on the error queue at once, because a retry would fail too.
    Reject,
}

/// Why a task failed: a [`Verdict`] and a text, which the host logs and puts into the error report.
///
/// # Conversion from other errors
/// `?` converts any [`std::error::Error`]. The text contains the whole chain of sources.
///
/// A task sees only its inputs, so a retry usually fails the same way. An error therefore
/// **rejects** the task, with one exception: a system [`io::Error`] that may be temporary (an I/O
/// error, an interrupted call, a timeout, too little memory), or an error caused by one,
/// **retries** the task. Other system errors reject it: not found, not permitted, read-only, an
/// invalid path, and full storage, because the limit on a task's outputs is the same next time.
///
/// To override this, use [`Classify::or_retry`] or [`Classify::or_reject`], or create the error
/// yourself:
///
/// ```
/// use task_host_sdk::{Classify, Context, Error, Result};
///
/// fn threshold(text: &str) -> Result<u8> {
///     let value: i64 = text.trim().parse().context("the threshold")?;
///     u8::try_from(value).map_err(|_| Error::reject(format!("threshold {value} is not in 0..=255")))
/// }
///
/// assert_eq!(threshold("12").unwrap(), 12);
/// let error = threshold("twelve").unwrap_err();
/// assert_eq!(error.text(), "the threshold: invalid digit found in string");
/// assert!(!error.is_retry());
/// assert!("x".parse::<u8>().or_retry().unwrap_err().is_retry());
/// ```
///
/// Like `anyhow::Error`, `Error` does not implement [`std::error::Error`], so that `?` can convert
/// every type that does.
#[derive(Clone, PartialEq, Eq)]
pub struct Error {
    verdict: Verdict,
    text: String,
}

impl Error {
    /// A failure that may be temporary: the host retries the task.
    pub fn retry(text: impl fmt::Display) -> Self {
        Self { verdict: Verdict::Retry, text: text.to_string() }
    }

    /// A permanent failure: the host rejects the task.
    pub fn reject(text: impl fmt::Display) -> Self {
        Self { verdict: Verdict::Reject, text: text.to_string() }
    }

    /// What the host should do with the task.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// Whether the host should retry the task.
    pub fn is_retry(&self) -> bool {
        self.verdict == Verdict::Retry
    }

    /// The text that says what went wrong.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Puts `CONTEXT: ` before the text, to say what the task was doing. Keeps the verdict.
    #[must_use]
    pub fn context(mut self, context: impl fmt::Display) -> Self {
        self.text = format!("{context}: {}", self.text);
        self
    }

    fn with_verdict(mut self, verdict: Verdict) -> Self {
        self.verdict = verdict;
        self
    }
}

impl<E: StdError + 'static> From<E> for Error {
    fn from(error: E) -> Self {
        Self { verdict: classify(&error), text: chain(&error) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The verdict and the text, for a failed `unwrap` in a test.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Retry => "retry",
            Verdict::Reject => "reject",
        };
        write!(f, "{verdict}: {}", self.text)
    }
}

/// Adds a context to an error: what the task was doing.
pub trait Context<T>: Sized {
    /// Puts `context: ` before the error's text. Rejects `None` with the text `context`.
    fn context(self, context: impl fmt::Display) -> Result<T>;

    /// Like `context`, but creates the text only if there is an error.
    fn with_context<C: fmt::Display>(self, context: impl FnOnce() -> C) -> Result<T>;
}

impl<T, E: Into<Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, context: impl fmt::Display) -> Result<T> {
        self.map_err(|error| error.into().context(context))
    }

    fn with_context<C: fmt::Display>(self, context: impl FnOnce() -> C) -> Result<T> {
        self.map_err(|error| error.into().context(context()))
    }
}

impl<T> Context<T> for Option<T> {
    fn context(self, context: impl fmt::Display) -> Result<T> {
        self.ok_or_else(|| Error::reject(context))
    }

    fn with_context<C: fmt::Display>(self, context: impl FnOnce() -> C) -> Result<T> {
        self.ok_or_else(|| Error::reject(context()))
    }
}

/// Overrides whether an error retries or rejects the task. [`Error`] documents the default.
pub trait Classify<T>: Sized {
    /// Turns an error into one that retries the task.
    fn or_retry(self) -> Result<T>;

    /// Turns an error into one that rejects the task.
    fn or_reject(self) -> Result<T>;
}

impl<T, E: Into<Error>> Classify<T> for std::result::Result<T, E> {
    fn or_retry(self) -> Result<T> {
        self.map_err(|error| error.into().with_verdict(Verdict::Retry))
    }

    fn or_reject(self) -> Result<T> {
        self.map_err(|error| error.into().with_verdict(Verdict::Reject))
    }
}

/// The rule that [`Error`] documents.
fn classify(error: &(dyn StdError + 'static)) -> Verdict {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            // If a library wrapped an error in an `io::Error`, classifies the wrapped error itself,
            // because `source` would skip it and return its source.
            return match io.get_ref() {
                Some(inner) if !may_be_temporary(io.kind()) => classify(inner),
                _ if may_be_temporary(io.kind()) => Verdict::Retry,
                _ if io.raw_os_error().is_some() && !is_permanent(io.kind()) => Verdict::Retry,
                _ => Verdict::Reject,
            };
        }
        next = error.source();
    }
    Verdict::Reject
}

/// Whether an error of this kind may be temporary, whether the system or a library reports it.
fn may_be_temporary(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::*;
    matches!(
        kind,
        Interrupted | TimedOut | WouldBlock | ResourceBusy | OutOfMemory | StaleNetworkFileHandle
    )
}

/// Whether a system error of this kind is permanent. Other system errors may be temporary, such as
/// an I/O error, which has no kind of its own.
fn is_permanent(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::*;
    matches!(
        kind,
        NotFound
            | PermissionDenied
            | AlreadyExists
            | NotADirectory
            | IsADirectory
            | DirectoryNotEmpty
            | ReadOnlyFilesystem
            | StorageFull
            | QuotaExceeded
            | FileTooLarge
            | InvalidFilename
            | InvalidInput
            | InvalidData
            | UnexpectedEof
            | NotSeekable
            | CrossesDevices
            | TooManyLinks
            | ArgumentListTooLong
            | Unsupported
            | WriteZero
    )
}

/// The texts of an error and its sources: `error: source: its source`. Skips a text that the
/// previous text already ends with.
fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut last = text.clone();
    let mut next = error.source();
    while let Some(source) = next {
        let said = source.to_string();
        if !last.ends_with(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        last = said;
        next = source.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Decode(io::Error);

    impl fmt::Display for Decode {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("cannot decode the image")
        }
    }

    impl StdError for Decode {
        fn source(&self) -> Option<&(dyn StdError + 'static)> {
            Some(&self.0)
        }
    }

    #[track_caller]
    fn check(error: impl Into<Error>, expected: &str) {
        assert_eq!(format!("{:?}", error.into()), expected);
    }

    #[test]
    fn what_stays_is_rejected_and_what_may_pass_is_retried() {
        let os = io::Error::from_raw_os_error;
        assert!(!Error::from(os(2)).is_retry(), "not found");
        assert!(!Error::from(os(28)).is_retry(), "no space left");
        assert!(!Error::from(os(122)).is_retry(), "quota exceeded");
        assert!(!Error::from(os(30)).is_retry(), "read-only file system");
        assert!(Error::from(os(5)).is_retry(), "I/O error");
        assert!(Error::from(os(4)).is_retry(), "interrupted");
        check(io::Error::other("bad header"), "reject: bad header");
        check(io::Error::new(io::ErrorKind::UnexpectedEof, "short"), "reject: short");
        check(io::Error::new(io::ErrorKind::TimedOut, "slow"), "retry: slow");
        check(
            serde_json::from_str::<u8>("-").unwrap_err(),
            "reject: EOF while parsing a value at line 1 column 1",
        );
    }

    #[test]
    fn an_error_of_the_system_decides_wherever_in_the_chain_it_is() {
        let (io, text) =
            (io::Error::from_raw_os_error(5), io::Error::from_raw_os_error(5).to_string());
        check(Decode(io), &format!("retry: cannot decode the image: {text}"));
        let wrapped = io::Error::other(Decode(io::Error::from_raw_os_error(5)));
        check(wrapped, &format!("retry: cannot decode the image: {text}"));
        check(Decode(io::Error::other("bad")), "reject: cannot decode the image: bad");
    }

    #[test]
    fn the_word_of_the_task_wins_over_the_default() {
        let missing = || Err::<(), _>(io::Error::from_raw_os_error(2));
        assert!(missing().or_retry().context("model").unwrap_err().is_retry());
        assert!(!Err::<(), _>(Error::retry("x")).or_reject().unwrap_err().is_retry());
        check(None::<u8>.context("no tile").unwrap_err(), "reject: no tile");
    }
}
