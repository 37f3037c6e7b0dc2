//! `host try`: runs one task with a component from a file, without a queue or a bucket.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use task_host::bucket::DirBucket;
use task_host::config::{RetrySettings, Tasks};
use task_host::failure::Failure;
use task_host::key::{BucketKey, Prefix};
use task_host::message::{self, Draft, Task};
use task_host::publish::{self, Published};
use task_host::sandbox::{self, Guest, InputContent, Job, Limits, Lines};
use task_host::task;
use task_host::verdict::{self, Verdict};
use tokio_util::sync::CancellationToken;

use super::component::{check, read, task_name};
use super::console::{Console, GuestOutput};
use super::described::draft_error;
use super::exit_code::{Advice, Exit};
use super::local_runner::LocalRunner;
use super::open_files;
use super::output;
use super::settings::{Execution, Flags, When};

/// Options of `host try`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The task reads an input at /inputs/KEY. KEY is the path as given, or only the file name if the path
is absolute or contains `..`; KEY=FILE sets another key. Text that the task prints is shown at once.
Outputs are published to DIR as `host run` publishes them to a bucket. The exit code is 0 if the
task succeeded and 3 if it failed.

Examples:
  host try edges.wasm --input a.png
  host try edges.wasm --input 0_input/a.png=/data/a.png --payload '{\"sigma\": 2}' --out out")]
pub(crate) struct Try {
    /// The component: a .wasm file
    #[arg(value_name = "COMPONENT.wasm")]
    component: PathBuf,
    /// File that the task reads as /inputs/KEY; repeat it for more inputs
    #[arg(long = "input", value_name = "[KEY=]FILE")]
    inputs: Vec<String>,
    /// Parameters for the component
    #[arg(long, value_name = "JSON")]
    payload: Option<String>,
    /// Directory for the files that the task writes to /outputs
    #[arg(long, value_name = "DIR", default_value = "out")]
    out: PathBuf,
    /// Name of the task [default: the component's file name without .wasm]
    #[arg(long)]
    name: Option<String>,
    /// Base directory to tell the task
    #[arg(long, value_name = "PREFIX", default_value = "try")]
    base_directory: String,
    /// Task id to tell the task
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    id: Option<i64>,
    /// Attempt number to tell the task
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    attempt: u32,
    #[command(flatten)]
    flags: Flags<Execution>,
}

impl Try {
    pub(crate) fn run(self) -> anyhow::Result<Exit> {
        let console = Console::plain(When::Never);
        super::runtime()?.block_on(self.make(&console))
    }

    async fn make(self, console: &Console) -> anyhow::Result<Exit> {
        let settings = self.flags.load()?;
        let inputs: Vec<Input> =
            self.inputs.iter().map(|text| Input::parse(text)).collect::<anyhow::Result<_>>()?;
        let task = self.task(&inputs)?;
        let mut table = settings.task(&task.name)?;
        open_files::prepare_for(1, &mut table.limits, &mut Tasks::new());
        let mut limits = table.limits(&task.name);
        // Shown at the end, so that one can choose a limit.
        limits.cpu_time.get_or_insert(Duration::MAX);
        let limits = Arc::new(limits);
        let bytes = read(&self.component)?;
        check(&self.component, &bytes)?;
        let bench = LocalRunner::open(&settings)?;
        let start = Instant::now();
        let guest = bench.compile(&self.component, &bytes).await?;
        let compiled = start.elapsed();

        let start = Instant::now();
        let (cpu_time, result) =
            self.execute(console, &bench, (guest, &bytes), task, limits, &inputs).await?;
        let elapsed = start.elapsed();
        match result {
            Ok(published) => {
                let mut out = output::out();
                let rows: Vec<Vec<String>> = published
                    .keys
                    .iter()
                    .map(|key| {
                        let path = self.out.join(key.as_path());
                        let size = fs::metadata(&path).map_or(0, |meta| meta.len());
                        vec![path.display().to_string(), output::bytes(size).to_string()]
                    })
                    .collect();
                output::table(&mut out, &rows)?;
                out.flush()?;
                console.tell(format_args!(
                    "done in {} with {} of processor time, {} published (the component was ready \
                     after {})",
                    output::time(elapsed),
                    output::time(cpu_time.unwrap_or_default()),
                    output::count(published.keys.len() as u64, "output"),
                    output::time(compiled)
                ));
                Ok(Exit::Done)
            }
            Err(failure) => {
                console.tell(format_args!("error: {failure}"));
                let policy = settings.get::<RetrySettings>()?.policy();
                console.tell(match verdict::judge(&failure, self.attempt, &policy) {
                    Verdict::Retry { .. } => format!(
                        "`host run` would try it again, with up to {} attempts in all",
                        policy.max_attempts
                    ),
                    _ => {
                        "`host run` would reject it and send a report to the error queue".to_owned()
                    }
                });
                Ok(Exit::Partly)
            }
        }
    }

    /// The task as a message would describe it.
    fn task(&self, inputs: &[Input]) -> anyhow::Result<Task> {
        let name = task_name(self.name.as_deref(), &self.component)?;
        let keys: Vec<&str> = inputs.iter().map(|input| input.key.as_str()).collect();
        let text = message::encode(&Draft {
            id: self.id,
            name: name.as_str(),
            base_directory: &self.base_directory,
            inputs: &keys,
            payload: self.payload.as_deref(),
        });
        Ok(message::decode(text.map_err(draft_error)?.as_bytes())?)
    }

    async fn execute(
        &self,
        console: &Console,
        bench: &LocalRunner,
        (guest, code): (Guest, &[u8]),
        task: Task,
        limits: Arc<Limits>,
        inputs: &[Input],
    ) -> anyhow::Result<(Option<Duration>, Result<Published, Failure>)> {
        let mut given = Vec::with_capacity(inputs.len());
        for input in inputs {
            input.give(&mut given)?;
        }
        let output = Arc::new(GuestOutput::new(console.clone()));
        let tee = output.clone();
        let job = Job {
            guest,
            task: Arc::new(task),
            attempt: self.attempt,
            limits,
            inputs: given,
            cancelled: CancellationToken::new(),
            tee: Some(Arc::new(move |bytes: &[u8]| tee.write(bytes))),
            watched: None,
            slot: None,
        };
        let execution = bench.sandbox.run(job).await;
        output.end();
        let cpu_time = execution.cpu_time;
        let listed = match execution.result {
            Ok(listed) => listed,
            Err(error) => {
                if let Some(trace) = &execution.trace {
                    console.tell(format_args!("{}", trace.show(Some(&Lines::of(code)))));
                }
                if let Some(call) = &execution.failed_call {
                    console.tell(format_args!("the last file call that failed: {call}"));
                }
                return Ok((cpu_time, Err(error.into())));
            }
        };
        if let Err(failure) = task::check_listed(&execution.outputs, &listed).await {
            return Ok((cpu_time, Err(failure)));
        }
        let bucket = DirBucket::create(&self.out)?;
        let root = Prefix::root();
        let published = publish::outputs(execution.outputs, &root, None, &bucket, &|| true).await;
        Ok((cpu_time, published.map_err(Failure::from)))
    }
}

/// A file, and its key for the task.
#[derive(Debug, PartialEq, Eq)]
struct Input {
    key: BucketKey,
    file: PathBuf,
}

impl Input {
    fn parse(text: &str) -> anyhow::Result<Self> {
        // A file may have `=` in its name.
        if let Some((key, file)) = text.split_once('=').filter(|_| !Path::new(text).exists()) {
            let key = BucketKey::new(key)
                .map_err(|e| Advice::usage(format!("--input {text:?}: the key {key:?} {e}")))?;
            return Ok(Self { key, file: file.into() });
        }
        let shown = text.strip_prefix("./").unwrap_or(text);
        let name = Path::new(text).file_name().and_then(|name| name.to_str()).unwrap_or(text);
        let key = BucketKey::new(shown).or_else(|_| BucketKey::new(name));
        let key = key.map_err(|e| Advice::usage(format!("--input {text:?}: {name:?} {e}")))?;
        Ok(Self { key, file: text.into() })
    }

    /// Opens the file for the task.
    fn give(&self, given: &mut Vec<sandbox::Input>) -> anyhow::Result<()> {
        let failed =
            |problem: String| Advice::failed(format!("--input {}: {problem}", self.file.display()));
        let below = |one: &str, other: &str| {
            one.strip_prefix(other).is_some_and(|rest| rest.starts_with('/'))
        };
        for other in given.iter() {
            let (other, key) = (other.path.as_str(), self.key.as_str());
            if other == key {
                return Err(failed(format!("another input has the key {key} too")).into());
            }
            if below(other, key) || below(key, other) {
                let problem = format!(
                    "another input has the key {other}; a name can be a file or a directory, not both"
                );
                return Err(failed(problem).into());
            }
        }
        let open = || {
            let file = fs::File::open(&self.file)?;
            match file.metadata()? {
                meta if meta.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
                meta => Ok((file, meta.len())),
            }
        };
        let (file, size) = open().map_err(|error: io::Error| failed(error.to_string()))?;
        let source = Arc::new(OpenInput(Arc::new(file)));
        let content = InputContent::File { source, size };
        given.push(sandbox::Input { path: self.key.clone(), content });
        Ok(())
    }
}

/// A file of the user's that is open.
struct OpenInput(Arc<fs::File>);

impl sandbox::Source for OpenInput {
    fn opened(&self) -> Option<Arc<fs::File>> {
        Some(self.0.clone())
    }

    fn open(&self) -> io::Result<Arc<fs::File>> {
        Ok(self.0.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_of_an_input_is_its_key_if_it_can_be() {
        let check = |text: &str, key: &str, file: &str| {
            let input = Input::parse(text).unwrap();
            assert_eq!((input.key.as_str(), input.file.to_str().unwrap()), (key, file), "{text}");
        };
        check("0_input/a.png", "0_input/a.png", "0_input/a.png");
        check("./a.png", "a.png", "./a.png");
        check("/data/a.png", "a.png", "/data/a.png");
        check("../a.png", "a.png", "../a.png");
        check("0_input/a.png=/data/x", "0_input/a.png", "/data/x");
        assert!(Input::parse("../k=/data/x").is_err());
        assert!(Input::parse("..").is_err());
    }
}
