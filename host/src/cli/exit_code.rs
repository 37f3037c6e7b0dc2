//! Exit codes, and the errors that lead to them.

use std::fmt;
use std::io;
use std::process::ExitCode;

/// How a command ended. Scripts rely on the numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// The work is done, or a host stopped when it was told to.
    Done,
    /// The work could not start or failed: a queue can't be reached, or a file can't be read.
    Failed,
    /// The command line, a variable or `host.toml` is wrong. Nothing was started.
    Usage,
    /// The command did its work, and some of it failed: rejected tasks or refused lines.
    Partly,
    /// A host was told to stop, and released tasks that still ran after the grace period.
    GaveBack,
    /// Too few workers of a fleet have started.
    TooFew,
    /// No worker of a fleet is left, and its queue is not empty.
    Abandoned,
    /// A host received a second signal with this number, and released all tasks at once.
    Killed(i32),
}

/// The exit codes in the help.
pub(crate) const HELP: &str = "\
Exit codes:
  0    success; also after a signal to stop, if all running tasks finished
  1    error: a queue, a bucket or a file could not be used
  2    wrong command line, HOST_… variable or host.toml
  3    partial success: tasks were rejected, or messages were refused
  4    stopped by a signal, and tasks were released after the grace period
  5    fleet: too few workers have started
  6    fleet: no worker is left, and the queue is not empty
  128+n  stopped by a second signal n (130: Ctrl-C twice); all tasks were released.
         submit: stopped by the first; the tasks after the one that it names were not sent";

impl Exit {
    fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Partly => 3,
            Self::GaveBack => 4,
            Self::TooFew => 5,
            Self::Abandoned => 6,
            Self::Killed(signal) => u8::try_from(128 + signal).unwrap_or(128),
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit.code())
    }
}

/// An error for people, with its exit code and a hint.
#[derive(Debug)]
pub(crate) struct Advice {
    problem: String,
    hint: Option<String>,
    exit: Exit,
}

impl Advice {
    /// The command was called the wrong way.
    pub(crate) fn usage(problem: impl Into<String>) -> Self {
        Self { problem: problem.into(), hint: None, exit: Exit::Usage }
    }

    /// The command could not do its work.
    pub(crate) fn failed(problem: impl Into<String>) -> Self {
        Self { problem: problem.into(), hint: None, exit: Exit::Failed }
    }

    /// Adds what to do about the error.
    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problem)
    }
}

impl std::error::Error for Advice {}

/// Prints an error to standard error. Returns how the command ended.
pub(crate) fn report(error: &anyhow::Error) -> Exit {
    // In `host queue ls | head`, the reader closes the pipe. That is not an error.
    let is_broken_pipe = |e: &(dyn std::error::Error + 'static)| {
        e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
    };
    if error.chain().any(is_broken_pipe) {
        return Exit::Done;
    }
    let advice = error.downcast_ref::<Advice>();
    super::output::tell(format_args!("error: {}", words(error)));
    if let Some(hint) = advice.and_then(|advice| advice.hint.as_deref()) {
        super::output::tell(format_args!("hint: {hint}"));
    }
    advice.map_or(Exit::Failed, |advice| advice.exit)
}

/// An error with its causes, except those that are not written for people.
fn words(error: &anyhow::Error) -> String {
    let mut told = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        // An error of the library includes the text of its cause. The causes below it come from a
        // service or another library, and may be XML.
        if told.contains(&cause) {
            break;
        }
        told = format!("{told}: {cause}");
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_of_a_service_is_not_shown_below_its_description() {
        let answer = anyhow::anyhow!("status 403: <Error><Code>AccessDenied</Code></Error>");
        let error =
            answer.context("access denied").context("s3://b: reading failed: access denied");
        assert_eq!(words(&error), "s3://b: reading failed: access denied");
        let error = anyhow::anyhow!("no space left").context("can't write x");
        assert_eq!(words(&error), "can't write x: no space left");
    }

    #[test]
    fn the_help_lists_every_exit_code() {
        let all = [
            Exit::Done,
            Exit::Failed,
            Exit::Usage,
            Exit::Partly,
            Exit::GaveBack,
            Exit::TooFew,
            Exit::Abandoned,
        ];
        for exit in all {
            assert!(HELP.contains(&format!("\n  {}    ", exit.code())), "{exit:?}");
        }
        assert_eq!(Exit::Killed(2).code(), 130);
        assert_eq!(Exit::Killed(15).code(), 143);
    }
}
