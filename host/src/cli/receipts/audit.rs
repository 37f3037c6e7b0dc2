//! `host receipts audit`: runs some of the finished tasks again, and compares their outputs.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use indicatif::HumanCount;
use parking_lot::Mutex;
use serde::Serialize;
use task_host::bucket;
use task_host::cache::{Cache, CacheOptions};
use task_host::config::{
    CacheSettings, CompileSettings, DataSettings, TaskLimits, TaskSettings, WorkSettings, parse,
};
use task_host::key::Prefix;
use task_host::message::Task;
use task_host::receipt::Receipts;
use task_host::services;
use task_host::spill::SpillDir;
use task_host::transfer::MessageOrigin;
use task_host::transfer::audit::{Audited, Auditor, Sample};
use task_host::transfer::lines;
use task_host::transfer::objects;
use task_host::transfer::rerun::{self, Rerunner};
use task_host::transfer::send::{BulkSend, SendError};

use super::super::console::Console;
use super::super::described::{DESCRIBED, Described};
use super::super::exit_code::{Advice, Exit};
use super::super::open_files;
use super::super::output;
use super::super::progress_line::ProgressLine;
use super::super::settings::{Audits, DisplaySettings, Flags, Settings};
use super::super::submit::{objects_error, open_bucket, sources};
use super::super::transfer_display::TransferDisplay;

pub(super) const HELP: &str = "\
The tasks are those of `host submit`: lines of files or of standard input, a task from flags, or a
task for each object that --each matches. The command chooses a sample of those that have a receipt
and runs them again, with the component and the inputs of the receipt, and deterministically if the
receipt says so. It publishes nothing. It compares the digests of all outputs with the receipt, and
prints the tasks that leave other outputs or fail, one per line, as `host submit` accepts them.
A task whose component or input has changed can't be repeated, and is only reported.
The exit code is 3 if a task differs, failed, or can't be repeated, and 1 if there are no tasks.

Examples:
  host receipts audit --bucket s3://my-data --sample 1% tasks.jsonl
  host receipts audit --sample 20 --seed 7 tasks.jsonl
  host receipts audit --sample 1% --name THRESHOLD --each 'datasets/cells/0_input/*.png'";

/// The maximum number of reasons that are shown. Further ones are only counted.
const SHOWN: u64 = 20;

/// Options of `host receipts audit`.
#[derive(Debug, clap::Args)]
pub(crate) struct Audit {
    /// Files with one task per line [default: standard input, as is `-`]
    #[arg(value_name = "FILE", conflicts_with_all = DESCRIBED)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    described: Described,
    /// Finished tasks to run again: a percentage, such as 1%, or a number
    #[arg(long, value_name = "N", default_value = "100")]
    sample: String,
    /// Choose the same sample as a run with this seed [default: another one each time]
    #[arg(long, value_name = "N", value_parser = parse::whole)]
    seed: Option<u64>,
    /// Print the final summary as JSON to standard error
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: Flags<Audits>,
}

/// The result, as `--json` prints it.
#[derive(Debug, Clone, Default, Serialize)]
struct Summary {
    bucket: String,
    seed: u64,
    /// Tasks that the sample was chosen from.
    tasks: u64,
    /// Tasks that left the outputs of their receipts.
    same: u64,
    /// Tasks that left other outputs.
    different: u64,
    failed: u64,
    /// Tasks whose component or inputs have changed.
    not_repeatable: u64,
    /// Lines that are not tasks.
    refused: u64,
}

impl Summary {
    fn chosen(&self) -> u64 {
        self.same + self.different + self.failed + self.not_repeatable
    }

    fn tell(&self, console: &Console) {
        let Self { bucket, seed, same, different, failed, not_repeatable, refused, .. } = self;
        let mut found = vec![format!("{} the same", HumanCount(*same))];
        let others = [
            (different, "different"),
            (failed, "failed"),
            (not_repeatable, "not repeatable"),
            (refused, "refused"),
        ];
        for (count, word) in others.into_iter().filter(|(count, _)| **count > 0) {
            found.push(format!("{} {word}", HumanCount(*count)));
        }
        let (chosen, tasks) = (HumanCount(self.chosen()), output::count(self.tasks, "task"));
        let found = found.join(", ");
        console
            .tell(format_args!("{chosen} of {tasks} in {bucket} audited (--seed {seed}): {found}"));
        if self.chosen() == 0 {
            console.tell(
                "hint: no finished task is in the sample; raise --sample, or see with `host \
                 receipts verify` which tasks have receipts",
            );
        }
    }
}

/// Prints the tasks that differ.
struct Printer {
    console: Console,
    out: output::Messages,
    unwritten: Option<io::Error>,
    found: Summary,
}

impl Printer {
    fn print(&mut self, message: &Bytes, task: &Task, audited: &Audited) {
        let (count, word, problem) = match audited {
            Audited::Same => {
                self.found.same += 1;
                return;
            }
            Audited::Differs(problem) => (&mut self.found.different, "different", problem),
            Audited::Failed(problem) => (&mut self.found.failed, "failed", problem),
            Audited::Changed(problem) => {
                (&mut self.found.not_repeatable, "can't be repeated", problem)
            }
        };
        *count += 1;
        if self.found.chosen() - self.found.same <= SHOWN {
            let Task { id, name, .. } = task;
            self.console.tell(format_args!("task {id} ({name}): {word}: {problem}"));
        }
        let is_printed = !matches!(audited, Audited::Changed(_));
        if is_printed && let Err(error) = self.out.write(message) {
            self.unwritten.get_or_insert(error);
        }
    }
}

impl Audit {
    pub(crate) fn run(self) -> anyhow::Result<Exit> {
        let settings = self.flags.load()?;
        let console = Console::plain(settings.get::<DisplaySettings>()?.progress);
        let json = self.json;
        let found = super::super::runtime()?.block_on(self.audit(&settings, &console))?;
        if json {
            console.tell(String::from_utf8_lossy(&output::json_line(&found)?));
        } else {
            found.tell(&console);
        }
        if found.tasks + found.refused == 0 {
            return Err(super::no_tasks().into());
        }
        let is_clean = found.same == found.chosen() && found.refused == 0;
        Ok(if is_clean { Exit::Done } else { Exit::Partly })
    }

    async fn audit(self, settings: &Settings, console: &Console) -> anyhow::Result<Summary> {
        let sample: Sample = self
            .sample
            .parse()
            .map_err(|e| Advice::usage(format!("--sample: {:?} {e}", self.sample)))?;
        let seed = self.seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
        let bucket = open_bucket(settings).await?;
        bucket.check().await?;
        let rerunner = open_rerunner(settings, &bucket).await?;
        let printer = Arc::new(Mutex::new(Printer {
            console: console.clone(),
            out: output::Messages::new(),
            unwritten: None,
            found: Summary { bucket: bucket.to_string(), seed, ..Summary::default() },
        }));
        let printing = printer.clone();
        let told = move |message: &Bytes, task: &Task, audited: &Audited| {
            printing.lock().print(message, task, audited);
        };
        let receipts = Receipts::new(bucket.clone());
        let auditor = Arc::new(Auditor::new(receipts, rerunner, sample, seed, told));
        let display = TransferDisplay::new(console, "tasks", "read");
        let check = BulkSend::only_check(auditor.clone(), display.clone());
        let sent = if let Some(pattern) = self.described.pattern()? {
            let template = self.described.template()?;
            let reading = objects::send(&*bucket, &pattern, &template, check);
            display.follow(reading).await.map_or_else(objects_error, |sent| Ok(Ok(sent)))?
        } else if let Some(body) = self.described.task()? {
            let origin = MessageOrigin::Named("the task".to_owned());
            display.follow(check.one(body.into(), origin)).await
        } else {
            display.follow(lines::send(sources(self.files)?, false, check)).await
        };
        let mut result = sent.map_err(|error| match error {
            SendError::Stopped { source, .. } => source.to_string(),
            error => error.to_string(),
        });
        if let Ok(sent) = &result {
            let mut line = ProgressLine::new(console, "tasks", "run again", None);
            let ran = auditor.run_chosen(|ran| line.at(ran, ran)).await;
            drop(line);
            result = ran.map(|()| *sent).map_err(|error| error.to_string());
        }
        let mut printer = printer.lock();
        let flushed = printer.out.flush();
        printer.unwritten.take().map_or(flushed, Err)?;
        let found = printer.found.clone();
        match result {
            Ok(sent) => {
                Ok(Summary { tasks: sent.sent + sent.skipped, refused: sent.refused, ..found })
            }
            Err(problem) => {
                let ran = output::count(found.chosen(), "task");
                Err(Advice::failed(problem).hint(format!("{ran} audited before the error")).into())
            }
        }
    }
}

/// Opens the buckets and the cache that tasks need to run again.
async fn open_rerunner(
    settings: &Settings,
    bucket: &Arc<dyn bucket::Bucket>,
) -> anyhow::Result<Rerunner> {
    let data: DataSettings = settings.get()?;
    let cache: CacheSettings = settings.get()?;
    let (max_bytes, dir) = (cache.for_blobs(), cache.dir);
    let inputs = match &data.input_bucket {
        Some(url) => {
            let inputs = bucket::open(url, &settings.bucket_access()?).await?;
            inputs.check().await?;
            inputs
        }
        None => bucket.clone(),
    };
    let components = match &data.components {
        Some(dir) => (bucket::open_dir(dir)?, Prefix::root()),
        None => (bucket.clone(), data.component_prefix.clone()),
    };
    let parallel = settings.get::<WorkSettings>()?.parallel;
    let (mut general, mut tables) = (settings.get::<TaskSettings>()?, settings.tasks()?);
    open_files::prepare_for(parallel, &mut general, &mut tables);
    Ok(Rerunner::new(rerun::Place {
        inputs,
        components,
        cache: Cache::open(CacheOptions { dir: dir.clone(), max_bytes })?,
        compiled: dir.join("compiled"),
        spill: Arc::new(SpillDir::new(&dir.join("work"))?),
        compile_limits: settings.get::<CompileSettings>()?.limits(),
        limits: TaskLimits::new(&general, &tables),
        reach: services::reach(&data)?,
        parallel,
    }))
}
