//! Counts a guest's files and bytes against its limits, before they are created. Also records the
//! shortages of the host that a guest's calls ran into. A removed file makes room again.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering::Relaxed};

use bytesize::ByteSize;
use rustix::io::Errno;

use super::limits::{Limit, Limits, MAX_DEPTH};
use crate::shortage;

/// A guest is stopped after this many refusals.
const MAX_REFUSALS: u64 = 1000;

/// The counts of one instance, shared by its files and streams.
pub(super) struct Quota {
    bytes: Account,
    files: Account,
    open: Account,
    memory: Account,
    /// True if the last attempt to open something was refused.
    open_refused: AtomicBool,
    too_deep: AtomicBool,
    /// The error number of the host's shortage that a call ran into; zero if there was none.
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

/// How a guest that exceeds a limit is refused.
#[derive(Debug)]
pub(super) enum Refused {
    /// Its call fails.
    Quota,
    /// It is stopped.
    Stop,
}

/// The count of a file or a directory in `/outputs`, for as long as it exists.
pub(super) struct Counted(Arc<Quota>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.files.refund(1);
    }
}

/// The count of an open file, directory or listing, until it is closed.
pub(super) struct Opening(Arc<Quota>);

impl Drop for Opening {
    fn drop(&mut self) {
        self.0.open.refund(1);
    }
}

impl Quota {
    pub(super) fn new(limits: &Limits) -> Arc<Self> {
        Arc::new(Self {
            bytes: Account::new(limits.output_bytes.as_u64()),
            files: Account::new(limits.output_files),
            open: Account::new(limits.open_files),
            memory: Account::new(limits.output_memory.as_u64()),
            open_refused: AtomicBool::new(false),
            too_deep: AtomicBool::new(false),
            shortage: AtomicI32::new(0),
        })
    }

    /// Charges for one more file or directory.
    pub(super) fn count(self: &Arc<Self>) -> Result<Counted, Refused> {
        self.files.charge(1).map(|()| Counted(self.clone()))
    }

    /// Counts one more open file, directory or listing. None if too many are open.
    pub(super) fn open(self: &Arc<Self>) -> Option<Opening> {
        let has_room = self.open.has_room(1);
        self.open_refused.store(!has_room, Relaxed);
        has_room.then(|| Opening(self.clone()))
    }

    /// Charges for bytes that a file grows by. Bytes that were skipped count too.
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

    /// The host's shortage that a call of the guest ran into.
    pub(super) fn shortage(&self) -> Option<Errno> {
        let number = self.shortage.load(Relaxed);
        (number != 0).then(|| Errno::from_raw_os_error(number))
    }

    /// The sizes of the guest's outputs, in bytes, added up.
    pub(super) fn written(&self) -> u64 {
        self.bytes.used.load(Relaxed)
    }

    /// Records a failure of one of the host's own files. The guest's call will fail because of it.
    pub(super) fn note(&self, error: &io::Error) {
        let errno = match shortage::errno(error) {
            // Somebody removed the file.
            None | Some(Errno::NOENT) => Errno::STALE,
            Some(errno) => errno,
        };
        self.shortage.store(errno.raw_os_error(), Relaxed);
    }

    /// True if the guest's last attempt to open something was refused.
    pub(super) fn was_refused_open(&self) -> bool {
        self.open_refused.load(Relaxed)
    }

    /// The limit that the guest exceeded.
    pub(super) fn exceeded(&self) -> Option<Limit> {
        if self.bytes.was_exceeded() {
            Some(Limit::OutputBytes(ByteSize(self.bytes.limit)))
        } else if self.files.was_exceeded() {
            Some(Limit::OutputFiles(self.files.limit))
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
