//! Fleets: workers that an existing engine runs, such as Slurm or AWS Batch.
//!
//! The engine holds all state. A fleet is found again by its name from any machine, and nothing of
//! this program stays behind when a command has ended. One file per engine implements [`Engine`];
//! what is the same for all engines is in [`policy`].

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

/// Something that runs workers. It holds all state of a fleet; this program holds none.
#[async_trait]
pub trait Engine: Send + Sync {
    /// The times that all engines of this kind keep.
    fn times(&self) -> Times;

    /// Checks what can be known before anything is started: that the engine is there and would accept
    /// such workers. Returns how many of them it could run, if it says so.
    async fn check(&self, spec: &Spec) -> Result<Option<Capacity>, EngineError>;

    /// What the engine would be asked for, in its own language. Asks nobody.
    fn render(&self, spec: &Spec, workers: u32) -> Result<String, EngineError>;

    /// Asks for this many more workers of a fleet. Returns what was asked for, for people.
    async fn start(&self, spec: &Spec, workers: u32) -> Result<String, EngineError>;

    /// The workers of a fleet. `None` if the engine knows no fleet of this name.
    async fn status(&self, fleet: &FleetName) -> Result<Option<Status>, EngineError>;

    /// The names of all fleets of this engine.
    async fn fleets(&self) -> Result<BTreeSet<FleetName>, EngineError>;

    /// What workers wrote to standard error.
    async fn logs(
        &self,
        fleet: &FleetName,
        wanted: &Logs,
    ) -> Result<BoxStream<'static, Result<Line, EngineError>>, EngineError>;

    /// Stops workers. Returns when the engine has accepted that, before they have stopped.
    async fn stop(&self, fleet: &FleetName, which: Stop) -> Result<(), EngineError>;
}

/// The times of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// The longest time between SIGTERM and SIGKILL that can be asked for. `None` if any can.
    pub stop: Option<Duration>,
    /// The usual time until workers run, with some to spare.
    pub start: Duration,
}

/// The number of workers that an engine could run, and what limits it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capacity {
    /// The number of workers.
    pub workers: u32,
    /// What limits it, such as `the maxvCpus of the compute environments of queue spot`.
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
    /// [`Spec::digest`] of what was asked for last.
    #[serde(skip)]
    pub digest: String,
    /// The `HOST_*` variables of the workers, which say where their queue is.
    #[serde(skip)]
    pub environment: BTreeMap<String, String>,
}

/// Workers by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// They were asked for and have not started.
    pub waiting: u32,
    /// They run.
    pub running: u32,
    /// They have ended with exit code 0.
    pub ended: u32,
    /// They have ended in another way, or could not be started.
    pub failed: u32,
}

impl Counts {
    /// Workers that run, or will.
    pub fn alive(&self) -> u32 {
        self.waiting + self.running
    }

    /// Workers that have started.
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
    /// The reason, in the words of the engine.
    pub reason: String,
}

/// A state of a worker that needs a reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Trouble {
    /// It waits.
    Waiting,
    /// It has failed.
    Failed,
}

/// Which lines of which workers.
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
    /// Those that have not started.
    Waiting,
    /// All. Those that run get SIGTERM and finish or release their tasks.
    All,
}

/// What an engine could not do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// Something that was asked for is wrong for this engine. Nothing was started.
    #[error("{problem}")]
    Unfit {
        /// What is wrong.
        problem: String,
        /// What to do about it.
        cure: Option<String>,
    },
    /// The engine could not be reached, or it refused.
    #[error("{engine}: {doing} failed: {problem}")]
    Failed {
        /// The engine's address.
        engine: String,
        /// What was tried.
        doing: String,
        /// What it answered.
        problem: String,
        /// What to do about it.
        cure: Option<String>,
    },
}

impl EngineError {
    /// What to do about it.
    pub fn cure(&self) -> Option<&str> {
        match self {
            Self::Unfit { cure, .. } | Self::Failed { cure, .. } => cure.as_deref(),
        }
    }
}

/// How engines are reached.
#[derive(Debug, Clone)]
pub struct Access {
    /// The AWS region. `None`: as for the AWS tools.
    pub region: Option<String>,
    /// Variables of this process.
    pub environment: Environment,
}

/// The engine at an address. Asks nobody.
///
/// # Errors
/// If this program was built without it.
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

/// The reasons of workers, counted: the most frequent first.
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
