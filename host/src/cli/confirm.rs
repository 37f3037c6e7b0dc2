//! Asks before something is changed that can't be undone.

use std::io::{self, BufRead, IsTerminal};

use super::exit_code::Advice;
use super::output;

/// Asks whether to go on, unless `yes`. `what` says what is there, and `question` what would be done.
///
/// # Errors
/// When the answer is no, or when there is no terminal to ask on.
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
