//! What the workers of a fleet are.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use serde::Serialize;

use super::FleetName;
use crate::digest::Digest;

/// What the workers of a fleet are: all of them the same.
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
    /// The program, for engines that run programs of a shared file system.
    pub program: PathBuf,
    /// The most time that the engine gives a worker, if there is a limit.
    pub walltime: Option<Duration>,
    /// How many workers follow one another in the place of one, for engines with a walltime.
    pub relay: u32,
    /// The time between SIGTERM and SIGKILL: `--grace`, and some to release tasks.
    pub stop_time: Duration,
    /// The directory where relative paths of the settings start.
    pub directory: PathBuf,
    /// Files and directories that the settings name, absolute.
    pub paths: BTreeSet<PathBuf>,
    /// `HOST_*` variables of a worker. They contain no secrets: an engine shows them to whoever may
    /// see its jobs.
    pub environment: BTreeMap<String, String>,
    /// Variables whose values workers get from the environment of the launcher, for engines that
    /// can pass them on without showing them.
    pub pass: BTreeSet<String>,
    /// Options of the engine, by their names in the engine's own language.
    pub options: BTreeMap<String, Vec<String>>,
}

impl Spec {
    /// A digest of all of it, to tell whether a fleet that exists was asked for with the same
    /// options. 16 hexadecimal digits.
    pub fn digest(&self) -> String {
        let text = serde_json::to_vec(self).unwrap_or_default();
        Digest::of(&text).to_string()[..16].to_owned()
    }
}
