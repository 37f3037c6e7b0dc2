//! What one execution may use, the count of its memory, and the engine's own limits by name.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use wasmtime::ResourceLimiter;
use wasmtime::component::ResourceTableError;

use super::{Phase, RunError};
use crate::key::TaskName;
use crate::words;

/// What one execution may use.
#[derive(Debug, Clone)]
pub struct Limits {
    /// All linear memories of the instance together.
    pub memory: ByteSize,
    /// Wall-clock time of the three calls together.
    pub time: Duration,
    /// Bytes that the files in `/outputs` may have together, holes included.
    pub output_bytes: ByteSize,
    /// Files and directories that there may be in `/outputs`.
    pub output_files: u64,
    /// Bytes of all files in `/outputs` that are kept in the host's memory. Those of the others go
    /// to a file on the host's disk each.
    pub output_memory: ByteSize,
    /// The most bytes of one such file that are kept in memory.
    pub output_file_memory: ByteSize,
    /// Files and directories that may be open at a time. Some of them take a file of the process.
    pub open_files: u64,
    /// The table of settings that some of these limits are from.
    pub table: Option<Arc<Table>>,
}

/// A table of settings for the tasks of one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// The name of the tasks.
    pub name: TaskName,
    /// The settings that the table has.
    pub settings: BTreeSet<&'static str>,
}

impl fmt::Display for Table {
    /// Its header in `host.toml`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name.as_str();
        match name.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_".contains(&c)) {
            true => write!(f, "[tasks.{name}]"),
            false => write!(f, "[tasks.{name:?}]"),
        }
    }
}

/// The most files and directories that a guest may have open at a time, where the process may
/// have many: about as many as a program may have by itself.
pub const MOST_OPEN_FILES: u64 = 1000;

/// Directories in each other that a guest may make in `/outputs`.
pub(super) const MAX_DEPTH: usize = 64;
/// Things of the host that a guest may hold at a time: open files, streams, timers, errors.
pub(super) const MAX_HANDLES: usize = 10_000;
/// Handles on anything, those among the parts of a component included.
pub(super) const MAX_ALL_HANDLES: usize = 100_000;
/// Core modules that a component is made of: the guest's own, adapters and shims.
pub(super) const MAX_MODULES: usize = 32;
/// Memories of all modules of a component.
pub(super) const MAX_MEMORIES: usize = 4;
/// Tables of all modules of a component.
pub(super) const MAX_TABLES: usize = 32;
/// Elements of all tables of an instance; a guest's tables hold its function pointers.
pub(super) const MAX_TABLE_ELEMENTS: usize = 1_000_000;
/// Bytes that a guest may hand over in one call, or ask for. The host holds them meanwhile.
const MAX_CALL: u64 = 16 << 20;
/// Bytes to count for each output that a guest lists: its name, and the host's handle on it.
const LISTED: u64 = 128;

impl Limits {
    /// What an execution may take of the host's memory: the guest's own, and its outputs that are
    /// kept there.
    pub fn of_the_host(&self) -> ByteSize {
        ByteSize(self.memory.as_u64().saturating_add(self.output_memory.as_u64()))
    }

    /// The error of an execution that exceeds a limit during a call.
    pub(super) fn exceeded(&self, phase: Phase, limit: Limit) -> RunError {
        let has = |table: &&Arc<Table>| limit.setting().is_some_and(|s| table.settings.contains(s));
        RunError::Limit { phase, limit, table: self.table.as_ref().filter(has).cloned() }
    }

    /// What may cross between guest and host in one call. The list of all outputs fits.
    pub(super) fn call(&self) -> ByteSize {
        ByteSize(MAX_CALL.max(self.output_files.saturating_mul(LISTED)))
    }
}

/// A limit that an execution ran into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// See [`Limits::memory`].
    Memory(ByteSize),
    /// See [`Limits::time`].
    Time(Duration),
    /// See [`Limits::output_bytes`].
    OutputBytes(ByteSize),
    /// See [`Limits::output_files`].
    OutputFiles(u64),
    /// See [`Limits::open_files`].
    OpenFiles(u64),
    /// Directories in each other.
    Depth(usize),
    /// Things of the host that a guest holds at a time.
    Handles,
    /// Bytes that cross between guest and host in one call.
    Call(ByteSize),
    /// Core modules, memories and tables of a component.
    Parts,
    /// Elements of all its tables.
    TableElements,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(most) => {
                write!(f, "the guest ran into its memory limit of {}", most.display().iec())
            }
            Self::Time(most) => {
                let most = humantime::format_duration(*most);
                write!(f, "the guest ran into its time limit of {most}")
            }
            Self::OutputBytes(most) => {
                write!(f, "the guest ran into its output limit of {}", most.display().iec())
            }
            Self::OutputFiles(most) => {
                write!(f, "the guest ran into its limit of {most} output files")
            }
            Self::OpenFiles(most) => write!(
                f,
                "the guest ran into its limit of {most} files and directories that are open at a \
                 time"
            ),
            Self::Depth(most) => write!(
                f,
                "the guest ran into the limit of {most} directories in each other in /outputs"
            ),
            Self::Handles => write!(
                f,
                "the guest ran into the limit of {MAX_HANDLES} handles (files, streams, timers) \
                 that it may hold at a time, or of {MAX_ALL_HANDLES} with its own"
            ),
            Self::Call(most) => write!(
                f,
                "the guest ran into the limit of {} that may be handed over or asked for in one \
                 call",
                most.display().iec()
            ),
            Self::Parts => write!(
                f,
                "the component is made of more than {MAX_MODULES} core modules, {MAX_MEMORIES} \
                 memories or {MAX_TABLES} tables"
            ),
            Self::TableElements => write!(
                f,
                "the guest ran into the limit of {MAX_TABLE_ELEMENTS} elements of its tables"
            ),
        }
    }
}

/// What raises a limit. `table` has the setting, if there is one.
pub(super) fn cure(limit: &Limit, table: Option<&Table>) -> String {
    match (limit.setting(), table) {
        (Some(setting), Some(table)) => format!("`{setting}` in {table} raises it"),
        (Some(setting), None) => format!("`--{setting}` raises it"),
        (None, _) => match limit {
            Limit::OpenFiles(most) if *most < MOST_OPEN_FILES => {
                "a higher `ulimit -n` of the host or a lower `--parallel` raises it".to_owned()
            }
            Limit::OpenFiles(_) => {
                "nothing raises it: close what is not needed any more".to_owned()
            }
            Limit::Handles => "nothing raises it: drop what is not needed any more".to_owned(),
            Limit::Call(_) => "nothing raises it: use several calls".to_owned(),
            Limit::Parts => "nothing raises that: link it into fewer modules".to_owned(),
            _ => "nothing raises it".to_owned(),
        },
    }
}

impl Limit {
    /// The setting that raises the limit.
    fn setting(&self) -> Option<&'static str> {
        match self {
            Self::Memory(_) => Some("memory"),
            Self::Time(_) => Some("timeout"),
            Self::OutputBytes(_) => Some("max-output"),
            Self::OutputFiles(_) => Some("max-output-files"),
            Self::OpenFiles(_)
            | Self::Depth(_)
            | Self::Handles
            | Self::Call(_)
            | Self::Parts
            | Self::TableElements => None,
        }
    }

    /// The limit that an error of the engine stands for. Most of these errors have no type: a
    /// test for each says when the engine words them otherwise.
    pub(super) fn of_error(error: &wasmtime::Error, limits: &Limits) -> Option<Self> {
        if let Some(ResourceTableError::Full) = error.downcast_ref() {
            return Some(Self::Handles);
        }
        let said = words::bounded(&error.root_cause(), 200);
        let known = [
            ("store handle limit exceeded", Self::Handles),
            ("fuel allocated for hostcalls has been exhausted", Self::Call(limits.call())),
            ("requested len", Self::Call(limits.call())),
            ("resource limit exceeded", Self::Parts),
        ];
        known.into_iter().find(|(words, _)| said.contains(words)).map(|(_, limit)| limit)
    }
}

/// True for what the engine says of a component that it can't hold, whatever the machine.
pub fn is_too_large(problem: &str) -> bool {
    problem.contains("pooling allocator")
}

/// Counts the memory of all linear memories of one instance.
pub(super) struct Memory {
    limit: ByteSize,
    bytes: usize,
    elements: usize,
    denied: Option<Limit>,
}

impl Memory {
    pub(super) fn new(limit: ByteSize) -> Self {
        Self { limit, bytes: 0, elements: 0, denied: None }
    }

    /// The bytes of all memories: their peak, because memories only grow.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes as u64
    }

    /// The limit for which the guest was refused memory or table elements first, if it was.
    pub(super) fn denied(&self) -> Option<Limit> {
        self.denied
    }
}

impl ResourceLimiter for Memory {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let total = self.bytes.saturating_add(desired.saturating_sub(current));
        let granted = total as u64 <= self.limit.as_u64();
        if granted {
            self.bytes = total;
        } else {
            self.denied.get_or_insert(Limit::Memory(self.limit));
        }
        Ok(granted)
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let total = self.elements.saturating_add(desired.saturating_sub(current));
        let granted = total <= MAX_TABLE_ELEMENTS;
        if granted {
            self.elements = total;
        } else {
            self.denied.get_or_insert(Limit::TableElements);
        }
        Ok(granted)
    }

    fn instances(&self) -> usize {
        MAX_MODULES
    }

    fn memories(&self) -> usize {
        MAX_MEMORIES
    }

    fn tables(&self) -> usize {
        MAX_TABLES
    }
}
