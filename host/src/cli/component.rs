//! `host component`: checks, publishes, lists and inspects components.

mod signature;
mod store;
mod versions;

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use task_host::bucket::BucketError;
use task_host::catalog::Contents;
use task_host::digest::Digest;
use task_host::key::TaskName;
use task_host::sandbox::Kind;

use super::console::Console;
use super::exit_code::{Advice, Exit};
use super::local_runner::LocalRunner;
use super::output;
use super::settings::{self, Flags, Settings, When};
pub(crate) use store::component_of;
use store::{ComponentStore, version_name};

const PUSH_HELP: &str = "\
The file is a component of the interface that `host wit` prints, or a program for WASI, which
has its task on standard input. Hosts use it for tasks that they start from then on. The
component that it replaces is kept: see `host component history` and `rollback`.

Examples:
  host component push edges.wasm
  host component push target/wasm32-wasip2/release/edges.wasm --name edges/v2 --bucket s3://my-data";
const LS_HELP: &str = "\
Examples:
  host component ls
  host component ls --bucket s3://my-data --json";
const INSPECT_HELP: &str = "\
The exit code is 3 if the file can't be a task's component.

Examples:
  host component inspect edges.wasm
  host component inspect edges --bucket s3://my-data";

/// Commands of `host component`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Component {
    /// Check a component and copy it to the bucket
    #[command(after_help = PUSH_HELP)]
    Push(Push),
    /// List the components
    #[command(after_help = LS_HELP)]
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        flags: Flags<settings::Components>,
    },
    /// List the versions of a component
    #[command(after_help = versions::HISTORY_HELP)]
    History(versions::History),
    /// Go back to an earlier version of a component
    #[command(after_help = versions::ROLLBACK_HELP)]
    Rollback(versions::Rollback),
    /// Remove a component
    #[command(after_help = versions::RM_HELP)]
    Rm(versions::Rm),
    /// Show the interface, language and problems of a component
    #[command(after_help = INSPECT_HELP)]
    Inspect {
        /// File of a component, or name of a component in the bucket
        #[arg(value_name = "FILE|NAME")]
        which: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        flags: Flags<settings::Components>,
    },
}

/// Options of `host component push`.
#[derive(Debug, clap::Args)]
pub(crate) struct Push {
    /// The component or program: a .wasm file
    file: PathBuf,
    /// Name of the tasks that the component runs [default: the file name without .wasm]
    #[arg(long)]
    name: Option<String>,
    /// The component's signature: a file of minisign
    #[arg(long, value_name = "FILE.minisig")]
    signature: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: Flags<settings::Components>,
}

/// The result of a push, as `--json` prints it.
#[derive(Serialize)]
struct Pushed {
    name: String,
    place: String,
    digest: String,
    size: u64,
    kind: Kind,
    /// Whether no component had that name before.
    is_new: bool,
}

impl Component {
    pub(crate) fn run(self) -> anyhow::Result<Exit> {
        Console::plain(When::Never);
        super::runtime()?.block_on(async {
            match self {
                Self::Push(command) => command.push().await,
                Self::Ls { json, flags } => {
                    ls(&ComponentStore::open(&flags.load()?).await?, json).await
                }
                Self::History(command) => command.run().await,
                Self::Rollback(command) => command.run().await,
                Self::Rm(command) => command.run().await,
                Self::Inspect { which, json, flags } => inspect(&which, &flags.load()?, json).await,
            }
        })
    }
}

impl Push {
    async fn push(self) -> anyhow::Result<Exit> {
        let settings = self.flags.load()?;
        let name = task_name(self.name.as_deref(), &self.file)?;
        let bytes = read(&self.file)?;
        check(&self.file, &bytes)?;
        let signature = self.signature.as_deref();
        let signature = signature::to_push(&settings, &name, &bytes, signature)?;
        // Imports and exports do not show everything: compile the component, as a host would.
        let ready = LocalRunner::open(&settings)?.compile(&self.file, &bytes).await?;
        let kind = ready.guest.kind();

        let store = ComponentStore::make(&settings).await?;
        store.check_case(&name).await?;
        let key = store.key(&name);
        let is_new = matches!(store.bucket.head(&key).await, Err(BucketError::NotFound { .. }));
        let version =
            version_name(&name, Digest::of(&bytes)).map(|version| (store.key(&version), version));
        let is_kept = match &version {
            Some((key, _)) => {
                !matches!(store.bucket.head(key).await, Err(BucketError::NotFound { .. }))
            }
            None => true,
        };
        if let Err(error) = store.put(&name, &bytes, signature.as_deref()).await {
            if let Some((_, version)) = version.filter(|_| !is_kept) {
                forget(&store, &name, &version, &bytes).await;
            }
            return Err(error);
        }
        let pushed = Pushed {
            name: name.to_string(),
            place: format!("{}/{key}", store.bucket),
            digest: Digest::of(&bytes).to_string(),
            size: bytes.len() as u64,
            kind,
            is_new,
        };
        if self.json {
            output::json(&pushed)?;
            return Ok(Exit::Done);
        }
        let Pushed { place, digest, size, .. } = pushed;
        let done = if is_new { "pushed" } else { "replaced" };
        let size = output::bytes(size);
        writeln!(output::out(), "{done} {name} ({kind}): {digest}, {size} in {place}")?;
        Ok(Exit::Done)
    }
}

/// Removes the version that a failed push left, so that a full disk does not stay full. Keeps the
/// version if the component itself was written and only a later step failed.
async fn forget(store: &ComponentStore, name: &TaskName, version: &TaskName, bytes: &[u8]) {
    let now = store.bucket.digest(&store.key(name)).await;
    if now.is_ok_and(|(digest, _)| digest == Digest::of(bytes)) {
        return;
    }
    if let Err(error) = store.remove(version).await {
        let key = store.key(version);
        output::tell(format_args!(
            "warning: {}/{key} may be left over from this push and could not be removed: {error}",
            store.bucket
        ));
    }
}

/// The name of a task: the given name, or the file's name without its extension.
pub(crate) fn task_name(given: Option<&str>, file: &Path) -> anyhow::Result<TaskName> {
    let stem = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let text = given.unwrap_or(stem);
    Ok(TaskName::new(text).map_err(|e| {
        let error = Advice::usage(format!("the name {text:?} {e}"));
        if given.is_none() { error.hint("give one with --name") } else { error }
    })?)
}

/// Reads the bytes of a component's file.
pub(crate) fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    Ok(std::fs::read(file).map_err(|e| Advice::failed(format!("{}: {e}", output::path(file))))?)
}

/// Checks the imports and exports of a file that is to be a task's component or program.
pub(crate) fn check(file: &Path, bytes: &[u8]) -> anyhow::Result<Contents> {
    let contents = Contents::of(bytes);
    let problem = match &contents {
        Ok(contents) => contents.problem(),
        Err(problem) => Some(problem.clone()),
    };
    match (contents, problem) {
        (Ok(contents), None) => Ok(contents),
        (_, problem) => {
            let problem = problem.unwrap_or_default();
            Err(Advice::failed(format!("{} {problem}", output::path(file))).into())
        }
    }
}

async fn ls(store: &ComponentStore, json: bool) -> anyhow::Result<Exit> {
    #[derive(Serialize)]
    struct Row {
        name: String,
        size: u64,
    }
    let mut rows = Vec::new();
    store.each(|name, size| rows.push(Row { name: name.to_owned(), size })).await?;
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    if json {
        output::json(&rows)?;
    } else if rows.is_empty() {
        output::note(format_args!("there are no components in {}/{}", store.bucket, store.prefix));
    } else {
        let rows: Vec<Vec<String>> = rows
            .into_iter()
            .map(|row| vec![row.name, output::bytes(row.size).to_string()])
            .collect();
        output::table(output::out(), &rows)?;
    }
    Ok(Exit::Done)
}

/// What `inspect` shows, with the fields of `--json`.
#[derive(Debug, Serialize)]
struct Inspected {
    name: String,
    place: String,
    digest: String,
    /// The state of its signature, in words.
    signature: String,
    size: u64,
    #[serde(flatten)]
    contents: Contents,
    /// Why the file can't be a task's component; null if it can.
    problem: Option<String>,
}

async fn inspect(which: &str, settings: &Settings, json: bool) -> anyhow::Result<Exit> {
    let file = Path::new(which);
    let (name, place, bytes, signature) = if file.exists() && !file.is_dir() {
        let beside = PathBuf::from(format!("{which}.minisig"));
        let signature = if beside.is_file() { Some(read(&beside)?) } else { None };
        (task_name(None, file).ok(), which.to_owned(), read(file)?, signature)
    } else {
        let name = TaskName::new(which).ok().filter(|_| !which.ends_with(".wasm"));
        let Some(name) = name else {
            return Err(Advice::failed(format!("there is no file {which}")).into());
        };
        let store = ComponentStore::open(settings).await?;
        let key = store.key(&name);
        let bytes = store.download(&key).await.map_err(|error| match error {
            BucketError::NotFound { .. } => anyhow::Error::from(
                Advice::failed(format!(
                    "{which} is neither a file nor a component: {}/{key} does not exist",
                    store.bucket
                ))
                .hint("`host component ls` lists the components"),
            ),
            error => error.into(),
        })?;
        let signature = store.signature(&name).await?;
        (Some(name), format!("{}/{key}", store.bucket), bytes, signature)
    };
    let signature = match (&name, signature) {
        (Some(name), Some(signature)) => signature::state(settings, name, &bytes, &signature)?,
        _ => "none".to_owned(),
    };
    let contents = Contents::of(&bytes).map_err(|e| Advice::failed(format!("{place} {e}")))?;
    let inspected = Inspected {
        name: name.map_or_else(|| which.to_owned(), |name| name.to_string()),
        digest: Digest::of(&bytes).to_string(),
        signature,
        size: bytes.len() as u64,
        problem: contents.problem(),
        place,
        contents,
    };
    if json {
        output::json(&inspected)?;
    } else {
        print(&inspected)?;
    }
    Ok(if inspected.problem.is_some() { Exit::Partly } else { Exit::Done })
}

fn print(inspected: &Inspected) -> io::Result<()> {
    let Inspected { contents, .. } = inspected;
    let list = |names: &[String]| match names {
        [] => "none".to_owned(),
        names => names.join(", "),
    };
    let unknown = |names: &[String]| match names {
        [] => "unknown".to_owned(),
        names => names.join(", "),
    };
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    let mut rows = vec![
        row("name", inspected.name.clone()),
        row("place", inspected.place.clone()),
        row("digest", inspected.digest.clone()),
        row("signature", inspected.signature.clone()),
        row("size", format!("{} ({} bytes)", output::bytes(inspected.size), inspected.size)),
        row("kind", contents.kind.map_or_else(|| "unknown".to_owned(), |kind| kind.to_string())),
        row("format", contents.format.to_owned()),
        row("language", unknown(&contents.languages)),
        row("made by", unknown(&contents.tools)),
        row("exports", list(&contents.exports)),
    ];
    for (i, import) in contents.imports.iter().enumerate() {
        rows.push(row(if i == 0 { "imports" } else { "" }, import.clone()));
    }
    if contents.imports.is_empty() {
        rows.push(row("imports", "none".to_owned()));
    }
    if let Some(problem) = &inspected.problem {
        rows.push(row("problem", problem.clone()));
    }
    output::table(output::out(), &rows)
}
