//! What one execution may use, and the count of its memory.

use std::fmt;
use std::time::Duration;

use bytesize::ByteSize;
use wasmtime::ResourceLimiter;

/// What one execution may use.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// All linear memories of the instance together.
    pub memory: ByteSize,
    /// Wall-clock time of the three calls together.
    pub time: Duration,
    /// Bytes that the files in `/outputs` may grow by. What is written and removed again counts.
    pub output_bytes: ByteSize,
    /// Files, directories and links that may be created in `/outputs`.
    pub output_files: u64,
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
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(most) => write!(
                f,
                "the guest ran into its memory limit of {}; `--memory` raises it",
                most.display().iec()
            ),
            Self::Time(most) => write!(
                f,
                "the guest ran into its time limit of {}; `--timeout` raises it",
                humantime::format_duration(*most)
            ),
            Self::OutputBytes(most) => write!(
                f,
                "the guest ran into its output limit of {}; `--max-output` raises it",
                most.display().iec()
            ),
            Self::OutputFiles(most) => write!(
                f,
                "the guest ran into its limit of {most} output files; `--max-output-files` raises it"
            ),
        }
    }
}

/// Elements of all tables of an instance; a guest's tables hold its function pointers.
pub(super) const MAX_TABLE_ELEMENTS: usize = 1_000_000;

/// Counts the memory of all linear memories of one instance.
pub(super) struct Memory {
    limit: ByteSize,
    bytes: usize,
    elements: usize,
    denied: bool,
}

impl Memory {
    pub(super) fn new(limit: ByteSize) -> Self {
        Self { limit, bytes: 0, elements: 0, denied: false }
    }

    /// True when the guest was refused memory at least once.
    pub(super) fn denied(&self) -> bool {
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
            self.denied = true;
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
        }
        Ok(granted)
    }
}
