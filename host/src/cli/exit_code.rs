//! How commands end: the exit codes, and how an error is told.

use std::fmt;
use std::io;
use std::process::ExitCode;

/// How a command ended. The numbers are a promise to scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Everything was done; or a host was told to stop and did.
    Done,
    /// The work could not be begun or went wrong: a queue that can't be reached, a file that
    /// can't be read.
    Failed,
    /// The command line, a variable or `host.toml` is wrong. Nothing was begun.
    Usage,
    /// The command did its work, and some of it came to no good: tasks given up, lines
    /// refused.
    Partly,
    /// A host that was told to stop had tasks running after the grace period, and gave them
    /// back.
    GaveBack,
    /// A second signal of this number came, and a host gave everything back at once.
    Killed(i32),
}

/// The exit codes, as the help shows them.
pub(crate) const HELP: &str = "\
Exit codes:
  0    success; also after a signal to stop, if all running tasks finished
  1    error: a queue, a bucket or a file could not be used
  2    wrong command line, HOST_… variable or host.toml
  3    partial success: tasks failed for good, or messages were refused
  4    stopped by a signal, and tasks were released after the grace period
  128+n  stopped by a second signal n (130: Ctrl-C twice); all tasks were released";

impl Exit {
    fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Partly => 3,
            Self::GaveBack => 4,
            Self::Killed(signal) => u8::try_from(128 + signal).unwrap_or(128),
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit.code())
    }
}

/// An error that a person can do something about.
#[derive(Debug)]
pub(crate) struct Advice {
    problem: String,
    hint: Option<String>,
    exit: Exit,
}

impl Advice {
    /// What is wrong with how the command was called.
    pub(crate) fn usage(problem: impl Into<String>) -> Self {
        Self { problem: problem.into(), hint: None, exit: Exit::Usage }
    }

    /// What could not be done.
    pub(crate) fn failed(problem: impl Into<String>) -> Self {
        Self { problem: problem.into(), hint: None, exit: Exit::Failed }
    }

    /// What a person is told to do about it.
    #[cfg(test)]
    pub(crate) fn told_hint(&self) -> &str {
        self.hint.as_deref().unwrap_or_default()
    }

    /// What to do about it.
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

/// Says on standard error what went wrong, and which code that is.
pub(crate) fn report(error: &anyhow::Error) -> Exit {
    // `host queue ls | head`: the reader has what it wanted.
    let is_broken_pipe = |e: &(dyn std::error::Error + 'static)| {
        e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
    };
    if error.chain().any(is_broken_pipe) {
        return Exit::Done;
    }
    let mut told = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        // Many errors of the library already say their cause.
        if !told.contains(&cause) {
            told = format!("{told}: {cause}");
        }
    }
    let advice = error.downcast_ref::<Advice>();
    super::output::tell(format_args!("error: {told}"));
    if let Some(hint) = advice.and_then(|advice| advice.hint.as_deref()) {
        super::output::tell(format_args!("hint: {hint}"));
    }
    advice.map_or(Exit::Failed, |advice| advice.exit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_lists_every_exit_code() {
        for exit in [Exit::Done, Exit::Failed, Exit::Usage, Exit::Partly, Exit::GaveBack] {
            assert!(HELP.contains(&format!("\n  {}    ", exit.code())), "{exit:?}");
        }
        assert_eq!(Exit::Killed(2).code(), 130);
        assert_eq!(Exit::Killed(15).code(), 143);
    }
}
