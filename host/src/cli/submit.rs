//! `host submit`: puts tasks into a queue, from lines, from flags, from a listing of the
//! bucket, or back from an error queue.

mod each;
mod lines;

use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use task_host::json;
use task_host::queue::Access;

use super::console::Console;
use super::exit_code::{Advice, Exit};
use super::output;
use super::progress_line::ProgressLine;
use super::redrive::{Filter, Redrive};
use super::refusals::{Place, Refusals};
use super::sender::{Sender, Target};
use super::settings::{Flags, PROGRESS, QueueAndBucket, Settings, queue_url};
use super::values::{self, When};

/// Options of `host submit`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A line holds one task:
  {\"basic_info\": {\"id\": 4, \"name\": \"NO_OP\", \"base_directory\": \"datasets/noop_dataset\",
   \"inputs\": [\"0_input/4.dat\"]}, \"payload_info\": \"any JSON\"}
It is sent as it stands. Lines that are no task, or that the queue does not take, are reported
with their number (the first 20), and kept in the file that --rejects names; the others go in,
and the exit code is 3.

With --each, every object of the bucket that matches becomes the one input of a task. In
PATTERN, * and ? stay within a segment and ** does not. The base directory is what stands
before the object's first segment that ends with `_input`, unless --base-directory is given.
In --payload, {key}, {input}, {name}, {stem} and {id} stand for the object's key in the bucket,
its key below the base directory, its file name, that without the ending, and the task's id.

Examples:
  host submit --fq ./queue tasks.jsonl
  generate-tasks | host submit --fq ./queue --all-or-nothing
  generate-tasks | host submit --queue sqs://my-tasks --rejects not-sent.jsonl
  host submit --fq ./queue --name NO_OP --base-directory datasets/a --input 0_input/4.dat
  host submit --fq ./queue --name THRESHOLD --each 'datasets/cells/0_input/*.png' \\
      --payload '{\"title\": \"{stem}\"}'
  host submit --fq ./queue --from-errors ./queue-errors --limit 1")]
pub(crate) struct Submit {
    /// Files with one task a line; `-` or none is standard input
    #[arg(value_name = "FILE", conflicts_with_all = ["name", "each", "from_errors"])]
    files: Vec<PathBuf>,
    /// Send nothing if any line is bad
    #[arg(long, conflicts_with_all = ["name", "each", "from_errors"])]
    all_or_nothing: bool,

    /// Name of the task, which chooses its component; with --from-errors, take only such tasks
    #[arg(long, help_heading = "Tasks from flags")]
    name: Option<String>,
    /// Prefix in the bucket that inputs and outputs are relative to
    #[arg(long, value_name = "PREFIX", requires = "name", help_heading = "Tasks from flags")]
    base_directory: Option<String>,
    /// Key of an input, relative to the base directory; may be repeated
    #[arg(
        long = "input",
        value_name = "KEY",
        requires = "name",
        help_heading = "Tasks from flags"
    )]
    inputs: Vec<String>,
    /// The task's own parameters
    #[arg(long, value_name = "JSON", requires = "name", help_heading = "Tasks from flags")]
    payload: Option<String>,
    /// The task's id; with --each, that of the first [default: none; with --each, 0]
    #[arg(
        long,
        value_name = "N",
        requires = "name",
        allow_negative_numbers = true,
        help_heading = "Tasks from flags"
    )]
    id: Option<i64>,
    /// Make a task for each object of the bucket that matches
    #[arg(long, value_name = "PATTERN", requires = "name", help_heading = "Tasks from flags")]
    each: Option<String>,

    /// Put the tasks of these reports back into the queue, and delete the reports
    #[arg(
        long,
        value_name = "URL",
        conflicts_with_all = ["each", "base_directory", "inputs", "payload", "id"],
        help_heading = "Tasks from an error queue"
    )]
    from_errors: Option<String>,
    /// Put back so many tasks at the most
    #[arg(
        long,
        value_name = "N",
        requires = "from_errors",
        help_heading = "Tasks from an error queue"
    )]
    limit: Option<u64>,

    /// Write the tasks that could not be sent to this new file, one a line, to send them again
    #[arg(long, value_name = "FILE", conflicts_with = "from_errors")]
    rejects: Option<PathBuf>,
    /// Do everything but send
    #[arg(long)]
    dry_run: bool,
    /// Print a summary as JSON on standard output at the end
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: Flags<QueueAndBucket>,
}

/// What became of the tasks. The fields are what `--json` prints.
#[derive(Debug, Serialize)]
struct Outcome {
    queue: String,
    /// Tasks that are in the queue now; with `dry_run`, that would be.
    sent: u64,
    /// Lines or reports that are no task, and tasks that the queue did not take.
    refused: u64,
    dry_run: bool,
}

impl Submit {
    pub(crate) fn run(self) -> anyhow::Result<Exit> {
        let settings = self.flags.load()?;
        let screen = Console::plain(settings.value(&PROGRESS, values::when)?.unwrap_or(When::Auto));
        let (dry_run, json) = (self.dry_run, self.json);
        let outcome = super::waiting_runtime()?.block_on(self.submit(&settings, &screen))?;
        if json {
            output::json(&outcome)?;
        } else {
            outcome.tell(&screen, dry_run);
        }
        Ok(if outcome.refused > 0 { Exit::Partly } else { Exit::Done })
    }

    async fn submit(self, settings: &Settings, screen: &Console) -> anyhow::Result<Outcome> {
        let (url, access) = (&settings.queue()?, &settings.queue_access()?);
        let to = &To { screen, url, access, dry_run: self.dry_run };
        if let Some(errors) = &self.from_errors {
            let from =
                queue_url(errors).map_err(|e| Advice::usage(format!("--from-errors: {e}")))?;
            let filter = Filter { name: self.name, ..Filter::default() };
            let (limit, dry_run) = (self.limit, self.dry_run);
            let done = Redrive { from, to: url.clone(), filter, limit, dry_run }
                .run(screen, access)
                .await?;
            return Ok(to.outcome(done.sent, done.refused));
        }
        let Some(name) = self.name else {
            return lines::send(self.files, self.all_or_nothing, self.rejects, to).await;
        };
        let template = Template {
            name,
            base_directory: self.base_directory,
            inputs: self.inputs,
            payload: self.payload,
        };
        template.check()?;
        let rejects = self.rejects.as_deref();
        if let Some(pattern) = self.each {
            let (bucket, bucket_access) = (settings.bucket()?, settings.bucket_access()?);
            let id = self.id.unwrap_or(0);
            return each::send(&bucket, &bucket_access, &pattern, &template, id, rejects, to).await;
        }
        let Some(base) = template.base_directory.clone() else {
            return Err(Advice::usage("--base-directory is missing")
                .hint("it is the prefix in the bucket that inputs and outputs are relative to")
                .into());
        };
        let body = template.task(self.id, &base, &template.inputs, template.payload.as_deref())?;
        let refusals = Arc::new(Refusals::new(screen, rejects)?);
        let meter = ProgressLine::new(screen, "tasks", "sent", None);
        let mut sender = Sender::new(to.open().await?, refusals, meter);
        sender.push(body.into(), Place::Named("the task".to_owned())).await;
        let (sent, refused) = sender.finish("task").await?;
        Ok(to.outcome(sent, refused))
    }
}

/// The queue that tasks go to.
struct To<'a> {
    screen: &'a Console,
    url: &'a str,
    access: &'a Access,
    dry_run: bool,
}

impl To<'_> {
    /// Opens it, and makes it if there is none. None for a dry run.
    async fn open(&self) -> anyhow::Result<Option<Target>> {
        if self.dry_run {
            return Ok(None);
        }
        Target::open(self.screen, self.url, self.access).await.map(Some)
    }

    fn outcome(&self, sent: u64, refused: u64) -> Outcome {
        Outcome { queue: self.url.to_owned(), sent, refused, dry_run: self.dry_run }
    }
}

impl Outcome {
    fn tell(&self, screen: &Console, dry_run: bool) {
        let Self { queue, sent, refused, .. } = self;
        let sent = output::count(*sent, "task");
        let refused = match refused {
            0 => String::new(),
            n => format!("; {} refused", output::number(*n)),
        };
        if dry_run {
            screen.tell(format_args!("{sent} would be sent to {queue}{refused}"));
        } else {
            screen.tell(format_args!("{sent} sent to {queue}{refused}"));
        }
    }
}

/// What tasks from flags have in common.
pub(crate) struct Template {
    pub(crate) name: String,
    pub(crate) base_directory: Option<String>,
    pub(crate) inputs: Vec<String>,
    pub(crate) payload: Option<String>,
}

impl Template {
    fn check(&self) -> anyhow::Result<()> {
        let Some(payload) = self.payload.as_deref().filter(|p| !p.contains('{')) else {
            return Ok(());
        };
        raw(payload).map(drop)
    }

    /// Checks that the payload is JSON for one of the samples that it is filled with.
    fn check_filled(&self, samples: impl FnOnce(&str) -> Vec<String>) -> anyhow::Result<()> {
        let Some(payload) = &self.payload else { return Ok(()) };
        let samples = samples(payload);
        let mut checked = samples.iter().map(|sample| raw(sample).map(drop));
        match checked.next() {
            Some(Err(error)) if !checked.any(|checked| checked.is_ok()) => Err(error),
            _ => Ok(()),
        }
    }

    /// The text of one task, checked.
    pub(crate) fn task(
        &self,
        id: Option<i64>,
        base_directory: &str,
        inputs: &[String],
        payload: Option<&str>,
    ) -> anyhow::Result<String> {
        #[derive(Serialize)]
        struct Info<'a> {
            #[serde(skip_serializing_if = "Option::is_none")]
            id: Option<i64>,
            name: &'a str,
            base_directory: &'a str,
            inputs: &'a [String],
        }
        let payload_info = payload.map(raw).transpose()?;
        let info = Info { id, name: &self.name, base_directory, inputs };
        let info = serde_json::to_string(&info)?;
        let text = match payload_info {
            Some(payload) => format!("{{\"basic_info\":{info},\"payload_info\":{payload}}}"),
            None => format!("{{\"basic_info\":{info}}}"),
        };
        match task_host::message::decode(text.as_bytes()) {
            Ok(_) => Ok(text),
            Err(error) => Err(Advice::usage(error.to_string()).into()),
        }
    }
}

/// The text of a payload, which has to be JSON: the standard's or Python's.
fn raw(payload: &str) -> anyhow::Result<&str> {
    json::parse(payload).map(json::Value::text).map_err(|error| {
        Advice::usage(format!("--payload is not JSON: {error}: {}", output::cut(payload, 60)))
            .hint("a text needs its quotes: --payload '\"text\"'")
            .into()
    })
}
