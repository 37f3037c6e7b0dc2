//! Runs other programs. Errors name the program that failed, and how.

use std::io::{self, IsTerminal, Read};
use std::process::{Command, Stdio};

use anyhow::{Context, anyhow, bail};

/// Runs a command in this terminal. Fails if the command fails.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let shown = show(command);
    println!("{}", styled("2", &format!("$ {shown}")));
    let status = command.status().with_context(|| format!("cannot start `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` failed: {status}");
    }
    Ok(())
}

/// Runs a command, and returns its output and whether it succeeded. Fails only if the command
/// cannot be started.
pub(crate) fn run_quietly(command: &mut Command) -> anyhow::Result<(String, anyhow::Result<()>)> {
    let shown = show(command);
    let (mut printed, writer) = io::pipe()?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let started = command.spawn().with_context(|| format!("cannot start `{shown}`"));
    // Closes this process's copies of the pipe, so that the output ends when the program ends.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut program = started?;
    let mut output = Vec::new();
    printed.read_to_end(&mut output)?;
    let status = program.wait()?;
    let printed = format!("$ {shown}\n{}", String::from_utf8_lossy(&output));
    let ended = if status.success() { Ok(()) } else { Err(anyhow!("`{shown}` failed: {status}")) };
    Ok((printed, ended))
}

/// Runs a command and returns its standard output. Fails if the command fails.
pub(crate) fn capture(command: &mut Command) -> anyhow::Result<String> {
    let shown = show(command);
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start `{shown}`"))?;
    if !output.status.success() {
        bail!("`{shown}` failed: {}", output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("the output of `{shown}`"))
}

/// Styles the text if standard output is a terminal. Style 1 is bold, 2 is faint.
pub(crate) fn styled(style: &str, text: &str) -> String {
    if std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() {
        format!("\x1b[{style}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

/// The command as a user would type it, with the program's name instead of its path.
fn show(command: &Command) -> String {
    let program = std::path::Path::new(command.get_program());
    let program = program.file_name().unwrap_or(command.get_program());
    let words = std::iter::once(program).chain(command.get_args());
    words.map(|word| quoted(&word.to_string_lossy())).collect::<Vec<_>>().join(" ")
}

/// Quotes a word for the shell if necessary.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./:=,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}
