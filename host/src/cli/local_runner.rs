//! Compiles and runs one component without a queue: with the cache, the sandbox and the checks of a
//! host, and one slot.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use task_host::bucket::{Bucket, DirBucket};
use task_host::cache::{Cache, CacheOptions};
use task_host::catalog::{Catalog, CatalogError};
use task_host::config::{self, CacheSettings, CompileSettings, TaskLimits, WorkSettings};
use task_host::key::{Prefix, TaskName};
use task_host::machine::Machine;
use task_host::sandbox::{Guest, Sandbox};
use task_host::spill::SpillDir;
use tokio::sync::Notify;

use super::exit_code::Advice;
use super::settings::Settings;

/// A sandbox with one slot, and the cache of compiled code.
pub(crate) struct LocalRunner {
    pub(crate) sandbox: Arc<Sandbox>,
    catalog: Catalog,
    /// A bucket with only this component.
    dir: tempfile::TempDir,
}

/// The component's name in its bucket.
const NAME: &str = "component";

impl LocalRunner {
    pub(crate) fn open(settings: &Settings) -> anyhow::Result<Self> {
        let CacheSettings { dir: cache_dir, size, .. } = settings.get()?;
        let cache = Cache::open(CacheOptions { dir: cache_dir.clone(), max_bytes: size.as_u64() })?;
        let spill = Arc::new(SpillDir::new(&cache_dir.join("work"))?);
        let mode = settings.get::<WorkSettings>()?.mode();
        let sandbox = Sandbox::new(1, spill, mode).map_err(|e| {
            let problem = format!("{e:#}");
            let cure = super::doctor::machine::cure(&problem);
            Advice::failed(format!("can't set up the sandbox: {problem}")).hint(cure)
        })?;
        let limits = TaskLimits::new(&settings.get()?, &settings.tasks()?);
        let memory = limits.for_guests(Machine::of_process(), 1);
        let sandbox = Arc::new(sandbox.with_memory(memory));
        let dir = tempfile::tempdir().context("can't create a temporary directory")?;
        let bucket: Arc<dyn Bucket> = Arc::new(DirBucket::open(dir.path())?);
        let compiled = cache_dir.join("compiled");
        let compiler = config::compiler(settings.get::<CompileSettings>()?.limits());
        let catalog =
            Catalog::new(bucket, Prefix::root(), cache, sandbox.clone(), compiler, &compiled);
        Ok(Self { sandbox, catalog, dir })
    }

    /// Compiles a component as a host would. The cache keeps the result, also for hosts.
    pub(crate) async fn compile(&self, file: &Path, wasm: &[u8]) -> anyhow::Result<Guest> {
        let name = TaskName::new(NAME)?;
        let copy = self.dir.path().join(name.file().as_path());
        std::fs::write(&copy, wasm).with_context(|| format!("can't write {}", copy.display()))?;
        // Nobody waits for the notification.
        match self.catalog.resolve(&name, &Notify::new()).await {
            Ok(ready) => Ok(ready.guest),
            // The error names our temporary bucket, so the message names the file instead.
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
