//! `host submit`: puts tasks into a queue, from lines, from flags, from a listing of the
//! bucket, or back from an error queue.

mod each;
mod lines;

use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use task_host::config::{DataSettings, parse};
use task_host::json;
use task_host::queue::Access;

use super::console::Console;
use super::exit_code::{Advice, Exit};
use super::output;
use super::progress_line::ProgressLine;
use super::redrive::{Filter, Redrive};
use super::refusals::{Place, Refusals};
use super::sender::{Sender, Target};
use super::settings::{DisplaySettings, Flags, QueueAndBucket, Settings};

/// Options of `host submit`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Each line of a file is one task:
  {\"basic_info\": {\"id\": 4, \"name\": \"NO_OP\", \"base_directory\": \"datasets/noop_dataset\",
   \"inputs\": [\"0_input/4.dat\"]}, \"payload_info\": \"any JSON\"}
Lines are sent unchanged. A line that is not a task, or that the queue refuses, is reported with its
number (the first 20 are), and --rejects writes it to a file. The other lines are sent, and the
exit code is 3.

--each creates a task for each object in the bucket that matches PATTERN, with the object as its
only input. * and ? do not match a slash; ** does. Without --base-directory, the base directory is
the part of the key before the first segment that ends in `_input`. --payload may contain these
placeholders: {key} is the object's key, {input} the key below the base directory, {name} the file
name, {stem} the file name without its extension, and {id} the task's id.

Examples:
  host submit --fq ./queue tasks.jsonl
  generate-tasks | host submit --fq ./queue --all-or-nothing
  generate-tasks | host submit --queue sqs://my-tasks --rejects not-sent.jsonl
  host submit --fq ./queue --name NO_OP --base-directory datasets/a --input 0_input/4.dat
  host submit --fq ./queue --name THRESHOLD --each 'datasets/cells/0_input/*.png' \\
      --payload '{\"title\": \"{stem}\"}'
  host submit --fq ./queue --from-errors ./queue-errors --limit 1")]
pub(crate) struct Submit {
    /// Files with one task per line [default: standard input, as is `-`]
    #[arg(value_name = "FILE", conflicts_with_all = ["name", "each", "from_errors"])]
    files: Vec<PathBuf>,
    /// Check all lines first, and send nothing if one is not a task
    #[arg(long, conflicts_with_all = ["name", "each", "from_errors"])]
    all_or_nothing: bool,

    /// Name of the task and of its component; with --from-errors, only tasks with this name
    #[arg(long, help_heading = "Tasks from flags")]
    name: Option<String>,
    /// Prefix of the keys of inputs and outputs in the bucket
    #[arg(long, value_name = "PREFIX", requires = "name", help_heading = "Tasks from flags")]
    base_directory: Option<String>,
    /// Key of an input, relative to the base directory; repeat it for more inputs
    #[arg(
        long = "input",
        value_name = "KEY",
        requires = "name",
        help_heading = "Tasks from flags"
    )]
    inputs: Vec<String>,
    /// Parameters for the component
    #[arg(long, value_name = "JSON", requires = "name", help_heading = "Tasks from flags")]
    payload: Option<String>,
    /// Id of the task; with --each, the id of the first task [default: none; with --each, 0]
    #[arg(
        long,
        value_name = "N",
        requires = "name",
        allow_negative_numbers = true,
        help_heading = "Tasks from flags"
    )]
    id: Option<i64>,
    /// Create a task for each object in the bucket that matches
    #[arg(long, value_name = "PATTERN", requires = "name", help_heading = "Tasks from flags")]
    each: Option<String>,

    /// Send the tasks of this error queue back to the queue, and delete their reports
    #[arg(
        long,
        value_name = "URL",
        conflicts_with_all = ["each", "base_directory", "inputs", "payload", "id"],
        help_heading = "Tasks from an error queue"
    )]
    from_errors: Option<String>,
    /// Maximum number of tasks to send back
    #[arg(
        long,
        value_name = "N",
        requires = "from_errors",
        help_heading = "Tasks from an error queue"
    )]
    limit: Option<u64>,

    /// New file for tasks that could not be sent, one per line, to send them again later
    #[arg(long, value_name = "FILE", conflicts_with = "from_errors")]
    rejects: Option<PathBuf>,
    /// Check everything, but send nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the final summary as JSON
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
        let screen = Console::plain(settings.get::<DisplaySettings>()?.progress);
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
        let (url, access) = (&settings.queue()?.to_string(), &settings.queue_access()?);
        let to = &To { screen, url, access, dry_run: self.dry_run };
        if let Some(errors) = &self.from_errors {
            let from =
                parse::queue(errors).map_err(|e| Advice::usage(format!("--from-errors: {e}")))?;
            let from = from.to_string();
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
            let bucket = settings.get::<DataSettings>()?.bucket.to_string();
            let bucket_access = settings.bucket_access()?;
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
