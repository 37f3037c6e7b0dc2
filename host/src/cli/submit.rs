//! `host submit`: puts tasks into a queue, from lines, from flags, from a listing of the
//! bucket, or back from an error queue.

mod each;
mod lines;
mod reports;
mod sender;

use std::path::PathBuf;

use serde::Serialize;
use serde_json::value::RawValue;

use super::exit::{Advice, Exit};
use super::settings::{Flags, PROGRESS, QueueAndBucket, Settings};
use super::show;
use super::telemetry::Screen;
use super::values::{self, When};
use sender::Sender;

/// Options of `host submit`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A line holds one task:
  {\"basic_info\": {\"id\": 4, \"name\": \"NO_OP\", \"base_directory\": \"datasets/noop_dataset\",
   \"inputs\": [\"0_input/4.dat\"]}, \"payload_info\": \"any JSON\"}
It is sent as it stands. Lines that are no task are reported with their number; the others go
in, and the exit code is 3.

With --each, every object of the bucket that matches becomes the one input of a task. In
PATTERN, * and ? stay within a segment and ** does not. The base directory is what stands
before the object's first segment that ends with `_input`, unless --base-directory is given.
In --payload, {key}, {input}, {name}, {stem} and {id} stand for the object's key in the bucket,
its key below the base directory, its file name, that without the ending, and the task's id.

Examples:
  host submit --fq ./queue tasks.jsonl
  generate-tasks | host submit --fq ./queue --all-or-nothing
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
    /// Lines or reports that are no task.
    refused: u64,
    dry_run: bool,
}

impl Submit {
    pub(crate) fn run(self) -> anyhow::Result<Exit> {
        let settings = self.flags.load()?;
        let screen = Screen::plain(settings.value(&PROGRESS, values::when)?.unwrap_or(When::Auto));
        let (dry_run, json) = (self.dry_run, self.json);
        let outcome = super::runtime()?.block_on(self.submit(&settings, &screen))?;
        if json {
            show::json(&outcome)?;
        } else {
            outcome.tell(&screen, dry_run);
        }
        Ok(if outcome.refused > 0 { Exit::Partly } else { Exit::Done })
    }

    async fn submit(self, settings: &Settings, screen: &Screen) -> anyhow::Result<Outcome> {
        let queue = settings.queue()?;
        let access = settings.queue_access()?;
        if let Some(errors) = &self.from_errors {
            let name = self.name.as_deref();
            return reports::put_back(
                screen,
                &queue,
                &access,
                errors,
                name,
                self.limit,
                self.dry_run,
            )
            .await;
        }
        let Some(name) = self.name else {
            return lines::send(
                self.files,
                self.all_or_nothing,
                screen,
                &queue,
                &access,
                self.dry_run,
            )
            .await;
        };
        let template = Template {
            name,
            base_directory: self.base_directory,
            inputs: self.inputs,
            payload: self.payload,
        };
        template.check()?;
        let open = async || Sender::open(screen, &queue, &access, self.dry_run).await;
        match self.each {
            Some(pattern) => {
                let bucket = settings.bucket()?;
                each::send(
                    &bucket,
                    &settings.bucket_access()?,
                    &pattern,
                    &template,
                    self.id.unwrap_or(0),
                    open,
                )
                .await
            }
            None => {
                let Some(base) = template.base_directory.clone() else {
                    return Err(Advice::usage("--base-directory is missing")
                        .hint("it is the prefix in the bucket that inputs and outputs are relative to")
                        .into());
                };
                let body =
                    template.task(self.id, &base, &template.inputs, template.payload.as_deref())?;
                let mut sender = open().await?;
                sender.push(body.into(), "the task").await?;
                sender.finish(0).await
            }
        }
    }
}

impl Outcome {
    fn tell(&self, screen: &Screen, dry_run: bool) {
        let Self { queue, sent, refused, .. } = self;
        let sent = show::count(*sent, "task");
        let refused = match refused {
            0 => String::new(),
            n => format!("; {} refused", show::number(*n)),
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

    /// The text of one task, checked.
    pub(crate) fn task(
        &self,
        id: Option<i64>,
        base_directory: &str,
        inputs: &[String],
        payload: Option<&str>,
    ) -> anyhow::Result<String> {
        #[derive(Serialize)]
        struct Wire<'a> {
            basic_info: Info<'a>,
            #[serde(skip_serializing_if = "Option::is_none")]
            payload_info: Option<&'a RawValue>,
        }
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
        let text = serde_json::to_string(&Wire { basic_info: info, payload_info })?;
        match task_host::message::decode(text.as_bytes()) {
            Ok(_) => Ok(text),
            Err(error) => Err(Advice::usage(error.to_string()).into()),
        }
    }
}

fn raw(payload: &str) -> anyhow::Result<&RawValue> {
    serde_json::from_str(payload).map_err(|error| {
        Advice::usage(format!("--payload is not JSON: {error}: {}", show::cut(payload, 60)))
            .hint("a text needs its quotes: --payload '\"text\"'")
            .into()
    })
}
