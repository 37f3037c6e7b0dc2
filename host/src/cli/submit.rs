//! `host submit`: sends tasks to a queue: from lines, from options, from a listing of the bucket,
//! or from an error queue.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indicatif::HumanCount;
use serde::Serialize;
use task_host::bucket::{self, Bucket, BucketError};
use task_host::config::{DataSettings, parse};
use task_host::key::{BucketKey, Prefix, TaskName};
use task_host::queue::Address;
use task_host::receipt::Receipts;
use task_host::transfer::MessageOrigin;
use task_host::transfer::check::{Checker, Depth};
use task_host::transfer::lines::{self, LineSource};
use task_host::transfer::objects::{self, ObjectError, ObjectsError};
use task_host::transfer::redrive::{Filter, Redrive};
use task_host::transfer::send::{BulkSend, SendError, Sent};

use super::console::Console;
use super::described::{DESCRIBED, DESCRIBED_BUT_NAME, Described, draft_error};
use super::exit_code::{Advice, Exit};
use super::output;
use super::queue::redrive_error;
use super::settings::{DisplaySettings, Flags, QueueAndBucket, Settings};
use super::transfer_display::{Stop, TransferDisplay, create_rejects, stop_on_signal, tell_kept};

/// Options of `host submit`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Each line of a file is one task:
  {\"basic_info\": {\"id\": 4, \"name\": \"NO_OP\", \"base_directory\": \"datasets/noop_dataset\",
   \"inputs\": [\"0_input/4.dat\"]}, \"payload_info\": \"any JSON\"}
Lines are sent unchanged. A line that is not a task, or that the queue refuses, is reported with its
number (the first 20 are), and --rejects writes it to a file. The other lines are sent, and the
exit code is 3.

A task from flags whose component or input is not in the bucket is sent with a warning.

--each creates a task for each object in the bucket that matches PATTERN, with the object as its
only input. * and ? do not match a slash; ** does. Unlike in a shell, they also match a name that
begins with a dot. Without --base-directory, the base directory is the part of the key before the
first segment that ends in `_input`. --payload may contain these placeholders: {key} is the object's
key, {input} the key below the base directory, {name} the file name, {stem} the file name without
its extension, and {id} the task's id.

Examples:
  host submit --fq ./queue tasks.jsonl
  generate-tasks | host submit --fq ./queue --all-or-nothing
  generate-tasks | host submit --queue sqs://my-tasks --rejects not-sent.jsonl
  host submit --fq ./queue --name NO_OP --base-directory datasets/a --input 0_input/4.dat
  host submit --fq ./queue --name THRESHOLD --each 'datasets/cells/0_input/*.png' \\
      --payload '{\"title\": \"{stem}\"}'
  host submit --fq ./queue tasks.jsonl --skip-done
  host submit --fq ./queue --from-errors ./queue-errors --limit 1")]
pub(crate) struct Submit {
    /// Files with one task per line [default: standard input, as is `-`]
    #[arg(value_name = "FILE", conflicts_with_all = DESCRIBED, conflicts_with = "from_errors")]
    files: Vec<PathBuf>,
    /// Check all lines first, and send nothing if one is not a task
    #[arg(long, conflicts_with_all = DESCRIBED, conflicts_with = "from_errors")]
    all_or_nothing: bool,

    #[command(flatten)]
    described: Described,

    /// Send the tasks of this error queue back to the queue, and delete their reports; with --name,
    /// only those with that name
    #[arg(
        long,
        value_name = "URL",
        conflicts_with_all = DESCRIBED_BUT_NAME,
        help_heading = "Tasks from an error queue"
    )]
    from_errors: Option<String>,
    /// Maximum number of tasks to send back
    #[arg(
        long,
        value_name = "N",
        value_parser = parse::whole,
        requires = "from_errors",
        // Repeats the options that exclude `--from-errors`: with one of them, clap would not
        // require `--from-errors` for this option.
        conflicts_with_all = ["files", "all_or_nothing", "rejects", "skip_done"],
        conflicts_with_all = DESCRIBED_BUT_NAME,
        help_heading = "Tasks from an error queue"
    )]
    limit: Option<u64>,

    /// New file for tasks that could not be sent, one per line, to send them again later
    #[arg(long, value_name = "FILE", conflicts_with = "from_errors")]
    rejects: Option<PathBuf>,
    /// Leave out tasks that have a receipt in the bucket
    #[arg(long, conflicts_with = "from_errors")]
    skip_done: bool,
    /// Check everything, show the first message, and send nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the final summary as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: Flags<QueueAndBucket>,
}

/// The result, with the fields of `--json`.
#[derive(Debug, Serialize)]
struct Outcome {
    queue: String,
    /// Tasks that were sent, or would be sent in a dry run.
    sent: u64,
    /// Tasks that are done, according to their receipts or reports.
    skipped: u64,
    /// Messages of `--from-errors` that do not match.
    #[serde(skip_serializing_if = "Option::is_none")]
    left: Option<u64>,
    /// Lines or reports that are not tasks, and tasks that the queue refused.
    refused: u64,
    dry_run: bool,
    /// The last line or object before a signal stopped the command.
    #[serde(skip_serializing_if = "Option::is_none")]
    stopped_after: Option<String>,
    #[serde(skip)]
    exit: Exit,
}

impl Submit {
    pub(crate) fn run(self) -> anyhow::Result<Exit> {
        let settings = self.flags.load()?;
        let (console, json) =
            (Console::plain(settings.get::<DisplaySettings>()?.progress), self.json);
        let runtime = super::waiting_runtime()?;
        let outcome = runtime.block_on(self.submit(&settings, &console));
        // Don't wait for threads: after a signal, one may still be reading a line.
        runtime.shutdown_background();
        let outcome = outcome?;
        if json {
            output::json(&outcome)?;
        } else {
            outcome.tell(&console);
        }
        Ok(outcome.exit)
    }

    async fn submit(self, settings: &Settings, console: &Console) -> anyhow::Result<Outcome> {
        let queue = settings.queue()?;
        if let Some(errors) = &self.from_errors {
            return self.redrive(errors, queue, settings, console).await;
        }
        let verb = if self.skip_done { "checked" } else { "sent" };
        let display = match self.dry_run {
            true => TransferDisplay::of_dry_run(console, "tasks", verb),
            false => TransferDisplay::new(console, "tasks", verb),
        };
        let checked = match self.skip_done {
            true => Some(open_bucket(settings).await?),
            false => None,
        };
        let (dry_run, path) = (self.dry_run, self.rejects.clone());
        let rejects = path.as_deref();
        let (mut stop, mut is_single) = (Stop::default(), false);
        let mut bulk_send = || -> anyhow::Result<BulkSend> {
            let file = rejects.map(create_rejects).transpose()?;
            let (queue, access) = (queue.clone(), settings.queue_access()?);
            stop = stop_on_signal(console);
            let send = BulkSend::new(queue, access, dry_run, file, display.clone());
            let send = send.until(stop.token.clone());
            Ok(match &checked {
                Some(bucket) => {
                    let receipts = Receipts::new(bucket.clone());
                    let checker = Checker::new(receipts, Depth::Receipt, |_, _| {});
                    send.without_done(Arc::new(checker))
                }
                None => send,
            })
        };
        let sent = if let Some(pattern) = self.described.pattern()? {
            let template = self.described.template()?;
            let bucket = open_bucket(settings).await?;
            warn_of_missing(settings, &self.described, console).await?;
            let sending = objects::send(&*bucket, &pattern, &template, bulk_send()?);
            display.follow(sending).await.map_or_else(objects_error, |sent| Ok(Ok(sent)))?
        } else if let Some(body) = self.described.task()? {
            is_single = true;
            warn_of_missing(settings, &self.described, console).await?;
            let origin = MessageOrigin::Named("the task".to_owned());
            display.follow(bulk_send()?.one(body.into(), origin)).await
        } else {
            let sources = sources(self.files)?;
            display.follow(lines::send(sources, self.all_or_nothing, bulk_send()?)).await
        };
        let outcome = |sent: Sent| Outcome {
            queue: queue.to_string(),
            sent: sent.sent,
            skipped: sent.skipped,
            left: None,
            refused: sent.refused,
            dry_run,
            stopped_after: None,
            exit: if sent.refused > 0 { Exit::Partly } else { Exit::Done },
        };
        match sent {
            Ok(sent) => {
                tell_kept(console, &sent, rejects);
                if self.all_or_nothing && sent.refused > 0 && sent.sent == 0 {
                    console.tell("nothing is sent, because of --all-or-nothing");
                }
                Ok(outcome(sent))
            }
            Err(SendError::Interrupted { done, last }) => {
                tell_kept(console, &done, rejects);
                console.tell(output::name(match &last {
                    Some(last @ MessageOrigin::Line(_, line)) => {
                        format!("stopped after {last}; continue with line {}", line + 1)
                    }
                    Some(last) => format!("stopped after {last}; what follows it was not sent"),
                    None => "stopped before the first task was sent".to_owned(),
                }));
                let stopped_after = last.map(|last| last.to_string());
                Ok(Outcome { stopped_after, exit: stop.exit(), ..outcome(done) })
            }
            Err(SendError::Input { source, done }) => {
                if let Some(done) = done {
                    tell_kept(console, &done, rejects);
                    outcome(done).tell(console);
                }
                Err(Advice::failed(source.to_string()).into())
            }
            Err(SendError::Stopped { source, done, first_unsent, is_rest_kept }) => {
                tell_kept(console, &done, rejects);
                let hint = match is_single {
                    true => "the task was not sent, unless only the answer was lost".to_owned(),
                    false => unsent(done.sent, first_unsent.as_ref(), is_rest_kept),
                };
                Err(Advice::failed(source.to_string()).hint(hint).into())
            }
            Err(error) => Err(Advice::failed(error.to_string()).into()),
        }
    }

    async fn redrive(
        &self,
        errors: &str,
        to: Address,
        settings: &Settings,
        console: &Console,
    ) -> anyhow::Result<Outcome> {
        let from =
            parse::queue(errors).map_err(|e| Advice::usage(format!("--from-errors: {e}")))?;
        let filter = Filter { name: self.described.name.clone(), ..Filter::default() };
        let (limit, dry_run) = (self.limit, self.dry_run);
        let display = TransferDisplay::new(console, "messages", "sent back");
        let stop = match dry_run {
            true => Stop::default(),
            false => stop_on_signal(console),
        };
        let access = settings.queue_access()?;
        let redrive = Redrive { from, to: to.clone(), filter, limit, dry_run };
        let done = display.follow(redrive.run(&access, display.clone(), &stop.token)).await;
        let done = done.map_err(redrive_error)?.messages;
        let (sent, skipped, refused) = (done.sent, done.done, done.refused);
        if done.is_cut_short {
            console.tell("not all messages were read, because too many do not match");
        }
        let exit = match (done.is_interrupted, refused > 0 || done.is_cut_short) {
            (true, _) => stop.exit(),
            (false, true) => Exit::Partly,
            (false, false) => Exit::Done,
        };
        let (queue, left, stopped_after) = (to.to_string(), Some(done.left), None);
        Ok(Outcome { queue, sent, skipped, left, refused, dry_run, stopped_after, exit })
    }
}

/// The hint for an error of the queue during sending: the tasks that were sent, and the others.
fn unsent(sent: u64, first: Option<&MessageOrigin>, is_rest_kept: bool) -> String {
    let sent = output::count(sent, "task");
    let first =
        first.map_or(String::new(), |origin| format!("; the first that was not sent is {origin}"));
    let rest = match is_rest_kept {
        true => "the others are in the file of --rejects",
        false => "some of the others may be missing",
    };
    format!(
        "{sent} sent before the error{first}; {rest}. A task whose answer got lost may be in the \
         queue all the same"
    )
}

/// Warns if the component or inputs of tasks from flags do not exist. They may be created later, so
/// the tasks are sent anyway. A bucket that can't be read causes no warning, because the user may
/// be allowed to send tasks but not to read the bucket.
async fn warn_of_missing(
    settings: &Settings,
    described: &Described,
    console: &Console,
) -> anyhow::Result<()> {
    let Some((name, base, inputs)) = described.literal() else { return Ok(()) };
    let data: DataSettings = settings.get()?;
    let access = settings.bucket_access()?;
    let missing = async |bucket: &dyn Bucket, key: &BucketKey| {
        matches!(bucket.head(key).await, Err(BucketError::NotFound { .. }))
    };
    let (components, prefix) = match &data.components {
        Some(dir) => (bucket::open_dir(dir), Prefix::root()),
        None => (bucket::open(&data.bucket, &access).await, data.component_prefix.clone()),
    };
    if let (Ok(bucket), Ok(name)) = (components, TaskName::new(name)) {
        let key = prefix.join(&name.file());
        if missing(&*bucket, &key).await {
            console.tell(format_args!(
                "warning: {bucket} has no component {key} for tasks named {name}; `host component \
                 ls` lists the components"
            ));
        }
    }
    let Some(base) = base.and_then(|base| Prefix::new(base.trim_end_matches('/')).ok()) else {
        return Ok(());
    };
    let address = data.input_bucket.as_ref().unwrap_or(&data.bucket);
    let Ok(bucket) = bucket::open(address, &access).await else { return Ok(()) };
    for input in inputs.iter().filter_map(|input| BucketKey::new(input).ok()) {
        let key = base.join(&input);
        if missing(&*bucket, &key).await {
            console.tell(format_args!("warning: {bucket} has no object {key}, which is an input"));
        }
    }
    Ok(())
}

/// Opens the bucket with objects and receipts.
pub(crate) async fn open_bucket(settings: &Settings) -> anyhow::Result<Arc<dyn Bucket>> {
    let data: DataSettings = settings.get()?;
    Ok(bucket::open(&data.bucket, &settings.bucket_access()?).await?)
}

/// The sources of lines. Standard input must not be a terminal, because tasks are not typed by
/// hand.
pub(crate) fn sources(files: Vec<PathBuf>) -> anyhow::Result<Vec<LineSource>> {
    if files.is_empty() && io::stdin().is_terminal() {
        return Err(Advice::usage("no tasks are given, and standard input is a terminal")
            .hint("name a file with one task a line, pipe lines in, or describe a task with --name")
            .into());
    }
    let source = |path: PathBuf| match path == Path::new("-") {
        true => LineSource::Stdin,
        false => LineSource::Path(path),
    };
    let sources: Vec<LineSource> = files.into_iter().map(source).collect();
    Ok(if sources.is_empty() { vec![LineSource::Stdin] } else { sources })
}

/// Separates errors of sending, which are returned, from other errors of `--each`, which come
/// before anything is sent.
pub(crate) fn objects_error(error: ObjectsError) -> anyhow::Result<Result<Sent, SendError>> {
    let advice = match error {
        ObjectsError::Send(error) => return Ok(Err(error)),
        ObjectsError::Payload(error) => draft_error(error),
        ObjectsError::NoMatch { .. } => Advice::failed(error.to_string()).hint(
            "the pattern has to match whole keys, from the bucket's root; quote it for the shell",
        ),
        ObjectsError::NoTask { problem: ObjectError::NoInputSegment, .. } => {
            Advice::usage(error.to_string()).hint("give --base-directory")
        }
        ObjectsError::NoTask { .. } => Advice::usage(error.to_string()),
    };
    Err(advice.into())
}

impl Outcome {
    fn tell(&self, console: &Console) {
        let Self { queue, sent, skipped, left, refused, dry_run, .. } = self;
        let sent = output::count(*sent, "task");
        let some = |count: u64, what: &str| match count {
            0 => String::new(),
            n => format!("; {} {what}", HumanCount(n)),
        };
        let left = left.unwrap_or_default();
        let left = some(left, if left == 1 { "does not match" } else { "do not match" });
        let (skipped, refused) = (some(*skipped, "done before"), some(*refused, "refused"));
        let verb = if *dry_run { "would be sent" } else { "sent" };
        let queue = output::name(queue);
        console.note(format_args!("{sent} {verb} to {queue}{skipped}{left}{refused}"));
    }
}
