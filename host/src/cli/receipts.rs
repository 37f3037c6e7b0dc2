//! `host receipts`: checks finished tasks, runs some of them again, and finds the task that
//! produced an output.

mod audit;
mod show;
mod verify;

use super::exit_code::{Advice, Exit};

/// Commands of `host receipts`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Receipts {
    /// Check that tasks have receipts and that their outputs are unchanged
    #[command(after_help = verify::HELP)]
    Verify(verify::Verify),
    /// Run some finished tasks again and compare their outputs
    #[command(after_help = audit::HELP)]
    Audit(audit::Audit),
    /// Show the receipt of the task that left an output
    #[command(after_help = show::HELP)]
    Show(show::Show),
}

impl Receipts {
    pub(crate) fn run(self) -> anyhow::Result<Exit> {
        match self {
            Self::Verify(command) => command.run(),
            Self::Audit(command) => command.run(),
            Self::Show(command) => command.run(),
        }
    }
}

/// The error of a check without tasks. A failed command before a pipe must not look like a clean
/// result.
fn no_tasks() -> Advice {
    Advice::failed("no tasks were given, so nothing was checked")
        .hint("check the file or the command that prints the tasks, or what --each matches")
}
