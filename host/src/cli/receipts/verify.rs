//! `host receipts verify`: prints the tasks that have no receipt, or whose outputs do not match it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use serde::Serialize;
use task_host::receipt::Receipts;
use task_host::transfer::MessageOrigin;
use task_host::transfer::check::{Checker, Depth, Undone};
use task_host::transfer::lines;
use task_host::transfer::objects;
use task_host::transfer::send::{BulkSend, SendError};

use super::super::console::Console;
use super::super::described::{DESCRIBED, Described};
use super::super::exit_code::{Advice, Exit};
use super::super::output;
use super::super::settings::{BucketOnly, DisplaySettings, Flags, Settings};
use super::super::submit::{objects_error, open_bucket, sources};
use super::super::transfer_display::TransferDisplay;

pub(super) const HELP: &str = "\
The tasks are those of `host submit`: lines of files or of standard input, a task from flags, or a
task for each object that --each matches. For each task the command reads the receipt and all
outputs. It prints the tasks that are not done, one per line, as `host submit` accepts them:
  missing  has no receipt, or an output is not there
  changed  no output is the one of the receipt
  mixed    some outputs are those of the receipt, and others are not
--quick compares sizes and versions of outputs and reads none. Copying a bucket changes versions.
A host with --receipts does not run a task that has a receipt: --withdraw withdraws the receipts of
the printed tasks, so that they run when they are sent again.
The exit code is 3 if a task is not done, and 1 if there are no tasks to check.

Examples:
  host receipts verify --bucket s3://my-data tasks.jsonl
  host receipts verify --withdraw tasks.jsonl > again.jsonl
  host receipts verify --quick --name THRESHOLD --each 'datasets/cells/0_input/*.png'
  host queue ls ./queue-done --json | jq -c .task | host receipts verify";

/// The maximum number of reasons that are shown. Further ones are only counted.
const SHOWN: u64 = 20;

/// Options of `host receipts verify`.
#[derive(Debug, clap::Args)]
pub(crate) struct Verify {
    /// Files with one task per line [default: standard input, as is `-`]
    #[arg(value_name = "FILE", conflicts_with_all = DESCRIBED)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    described: Described,
    /// Compare sizes and versions, without reading outputs
    #[arg(long)]
    quick: bool,
    /// Withdraw the receipts of the printed tasks, so that hosts run them again
    #[arg(long)]
    withdraw: bool,
    /// Print the final summary as JSON to standard error
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: Flags<BucketOnly>,
}

/// The result, as `--json` prints it.
#[derive(Debug, Clone, Default, Serialize)]
struct Summary {
    bucket: String,
    /// Tasks that were checked.
    tasks: u64,
    done: u64,
    missing: u64,
    changed: u64,
    mixed: u64,
    /// Lines that are not tasks.
    refused: u64,
}

/// Prints the tasks that are not done.
struct Printer {
    console: Console,
    out: output::Messages,
    failed: Option<io::Error>,
    found: Summary,
}

impl Printer {
    fn print(&mut self, message: &Bytes, undone: &Undone) {
        let count = match undone {
            Undone::Missing(_) => &mut self.found.missing,
            Undone::Changed(_) => &mut self.found.changed,
            Undone::Mixed(_) => &mut self.found.mixed,
        };
        *count += 1;
        if self.found.missing + self.found.changed + self.found.mixed <= SHOWN {
            self.console.tell(undone);
        }
        if let Err(error) = self.out.write(message) {
            self.failed.get_or_insert(error);
        }
    }
}

impl Verify {
    pub(crate) fn run(self) -> anyhow::Result<Exit> {
        let settings = self.flags.load()?;
        let console = Console::plain(settings.get::<DisplaySettings>()?.progress);
        let json = self.json;
        let found = super::super::runtime()?.block_on(self.verify(&settings, &console))?;
        if json {
            console.tell(String::from_utf8_lossy(&output::json_line(&found)?));
        } else {
            found.tell(&console);
        }
        if found.tasks + found.refused == 0 {
            return Err(super::no_tasks().into());
        }
        let is_clean = found.done == found.tasks && found.refused == 0;
        Ok(if is_clean { Exit::Done } else { Exit::Partly })
    }

    async fn verify(self, settings: &Settings, console: &Console) -> anyhow::Result<Summary> {
        let bucket = open_bucket(settings).await?;
        bucket.check().await?;
        let depth = if self.quick { Depth::Versions } else { Depth::Digests };
        let printer = Arc::new(Mutex::new(Printer {
            console: console.clone(),
            out: output::Messages::new(),
            failed: None,
            found: Summary { bucket: bucket.to_string(), ..Summary::default() },
        }));
        let printing = printer.clone();
        let told = move |message: &Bytes, undone: &Undone| printing.lock().print(message, undone);
        let checker = Checker::new(Receipts::new(bucket.clone()), depth, told);
        let checker = Arc::new(checker.that_withdraws(self.withdraw));
        let display = TransferDisplay::new(console, "tasks", "checked");
        let check = BulkSend::only_check(checker, display.clone());
        let sent = if let Some(pattern) = self.described.pattern()? {
            let template = self.described.template()?;
            let checking = objects::send(&*bucket, &pattern, &template, check);
            display.follow(checking).await.map_or_else(objects_error, |sent| Ok(Ok(sent)))?
        } else if let Some(body) = self.described.task()? {
            let origin = MessageOrigin::Named("the task".to_owned());
            display.follow(check.one(body.into(), origin)).await
        } else {
            display.follow(lines::send(sources(self.files)?, false, check)).await
        };
        let mut printer = printer.lock();
        let flushed = printer.out.flush();
        printer.failed.take().map_or(flushed, Err)?;
        match sent {
            Ok(sent) => Ok(Summary {
                tasks: sent.sent + sent.skipped,
                done: sent.skipped,
                refused: sent.refused,
                ..printer.found.clone()
            }),
            Err(SendError::Stopped { source, done, .. }) => {
                let checked = output::count(done.sent + done.skipped, "task");
                Err(Advice::failed(source.to_string())
                    .hint(format!("{checked} checked before the error"))
                    .into())
            }
            Err(error) => Err(Advice::failed(error.to_string()).into()),
        }
    }
}

impl Summary {
    fn tell(&self, console: &Console) {
        let Self { bucket, tasks, done, missing, changed, mixed, refused } = self;
        let mut found = vec![format!("{} done", indicatif::HumanCount(*done))];
        let undone =
            [(missing, "missing"), (changed, "changed"), (mixed, "mixed"), (refused, "refused")];
        for (count, word) in undone.into_iter().filter(|(count, _)| **count > 0) {
            found.push(format!("{} {word}", indicatif::HumanCount(*count)));
        }
        let tasks = output::count(*tasks, "task");
        console.tell(format_args!("{tasks} checked in {bucket}: {}", found.join(", ")));
    }
}
