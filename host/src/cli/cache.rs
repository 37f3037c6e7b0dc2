//! `host cache`: checks the cache of inputs and components, shows it, and removes some of it.

mod stored;

use std::io::{self, Write};
use std::path::Path;

use anyhow::Context;
use serde::Serialize;
use task_host::cache::{self, Checked};
use task_host::catalog;
use task_host::config::CacheSettings;

use super::console::Console;
use super::exit_code::{Advice, Exit};
use super::output;
use super::progress_line::ProgressLine;
use super::settings::{CacheOnly, Flags, When};

/// Commands of `host cache`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Cache {
    /// Check all files in the cache and remove damaged ones
    #[command(after_help = "\
Compares the digests of inputs and components, and the checksums of compiled code, and removes files
that do not match. Hosts fetch or compile them again when they need them, and may use the cache
meanwhile. The exit code is 0 if nothing was damaged and 3 if something was removed.

Examples:
  host cache verify
  host cache verify --cache-dir /var/cache/task-host --json")]
    Verify(Verify),
    /// List components that hosts do not try to compile again, and why
    #[command(after_help = "\
Hosts that share this cache do not compile a component again after its compilation failed, exceeded
a limit, or was killed twice; its tasks fail with the reason. Higher limits (--compile-memory,
--compile-timeout), another version of `host`, or --clear allow another attempt. Entries for killed
compilations expire after a day.

Examples:
  host cache quarantine
  host cache quarantine --clear")]
    Quarantine(Quarantine),
    /// List the inputs, components and compiled code in the cache
    #[command(after_help = LS_HELP)]
    Ls(stored::Ls),
    /// Remove files that were not used for some time, or until the cache is small enough
    #[command(after_help = PRUNE_HELP)]
    Prune(stored::Prune),
}

const LS_HELP: &str = "\
The most recently used come first. An input of a directory bucket is not in the cache: it is read in
place.

Examples:
  host cache ls
  host cache ls --json | jq -s 'map(.bytes) | add'";
const PRUNE_HELP: &str = "\
Hosts may use the cache meanwhile; they fetch or compile again what they need. They keep the cache
below --cache-size themselves.

Examples:
  host cache prune --unused-for 30d --dry-run
  host cache prune --to 2GiB";

/// Options of `host cache quarantine`.
#[derive(Debug, clap::Args)]
pub(crate) struct Quarantine {
    /// Remove all entries, so that hosts compile the components again
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

/// The result of a check, as `--json` prints it.
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
            Self::Ls(command) => command.run(),
            Self::Prune(command) => command.run(),
        }
    }
}

impl Quarantine {
    fn run(self) -> anyhow::Result<Exit> {
        let dir = self.flags.load()?.get::<CacheSettings>()?.dir.join("compiled");
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
            catalog::forget_quarantined(&dir)
                .map_err(|error| Advice::failed(format!("can't clear the quarantine: {error}")))?;
            output::note(format_args!("{count} may be compiled again"));
        } else if found.is_empty() {
            output::note(format_args!("no components are in quarantine"));
        }
        Ok(Exit::Done)
    }
}

impl Verify {
    fn run(self) -> anyhow::Result<Exit> {
        let CacheSettings { dir, .. } = self.flags.load()?.get()?;
        let console = Console::plain(When::Auto);
        let mut meter = ProgressLine::new(&console, "files", "read", None);
        let checked = cache::check(&dir, |checked| meter.at(checked.blobs, checked.blobs))?;
        meter.end();
        let (compiled, damaged_compiled) = catalog::check_compiled(&dir.join("compiled"))
            .context("can't read the compiled code")?;
        let removed = checked.damaged_blobs + checked.damaged_index_entries + damaged_compiled;
        for problem in &checked.problems {
            output::tell(format_args!("error: {problem}"));
        }
        let shown = dir.display().to_string();
        if self.json {
            output::json(&Report { dir: &shown, checked: &checked, compiled, damaged_compiled })?;
        } else if is_there(&dir) {
            say(&shown, &checked, compiled, damaged_compiled)?;
        }
        Ok(match (checked.problems.is_empty(), removed) {
            (false, _) => Exit::Failed,
            (true, 0) => Exit::Done,
            (true, _) => Exit::Partly,
        })
    }
}

/// Returns whether the cache exists. If not, tells the user.
fn is_there(dir: &Path) -> bool {
    let is_there = dir.exists();
    if !is_there {
        output::tell(format_args!("there is no cache yet: {} does not exist", dir.display()));
    }
    is_there
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
