//! `host component history`, `rollback` and `rm`.

use std::io::Write;

use serde::Serialize;
use task_host::bucket::BucketError;
use task_host::config::TrustSettings;
use task_host::digest::Digest;
use task_host::key::TaskName;

use super::super::confirm::confirm;
use super::super::exit_code::{Advice, Exit};
use super::super::output;
use super::super::settings::{self, Flags, Settings};
use super::signature;
use super::store::{ComponentStore, Pushed, Version, version_name};

pub(super) const HISTORY_HELP: &str = "\
`host component push` keeps each version that it replaces, beside the component. A task whose name
is NAME@SHA256 runs that version.

Examples:
  host component history edges
  host component history edges --bucket s3://my-data --json";
pub(super) const ROLLBACK_HELP: &str = "\
Hosts use the version for tasks that they start from then on. Without --to, it is the one that was
pushed before the current one.

Examples:
  host component rollback edges
  host component rollback edges --to 3f7a";
pub(super) const RM_HELP: &str = "\
Tasks of that name fail from then on. Its versions stay, so that `host component rollback NAME --to`
brings it back; NAME@SHA256 removes a version.

Examples:
  host component rm edges --dry-run
  host component rm edges --yes";

/// Options of `host component history`.
#[derive(Debug, clap::Args)]
pub(crate) struct History {
    /// Name of the component
    name: String,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: Flags<settings::Components>,
}

/// Options of `host component rollback`.
#[derive(Debug, clap::Args)]
pub(crate) struct Rollback {
    /// Name of the component
    name: String,
    /// Digest of the version to go back to, or its first digits [default: the one before]
    #[arg(long, value_name = "SHA256")]
    to: Option<String>,
    /// Say which version it would be, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: Flags<settings::Components>,
}

/// Options of `host component rm`.
#[derive(Debug, clap::Args)]
pub(crate) struct Rm {
    /// Name of the component, or NAME@SHA256
    name: String,
    /// Do not ask for confirmation
    #[arg(long, short)]
    yes: bool,
    /// Say what would be removed, and remove nothing
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: Flags<settings::Components>,
}

/// A version, as `--json` prints it.
#[derive(Serialize)]
struct Row<'a> {
    name: &'a str,
    digest: String,
    size: u64,
    pushed: String,
    is_current: bool,
}

fn task_name(text: &str) -> anyhow::Result<TaskName> {
    Ok(TaskName::new(text).map_err(|e| Advice::usage(format!("the name {text:?} {e}")))?)
}

fn not_there(store: &ComponentStore, name: &TaskName) -> Advice {
    Advice::failed(format!("{} has no component {}", store.bucket, store.key(name)))
        .hint("`host component ls` lists the components")
}

/// The digest and the size in bytes of the current component of that name.
async fn current(
    store: &ComponentStore,
    name: &TaskName,
) -> Result<Option<(Digest, u64)>, BucketError> {
    match store.bucket.digest(&store.key(name)).await {
        Ok(found) => Ok(Some(found)),
        Err(BucketError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

impl History {
    pub(super) async fn run(self) -> anyhow::Result<Exit> {
        let store = ComponentStore::open(&self.flags.load()?).await?;
        let name = task_name(&self.name)?;
        let now = current(&store, &name).await?;
        let versions = store.versions(&name, now.map(|(digest, _)| digest)).await?;
        if now.is_none() && versions.is_empty() {
            return Err(not_there(&store, &name).into());
        }
        let row = |version: &Version| Row {
            name: name.as_str(),
            digest: version.digest.to_string(),
            size: version.size,
            pushed: humantime::format_rfc3339_seconds(version.pushed).to_string(),
            is_current: now.is_some_and(|(digest, _)| digest == version.digest),
        };
        let rows: Vec<Row<'_>> = versions.iter().map(row).collect();
        if self.json {
            let mut out = output::long_out();
            rows.iter().try_for_each(|row| out.json(row))?;
            out.flush()?;
            return Ok(Exit::Done);
        }
        let cells = |row: &Row<'_>| {
            let state = if row.is_current { "current" } else { "" };
            let size = output::bytes(row.size).to_string();
            vec![row.digest.clone(), row.pushed.clone(), size, state.to_owned()]
        };
        output::table(output::out(), &rows.iter().map(cells).collect::<Vec<_>>())?;
        match now {
            None => output::note(format_args!("{name} was removed: no version is current")),
            Some((digest, _)) if !rows.iter().any(|row| row.is_current) => {
                output::tell(format_args!(
                    "{name} is {digest} now, which `host component push` did not put there"
                ))
            }
            Some(_) => {}
        }
        Ok(Exit::Done)
    }
}

/// The change that was made, or would be made in a dry run, as `--json` prints it.
#[derive(Serialize)]
struct Changed {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    removed: Option<String>,
    dry_run: bool,
}

impl Rollback {
    pub(super) async fn run(self) -> anyhow::Result<Exit> {
        let settings = self.flags.load()?;
        let store = ComponentStore::open(&settings).await?;
        let name = task_name(&self.name)?;
        let now = current(&store, &name).await?.map(|(digest, _)| digest);
        let to = self.choose(&store, &name, now).await?;
        let missing = || Advice::failed(format!("{} has no version {to} of {name}", store.bucket));
        let version = version_name(&name, to).ok_or_else(missing)?;
        let Pushed { digest, wasm, signature } =
            store.current(&version).await?.ok_or_else(missing)?;
        if digest != to {
            let key = store.key(&version);
            return Err(Advice::failed(format!(
                "{}/{key} is damaged: its digest is {digest}",
                store.bucket
            ))
            .into());
        }
        check_signature(&settings, &name, &wasm, signature.as_deref())?;
        if !self.dry_run {
            store.put_back(&name, &wasm, signature.as_deref()).await?;
        }
        let (from, dry_run) = (now.map(|digest| digest.to_string()), self.dry_run);
        if self.json {
            let (name, to) = (name.to_string(), Some(to.to_string()));
            output::json(&Changed { name, from, to, removed: None, dry_run })?;
        } else {
            let verb = if dry_run { "would be" } else { "is" };
            let from = from.map_or(String::new(), |from| format!(" instead of {from}"));
            writeln!(output::out(), "{name} {verb} {to} now{from}")?;
        }
        Ok(Exit::Done)
    }

    /// The version to go back to.
    async fn choose(
        &self,
        store: &ComponentStore,
        name: &TaskName,
        now: Option<Digest>,
    ) -> anyhow::Result<Digest> {
        let versions = store.versions(name, now).await?;
        let Some(begin) = &self.to else {
            let place = versions.iter().position(|version| Some(version.digest) == now);
            // If the current component is not among the versions, another program wrote it.
            let before = match (place, now) {
                (Some(place), _) => versions.get(place + 1),
                (None, _) => versions.first(),
            };
            return Ok(before
                .ok_or_else(|| {
                    Advice::failed(format!("{name} has no version before the current one"))
                        .hint("`host component history` lists the versions")
                })?
                .digest);
        };
        let begins = |version: &&Version| version.digest.to_string().starts_with(begin);
        let mut found = versions.iter().filter(begins);
        match (found.next(), found.next()) {
            (Some(only), None) => Ok(only.digest),
            (found, _) => {
                let problem = match found {
                    Some(_) => "several versions that begin",
                    None => "no version that begins",
                };
                Err(Advice::failed(format!("{name} has {problem} with {begin:?}"))
                    .hint("`host component history` lists the versions")
                    .into())
            }
        }
    }
}

/// Returns an error if hosts would not accept the signature of a version.
fn check_signature(
    settings: &Settings,
    name: &TaskName,
    wasm: &[u8],
    signature: Option<&[u8]>,
) -> anyhow::Result<()> {
    if settings.get::<TrustSettings>()?.component_keys.is_none() {
        return Ok(());
    }
    let state = match signature {
        Some(signature) => signature::state(settings, name, wasm, signature)?,
        None => "none".to_owned(),
    };
    match state.starts_with("valid: ") {
        true => Ok(()),
        false => Err(Advice::failed(format!(
            "hosts would not run that version of {name}; its signature: {state}"
        ))
        .into()),
    }
}

impl Rm {
    pub(super) async fn run(self) -> anyhow::Result<Exit> {
        let store = ComponentStore::open(&self.flags.load()?).await?;
        let name = task_name(&self.name)?;
        let Some((digest, size)) = current(&store, &name).await? else {
            return Err(not_there(&store, &name).into());
        };
        let place = format!("{}/{}", store.bucket, store.key(&name));
        if !self.dry_run {
            let what = format!("{place} has {}", output::bytes(size));
            confirm(self.yes, &what, "Remove it, so that its tasks fail?")?;
            // A component that another program wrote is not kept as a version yet.
            if !name.as_str().ends_with(&format!("@{digest}")) {
                store.keep(&name).await?;
            }
            store.remove(&name).await?;
        }
        if self.json {
            let (name, removed) = (name.to_string(), Some(digest.to_string()));
            let dry_run = self.dry_run;
            output::json(&Changed { name, from: None, to: None, removed, dry_run })?;
        } else {
            let verb = if self.dry_run { "would be removed" } else { "removed" };
            writeln!(output::out(), "{place} {verb}: {digest}")?;
        }
        Ok(Exit::Done)
    }
}
