//! Fleets: workers that an existing engine runs, such as Slurm or AWS Batch.
//!
//! The engine holds all state. Any machine can find a fleet by its name, and a command leaves no
//! process or file of this program behind. One file per engine implements [`Engine`]; the rules
//! that all engines share are in [`policy`].

mod address;
#[cfg(feature = "fleet-aws")]
mod aws;
#[cfg(feature = "fleet-aws")]
mod batch;
mod docker;
#[cfg(feature = "fleet-aws")]
mod ecs;
#[cfg(test)]
mod imitation;
mod k8s;
mod last_words;
mod name;
pub mod policy;
mod program;
mod slurm;
mod spec;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use serde::Serialize;

use crate::environment::Environment;

use docker::Docker;
use k8s::Kubernetes;
use slurm::Slurm;

pub use address::{Address, AddressError};
pub use name::{FleetName, NameError};
pub use spec::Spec;

/// A service or program that runs workers. The engine holds all state of a fleet; this program
/// holds none.
#[async_trait]
pub trait Engine: Send + Sync {
    /// The time limits of all engines of this kind.
    fn times(&self) -> Times;

    /// Checks, without starting anything, that the engine can be reached and would accept such
    /// workers. Returns the number of workers it could run, if the engine reports it.
    async fn check(&self, spec: &Spec) -> Result<Option<Capacity>, EngineError>;

    /// The requests that would start the workers, as a script or document for the engine. Sends no
    /// request.
    fn render(&self, spec: &Spec, workers: u32) -> Result<String, EngineError>;

    /// Starts this number of additional workers. Returns a description of the request, for people.
    async fn start(&self, spec: &Spec, workers: u32) -> Result<String, EngineError>;

    /// The workers of a fleet. `None` if the engine has no fleet of this name.
    async fn status(&self, fleet: &FleetName) -> Result<Option<Status>, EngineError>;

    /// The names of all fleets of this engine.
    async fn fleets(&self) -> Result<BTreeSet<FleetName>, EngineError>;

    /// The lines that workers wrote to standard error.
    async fn logs(
        &self,
        fleet: &FleetName,
        wanted: &Logs,
    ) -> Result<BoxStream<'static, Result<Line, EngineError>>, EngineError>;

    /// Stops workers. Returns when the engine has accepted the request, before the workers have
    /// stopped.
    async fn stop(&self, fleet: &FleetName, which: Stop) -> Result<(), EngineError>;
}

/// The time limits of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// The longest time between SIGTERM and SIGKILL that the engine accepts. `None` if it has no
    /// limit.
    pub stop: Option<Duration>,
    /// The usual time until workers run, with a margin.
    pub start: Duration,
}

/// The number of workers that an engine could run, and what limits it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capacity {
    /// The number of workers.
    pub workers: u32,
    /// The limit, such as `the maxvCpus of the compute environments of queue spot`.
    pub limit: String,
}

/// The workers of a fleet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Status {
    /// The number of workers by state.
    pub counts: Counts,
    /// Why workers wait or have failed, the most frequent first.
    pub reasons: Vec<Reason>,
    /// When the fleet was started.
    #[serde(skip)]
    pub since: Option<SystemTime>,
    /// The [`Spec::digest`] of the latest request for workers.
    #[serde(skip)]
    pub digest: String,
    /// The `HOST_*` variables of the workers, which say where their queue is.
    #[serde(skip)]
    pub environment: BTreeMap<String, String>,
}

/// Workers by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Workers that were requested and have not started.
    pub waiting: u32,
    /// Workers that run.
    pub running: u32,
    /// Workers that ended with exit code 0.
    pub ended: u32,
    /// Workers that ended in another way, or could not be started.
    pub failed: u32,
}

impl Counts {
    /// Workers that run, or that wait to start.
    pub fn alive(&self) -> u32 {
        self.waiting + self.running
    }

    /// Workers that run, or that ended with exit code 0.
    pub fn started(&self) -> u32 {
        self.running + self.ended
    }
}

/// Why some workers wait or have failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// Whether they wait or have failed.
    pub state: Trouble,
    /// The number of workers.
    pub workers: u32,
    /// The reason, as the engine states it.
    pub reason: String,
}

/// A state of a worker that needs a reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Trouble {
    /// The worker waits.
    Waiting,
    /// The worker has failed.
    Failed,
}

/// Selects log lines and workers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Logs {
    /// The number of one worker. `None` for all of them.
    pub worker: Option<u32>,
    /// Whether to wait for more lines until the workers have ended.
    pub follow: bool,
    /// The number of last lines of each worker. `None` for all.
    pub tail: Option<u32>,
}

/// A line that a worker wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The worker, as the engine names it.
    pub worker: String,
    /// The line, without its end.
    pub text: String,
}

/// Which workers to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Workers that have not started.
    Waiting,
    /// All workers. Running workers get SIGTERM, and finish or release their tasks.
    All,
}

/// An error of an engine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// The request does not fit this engine. Nothing was started.
    #[error("{problem}")]
    Unfit {
        /// What is wrong.
        problem: String,
        /// How to fix it.
        cure: Option<String>,
    },
    /// The engine could not be reached, or it refused the request.
    #[error("{engine}: {doing} failed: {problem}")]
    Failed {
        /// The engine's address.
        engine: String,
        /// The operation that failed.
        doing: String,
        /// The problem, as the engine states it.
        problem: String,
        /// How to fix it.
        cure: Option<String>,
    },
}

impl EngineError {
    /// How to fix the error.
    pub fn cure(&self) -> Option<&str> {
        match self {
            Self::Unfit { cure, .. } | Self::Failed { cure, .. } => cure.as_deref(),
        }
    }
}

/// The settings for access to engines.
#[derive(Debug, Clone)]
pub struct Access {
    /// The AWS region. `None`: the region that the AWS tools would use.
    pub region: Option<String>,
    /// The environment variables of this process.
    pub environment: Environment,
}

/// Creates the client of an engine. Sends no request to the engine.
///
/// # Errors
/// If this program was built without the engine, or the engine's settings are incomplete.
pub async fn open(address: &Address, access: &Access) -> Result<Box<dyn Engine>, EngineError> {
    match address {
        Address::Docker { context } => {
            Ok(Box::new(Docker::new(address.to_string(), context.clone(), access.clone())))
        }
        Address::Slurm { partition } => {
            Ok(Box::new(Slurm::new(address.to_string(), partition.clone(), access.clone())))
        }
        #[cfg(feature = "fleet-aws")]
        Address::Batch { queue } => {
            Ok(Box::new(batch::Batch::open(address.to_string(), queue, access).await?))
        }
        #[cfg(feature = "fleet-aws")]
        Address::Ecs { cluster } => {
            Ok(Box::new(ecs::Ecs::open(address.to_string(), cluster, access).await?))
        }
        #[cfg(not(feature = "fleet-aws"))]
        Address::Batch { .. } | Address::Ecs { .. } => Err(absent(address)),
        Address::Kubernetes { context, namespace } => {
            Ok(Box::new(Kubernetes::new(address, context.as_deref(), namespace)))
        }
    }
}

/// The error of an engine that this program was built without.
#[cfg(not(feature = "fleet-aws"))]
fn absent(address: &Address) -> EngineError {
    EngineError::Unfit {
        problem: format!("{address}: this program was built without this engine"),
        cure: None,
    }
}

/// The reasons of workers with their numbers, the most frequent reason first.
pub fn reasons(all: impl IntoIterator<Item = (Trouble, String)>) -> Vec<Reason> {
    let mut counted = BTreeMap::<(Trouble, String), u32>::new();
    for reason in all {
        *counted.entry(reason).or_default() += 1;
    }
    let mut reasons: Vec<Reason> = counted
        .into_iter()
        .map(|((state, reason), workers)| Reason { state, workers, reason })
        .collect();
    reasons.sort_by_key(|reason| std::cmp::Reverse(reason.workers));
    reasons
}
