//! The limits of one execution, the count of its memory, and names for the engine's own limits.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytesize::ByteSize;
use wasmtime::ResourceLimiterAsync;
use wasmtime::component::ResourceTableError;

use super::room::{Refused, Share};
use super::{Phase, RunError, Watched};
use crate::key::TaskName;
use crate::words;

/// What one execution may use.
#[derive(Debug, Clone)]
pub struct Limits {
    /// All linear memories of the instance together.
    pub memory: ByteSize,
    /// Wall-clock time of the three calls together.
    pub time: Duration,
    /// Processor time of the three calls together, including the host's work for the guest.
    /// With [`Duration::MAX`], the time is measured but not limited.
    pub cpu_time: Option<Duration>,
    /// Bytes that the files in `/outputs` may have together, holes included.
    pub output_bytes: ByteSize,
    /// The most files and directories in `/outputs`.
    pub output_files: u64,
    /// The most bytes of files in `/outputs` that are kept in the host's memory together. Each
    /// other file is stored in a file on the host's disk.
    pub output_memory: ByteSize,
    /// The size of the largest output file that is kept in memory.
    pub output_file_memory: ByteSize,
    /// Files, directories and listings that may be open at a time.
    pub open_files: u64,
    /// The share of the process's own limit of open files. Some of a guest's open files need an
    /// open file of the process.
    pub process_files: u64,
    /// The most bytes that are kept of the log.
    pub log: ByteSize,
    /// The most memory that the host may hold for the guest, apart from outputs.
    pub host_memory: ByteSize,
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

/// The most levels of directories in `/outputs`.
pub(super) const MAX_DEPTH: usize = 64;
/// The most resources of the host that a guest may hold at a time: open files, streams, timers,
/// errors.
pub(super) const MAX_HANDLES: usize = 10_000;
/// The most handles of a guest, including those that the parts of a component have on each other.
pub(super) const MAX_ALL_HANDLES: usize = 100_000;
/// The most core modules of a component: the guest's own, adapters and shims.
pub(super) const MAX_MODULES: usize = 32;
/// The most memories of a component, in all of its modules.
pub(super) const MAX_MEMORIES: usize = 4;
/// The most tables of a component, in all of its modules.
pub(super) const MAX_TABLES: usize = 32;
/// The most elements in all tables of an instance. A guest's tables hold its function pointers.
pub(super) const MAX_TABLE_ELEMENTS: usize = 1_000_000;
/// The most bytes that a guest may pass or request in one call. The host holds them during the
/// call.
const MAX_CALL: u64 = 16 << 20;
/// Bytes to count for each output that a guest lists: its name, and the host's handle on it.
const LISTED: u64 = 128;
/// Bytes of a guest's call stack. A guest may have another stack in its own memory.
pub(super) const MAX_STACK: usize = 512 << 10;

/// The least memory of the host for one guest: enough for calls, handles and the log, which have
/// limits of their own.
pub const LEAST_HOST_MEMORY: ByteSize = ByteSize::mib(24);
/// The most bytes of a log. The host may hold two copies.
pub const MOST_LOG: ByteSize = ByteSize::mib(1);
/// Bytes of the host's memory for each output of a guest with the longest path: its node in the
/// tree, its place in the guest's list, and its key.
const PER_OUTPUT: u64 = 3 << 10;
/// Bytes of the host's memory for a resource that a guest holds: the resource and its table entry.
const PER_HANDLE: u64 = 256;
/// Bytes of the host's memory for a handle that a part of a component has on another part.
const PER_INNER_HANDLE: u64 = 32;

impl Limits {
    /// The most memory of an execution: the guest's own memory, its outputs that are kept in
    /// memory, and what else the host holds for it.
    pub fn of_the_host(&self) -> ByteSize {
        ByteSize(self.memory.as_u64().saturating_add(self.beside_the_guest().as_u64()))
    }

    /// Like [`Limits::of_the_host`], but without the guest's own memory.
    pub fn beside_the_guest(&self) -> ByteSize {
        ByteSize(self.output_memory.as_u64().saturating_add(self.host_memory.as_u64()))
    }

    /// The default of [`Limits::host_memory`] for a guest with up to `output_files` outputs.
    pub fn default_host_memory(output_files: u64) -> ByteSize {
        let outputs = output_files.saturating_mul(PER_OUTPUT);
        ByteSize(LEAST_HOST_MEMORY.as_u64().saturating_add(outputs))
    }

    /// The error of an execution that exceeds a limit during a call.
    pub(super) fn exceeded(&self, phase: Phase, limit: Limit) -> RunError {
        let has = |table: &&Arc<Table>| limit.setting().is_some_and(|s| table.settings.contains(s));
        RunError::Limit { phase, limit, table: self.table.as_ref().filter(has).cloned() }
    }

    /// The most bytes that guest and host may pass to each other in one call. The list of all
    /// outputs fits, unless the limit of the host's memory is small.
    pub(super) fn call(&self) -> ByteSize {
        let spare = self.host_memory.as_u64().saturating_sub(LEAST_HOST_MEMORY.as_u64()) / 4;
        let list = self.output_files.saturating_mul(LISTED);
        ByteSize(list.min(MAX_CALL.saturating_add(spare)).max(MAX_CALL))
    }

    /// The part of the host's memory for this guest that is reserved before it starts. It covers
    /// calls and handles, which the engine counts, and the log.
    pub(super) fn set_aside(&self) -> u64 {
        let handles = MAX_HANDLES as u64 * PER_HANDLE + MAX_ALL_HANDLES as u64 * PER_INNER_HANDLE;
        self.call().as_u64() + handles + 2 * self.log.as_u64()
    }
}

/// A limit that an execution ran into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// See [`Limits::memory`].
    Memory(ByteSize),
    /// The memory that the host has for all guests.
    AllMemory(ByteSize),
    /// See [`Limits::time`].
    Time(Duration),
    /// The time of one call of `plan`.
    PlanTime(Duration),
    /// See [`Limits::cpu_time`].
    CpuTime(Duration),
    /// See [`Limits::output_bytes`].
    OutputBytes(ByteSize),
    /// See [`Limits::output_files`].
    OutputFiles(u64),
    /// See [`Limits::open_files`].
    OpenFiles(u64),
    /// See [`Limits::process_files`].
    ProcessFiles(u64),
    /// See [`Limits::host_memory`].
    HostMemory(ByteSize),
    /// Levels of directories in `/outputs`.
    Depth(usize),
    /// Resources of the host that a guest holds at a time.
    Handles,
    /// Bytes that guest and host pass to each other in one call.
    Call(ByteSize),
    /// Core modules, memories and tables of a component.
    Parts,
    /// Elements in all tables of an instance.
    TableElements,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(most) => {
                write!(f, "the guest ran into its memory limit of {}", most.display().iec())
            }
            Self::AllMemory(most) => write!(
                f,
                "the guest asked for more than the {} of memory that this host has for tasks",
                most.display().iec()
            ),
            Self::Time(most) => {
                let most = humantime::format_duration(*most);
                write!(f, "the guest ran into its time limit of {most}")
            }
            Self::PlanTime(most) => {
                let most = humantime::format_duration(*most);
                write!(f, "`plan` ran into its time limit of {most}")
            }
            Self::CpuTime(most) => {
                let most = humantime::format_duration(*most);
                write!(f, "the guest ran into its limit of {most} of processor time")
            }
            Self::OutputBytes(most) => {
                write!(f, "the guest ran into its output limit of {}", most.display().iec())
            }
            Self::OutputFiles(most) => {
                let s = if *most == 1 { "" } else { "s" };
                write!(f, "the guest ran into its limit of {most} output file{s}")
            }
            Self::OpenFiles(most) | Self::ProcessFiles(most) => write!(
                f,
                "the guest ran into its limit of {most} files and directories that are open at a \
                 time"
            ),
            Self::HostMemory(most) => write!(
                f,
                "the guest ran into its limit of {} of the host's memory (names, open files, calls)",
                most.display().iec()
            ),
            Self::Depth(most) => write!(
                f,
                "the guest ran into the limit of {most} levels of directories in /outputs"
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

/// Says how to raise a limit. `table` is the table that has the setting, if there is one.
pub(super) fn cure(limit: &Limit, table: Option<&Table>) -> String {
    match (limit.setting(), table) {
        (Some(setting), Some(table)) => format!("`{setting}` in {table} raises it"),
        (Some(setting), None) => format!("`--{setting}` raises it"),
        (None, _) => match limit {
            Limit::ProcessFiles(_) => {
                "a higher `ulimit -n` of the host or a lower `--parallel` raises it".to_owned()
            }
            Limit::AllMemory(_) => {
                "more memory for the host's machine, container or job raises it".to_owned()
            }
            Limit::Handles => "this limit is fixed: close what is not needed".to_owned(),
            Limit::Call(_) => "this limit is fixed: use several calls".to_owned(),
            Limit::PlanTime(_) => {
                "this limit is fixed: name the inputs in `plan`, and read them in `execute`"
                    .to_owned()
            }
            Limit::Parts => "nothing raises that: link it into fewer modules".to_owned(),
            _ => "this limit is fixed".to_owned(),
        },
    }
}

impl Limit {
    /// The setting that raises the limit.
    fn setting(&self) -> Option<&'static str> {
        match self {
            Self::Memory(_) => Some("memory"),
            Self::Time(_) => Some("timeout"),
            Self::CpuTime(_) => Some("cpu-time"),
            Self::OutputBytes(_) => Some("max-output"),
            Self::OutputFiles(_) => Some("max-output-files"),
            Self::OpenFiles(_) => Some("max-open-files"),
            Self::HostMemory(_) => Some("host-memory"),
            Self::AllMemory(_)
            | Self::ProcessFiles(_)
            | Self::PlanTime(_)
            | Self::Depth(_)
            | Self::Handles
            | Self::Call(_)
            | Self::Parts
            | Self::TableElements => None,
        }
    }

    /// The limit that an error of the engine stands for. Most of these errors have no type and are
    /// recognized by their text. A test for each fails if the engine changes the text.
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

/// Whether an error of the engine says that a component is too large for it on any machine.
pub fn is_too_large(problem: &str) -> bool {
    problem.contains("pooling allocator")
}

/// Counts the memory of all linear memories of one instance.
pub(super) struct Memory {
    limit: ByteSize,
    bytes: usize,
    elements: usize,
    denied: Option<Limit>,
    /// This guest's part of the memory for all guests.
    share: Share,
    /// The memory for all guests, if the guest was ended for lack of it.
    crowded: Option<ByteSize>,
    watched: Option<Arc<Watched>>,
}

impl Memory {
    pub(super) fn new(limit: ByteSize, share: Share, watched: Option<Arc<Watched>>) -> Self {
        Self { limit, bytes: 0, elements: 0, denied: None, share, crowded: None, watched }
    }

    /// The bytes of all memories together. This is also their peak, because memories only grow.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes as u64
    }

    /// The limit because of which the guest was first refused memory or table elements, if it was.
    pub(super) fn denied(&self) -> Option<Limit> {
        self.denied
    }

    /// The memory for all guests, if the guest was ended because together they need more.
    pub(super) fn crowded(&self) -> Option<ByteSize> {
        self.crowded
    }

    /// The memory for all guests, if this guest has waited for a part of it.
    pub(super) fn waited_for(&self) -> Option<ByteSize> {
        self.share.has_waited().then(|| self.share.all())
    }
}

/// The error that ends an execution if waiting for memory of other guests can't help.
#[derive(Debug, thiserror::Error)]
#[error("the guests of this host together need more memory than there is")]
struct Crowded;

#[async_trait]
impl ResourceLimiterAsync for Memory {
    async fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let more = desired.saturating_sub(current);
        let total = self.bytes.saturating_add(more);
        if total as u64 > self.limit.as_u64() {
            self.denied.get_or_insert(Limit::Memory(self.limit));
            return Ok(false);
        }
        match self.share.grow(more as u64).await {
            Ok(()) => {
                self.bytes = total;
                if let Some(watched) = &self.watched {
                    watched.holds(self.bytes());
                }
                Ok(true)
            }
            Err(Refused::TooLarge(most)) => {
                self.denied.get_or_insert(Limit::AllMemory(most));
                Ok(false)
            }
            Err(Refused::Crowded(most)) => {
                self.crowded = Some(most);
                Err(Crowded.into())
            }
        }
    }

    async fn table_growing(
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
