//! The tables `[tasks.NAME]` of `host.toml`: settings for the tasks of one name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Config, TaskSettings, TrustSettings};
use crate::catalog::Policy;
use crate::digest::Digest;
use crate::key::TaskName;
use crate::sandbox::{Limits, Table};

/// The tables, by the names of their tasks.
pub type Tasks = BTreeMap<TaskName, NamedTask>;

/// One table.
#[derive(Debug, Clone)]
pub struct NamedTask {
    /// The limits of these tasks: the table's settings, and the general ones where it has none.
    pub limits: TaskSettings,
    /// The names of the settings that the table contains.
    pub own: BTreeSet<&'static str>,
    /// The digests of the components that may run these tasks. None allows any component.
    pub components: Option<BTreeSet<Digest>>,
}

/// The limits of the tasks of each name.
#[derive(Debug)]
pub struct TaskLimits {
    general: Arc<Limits>,
    named: BTreeMap<TaskName, Arc<Limits>>,
}

impl TaskLimits {
    /// Combines the limits of the tables with the general limits.
    pub fn new(general: &TaskSettings, tables: &Tasks) -> Self {
        let named = tables.iter();
        let named = named.map(|(name, task)| (name.clone(), Arc::new(task.limits(name))));
        Self { general: Arc::new(general.limits()), named: named.collect() }
    }

    /// The limits of the tasks of this name.
    pub fn of(&self, name: &TaskName) -> &Arc<Limits> {
        self.named.get(name).unwrap_or(&self.general)
    }

    /// The limits with the largest value of `of`: those of a table only if it allows more than the
    /// general limits.
    pub fn most<T: Ord>(&self, of: impl Fn(&Limits) -> T) -> &Limits {
        let larger = |most, next| if of(next) > of(most) { next } else { most };
        self.named.values().map(|limits| &**limits).fold(&self.general, larger)
    }
}

impl NamedTask {
    /// The sandbox's limits for the tasks of this name.
    pub fn limits(&self, name: &TaskName) -> Limits {
        let table = Table { name: name.clone(), settings: self.own.clone() };
        Limits { table: Some(Arc::new(table)), ..self.limits.limits() }
    }
}

impl Config {
    /// The limits of the tasks of each name.
    pub fn limits(&self) -> TaskLimits {
        TaskLimits::new(&self.task, &self.tasks)
    }

    /// Which components may run.
    pub fn component_policy(&self) -> Policy {
        self.trust.policy(&self.tasks)
    }
}

impl TrustSettings {
    /// Which components may run, with the digests that the tables list.
    pub fn policy(&self, tasks: &Tasks) -> Policy {
        let digests = tasks.iter();
        let digests =
            digests.filter_map(|(name, task)| Some((name.clone(), task.components.clone()?)));
        Policy {
            digests: digests.collect(),
            keys: self.component_keys.clone(),
            names: self.listed_tasks_only.then(|| tasks.keys().cloned().collect()),
        }
    }
}
