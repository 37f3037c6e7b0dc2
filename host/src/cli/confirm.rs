//! Asks for confirmation before a change that can't be undone.

use std::io::{self, BufRead, IsTerminal};

use super::exit_code::Advice;
use super::output;

/// Asks for confirmation, unless `yes` is set. `what` describes the current state, and `question`
/// the change.
///
/// # Errors
/// If the answer is no, or if standard input is not a terminal.
pub(crate) fn confirm(yes: bool, what: &str, question: &str) -> anyhow::Result<()> {
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Err(Advice::usage(format!("{what}; confirm: {question}")).hint("add --yes").into());
    }
    output::ask(&format!("{what}. {question} [y/N]"))?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Advice::failed("nothing was changed").into()),
    }
}
