//! The command line: one file for each command, with its options and its `run`.
//!
//! Only this module writes to the terminal; the library does not. Results for scripts go to
//! standard output, messages for people go to standard error.

mod cache;
mod component;
mod config;
mod confirm;
mod console;
mod dashboard;
mod described;
mod doctor;
mod exit_code;
mod fleet;
mod health;
mod listener;
mod local_runner;
mod manual;
mod new;
mod open_files;
mod output;
mod page;
mod progress_line;
mod queue;
mod receipts;
mod run;
mod screen;
mod settings;
mod signals;
mod submit;
mod top;
mod transfer_display;
mod try_task;
mod version;
mod watch;
mod wit;

use std::process::ExitCode;

use anyhow::Context;
use clap::error::{ContextKind, ContextValue};
use clap::{Arg, ArgAction, CommandFactory, FromArgMatches, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use exit_code::{Advice, Exit};

const EXAMPLES: &str = "\
Examples:
  host new word-count
  host try word-count word-count/sample
  host run --fq ./queue --exit-when-empty
  host queue ls ./queue-errors";
const QUEUE_HELP: &str = "\
Examples:
  host queue status ./queue
  host queue ls ./queue-errors --long
  host queue redrive ./queue --dry-run";
const FLEET_HELP: &str = "\
Examples:
  host fleet up tiles --on slurm://main --queue fq:///lab/queue --workers 10..40
  host fleet status tiles --on slurm://main
  host fleet down tiles --on slurm://main";
const COMPONENT_HELP: &str = "\
Examples:
  host component push edges.wasm --bucket s3://my-data
  host component ls --bucket s3://my-data";
const RECEIPTS_HELP: &str = "\
Examples:
  host receipts verify tasks.jsonl --bucket s3://my-data
  host receipts show datasets/cells/1_edges/4.png --bucket s3://my-data";
const CACHE_HELP: &str = "\
Examples:
  host cache verify
  host cache quarantine --clear";

/// Runs queued tasks on data in buckets, as sandboxed WebAssembly components
#[derive(Parser)]
#[command(
    name = "host",
    version = version::SHORT,
    long_version = version::long(),
    after_help = format!("{EXAMPLES}\n\n{}", exit_code::HELP),
    max_term_width = 100,
    disable_help_subcommand = false,
    subcommand_required = true,
    arg_required_else_help = true
)]
struct Cli {
    /// Show warnings and errors, and no messages or progress
    #[arg(long, short, global = true, conflicts_with = "verbose", display_order = 900)]
    quiet: bool,
    /// Log more; twice for details
    #[arg(long, short, global = true, action = ArgAction::Count, display_order = 901)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

/// All commands. With `is_brief`, as for `-h`, commands show only their usual settings.
fn command(is_brief: bool) -> clap::Command {
    with_help(Cli::command(), is_brief)
}

/// Gives `-h` and `--help` of a command the same layout. clap's own `--help` would put each option
/// on separate lines as soon as `-h` hides an option.
fn with_help(command: clap::Command, is_brief: bool) -> clap::Command {
    let command = command.mut_subcommands(|child| with_help(child, is_brief));
    let help = Arg::new("help").short('h').long("help").action(ArgAction::HelpShort);
    let help = help.help("Print the usual options; --help prints all, and examples");
    let help = help.help_heading(None).display_order(902);
    let command = settings::with_negative_values(command.disable_help_flag(true).arg(help));
    if is_brief { settings::brief(command).after_help("") } else { command }
}

#[derive(Subcommand)]
enum Command {
    /// Run the tasks of a queue
    Run(run::Run),
    /// Send tasks to a queue
    Submit(submit::Submit),
    /// Inspect and repair a queue
    #[command(subcommand, after_help = QUEUE_HELP)]
    Queue(queue::Queue),
    /// Start, watch and stop workers on Docker, Slurm, AWS Batch, ECS or Kubernetes
    #[command(subcommand, after_help = FLEET_HELP)]
    Fleet(Box<fleet::Fleet>),
    /// Show the hosts of a queue, what they run, and why tasks failed
    Top(top::Top),
    /// Serve a page for browsers: the hosts of a queue, what they run, and why tasks failed
    Dashboard(dashboard::Dashboard),
    /// Publish and inspect components
    #[command(subcommand, after_help = COMPONENT_HELP)]
    Component(component::Component),
    /// Check finished tasks, and find out what produced an output
    #[command(subcommand, after_help = RECEIPTS_HELP)]
    Receipts(receipts::Receipts),
    /// Check the cache of inputs and components
    #[command(subcommand, after_help = CACHE_HELP)]
    Cache(cache::Cache),
    /// Run one task from local files, or the task of a report or a message
    Try(try_task::Try),
    /// Create a project for a new component
    New(new::New),
    /// Print or write the interface of tasks, for the tools of other languages
    Wit(wit::Wit),
    /// Check settings and connectivity without running anything
    Doctor(doctor::Doctor),
    /// Show each setting, its value and where the value came from
    Config(config::Config),
    /// Ask a running host whether it is alive or ready
    Health(health::Health),
    /// Print completions of commands and options for a shell
    Completions(manual::Completions),
    /// Write manual pages
    Man(manual::Manual),
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
            Self::Fleet(command) => command.run(),
            Self::Top(command) => command.run(),
            Self::Dashboard(command) => command.run(),
            Self::Component(command) => command.run(),
            Self::Receipts(command) => command.run(),
            Self::Cache(command) => command.run(),
            Self::Try(command) => command.run(),
            Self::New(command) => command.run(),
            Self::Wit(command) => command.run(),
            Self::Doctor(command) => command.run(),
            Self::Config(command) => command.run(),
            Self::Health(command) => command.run(),
            Self::Completions(command) => command.run(),
            Self::Man(command) => command.run(),
            Self::CompileComponent => Ok(task_host::catalog::compile_for_parent()
                .context("this command is for `host` itself")
                .map(|()| Exit::Done)?),
        }
    }
}

/// Runs the command that the arguments name, and reports its error.
pub(crate) fn main() -> ExitCode {
    // Exits for `--help`, and with code 2 for wrong options.
    let is_brief = !std::env::args_os().any(|arg| arg == "--help" || arg == "help");
    let matches = command(is_brief).try_get_matches().unwrap_or_else(|e| without_hidden(e).exit());
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    output::set_verbosity(cli.quiet, cli.verbose);
    match cli.command.run() {
        Ok(exit) => exit.into(),
        Err(error) => exit_code::report(&error).into(),
    }
}

/// Removes hidden commands from the error's list of valid commands.
fn without_hidden(mut error: clap::Error) -> clap::Error {
    if let Some(ContextValue::Strings(names)) = error.get(ContextKind::ValidSubcommand) {
        let is_hidden = |name: &String| {
            Cli::command().find_subcommand(name).is_some_and(clap::Command::is_hide_set)
        };
        let names = names.iter().filter(|name| !is_hidden(name)).cloned().collect();
        error.insert(ContextKind::ValidSubcommand, ContextValue::Strings(names));
    }
    error
}

/// The runtime of a command that runs tasks or transfers files.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    ask_for_threads(base_threads())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    // With a handler for SIGXFSZ, a write beyond `ulimit -f` fails instead of ending the process.
    // The handler stays when the stream is dropped.
    {
        let _context = runtime.enter();
        let too_large = SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw());
        drop(signal(too_large)?);
    }
    Ok(runtime)
}

/// The runtime of a command that mostly waits for answers. It has one thread, because waking more
/// threads would cost more time than they save.
fn waiting_runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    ask_for_threads(2)?;
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?)
}

/// The number of threads of a command that runs tasks, without the tasks' own threads: one per core
/// for the runtime, one per core for the compiler, and some for signals and blocking calls.
fn base_threads() -> usize {
    const OTHERS: usize = 6;
    2 * std::thread::available_parallelism().map_or(1, usize::from) + OTHERS
}

/// Starts and ends this many threads, to check that the system allows them. A runtime or a compiler
/// panics if it can't start a thread.
///
/// # Errors
/// The system refuses a thread. The error says how to raise the limit.
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
        Advice::failed(format!("this process needs {count} threads, and can't start them: {error}"))
            .hint(doctor::machine::cure(&error.to_string()))
            .into()
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::error::{ContextKind, ContextValue, ErrorKind};

    use super::*;

    /// The kinds of errors for a value that an option does not accept.
    const WRONG_VALUES: [ErrorKind; 2] = [ErrorKind::InvalidValue, ErrorKind::ValueValidation];

    #[test]
    fn no_two_options_contradict_each_other() {
        command(false).debug_assert();
        command(true).debug_assert();
    }

    /// Calls `each` for every command, with its full name, such as `host queue ls`.
    fn for_each_command(each: &mut dyn FnMut(&clap::Command, &str)) {
        fn descend(
            command: &clap::Command,
            name: &str,
            each: &mut dyn FnMut(&clap::Command, &str),
        ) {
            each(command, name);
            for child in command.get_subcommands().filter(|child| child.get_name() != "help") {
                descend(child, &format!("{name} {}", child.get_name()), each);
            }
        }
        let mut command = command(false);
        command.build();
        descend(&command, "host", each);
    }

    /// The arguments that set the option to a value that its parser accepts.
    fn valid(command: &clap::Command, arg: &Arg) -> Vec<String> {
        let written = |value: &str| match (arg.get_long(), arg.get_action().takes_values()) {
            (_, true) if arg.is_positional() => vec![value.to_owned()],
            (Some(long), true) => vec![format!("--{long}={value}")],
            (Some(long), false) => vec![format!("--{long}")],
            (None, _) => vec![format!("-{}", arg.get_short().unwrap())],
        };
        let choices = arg.get_possible_values();
        let choices = choices.iter().map(|choice| choice.get_name());
        let is_valid = |line: &Vec<String>| {
            let parsed = command.clone().no_binary_name(true).try_get_matches_from(line);
            !matches!(parsed, Err(error) if WRONG_VALUES.contains(&error.kind()))
        };
        let mut lines =
            choices.chain(["1", "x", "1s", "a=b", "1MiB", "docker://", "[::]:80"]).map(written);
        lines.find(is_valid).unwrap_or_else(|| panic!("no value for {}", arg.get_id()))
    }

    /// clap does not ask for a required option if something excludes it, and then ignores the
    /// option that requires it.
    #[test]
    fn no_option_is_ignored_because_another_excludes_what_it_requires() {
        let mut checked = 0;
        for_each_command(&mut |command, name| {
            let command = command.clone().no_binary_name(true).subcommand_required(false);
            let command = command.arg_required_else_help(false);
            // Errors print each argument as a required one, so brackets are ignored.
            let plain = |text: &str| text.replace(['[', ']', '<', '>', '.'], "");
            let missing = |line: &[String]| -> BTreeSet<String> {
                match command.clone().try_get_matches_from(line) {
                    Err(error) if error.kind() == ErrorKind::MissingRequiredArgument => {
                        match error.get(ContextKind::InvalidArg) {
                            Some(ContextValue::Strings(args)) => {
                                args.iter().map(|arg| plain(arg)).collect()
                            }
                            other => panic!("{name}: {other:?}"),
                        }
                    }
                    _ => BTreeSet::new(),
                }
            };
            let args: Vec<&Arg> = command
                .get_arguments()
                .filter(|arg| !["help", "version"].contains(&arg.get_id().as_str()))
                .collect();
            let is_in =
                |args: &BTreeSet<String>, arg: &Arg| args.contains(&plain(&arg.to_string()));
            let always = missing(&[]);
            let base: Vec<String> = args
                .iter()
                .filter(|arg| is_in(&always, arg))
                .flat_map(|arg| valid(&command, arg))
                .collect();
            for arg in args.iter().filter(|arg| !is_in(&always, arg)) {
                let line = [base.clone(), valid(&command, arg)].concat();
                let required = missing(&line);
                if required.is_empty() {
                    continue;
                }
                checked += 1;
                for other in args.iter().filter(|other| !is_in(&required, other)) {
                    let line = [line.clone(), valid(&command, other)].concat();
                    let parsed = command.clone().try_get_matches_from(&line);
                    assert!(parsed.is_err(), "{name}: {line:?} ignores {arg}");
                }
            }
        });
        // At least the options of `host submit`, `host receipts` and `host try`.
        assert!(checked >= 20, "{checked}");
    }

    /// Calls `check` for every option that takes a value, with each of `values`, and with the error
    /// of the command that gets the value.
    fn for_each_value(values: &[&str], check: &mut dyn FnMut(&Arg, &str, Option<clap::Error>)) {
        for_each_command(&mut |command, name| {
            for arg in command.get_opts().filter(|arg| arg.get_action().takes_values()) {
                for value in values {
                    let option = format!("--{}", arg.get_long().unwrap());
                    let command = command.clone().no_binary_name(true);
                    let ended = command.try_get_matches_from([&option, *value]).err();
                    check(arg, &format!("host {name} {option} {value}"), ended);
                }
            }
        });
    }

    #[test]
    fn a_number_that_is_wrong_is_explained_in_our_words() {
        let huge = "9".repeat(60);
        for_each_value(&["x", "-1", "1.5", &huge], &mut |_, line, ended| {
            let said = ended.map(|error| error.to_string()).unwrap_or_default();
            let words = ["invalid digit", "number too", "target type", "is not in"];
            assert!(!words.iter().any(|word| said.contains(word)), "{line}: {said}");
        });
    }

    #[test]
    fn a_negative_value_is_taken_as_a_value() {
        for_each_value(&["-1"], &mut |_, line, ended| {
            let kind = ended.map(|error| error.kind());
            assert_ne!(kind, Some(ErrorKind::UnknownArgument), "{line}");
        });
        let check = |line: &[&str], want: Option<ErrorKind>| {
            let parsed = command(false).try_get_matches_from(["host"].iter().chain(line));
            assert_eq!(parsed.err().map(|error| error.kind()), want, "{line:?}");
        };
        // Values of settings are checked later, together with the other sources of settings.
        check(&["run", "--timeout", "-5s"], None);
        check(&["try", "c.wasm", "--memory", "-5GiB"], None);
        check(&["try", "c.wasm", "--payload", "-5"], None);
        check(&["queue", "redrive", "--older-than", "-5s"], Some(ErrorKind::ValueValidation));
        // An option in place of a forgotten value is not accepted as a queue's name.
        check(&["run", "--queue", "-x"], Some(ErrorKind::InvalidValue));
    }

    #[test]
    fn the_reference_lists_every_command() {
        let page = include_str!("../../docs/reference/command-line.md");
        let (table, _) = page.split_once("\n## ").expect("a heading after the table");
        for command in Cli::command().get_subcommands().filter(|command| !command.is_hide_set()) {
            let name = command.get_name();
            let is_listed = table.contains(&format!("| `host {name}"))
                || table.contains(&format!(", `{name}` |"));
            assert!(is_listed, "host {name}");
        }
    }

    #[test]
    fn every_help_has_an_example() {
        fn check(command: &clap::Command, name: &str) {
            if command.is_hide_set() || command.get_name() == "help" {
                return;
            }
            let help = command.get_after_help().map(ToString::to_string);
            assert!(help.is_some_and(|help| help.contains("Example")), "{name}");
            for child in command.get_subcommands() {
                check(child, &format!("{name} {}", child.get_name()));
            }
        }
        check(&command(false), "host");
    }
}
