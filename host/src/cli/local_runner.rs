//! What runs one component outside a host: the same cache, sandbox and checks, one slot.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use task_host::bucket::{Bucket, DirBucket};
use task_host::cache::{Cache, CacheOptions};
use task_host::catalog::{Catalog, CatalogError};
use task_host::config::{self, CacheSettings, CompileSettings, TaskSettings};
use task_host::key::{Prefix, TaskName};
use task_host::sandbox::{Guest, Sandbox};
use task_host::workspace::Workspaces;
use tokio::sync::Notify;

use super::exit_code::Advice;
use super::settings::Settings;

/// A sandbox with one slot, and where compiled code is kept.
pub(crate) struct LocalRunner {
    pub(crate) workspaces: Workspaces,
    pub(crate) sandbox: Arc<Sandbox>,
    catalog: Catalog,
    /// A bucket with the one component.
    dir: tempfile::TempDir,
}

/// The component's name in that bucket.
const NAME: &str = "component";

impl LocalRunner {
    pub(crate) fn open(settings: &Settings) -> anyhow::Result<Self> {
        let CacheSettings { dir: cache_dir, size, .. } = settings.get()?;
        let cache = Cache::open(CacheOptions { dir: cache_dir.clone(), max_bytes: size.as_u64() })?;
        let workspaces = Workspaces::new(&cache_dir.join("work"))?;
        let (inputs, outputs) = (workspaces.inputs_root(), workspaces.outputs_root());
        let limits = super::open_files::prepare_for_one(settings.get::<TaskSettings>()?.limits());
        let sandbox = Sandbox::new(1, limits, inputs, outputs).map_err(|e| {
            let problem = format!("{e:#}");
            let cure = super::doctor::machine::cure(&problem);
            Advice::failed(format!("the sandbox could not be set up: {problem}")).hint(cure)
        })?;
        let sandbox = Arc::new(sandbox);
        let dir = tempfile::tempdir().context("a temporary directory can't be made")?;
        let bucket: Arc<dyn Bucket> = Arc::new(DirBucket::open(dir.path())?);
        let compiled = cache_dir.join("compiled");
        let compiler = config::compiler(settings.get::<CompileSettings>()?.limits());
        let catalog =
            Catalog::new(bucket, Prefix::root(), cache, sandbox.clone(), compiler, &compiled);
        Ok(Self { workspaces, sandbox, catalog, dir })
    }

    /// Makes a component ready to run: as a host would, and kept for it and for the next time.
    pub(crate) async fn compile(&self, file: &Path, wasm: &[u8]) -> anyhow::Result<Guest> {
        let name = TaskName::new(NAME)?;
        let copy = self.dir.path().join(name.file().as_path());
        std::fs::write(&copy, wasm)
            .with_context(|| format!("{} can't be written", copy.display()))?;
        // Nobody else waits for anything.
        match self.catalog.resolve(&name, &Notify::new()).await {
            Ok(ready) => Ok(ready.guest),
            // The place is ours, and says nothing to a person.
            Err(CatalogError::NotAGuest { problem, .. }) => {
                Err(Advice::failed(format!("{} can't be run: {problem}", file.display())).into())
            }
            Err(CatalogError::NotYet { why, .. }) => {
                Err(Advice::failed(format!("{} was not compiled: {why}", file.display())).into())
            }
            Err(error) => Err(error.into()),
        }
    }
}
