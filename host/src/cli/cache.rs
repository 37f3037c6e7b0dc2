//! `host cache`: looks after the cache of inputs and components.

use std::io::{self, Write};

use anyhow::Context;
use serde::Serialize;
use task_host::cache::{self, Checked};
use task_host::catalog;

use super::console::Console;
use super::exit_code::{Advice, Exit};
use super::output;
use super::progress_line::ProgressLine;
use super::settings::{CACHE_DIR, Flags, Group, Setting};
use super::values::When;

/// Commands of `host cache`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Cache {
    /// Read all of the cache, and remove what is damaged
    #[command(after_help = "\
Inputs and components whose bytes are not what they were, and compiled code with a wrong
checksum, are removed and fetched or compiled again when they are needed. Hosts may use the
cache meanwhile. The exit code is 0 if all was right and 3 if something was removed.")]
    Verify(Verify),
    /// List the components that this machine does not compile again, and why
    #[command(after_help = "\
A component whose compilation failed, ran over a limit or was killed twice is not compiled again
by hosts with this cache: its tasks fail with the reason. Higher limits (--compile-memory,
--compile-timeout), another version of the host, and --clear allow another try. What was killed
is forgotten after a day.")]
    Quarantine(Quarantine),
}

/// Options of `host cache quarantine`.
#[derive(Debug, clap::Args)]
pub(crate) struct Quarantine {
    /// Let all of them be compiled again
    #[arg(long)]
    clear: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: Flags<CacheOnly>,
}

/// Options of `host cache verify`.
#[derive(Debug, clap::Args)]
pub(crate) struct Verify {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: Flags<CacheOnly>,
}

/// Where the cache is.
#[derive(Debug)]
pub(crate) struct CacheOnly;
impl Group for CacheOnly {
    const SETTINGS: &'static [&'static Setting] = &[&CACHE_DIR];
}

/// What was found, as `--json` prints it.
#[derive(Serialize)]
struct Report<'a> {
    dir: &'a str,
    #[serde(flatten)]
    checked: &'a Checked,
    compiled: u64,
    damaged_compiled: u64,
}

impl Cache {
    pub(crate) fn run(self) -> anyhow::Result<Exit> {
        match self {
            Self::Verify(command) => command.run(),
            Self::Quarantine(command) => command.run(),
        }
    }
}

impl Quarantine {
    fn run(self) -> anyhow::Result<Exit> {
        let dir = self.flags.load()?.cache_dir()?.join("compiled");
        let found = catalog::quarantined(&dir);
        if self.json {
            output::json(&found)?;
        } else {
            let rows: Vec<Vec<String>> =
                found.iter().map(|one| vec![one.digest.clone(), one.reason.clone()]).collect();
            output::table(output::out(), &rows)?;
        }
        let count = output::count(found.len() as u64, "component");
        if self.clear {
            catalog::forget_quarantined(&dir).map_err(|error| {
                Advice::failed(format!("the quarantine can't be cleared: {error}"))
            })?;
            output::tell(format_args!("{count} may be compiled again"));
        } else if found.is_empty() {
            output::tell(format_args!("no components are in quarantine"));
        }
        Ok(Exit::Done)
    }
}

impl Verify {
    fn run(self) -> anyhow::Result<Exit> {
        let dir = self.flags.load()?.cache_dir()?;
        let screen = Console::plain(When::Auto);
        let mut meter = ProgressLine::new(&screen, "files", "read", None);
        let checked = cache::check(&dir, |checked| meter.at(checked.blobs, checked.blobs))?;
        meter.end();
        let (compiled, damaged_compiled) = catalog::check_compiled(&dir.join("compiled"))
            .context("the compiled code can't be read")?;
        let removed = checked.damaged_blobs + checked.damaged_index_entries + damaged_compiled;
        for problem in &checked.problems {
            output::tell(format_args!("error: {problem}"));
        }
        let shown = dir.display().to_string();
        if self.json {
            output::json(&Report { dir: &shown, checked: &checked, compiled, damaged_compiled })?;
        } else {
            say(&shown, &checked, compiled, damaged_compiled)?;
        }
        Ok(match (checked.problems.is_empty(), removed) {
            (false, _) => Exit::Failed,
            (true, 0) => Exit::Done,
            (true, _) => Exit::Partly,
        })
    }
}

fn say(dir: &str, checked: &Checked, compiled: u64, damaged_compiled: u64) -> io::Result<()> {
    let mut out = output::out();
    writeln!(
        out,
        "{dir}: {}, {}; {}",
        output::count(checked.blobs, "file"),
        output::bytes(checked.bytes),
        output::count(compiled, "compiled component"),
    )?;
    let damaged = checked.damaged_blobs + checked.damaged_index_entries + damaged_compiled;
    if damaged == 0 {
        return writeln!(out, "nothing is damaged");
    }
    let removed = [
        (checked.damaged_blobs, "file"),
        (checked.damaged_index_entries, "index file"),
        (damaged_compiled, "compiled component"),
    ];
    let removed: Vec<String> = removed
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, noun)| output::count(count, noun))
        .collect();
    writeln!(out, "damaged and removed: {}", removed.join(", "))
}
