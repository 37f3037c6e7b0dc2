//! Why a task did not get done, and whether another try makes sense.

use std::error::Error as StdError;
use std::fmt;
use std::io;

/// The result of anything that a task does.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the host does with a task that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Run it again later, in a fresh instance, until its attempts are used up.
    Retry,
    /// Report it on the error queue at once: another try would end the same way.
    Reject,
}

/// Why a task did not get done: a [`Verdict`] and a text for people, which the host logs and puts
/// into the error report.
///
/// # What `?` makes of other errors
/// Any [`std::error::Error`] becomes an `Error` with the text of its whole chain of sources.
///
/// A task sees its inputs and nothing else, so it usually fails the same way when it is run again:
/// an input that is no image stays none. Errors are therefore **rejected**, with one exception. If
/// the error is, or is caused by, an [`io::Error`] of the system that may pass (an I/O error, an
/// interrupted call, a timeout, too little memory), it is **retried**. Errors of the system that
/// do not pass are rejected: not found, not permitted, read-only, a path that can't be, and
/// storage that is full, because the limit on a task's outputs is the same next time.
///
/// Where that is not right, say so with [`Classify::or_retry`] or [`Classify::or_reject`], or make
/// the error yourself:
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
/// `Error` is itself no [`std::error::Error`], as `anyhow::Error` is none: that is what lets `?`
/// take all the others.
#[derive(Clone, PartialEq, Eq)]
pub struct Error {
    verdict: Verdict,
    text: String,
}

impl Error {
    /// A failure that may pass: the host tries again later.
    pub fn retry(text: impl fmt::Display) -> Self {
        Self { verdict: Verdict::Retry, text: text.to_string() }
    }

    /// A failure that stays: the host reports it and gives up.
    pub fn reject(text: impl fmt::Display) -> Self {
        Self { verdict: Verdict::Reject, text: text.to_string() }
    }

    /// What the host is asked to do about it.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// Whether the host is asked to try again.
    pub fn is_retry(&self) -> bool {
        self.verdict == Verdict::Retry
    }

    /// What went wrong, for people.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Says what was being done: `CONTEXT: TEXT`. The verdict stays.
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

/// The same as `Display` with the verdict before it: what a failed `unwrap` in a test shows.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Retry => "retry",
            Verdict::Reject => "reject",
        };
        write!(f, "{verdict}: {}", self.text)
    }
}

/// Says what was being done when something failed.
pub trait Context<T>: Sized {
    /// Puts `context: ` before the error's text. An absent value is rejected with `context` as its
    /// text.
    fn context(self, context: impl fmt::Display) -> Result<T>;

    /// The same with a text that is only made when it is needed.
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

/// Says whether another try makes sense, where the default of [`Error`] is not right.
pub trait Classify<T>: Sized {
    /// A failure here may pass.
    fn or_retry(self) -> Result<T>;

    /// A failure here stays.
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
            // An error that a library put into an `io::Error` is judged as what it is: the source
            // of an `io::Error` is the source of what is in it, which would skip it.
            return match io.get_ref() {
                Some(inner) if !may_pass(io.kind()) => classify(inner),
                _ if may_pass(io.kind()) => Verdict::Retry,
                _ if io.raw_os_error().is_some() && !stays(io.kind()) => Verdict::Retry,
                _ => Verdict::Reject,
            };
        }
        next = error.source();
    }
    Verdict::Reject
}

/// Kinds that pass whoever reports them.
fn may_pass(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::*;
    matches!(
        kind,
        Interrupted | TimedOut | WouldBlock | ResourceBusy | OutOfMemory | StaleNetworkFileHandle
    )
}

/// Kinds of the system's errors that do not pass. What is not listed (an I/O error has no kind of
/// its own) may.
fn stays(kind: io::ErrorKind) -> bool {
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

/// `error: its source: the source of that`, without a text that the one before already ends with.
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
