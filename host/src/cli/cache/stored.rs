//! `host cache ls` and `host cache prune`.

use std::cmp::Reverse;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytesize::ByteSize;
use serde::Serialize;
use task_host::cache::{self, Stored};
use task_host::catalog;
use task_host::config::{CacheSettings, parse};

use super::super::exit_code::{Advice, Exit};
use super::super::output;
use super::super::settings::{CacheOnly, Flags};

/// Options of `host cache ls`.
#[derive(Debug, clap::Args)]
pub(crate) struct Ls {
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: Flags<CacheOnly>,
}

/// Options of `host cache prune`.
#[derive(Debug, clap::Args)]
pub(crate) struct Prune {
    /// Remove what was not used for this time
    #[arg(long, value_name = "TIME", value_parser = parse::duration, required_unless_present = "to")]
    unused_for: Option<Duration>,
    /// Remove what was used least recently until the rest takes at most this
    #[arg(long, value_name = "SIZE", value_parser = parse::size)]
    to: Option<ByteSize>,
    /// Say what would be removed, and remove nothing
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: Flags<CacheOnly>,
}

/// A file of the cache.
struct Item {
    /// The file with the compiled code. None for inputs and components.
    code: Option<PathBuf>,
    stored: Stored,
}

/// An [`Item`], as `--json` prints it.
#[derive(Serialize)]
struct Row<'a> {
    kind: &'static str,
    digest: String,
    bytes: u64,
    /// Seconds since 1970.
    used: u64,
    objects: &'a [String],
}

impl Item {
    fn kind(&self) -> &'static str {
        if self.code.is_some() { "code" } else { "object" }
    }

    fn used(&self) -> Duration {
        self.stored.used.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
    }

    fn remove(&self, dir: &Path) -> anyhow::Result<()> {
        let Some(code) = &self.code else {
            return Ok(cache::remove_stored(dir, &self.stored.digest)?);
        };
        match std::fs::remove_file(code) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Advice::failed(format!("{}: {error}", output::path(code))).into())
            }
            _ => Ok(()),
        }
    }
}

/// Everything in the cache, the most recently used first.
fn items(dir: &Path) -> anyhow::Result<Vec<Item>> {
    let objects = cache::stored(dir)?.into_iter().map(|stored| Item { code: None, stored });
    let code = catalog::stored_code(&dir.join(cache::COMPILED)).into_iter();
    let code = code.map(|(file, stored)| Item { code: Some(file), stored });
    let mut all: Vec<Item> = objects.chain(code).collect();
    all.sort_by_key(|item| Reverse(item.stored.used));
    Ok(all)
}

impl Ls {
    pub(super) fn run(self) -> anyhow::Result<Exit> {
        let dir = self.flags.load()?.get::<CacheSettings>()?.dir;
        let items = items(&dir)?;
        let mut out = output::long_out();
        if self.json {
            for item in &items {
                out.json(&Row {
                    kind: item.kind(),
                    digest: item.stored.digest.to_string(),
                    bytes: item.stored.bytes,
                    used: item.used().as_secs(),
                    objects: &item.stored.objects,
                })?;
            }
            out.flush()?;
            return Ok(Exit::Done);
        }
        if !super::is_there(&dir) {
            return Ok(Exit::Done);
        }
        let now = SystemTime::now();
        let row = |item: &Item| {
            let idle = now.duration_since(item.stored.used).unwrap_or_default();
            vec![
                item.kind().to_owned(),
                item.stored.digest.to_string(),
                output::bytes(item.stored.bytes).to_string(),
                format!("used {} ago", output::time(Duration::from_secs(idle.as_secs()))),
                item.stored.objects.join(", "),
            ]
        };
        let rows: Vec<Vec<String>> = items.iter().map(row).collect();
        output::table(&mut out, &rows)?;
        out.flush()?;
        let total: u64 = items.iter().map(|item| item.stored.bytes).sum();
        let count = output::count(items.len() as u64, "file");
        output::note(format_args!("{count}, {} in {}", output::bytes(total), output::path(&dir)));
        Ok(Exit::Done)
    }
}

/// The result of `host cache prune`, as `--json` prints it.
#[derive(Serialize)]
struct Pruned {
    dir: String,
    removed: u64,
    removed_bytes: u64,
    kept: u64,
    kept_bytes: u64,
    dry_run: bool,
}

impl Prune {
    pub(super) fn run(self) -> anyhow::Result<Exit> {
        let dir = self.flags.load()?.get::<CacheSettings>()?.dir;
        let items = items(&dir)?;
        let oldest = self.unused_for.and_then(|time| SystemTime::now().checked_sub(time));
        let mut pruned = Pruned {
            dir: dir.display().to_string(),
            removed: 0,
            removed_bytes: 0,
            kept: 0,
            kept_bytes: 0,
            dry_run: self.dry_run,
        };
        for item in &items {
            let bytes = item.stored.bytes;
            let is_old = oldest.is_some_and(|oldest| item.stored.used < oldest);
            let most = self.to.map_or(u64::MAX, |most| most.as_u64());
            if !is_old && pruned.kept_bytes.saturating_add(bytes) <= most {
                pruned.kept += 1;
                pruned.kept_bytes += bytes;
                continue;
            }
            if !self.dry_run {
                item.remove(&dir)?;
            }
            pruned.removed += 1;
            pruned.removed_bytes += bytes;
        }
        if self.json {
            output::json(&pruned)?;
        } else if super::is_there(&dir) {
            let verb = if self.dry_run { "would be removed" } else { "removed" };
            writeln!(
                output::out(),
                "{} of {} {verb} from {}; {} of {} left",
                output::count(pruned.removed, "file"),
                output::bytes(pruned.removed_bytes),
                pruned.dir,
                output::count(pruned.kept, "file"),
                output::bytes(pruned.kept_bytes),
            )?;
        }
        Ok(Exit::Done)
    }
}
