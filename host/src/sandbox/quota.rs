//! Counts a guest's files and bytes, and the memory that the host holds for it, against its limits.
//! They are counted before they are created, and a removed file is no longer counted. Also records
//! the shortages of the host that made a guest's calls fail.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering::Relaxed};

use bytesize::ByteSize;
use rustix::io::Errno;

use super::limits::{Limit, Limits, MAX_DEPTH};
use crate::shortage;

/// A guest is stopped after this many refusals.
const MAX_REFUSALS: u64 = 1000;
/// Bytes of the host's memory for a file or directory in `/outputs`, with its name.
const NODE: u64 = 768;
/// Bytes of the host's memory for an open file, directory or listing. A listing keeps a name.
const OPENING: u64 = 512;

/// The counts of one instance, shared by its files and streams.
pub(super) struct Quota {
    bytes: Account,
    files: Account,
    open: Account,
    /// Outputs that are kept in memory.
    memory: Account,
    /// Other memory that the host holds for the guest.
    host: Account,
    /// True if the process's own limit of open files is lower than the guest's limit.
    is_open_of_process: bool,
    /// True if the last attempt to open something was refused.
    open_refused: AtomicBool,
    too_deep: AtomicBool,
    /// The error number of the host's shortage that made a call fail; zero if there was none.
    shortage: AtomicI32,
}

struct Account {
    limit: u64,
    used: AtomicU64,
    refused: AtomicU64,
}

impl Account {
    fn new(limit: u64) -> Self {
        Self { limit, used: AtomicU64::new(0), refused: AtomicU64::new(0) }
    }

    /// Charges `amount` if there is room for it. False if there is not.
    fn has_room(&self, amount: u64) -> bool {
        let used = self.used.load(Relaxed).saturating_add(amount);
        let has_room = used <= self.limit;
        if has_room {
            self.used.store(used, Relaxed);
        }
        has_room
    }

    fn charge(&self, amount: u64) -> Result<(), Refused> {
        if self.has_room(amount) { Ok(()) } else { Err(self.refuse()) }
    }

    fn refuse(&self) -> Refused {
        match self.refused.fetch_add(1, Relaxed) {
            ..MAX_REFUSALS => Refused::Quota,
            _ => Refused::Stop,
        }
    }

    fn refund(&self, amount: u64) {
        self.used.store(self.used.load(Relaxed).saturating_sub(amount), Relaxed);
    }

    fn was_exceeded(&self) -> bool {
        self.refused.load(Relaxed) > 0
    }
}

/// What happens to a guest that exceeds a limit.
#[derive(Debug)]
pub(super) enum Refused {
    /// Its call fails.
    Quota,
    /// The guest is stopped.
    Stop,
}

/// Counts a file or a directory in `/outputs` until it is dropped.
pub(super) struct Counted(Arc<Quota>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.files.refund(1);
        self.0.host.refund(NODE);
    }
}

/// Counts an open file, directory or listing until it is dropped.
pub(super) struct Opening(Arc<Quota>);

impl Drop for Opening {
    fn drop(&mut self) {
        self.0.open.refund(1);
        self.0.host.refund(OPENING);
    }
}

impl Quota {
    pub(super) fn new(limits: &Limits) -> Arc<Self> {
        let host = Account::new(limits.host_memory.as_u64());
        host.used.store(limits.set_aside(), Relaxed);
        Arc::new(Self {
            bytes: Account::new(limits.output_bytes.as_u64()),
            files: Account::new(limits.output_files),
            open: Account::new(limits.open_files.min(limits.process_files)),
            memory: Account::new(limits.output_memory.as_u64()),
            host,
            is_open_of_process: limits.process_files < limits.open_files,
            open_refused: AtomicBool::new(false),
            too_deep: AtomicBool::new(false),
            shortage: AtomicI32::new(0),
        })
    }

    /// Charges for one more file or directory.
    pub(super) fn count(self: &Arc<Self>) -> Result<Counted, Refused> {
        self.files.charge(1)?;
        self.host.charge(NODE).inspect_err(|_| self.files.refund(1))?;
        Ok(Counted(self.clone()))
    }

    /// Charges for one more open file, directory or listing.
    pub(super) fn open(self: &Arc<Self>) -> Result<Opening, Refused> {
        let has_room = self.open.has_room(1);
        self.open_refused.store(!has_room, Relaxed);
        if !has_room {
            return Err(Refused::Quota);
        }
        self.host.charge(OPENING).inspect_err(|_| self.open.refund(1))?;
        Ok(Opening(self.clone()))
    }

    /// Charges for bytes that the host holds until the end of the execution.
    ///
    /// # Errors
    /// The limit, if there is no room for them.
    pub(super) fn hold(&self, bytes: u64) -> Result<(), Limit> {
        match self.host.has_room(bytes) {
            true => Ok(()),
            false => Err(Limit::HostMemory(ByteSize(self.host.limit))),
        }
    }

    /// Charges for bytes that a file grows by, including holes.
    pub(super) fn grow(&self, bytes: u64) -> Result<(), Refused> {
        self.bytes.charge(bytes)
    }

    /// Refunds bytes of a file that was truncated or removed.
    pub(super) fn shrink(&self, bytes: u64) {
        self.bytes.refund(bytes);
    }

    /// Charges for bytes that are kept in memory. False if there is no room for them.
    pub(super) fn keep(&self, bytes: u64) -> bool {
        self.memory.has_room(bytes)
    }

    /// Refunds bytes that are no longer kept in memory.
    pub(super) fn release(&self, bytes: u64) {
        self.memory.refund(bytes);
    }

    /// Records that a directory was refused because it is too deep.
    pub(super) fn refuse_depth(&self) {
        self.too_deep.store(true, Relaxed);
    }

    /// The host's shortage that made a call of the guest fail.
    pub(super) fn shortage(&self) -> Option<Errno> {
        let number = self.shortage.load(Relaxed);
        (number != 0).then(|| Errno::from_raw_os_error(number))
    }

    /// The bytes of all of the guest's outputs together.
    pub(super) fn written(&self) -> u64 {
        self.bytes.used.load(Relaxed)
    }

    /// Records a failure of one of the host's own files. The guest's call will fail because of it.
    pub(super) fn note(&self, error: &io::Error) {
        let errno = match shortage::errno(error) {
            // Another program removed the file.
            None | Some(Errno::NOENT) => Errno::STALE,
            Some(errno) => errno,
        };
        self.shortage.store(errno.raw_os_error(), Relaxed);
    }

    /// The limit because of which the guest's last attempt to open something was refused, if it
    /// was.
    pub(super) fn refused_open(&self) -> Option<Limit> {
        let limit = match self.is_open_of_process {
            true => Limit::ProcessFiles(self.open.limit),
            false => Limit::OpenFiles(self.open.limit),
        };
        self.open_refused.load(Relaxed).then_some(limit)
    }

    /// The limit that the guest exceeded.
    pub(super) fn exceeded(&self) -> Option<Limit> {
        if self.bytes.was_exceeded() {
            Some(Limit::OutputBytes(ByteSize(self.bytes.limit)))
        } else if self.files.was_exceeded() {
            Some(Limit::OutputFiles(self.files.limit))
        } else if self.host.was_exceeded() {
            Some(Limit::HostMemory(ByteSize(self.host.limit)))
        } else if self.too_deep.load(Relaxed) {
            Some(Limit::Depth(MAX_DEPTH))
        } else {
            None
        }
    }

    /// # Errors
    /// The limit that the guest exceeded.
    pub(super) fn check(&self) -> Result<(), Limit> {
        self.exceeded().map_or(Ok(()), Err)
    }
}
