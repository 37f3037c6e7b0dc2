//! The command line: one file per command, with its options and its `run`.
//!
//! Nothing below the library writes to the terminal; everything here does. What a script
//! reads goes to standard output, what a person follows goes to standard error.

mod cache;
mod carry;
mod component;
mod config;
mod console;
mod doctor;
mod exit_code;
mod local_runner;
mod new;
mod open_files;
mod output;
#[cfg(test)]
mod picky;
mod progress_line;
mod queue;
mod redrive;
mod refusals;
mod run;
mod sender;
mod settings;
mod submit;
mod try_task;
mod values;

use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use exit_code::{Advice, Exit};

/// Runs queued tasks over data in buckets as sandboxed WebAssembly components
#[derive(Parser)]
#[command(
    name = "host",
    version,
    after_help = exit_code::HELP,
    max_term_width = 100,
    disable_help_subcommand = false,
    subcommand_required = true,
    arg_required_else_help = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Lease tasks from a queue and run them
    Run(run::Run),
    /// Put tasks into a queue
    Submit(submit::Submit),
    /// Look into a queue and set it right
    #[command(subcommand)]
    Queue(queue::Queue),
    /// Put components where hosts find them, and look at them
    #[command(subcommand)]
    Component(component::Component),
    /// Look after the cache of inputs and components
    #[command(subcommand)]
    Cache(cache::Cache),
    /// Run one task with one component: no queue, no bucket
    Try(try_task::Try),
    /// Start a project for a component of your own
    New(new::New),
    /// Say whether a run would work, before it is begun
    Doctor(doctor::Doctor),
    /// Show every setting, its value and where it came from
    Config(config::Config),
    /// Compile a component for the host that started this process
    #[command(hide = true)]
    CompileComponent,
}

impl Command {
    fn run(self) -> anyhow::Result<Exit> {
        match self {
            Self::Run(command) => command.run(),
            Self::Submit(command) => command.run(),
            Self::Queue(command) => command.run(),
            Self::Component(command) => command.run(),
            Self::Cache(command) => command.run(),
            Self::Try(command) => command.run(),
            Self::New(command) => command.run(),
            Self::Doctor(command) => command.run(),
            Self::Config(command) => command.run(),
            Self::CompileComponent => Ok(task_host::catalog::compile_for_parent()
                .context("this command is for `host` itself")
                .map(|()| Exit::Done)?),
        }
    }
}

/// Parses, runs, and says what went wrong.
pub(crate) fn main() -> ExitCode {
    // Ends here for `--help`, and with exit code 2 for options that can't be understood.
    let cli = Cli::parse();
    match cli.command.run() {
        Ok(exit) => exit.into(),
        Err(error) => exit_code::report(&error).into(),
    }
}

/// The runtime of a command that has to wait for queues and buckets.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    ask_for_threads(base_threads())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    // With a handler, a write beyond `ulimit -f` is an error of that write, and not the end of
    // the process. The handler stays when the stream is dropped.
    {
        let _context = runtime.enter();
        let too_large = SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw());
        drop(signal(too_large)?);
    }
    Ok(runtime)
}

/// The runtime of a command that does little but wait for answers: with one thread, since
/// waking others up would cost more than they can do.
fn waiting_runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    ask_for_threads(2)?;
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?)
}

/// Threads of a command that runs tasks, beside those of the tasks: the runtime and the compiler
/// have one for each core each, and there are some for signals and for calls that block.
fn base_threads() -> usize {
    const OTHERS: usize = 6;
    2 * std::thread::available_parallelism().map_or(1, usize::from) + OTHERS
}

/// Has this many threads at once, and lets them go. A runtime or a compiler that is refused one
/// panics.
///
/// # Errors
/// When the system refuses one, with the cure.
fn ask_for_threads(count: usize) -> anyhow::Result<()> {
    let gate = std::sync::RwLock::new(());
    let closed = gate.write();
    let asked = std::thread::scope(|scope| {
        let waiting = || drop(gate.read());
        let asked: Result<Vec<_>, _> =
            (0..count).map(|_| std::thread::Builder::new().spawn_scoped(scope, waiting)).collect();
        drop(closed);
        asked.map(drop)
    });
    asked.map_err(|error| {
        Advice::failed(format!("this process can't have {count} threads: {error}"))
            .hint(doctor::machine::cure(&error.to_string()))
            .into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_options_contradict_each_other() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
