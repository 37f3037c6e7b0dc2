//! The specification of a fleet's workers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use serde::Serialize;

use super::FleetName;
use crate::digest::Digest;

/// The specification of a fleet's workers. All workers of a fleet are the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Spec {
    /// The fleet.
    pub fleet: FleetName,
    /// Cores of a worker.
    pub cpus: u32,
    /// Memory of a worker.
    pub memory: ByteSize,
    /// The image, for engines that run containers.
    pub image: String,
    /// The path of this program, for engines that start it from a shared file system.
    pub program: PathBuf,
    /// The engine's time limit for a worker, if any.
    pub walltime: Option<Duration>,
    /// How many workers run one after another in the place of each worker, for engines with a
    /// walltime.
    pub relay: u32,
    /// The time between SIGTERM and SIGKILL: `--grace`, and a margin to release tasks.
    pub stop_time: Duration,
    /// The directory that relative paths in the settings start from.
    pub directory: PathBuf,
    /// Absolute paths of the files and directories in the settings.
    pub paths: BTreeSet<PathBuf>,
    /// `HOST_*` variables of a worker. They must not contain secrets: an engine shows them to
    /// everyone who may see its jobs.
    pub environment: BTreeMap<String, String>,
    /// Names of variables that workers get from the launcher's environment, for engines that can
    /// pass on their values without showing them.
    pub pass: BTreeSet<String>,
    /// Options of the engine, by the engine's own names for them.
    pub options: BTreeMap<String, Vec<String>>,
}

impl Spec {
    /// A digest of all fields, 16 hexadecimal digits. It shows whether an existing fleet was
    /// started with the same options.
    pub fn digest(&self) -> String {
        let text = serde_json::to_vec(self).unwrap_or_default();
        Digest::of(&text).to_string()[..16].to_owned()
    }
}
