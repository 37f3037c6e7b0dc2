//! Runs finished tasks again as their receipts describe, without a queue, and publishes nothing.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use tokio::sync::{Notify, OnceCell};
use tokio_util::sync::CancellationToken;

use crate::ahead::Ahead;
use crate::bucket::Bucket;
use crate::cache::Cache;
use crate::catalog::{Catalog, CatalogError, CompileLimits, Ready};
use crate::config::{self, TaskLimits};
use crate::failure::Failure;
use crate::key::Prefix;
use crate::machine::Machine;
use crate::message::Task;
use crate::needs::Reach;
use crate::prefetch::{Prefetch, PrefetchError};
use crate::publish::{self, PublishError, PutOutput};
use crate::receipt::Receipt;
use crate::sandbox::{Calls, Execution, Job, Limit, Mode, RunError, Sandbox};
use crate::spill::SpillDir;
use crate::task::{Inputs, Planner, Planning, Unplanned, Unrecorded, check_listed};

/// The limit of inputs that are prefetched for tasks that do not run yet.
const AHEAD: ByteSize = ByteSize::gib(1);
/// The wait between two looks for a component that another process compiles.
const COMPILING: Duration = Duration::from_millis(500);

/// The buckets, directories and limits for running tasks again.
pub struct Place {
    /// The bucket of their inputs.
    pub inputs: Arc<dyn Bucket>,
    /// The bucket of their components, and the prefix of the components there.
    pub components: (Arc<dyn Bucket>, Prefix),
    /// The cache of inputs and components.
    pub cache: Cache,
    /// The directory of compiled components.
    pub compiled: PathBuf,
    /// Holds large outputs until they are compared.
    pub spill: Arc<SpillDir>,
    /// The limits of compiling a component.
    pub compile_limits: CompileLimits,
    /// The limits of each execution.
    pub limits: TaskLimits,
    /// Where the plans of tasks may read.
    pub reach: Reach,
    /// How many tasks run at the same time.
    pub parallel: usize,
}

/// Runs tasks again.
pub struct Rerunner {
    inputs: Prefetch,
    place: Place,
    ordinary: OnceCell<Engine>,
    deterministic: OnceCell<Engine>,
}

/// A sandbox for tasks of one mode, and their components.
struct Engine {
    sandbox: Arc<Sandbox>,
    catalog: Catalog,
}

/// The result of running a task again.
#[derive(Debug)]
pub enum Rerun {
    /// The task left these outputs.
    Left(Vec<PutOutput>),
    /// The task failed. The text says why.
    Failed(String),
    /// The task can't be run as its receipt describes, because something has changed since. The
    /// text says what.
    Changed(String),
}

/// A failure of this machine or of a service, because of which no task can be run again.
#[derive(Debug, thiserror::Error)]
pub enum RerunError {
    /// The sandbox can't be set up.
    #[error("the sandbox could not be set up: {0}")]
    Sandbox(String),
    /// Anything else.
    #[error(transparent)]
    Failure(Box<Failure>),
}

impl<E: Into<Failure>> From<E> for RerunError {
    fn from(error: E) -> Self {
        Self::Failure(Box::new(error.into()))
    }
}

impl Rerunner {
    /// Runs tasks in this place.
    pub fn new(place: Place) -> Self {
        let inputs = Prefetch {
            bucket: place.inputs.clone(),
            cache: place.cache.clone(),
            freshness: Duration::ZERO,
            ahead: Ahead::new(AHEAD),
        };
        Self { inputs, place, ordinary: OnceCell::new(), deterministic: OnceCell::new() }
    }

    /// How many tasks can run at the same time.
    pub fn parallel(&self) -> usize {
        self.place.parallel
    }

    /// Runs the task of a receipt again.
    ///
    /// # Errors
    /// When this machine or a service fails.
    pub async fn run(&self, task: &Task, receipt: &Receipt) -> Result<Rerun, RerunError> {
        let engine = self.engine(receipt.deterministic).await?;
        let component = match engine.component(task, receipt).await? {
            Ok(component) => component,
            Err(changed) => return Ok(Rerun::Changed(changed)),
        };
        let base = &task.base_directory;
        let mut told = Arc::new(task.clone());
        let mut brought = match self.inputs.bring(base, &task.inputs).await {
            Ok(brought) => brought,
            Err(error @ PrefetchError::Unavailable { .. }) => return Err(error.into()),
            Err(error) => return Ok(Rerun::Changed(error.to_string())),
        };
        if component.guest.has_plan() {
            let planner = Planner {
                sandbox: &*engine.sandbox,
                inputs: &self.inputs,
                reach: &self.place.reach,
            };
            let planning = Planning {
                guest: component.guest.clone(),
                task: told,
                attempt: receipt.attempt,
                limits: self.place.limits.of(&task.name).clone(),
                tee: None,
            };
            (told, brought) = match planner.bring(planning, brought, &mut Unrecorded).await {
                Ok(planned) => planned,
                Err(Unplanned { failure, .. }) => return failed(failure),
            };
        }
        let read = Inputs::new(&brought.inputs, &brought.objects).facts().await;
        let is_changed = |error: &PrefetchError| matches!(error, PrefetchError::Changed { .. });
        match brought.in_place.check() {
            Err(error) if is_changed(&error) => return Ok(Rerun::Changed(error.to_string())),
            checked => checked?,
        }
        let facts = |inputs: &[crate::receipt::ReadInput]| -> Vec<_> {
            inputs.iter().map(|input| (input.key.clone(), input.sha256)).collect()
        };
        let (now, then) = (facts(&read?), facts(&receipt.inputs));
        if now != then {
            let pair = now.iter().zip(&then).find(|(now, then)| now != then);
            let key = pair.map_or_else(String::new, |(now, _)| format!(" {}", now.0));
            return Ok(Rerun::Changed(format!("its input{key} has changed")));
        }
        drop(brought.ahead);

        let job = Job {
            guest: component.guest,
            calls: Calls::Task,
            task: told,
            attempt: receipt.attempt,
            limits: self.place.limits.of(&task.name).clone(),
            inputs: brought.inputs,
            cancelled: CancellationToken::new(),
            tee: None,
            profiler: None,
            watched: None,
            slot: None,
        };
        let Execution { result, outputs, .. } = engine.sandbox.run(job).await;
        match brought.in_place.check() {
            Err(error) if is_changed(&error) => return Ok(Rerun::Changed(error.to_string())),
            checked => checked?,
        }
        let listed = match result {
            Ok(listed) => listed,
            Err(error) => return failed(error.into()),
        };
        if let Err(failure) = check_listed(&outputs, &listed).await {
            return Ok(Rerun::Failed(failure.to_string()));
        }
        match publish::unpublished(&outputs, base).await {
            Ok(outputs) => Ok(Rerun::Left(outputs)),
            Err(error @ PublishError::Invalid { .. }) => Ok(Rerun::Failed(error.to_string())),
            Err(error) => Err(error.into()),
        }
    }

    async fn engine(&self, is_deterministic: bool) -> Result<&Engine, RerunError> {
        let (engine, mode) = match is_deterministic {
            true => (&self.deterministic, Mode::Deterministic),
            false => (&self.ordinary, Mode::Ordinary),
        };
        engine.get_or_try_init(async || Engine::open(&self.place, mode)).await
    }
}

/// The result for a failure of a guest or of its plan.
fn failed(failure: Failure) -> Result<Rerun, RerunError> {
    match failure {
        Failure::Run(
            RunError::Host(_)
            | RunError::Shortage { .. }
            | RunError::Crowded { .. }
            | RunError::Limit { limit: Limit::AllMemory(_), .. }
            | RunError::Broke
            | RunError::Cancelled,
        )
        | Failure::Prefetch(PrefetchError::Unavailable { .. }) => Err(failure.into()),
        Failure::Prefetch(error) => Ok(Rerun::Changed(error.to_string())),
        failure => Ok(Rerun::Failed(failure.to_string())),
    }
}

impl Engine {
    fn open(place: &Place, mode: Mode) -> Result<Self, RerunError> {
        let sandbox = Sandbox::new(place.parallel, place.spill.clone(), mode);
        let sandbox = sandbox.map_err(|error| RerunError::Sandbox(format!("{error:#}")))?;
        let memory = place.limits.for_guests(Machine::of_process(), place.parallel);
        let sandbox = Arc::new(sandbox.with_memory(memory));
        let (bucket, prefix) = place.components.clone();
        let catalog = Catalog::new(
            bucket,
            prefix,
            place.cache.clone(),
            sandbox.clone(),
            config::compiler(place.compile_limits),
            &place.compiled,
        );
        Ok(Self { sandbox, catalog })
    }

    /// The component of a receipt, or why it is not available.
    async fn component(
        &self,
        task: &Task,
        receipt: &Receipt,
    ) -> Result<Result<Ready, String>, RerunError> {
        loop {
            // The digest is compared first, so that a component with other bytes is not compiled.
            let is_same = match self.catalog.digest(&task.name).await {
                Ok(digest) => Ok(digest == receipt.component),
                Err(error) => Err(error),
            };
            let found = match is_same {
                Ok(true) => self.catalog.resolve(&task.name, &Notify::new()).await.map(Some),
                Ok(false) => Ok(None),
                Err(error) => Err(error),
            };
            match found {
                Ok(Some(ready)) if ready.digest == receipt.component => return Ok(Ok(ready)),
                Ok(_) => {
                    let key = self.catalog.key(&task.name);
                    return Ok(Err(format!("its component {key} has changed")));
                }
                Err(CatalogError::NotYet { .. }) => tokio::time::sleep(COMPILING).await,
                Err(error @ CatalogError::Unavailable { .. }) => return Err(error.into()),
                Err(error) => return Ok(Err(error.to_string())),
            }
        }
    }
}
