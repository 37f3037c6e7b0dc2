//! `host component`: checks, publishes, lists and inspects components.

mod signature;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::TryStreamExt;
use serde::Serialize;
use task_host::bucket::{self, Bucket, BucketError, Content};
use task_host::catalog::Contents;
use task_host::config::DataSettings;
use task_host::digest::Digest;
use task_host::key::{BucketKey, Prefix, TaskName, lowercase};

use super::console::Console;
use super::exit_code::{Advice, Exit};
use super::local_runner::LocalRunner;
use super::output;
use super::settings::{self, Flags, Settings, When};

const PUSH_HELP: &str = "\
Hosts use the new component for tasks that they start from then on.

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
    /// The component: a .wasm file
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

/// What was pushed, as `--json` prints it.
#[derive(Serialize)]
struct Pushed {
    name: String,
    place: String,
    digest: String,
    size: u64,
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
                Self::Inspect { which, json, flags } => inspect(&which, &flags.load()?, json).await,
            }
        })
    }
}

/// The bucket and the prefix, or the directory, with components.
struct ComponentStore {
    bucket: Arc<dyn Bucket>,
    prefix: Prefix,
}

impl ComponentStore {
    async fn open(settings: &Settings) -> anyhow::Result<Self> {
        let data: DataSettings = settings.get()?;
        Ok(match data.components {
            Some(dir) => Self { bucket: bucket::open_dir(&dir)?, prefix: Prefix::root() },
            None => Self {
                bucket: bucket::open(&data.bucket, &settings.bucket_access()?).await?,
                prefix: data.component_prefix,
            },
        })
    }

    /// Creates the directory if there is none, because the first push comes before the first run.
    async fn make(settings: &Settings) -> anyhow::Result<Self> {
        let data: DataSettings = settings.get()?;
        let dir = data.components.or_else(|| data.bucket.path().map(Path::to_owned));
        if let Some(dir) = dir.filter(|dir| !dir.exists()) {
            std::fs::create_dir_all(&dir)
                .map_err(|e| Advice::failed(format!("{} can't be created: {e}", dir.display())))?;
            output::tell(format_args!("created {}", dir.display()));
        }
        Self::open(settings).await
    }

    fn key(&self, name: &TaskName) -> BucketKey {
        self.prefix.join(&name.file())
    }

    /// Calls `each` with the name and the size in bytes of every component.
    async fn each(&self, mut each: impl FnMut(&str, u64)) -> Result<(), BucketError> {
        let mut listing = self.bucket.list(&self.prefix);
        while let Some(object) = listing.try_next().await? {
            let key = object.key.as_str();
            let below = if self.prefix.is_root() {
                Some(key)
            } else {
                key.strip_prefix(self.prefix.as_str()).and_then(|rest| rest.strip_prefix('/'))
            };
            if let Some(name) = below.and_then(|rest| rest.strip_suffix(".wasm")) {
                each(name, object.size);
            }
        }
        Ok(())
    }

    /// Refuses a name that differs only in case from the name of another component.
    async fn check_case(&self, name: &TaskName) -> anyhow::Result<()> {
        let wanted = lowercase(name.as_str());
        let mut other = None;
        let mut is_there = false;
        let looked = self.each(|found, _| {
            is_there |= found == name.as_str();
            if found != name.as_str() && lowercase(found) == wanted {
                other = Some(found.to_owned());
            }
        });
        if let Err(error) = looked.await {
            // A role may write and not list.
            tracing::warn!("can't check whether a component's name differs only in case: {error}");
            return Ok(());
        }
        let Some(other) = other.filter(|_| !is_there) else { return Ok(()) };
        let key = self.prefix.join(&BucketKey::new(&format!("{other}.wasm"))?);
        Err(Advice::failed(format!(
            "the name {name} differs only in case from the component {other}; a file system that \
             ignores case keeps only one of them"
        ))
        .hint(format!("give another name with --name, or remove {}/{key} first", self.bucket))
        .into())
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
        // Only the sandbox itself tells whether it can run the component.
        LocalRunner::open(&settings)?.compile(&self.file, &bytes).await?;

        let store = ComponentStore::make(&settings).await?;
        store.check_case(&name).await?;
        let key = store.key(&name);
        let is_new = matches!(store.bucket.head(&key).await, Err(BucketError::NotFound { .. }));
        if let Some(signature) = signature {
            // Before the component, which hosts never see without its signature then. They still run
            // the old one, whose signature they have verified.
            let key = store.prefix.join(&name.signature_file());
            store.bucket.put(&key, &Content::from(signature), &key).await?;
        }
        store.bucket.put(&key, &Content::from(bytes.clone()), &key).await?;
        // After a loss of power the file could be empty, and hosts would reject its tasks.
        store.bucket.sync().await?;
        let pushed = Pushed {
            name: name.to_string(),
            place: format!("{}/{key}", store.bucket),
            digest: Digest::of(&bytes).to_string(),
            size: bytes.len() as u64,
            is_new,
        };
        if self.json {
            output::json(&pushed)?;
            return Ok(Exit::Done);
        }
        let Pushed { place, digest, size, .. } = pushed;
        let done = if is_new { "pushed" } else { "replaced" };
        writeln!(output::out(), "{done} {name}: {digest}, {} in {place}", output::bytes(size))?;
        Ok(Exit::Done)
    }
}

/// The given name, or the file's name without its ending.
pub(crate) fn task_name(given: Option<&str>, file: &Path) -> anyhow::Result<TaskName> {
    let stem = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let text = given.unwrap_or(stem);
    Ok(TaskName::new(text).map_err(|e| {
        let error = Advice::usage(format!("the name {text:?} {e}"));
        if given.is_none() { error.hint("give one with --name") } else { error }
    })?)
}

/// The bytes of a file that may be a component.
pub(crate) fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    Ok(std::fs::read(file).map_err(|e| Advice::failed(format!("{}: {e}", file.display())))?)
}

/// Checks that a file can be a task's component, as far as its imports and exports tell.
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
            Err(Advice::failed(format!("{} {problem}", file.display())).into())
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
        output::tell(format_args!("there are no components in {}/{}", store.bucket, store.prefix));
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
    /// What is known of its signature.
    signature: String,
    size: u64,
    #[serde(flatten)]
    contents: Contents,
    /// Why the file can't be a task's component; null if it can.
    problem: Option<String>,
}

async fn inspect(which: &str, settings: &Settings, json: bool) -> anyhow::Result<Exit> {
    let file = Path::new(which);
    let (name, place, bytes, signature) = if file.is_file() {
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
        let bytes = download(&store, &key).await.map_err(|error| match error {
            BucketError::NotFound { .. } => anyhow::Error::from(
                Advice::failed(format!(
                    "{which} is neither a file nor a component: {}/{key} does not exist",
                    store.bucket
                ))
                .hint("`host component ls` lists the components"),
            ),
            error => error.into(),
        })?;
        let signature = match download(&store, &store.prefix.join(&name.signature_file())).await {
            Ok(signature) => Some(signature),
            Err(BucketError::NotFound { .. }) => None,
            Err(error) => return Err(error.into()),
        };
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

async fn download(store: &ComponentStore, key: &BucketKey) -> Result<Vec<u8>, BucketError> {
    use std::io::{Read, Seek};
    let failed = |source: io::Error| BucketError::Unavailable {
        bucket: store.bucket.to_string(),
        doing: "reading",
        key: key.to_string(),
        source: source.into(),
    };
    let mut file = tempfile::tempfile().map_err(failed)?;
    store.bucket.get(key, file.try_clone().map_err(failed)?).await?;
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).map_err(failed)?;
    Ok(bytes)
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
        row("kind", contents.kind.to_owned()),
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
