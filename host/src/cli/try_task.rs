//! `host try`: runs one task with a component and inputs from files, or the task of a report or a
//! message, as `host run` would.

mod figures;
mod given;
mod project;
mod replay;

use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use task_host::bucket::DirBucket;
use task_host::catalog;
use task_host::config::{RetrySettings, Tasks, parse};
use task_host::failure::Failure;
use task_host::key::{BucketKey, Prefix};
use task_host::message::{self, Draft, Task};
use task_host::needs::Reach;
use task_host::prefetch::ReadInPlace;
use task_host::publish;
use task_host::sandbox::{
    Calls, Execution, Guest, Job, Kind, Limits, Lines, Profiler, RunError, Tee,
};
use task_host::task::{self, Planner, Planning, Unplanned, Unrecorded};
use task_host::verdict;
use task_host::words;
use tokio_util::sync::CancellationToken;

use super::component::{check, task_name};
use super::console::{Console, GuestOutput};
use super::described::{self, draft_error};
use super::exit_code::{Advice, Exit};
use super::local_runner::LocalRunner;
use super::open_files;
use super::output;
use super::settings::{Execution as Executes, Flags, Settings, When};
use figures::Figures;
use given::{Component, Input};
use replay::{Buckets, Found, Wanted};

/// The interval between two samples of a profile.
const SAMPLES: Duration = Duration::from_millis(1);
/// The maximum number of bytes of a payload that are shown.
const MOST_PAYLOAD: usize = 500;

/// Options of `host try`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The component may be a project: its directory is built first. The task reads an input at /inputs/KEY.
KEY is the path as given, or only the file name if the path is absolute or contains `..`; for the
files of a directory it is their path below the directory. KEY=PATH sets another key. Text that the
task prints is shown at once. Outputs are published to DIR as `host run` publishes them to a bucket.
The exit code is 0 if the task succeeded and 3 if it failed.

--from runs the task of an error report or a message again, with the payload, the inputs and the
component that `host run` would use; a COMPONENT is used instead of the one in the bucket. Messages
stay where they are, and outputs go to DIR unless --publish is given.

Examples:
  host try edges.wasm --input a.png
  host try . sample/ --payload @options.json
  host try edges.wasm --input 0_input/a.png=/data/a.png --payload '{\"sigma\": 2}' --out out
  host try --from ./queue-errors --id 17
  host try . --from sqs://my-tasks-errors --id 17 --bucket s3://my-data --profile 17.cpuprofile")]
pub(crate) struct Try {
    /// The component: a .wasm file, a project's directory, or - for standard input
    #[arg(value_name = "COMPONENT", required_unless_present = "from")]
    component: Option<PathBuf>,
    /// Files for the task, and directories with such files
    #[arg(value_name = "INPUT", conflicts_with = "from")]
    given: Vec<String>,
    /// File that the task reads as /inputs/KEY, or directory of such files; repeat it for more
    #[arg(long = "input", value_name = "[KEY=]PATH", conflicts_with = "from")]
    inputs: Vec<String>,
    /// Parameters for the component: JSON, or @FILE to read them from a file
    #[arg(long, value_name = "JSON", conflicts_with = "from")]
    payload: Option<String>,
    /// Directory for the files that the task writes to /outputs
    #[arg(long, value_name = "DIR", default_value = "out")]
    out: PathBuf,
    /// Name of the task [default: the component's file name without .wasm]; with --from, only a task
    /// with this name
    #[arg(long)]
    name: Option<String>,
    /// Base directory to tell the task [default: try]
    #[arg(long, value_name = "PREFIX", conflicts_with = "from")]
    base_directory: Option<String>,
    /// Task id to tell the task; with --from, the id of the task or the message to run
    #[arg(long, value_name = "ID", allow_hyphen_values = true)]
    id: Option<String>,
    /// Attempt number to tell the task [default: 1; with --from, that of the report]
    #[arg(long, value_name = "N", value_parser = parse::small_positive)]
    attempt: Option<u32>,
    /// Queue or file with an error report or a message whose task is run
    #[arg(long, value_name = "QUEUE|FILE", help_heading = "A task of a queue")]
    from: Option<String>,
    /// Publish the outputs to the bucket, as `host run` would, instead of to DIR
    #[arg(
        long,
        requires = "from",
        // Repeats the options that exclude `--from`: with one of them, clap would not require
        // `--from` for this option.
        conflicts_with_all = ["out", "given", "inputs", "payload", "base_directory"],
        help_heading = "A task of a queue"
    )]
    publish: bool,
    /// File for a profile of the task's functions, which the profilers of browsers and
    /// profiler.firefox.com open
    #[arg(long, value_name = "FILE.cpuprofile")]
    profile: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: Flags<Executes>,
}

/// A task, and the sources of its inputs and component.
struct Plan {
    task: Task,
    attempt: u32,
    /// The inputs that the user named.
    inputs: Vec<Input>,
    /// The component that the user named.
    component: Option<Component>,
    /// The buckets of a task from a queue or a file of messages.
    buckets: Option<Buckets>,
    /// The digest of the component in the task's report.
    reported: Option<String>,
}

/// The result of the task, as `--json` prints it.
#[derive(Serialize)]
struct Outcome<'a> {
    name: &'a str,
    id: i64,
    attempt: u32,
    success: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// Whether `host run` would try the task again.
    #[serde(skip_serializing_if = "Option::is_none")]
    would_retry: Option<bool>,
    component: String,
    kind: Kind,
    outputs: Vec<OutputRow>,
    #[serde(flatten)]
    figures: Figures,
}

#[derive(Serialize)]
struct OutputRow {
    path: String,
    size: u64,
}

impl Try {
    pub(crate) fn run(self) -> anyhow::Result<Exit> {
        let console = Console::plain(When::Never);
        super::runtime()?.block_on(self.make(&console))
    }

    async fn make(self, console: &Console) -> anyhow::Result<Exit> {
        let settings = self.flags.load()?;
        let plan = self.plan(console, &settings).await?;
        let bench = LocalRunner::open(&settings)?;
        let start = Instant::now();
        let ready = match (&plan.component, &plan.buckets) {
            (Some(Component { file, bytes }), _) => bench.compile(file, bytes).await?,
            (None, Some(buckets)) => buckets.component(&plan.task.name, &bench, &settings).await?,
            (None, None) => return Err(Advice::usage("no component is given").into()),
        };
        let compiled = start.elapsed();
        let digest = ready.digest.to_string();
        tell_component(console, &plan, &digest);
        let kind = ready.guest.kind();
        if kind == Kind::Program {
            console.note("the component is a program: its task is on its standard input");
        }

        let limits = limits(&settings, &plan.task)?;
        let (figures, result) = self.execute(console, &bench, ready.guest, &plan, limits).await?;
        if plan.buckets.is_none() && plan.inputs.is_empty() {
            let has_outputs = result.as_ref().is_ok_and(|outputs| !outputs.is_empty());
            if figures.sought_inputs || !has_outputs {
                console.tell(
                    "warning: no inputs were given; if the task reads some, name files or a \
                     directory after the component",
                );
            }
        }
        let (error, verdict) = match &result {
            Ok(_) => (None, None),
            Err(failure) => {
                let policy = settings.get::<RetrySettings>()?.policy();
                let verdict = verdict::judge(failure, plan.attempt, &policy);
                (Some(failure.to_string()), Some((verdict.is_retry(), policy.max_attempts)))
            }
        };
        let outcome = Outcome {
            name: plan.task.name.as_str(),
            id: plan.task.id,
            attempt: plan.attempt,
            success: error.is_none(),
            error,
            would_retry: verdict.map(|(would_retry, _)| would_retry),
            component: digest,
            kind,
            outputs: result.unwrap_or_default(),
            figures,
        };
        if self.json {
            output::json(&outcome)?;
        } else {
            let mut out = output::out();
            let row = |row: &OutputRow| vec![row.path.clone(), output::bytes(row.size).to_string()];
            let rows: Vec<Vec<String>> = outcome.outputs.iter().map(row).collect();
            output::table(&mut out, &rows)?;
            out.flush()?;
        }
        if let Some(error) = &outcome.error {
            console.tell(format_args!("error: {error}"));
        }
        if let Some((would_retry, attempts)) = verdict {
            console.tell(match would_retry {
                true => {
                    format!("`host run` would try it again, with up to {attempts} attempts in all")
                }
                false => {
                    "`host run` would reject it and send a report to the error queue".to_owned()
                }
            });
        }
        let line = figures.line();
        let count = output::count(outcome.outputs.len() as u64, "output");
        console.note(match (outcome.success, self.publish) {
            (true, true) => format!("done in {line}; {count} published"),
            (true, false) => format!("done in {line}; {count} in {}", output::path(&self.out)),
            (false, _) => format!(
                "failed after {line} (the component was ready after {})",
                output::time(compiled)
            ),
        });
        Ok(if outcome.success { Exit::Done } else { Exit::Partly })
    }

    /// Determines the task, its inputs and its component.
    async fn plan(&self, console: &Console, settings: &Settings) -> anyhow::Result<Plan> {
        let component = match &self.component {
            // Report a wrong payload before a long build.
            Some(named) => {
                self.payload()?;
                Some(Component::read(named)?)
            }
            None => None,
        };
        if let Some(Component { file, bytes }) = &component {
            check(file, bytes)?;
        }
        let Some(from) = &self.from else {
            let file = component.as_ref().map(|component| &*component.file);
            let inputs = self.given.iter().chain(&self.inputs).map(|text| Input::parse(text));
            let mut inputs: Vec<Input> =
                inputs.collect::<anyhow::Result<Vec<_>>>()?.into_iter().flatten().collect();
            given::read_pipes(&mut inputs, file)?;
            let task = self.described(file.unwrap_or(Path::new(given::STDIN)), &inputs)?;
            let attempt = self.attempt.unwrap_or(1);
            return Ok(Plan { task, attempt, inputs, component, buckets: None, reported: None });
        };
        let wanted = Wanted { id: self.id.as_deref(), name: self.name.as_deref() };
        let Found { task, before } = replay::find(from, &wanted, settings).await?;
        let reported = before.as_ref().and_then(|before| before.attempt);
        let attempt = self.attempt.or(reported).unwrap_or(1);
        tell_task(console, &task, attempt);
        if let Some(before) = &before {
            console.note(format_args!("the report says: {}", before.exception));
        }
        let reported = before.and_then(|before| before.component);
        let buckets = Some(Buckets::of(settings)?);
        Ok(Plan { task, attempt, inputs: Vec::new(), component, buckets, reported })
    }

    fn payload(&self) -> anyhow::Result<Option<String>> {
        self.payload.as_deref().map(described::payload).transpose()
    }

    /// The task that the options describe. It is encoded and decoded as a message, with the same
    /// checks.
    fn described(&self, component: &Path, inputs: &[Input]) -> anyhow::Result<Task> {
        let is_stdin = component == Path::new(given::STDIN);
        let name = self.name.as_deref().or(is_stdin.then_some("task"));
        let name = task_name(name, component)?;
        let id = self.id.as_deref().map(|id| {
            parse::id(id).map_err(|problem| Advice::usage(format!("--id: {id:?} {problem}")))
        });
        let keys: Vec<&str> = inputs.iter().map(|input| input.key.as_str()).collect();
        let payload = self.payload()?;
        let text = message::encode(&Draft {
            id: id.transpose()?,
            name: name.as_str(),
            base_directory: self.base_directory.as_deref().unwrap_or("try"),
            inputs: &keys,
            payload: payload.as_deref(),
        });
        Ok(message::decode(text.map_err(draft_error)?.as_bytes())?)
    }

    async fn execute(
        &self,
        console: &Console,
        bench: &LocalRunner,
        guest: Guest,
        plan: &Plan,
        limits: Arc<Limits>,
    ) -> anyhow::Result<(Figures, Result<Vec<OutputRow>, Failure>)> {
        let output = Arc::new(GuestOutput::new(console.clone()));
        let tee: Tee = {
            let output = output.clone();
            Arc::new(move |bytes: &[u8]| output.write(bytes))
        };
        let place = match &plan.buckets {
            Some(buckets) => Some((None, buckets.inputs(bench).await?, buckets.reach()?)),
            None if guest.has_plan() => {
                let base = &plan.task.base_directory;
                let (files, prefetch) = given::as_bucket(&plan.inputs, base, bench)?;
                let reach = Reach { readable: vec![Prefix::root()], protected: Vec::new() };
                Some((Some(files), prefetch, reach))
            }
            None => None,
        };
        let mut told = Arc::new(plan.task.clone());
        let (inputs, in_place) = match &place {
            None => (given::open_all(&plan.inputs)?, ReadInPlace::default()),
            Some((files, prefetch, reach)) => {
                if files.is_some() {
                    // The task gets no inputs. Its plan names the files that it needs.
                    told = Arc::new(Task { inputs: Vec::new(), ..plan.task.clone() });
                }
                let mut brought = prefetch.bring(&told.base_directory, &told.inputs).await?;
                if guest.has_plan() {
                    let planning = Planning {
                        guest: guest.clone(),
                        task: told,
                        attempt: plan.attempt,
                        limits: limits.clone(),
                        tee: Some(tee.clone()),
                    };
                    let planner = Planner { sandbox: &*bench.sandbox, inputs: prefetch, reach };
                    match planner.bring(planning, brought, &mut Unrecorded).await {
                        Ok(planned) => (told, brought) = planned,
                        Err(Unplanned { failure, execution }) => {
                            output.end();
                            let none = || Box::new(Execution::not_begun(RunError::Cancelled));
                            let execution = execution.unwrap_or_else(none);
                            self.tell_end(console, bench, &execution, plan).await?;
                            return Ok((Figures::of(&execution), Err(failure)));
                        }
                    }
                }
                (brought.inputs, brought.in_place)
            }
        };
        let profiler = self.profile.as_ref().map(|file| {
            bench.sandbox.sample_every(SAMPLES);
            (file, Arc::new(Profiler::new()))
        });
        let execution = {
            let job = Job {
                guest,
                calls: Calls::Task,
                task: told,
                attempt: plan.attempt,
                limits,
                inputs,
                cancelled: CancellationToken::new(),
                tee: Some(tee),
                profiler: profiler.as_ref().map(|(_, profiler)| profiler.clone()),
                watched: None,
                slot: None,
            };
            bench.sandbox.run(job).await
        };
        output.end();
        if let Some((file, profiler)) = profiler {
            write_profile(console, &profiler, file)?;
        }
        in_place.check()?;
        let figures = Figures::of(&execution);
        if execution.result.is_err() {
            self.tell_end(console, bench, &execution, plan).await?;
        }
        Ok((figures, self.publish(execution, plan).await?))
    }

    /// The bytes of the component that ran.
    async fn wasm(&self, bench: &LocalRunner, plan: &Plan) -> anyhow::Result<Vec<u8>> {
        match (&plan.component, &plan.buckets) {
            (Some(Component { bytes, .. }), _) => Ok(bytes.clone()),
            (None, Some(buckets)) => buckets.wasm(&plan.task.name, bench).await,
            (None, None) => Ok(Vec::new()),
        }
    }

    /// Shows where a guest failed: its backtrace and its last failed file call.
    async fn tell_end(
        &self,
        console: &Console,
        bench: &LocalRunner,
        execution: &Execution,
        plan: &Plan,
    ) -> anyhow::Result<()> {
        if let Some(trace) = &execution.trace {
            let code = self.wasm(bench, plan).await?;
            let component = catalog::component_of(&code).map_err(Advice::failed)?;
            console.tell(format_args!("{}", trace.show(Some(&Lines::of(&component)))));
        }
        if let Some(call) = &execution.failed_call {
            console.tell(format_args!("the last file call that failed: {call}"));
        }
        Ok(())
    }

    /// Publishes the outputs of the task, and returns their paths and sizes.
    async fn publish(
        &self,
        execution: Execution,
        plan: &Plan,
    ) -> anyhow::Result<Result<Vec<OutputRow>, Failure>> {
        let listed = match execution.result {
            Ok(listed) => listed,
            Err(error) => return Ok(Err(error.into())),
        };
        let outputs = execution.outputs;
        if let Err(failure) = task::check_listed(&outputs, &listed).await {
            return Ok(Err(failure));
        }
        let sizes: Vec<u64> = outputs.iter().map(|output| output.content.size()).collect();
        let (place, published) = match plan.buckets.as_ref().filter(|_| self.publish) {
            Some(buckets) => {
                let (bucket, protected) = buckets.outputs().await?;
                let base = &plan.task.base_directory;
                let put = publish::outputs(outputs, base, &protected, &*bucket, &|| true);
                let published = put.await;
                bucket.sync().await?;
                bucket.close().await;
                (PathBuf::from(bucket.to_string()), published)
            }
            None => {
                let bucket = DirBucket::create(&self.out)?;
                let root = Prefix::root();
                let published = publish::outputs(outputs, &root, &[], &bucket, &|| true).await;
                (self.out.clone(), published)
            }
        };
        // Keys and sizes have the order of the outputs.
        let row = |(key, size): (&BucketKey, u64)| OutputRow {
            path: place.join(key.as_path()).display().to_string(),
            size,
        };
        Ok(match published {
            Ok(published) => Ok(published.keys.iter().zip(sizes).map(row).collect()),
            Err(error) => Err(error.into()),
        })
    }
}

/// The limits that a host with these settings would set for the task.
fn limits(settings: &Settings, task: &Task) -> anyhow::Result<Arc<Limits>> {
    let mut table = settings.task(&task.name)?;
    open_files::prepare_for(1, &mut table.limits, &mut Tasks::new());
    let mut limits = table.limits(&task.name);
    // Measure processor time even without a limit: it is shown at the end, and helps to choose a
    // limit.
    limits.cpu_time.get_or_insert(Duration::MAX);
    Ok(Arc::new(limits))
}

/// Shows the task of a report or a message.
fn tell_task(console: &Console, task: &Task, attempt: u32) {
    let inputs = output::count(task.inputs.len() as u64, "input");
    let base = task.base_directory.as_str();
    let payload = match &task.payload {
        Some(payload) => format!("payload {}", words::cut(payload, MOST_PAYLOAD)),
        None => "no payload".to_owned(),
    };
    console.note(format_args!(
        "{} {} in {base:?}, attempt {attempt}, {inputs}, {payload}",
        task.name, task.id
    ));
}

/// Tells the user whether the component is the one in the report.
fn tell_component(console: &Console, plan: &Plan, digest: &str) {
    match &plan.reported {
        Some(reported) if reported == digest => {
            console.note(format_args!("the component is that of the report: {digest}"));
        }
        Some(reported) => console.tell(format_args!(
            "the component differs from the one in the report: {digest} instead of {reported}"
        )),
        None => {}
    }
}

fn write_profile(console: &Console, profiler: &Profiler, path: &Path) -> anyhow::Result<()> {
    let failed = |error: std::io::Error| Advice::failed(format!("{}: {error}", output::path(path)));
    let mut file = BufWriter::new(fs::File::create(path).map_err(failed)?);
    let samples = profiler.write(&mut file).map_err(failed)?;
    file.flush().map_err(failed)?;
    let samples = output::count(samples as u64, "sample");
    console.note(format_args!(
        "{samples} in {}; the profilers of browsers open it, and profiler.firefox.com",
        output::path(path)
    ));
    Ok(())
}
