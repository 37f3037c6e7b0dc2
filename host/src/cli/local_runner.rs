//! Compiles and runs one component without a queue, with the cache, sandbox and checks of a host.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use task_host::bucket::{Bucket, DirBucket};
use task_host::cache::{Cache, CacheOptions};
use task_host::catalog::{Catalog, CatalogError, CompileLimits, Policy, Ready};
use task_host::config::{self, CacheSettings, CompileSettings, TaskLimits, WorkSettings};
use task_host::key::{Prefix, TaskName};
use task_host::machine::Machine;
use task_host::sandbox::Sandbox;
use task_host::spill::SpillDir;
use tokio::sync::Notify;

use super::exit_code::Advice;
use super::output;
use super::settings::Settings;

/// A sandbox with one slot, and the cache of inputs, components and compiled code.
pub(crate) struct LocalRunner {
    pub(crate) sandbox: Arc<Sandbox>,
    pub(crate) cache: Cache,
    /// The directory with compiled code.
    compiled: PathBuf,
    limits: CompileLimits,
}

/// The component's name in its temporary bucket.
const NAME: &str = "component";

impl LocalRunner {
    pub(crate) fn open(settings: &Settings) -> anyhow::Result<Self> {
        let options: CacheSettings = settings.get()?;
        let max_bytes = options.for_blobs();
        let cache_dir = options.dir;
        let cache = Cache::open(CacheOptions { dir: cache_dir.clone(), max_bytes })?;
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
        let limits = settings.get::<CompileSettings>()?.limits();
        Ok(Self { sandbox, cache, compiled: cache_dir.join("compiled"), limits })
    }

    fn catalog(&self, bucket: Arc<dyn Bucket>, prefix: Prefix) -> Catalog {
        let compiler = config::compiler(self.limits);
        let (cache, sandbox) = (self.cache.clone(), self.sandbox.clone());
        Catalog::new(bucket, prefix, cache, sandbox, compiler, &self.compiled)
    }

    /// Compiles a component as a host would. The result stays in the cache, where hosts can use it
    /// too.
    pub(crate) async fn compile(&self, file: &Path, wasm: &[u8]) -> anyhow::Result<Ready> {
        let dir = tempfile::tempdir().context("can't create a temporary directory")?;
        let name = TaskName::new(NAME)?;
        let copy = dir.path().join(name.file().as_path());
        std::fs::write(&copy, wasm)
            .with_context(|| format!("can't write {}", output::path(&copy)))?;
        let catalog = self.catalog(Arc::new(DirBucket::open(dir.path())?), Prefix::root());
        // The notification is not needed here.
        match catalog.resolve(&name, &Notify::new()).await {
            Ok(ready) => Ok(ready),
            // The error names the temporary bucket. The message names the file instead.
            Err(CatalogError::NotAGuest { problem, .. }) => {
                Err(Advice::failed(format!("{} can't be run: {problem}", output::path(file)))
                    .into())
            }
            Err(CatalogError::NotYet { why, .. }) => {
                Err(Advice::failed(format!("{} was not compiled: {why}", output::path(file)))
                    .into())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Fetches and compiles the component of that name as a host with this policy would.
    ///
    /// # Errors
    /// Like [`Catalog::resolve`]. Also if tasks of that name may not run.
    pub(crate) async fn fetch(
        &self,
        bucket: Arc<dyn Bucket>,
        prefix: Prefix,
        policy: Policy,
        name: &TaskName,
    ) -> Result<Ready, CatalogError> {
        let catalog = self.catalog(bucket, prefix).with_policy(policy);
        catalog.check_listed(name)?;
        catalog.resolve(name, &Notify::new()).await
    }
}
