//! What a guest may still make, counted before it is made, and what its calls met that is not its
//! fault. Counts are of what exists: what is removed may be made again.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering::Relaxed};

use bytesize::ByteSize;
use rustix::io::Errno;

use super::limits::{Limit, Limits, MAX_DEPTH};
use crate::shortage;

/// Refusals after which a guest that goes on trying is stopped.
const MAX_REFUSALS: u64 = 1000;

/// The counts of one instance, shared by its files and streams.
pub(super) struct Quota {
    bytes: Account,
    files: Account,
    open: Account,
    memory: Account,
    /// The guest was refused an open file, and has not opened another since.
    open_refused: AtomicBool,
    too_deep: AtomicBool,
    /// The number of the host's shortage that a call met; zero if none did.
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

    /// True when there was room for `amount`, which is charged.
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

/// What to answer a guest that is over its quota.
#[derive(Debug)]
pub(super) enum Refused {
    /// An error.
    Quota,
    /// Nothing: it is stopped.
    Stop,
}

/// A file or a directory in `/outputs`, counted for as long as it exists.
pub(super) struct Counted(Arc<Quota>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.files.refund(1);
    }
}

/// A file, a directory or a listing that is open, counted until it is closed.
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

    /// Counts one more that is open. None when there are too many.
    pub(super) fn open(self: &Arc<Self>) -> Option<Opening> {
        let has_room = self.open.has_room(1);
        self.open_refused.store(!has_room, Relaxed);
        has_room.then(|| Opening(self.clone()))
    }

    /// Charges for bytes that a file grows by. A hole counts as if it were written.
    pub(super) fn grow(&self, bytes: u64) -> Result<(), Refused> {
        self.bytes.charge(bytes)
    }

    /// Takes note that a file is smaller again, or gone.
    pub(super) fn shrink(&self, bytes: u64) {
        self.bytes.refund(bytes);
    }

    /// True when that many bytes of a file may be kept in memory. They are charged then.
    pub(super) fn keep(&self, bytes: u64) -> bool {
        self.memory.has_room(bytes)
    }

    /// Takes note that bytes are in memory no more.
    pub(super) fn release(&self, bytes: u64) {
        self.memory.refund(bytes);
    }

    /// Refuses a directory for its depth.
    pub(super) fn refuse_depth(&self) {
        self.too_deep.store(true, Relaxed);
    }

    /// The host's shortage that a call of the guest met.
    pub(super) fn shortage(&self) -> Option<Errno> {
        let number = self.shortage.load(Relaxed);
        (number != 0).then(|| Errno::from_raw_os_error(number))
    }

    /// The bytes that the guest's files have.
    pub(super) fn written(&self) -> u64 {
        self.bytes.used.load(Relaxed)
    }

    /// Takes note of a failure of the host's own files that a guest is about to see.
    pub(super) fn note(&self, error: &io::Error) {
        let errno = match shortage::errno(error) {
            // Somebody removed it.
            None | Some(Errno::NOENT) => Errno::STALE,
            Some(errno) => errno,
        };
        self.shortage.store(errno.raw_os_error(), Relaxed);
    }

    /// True when the guest was refused an open file, and has not opened another since.
    pub(super) fn was_refused_open(&self) -> bool {
        self.open_refused.load(Relaxed)
    }

    /// The limit that the guest was stopped by, if it was.
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
    /// The limit that the guest was stopped by, if it was.
    pub(super) fn check(&self) -> Result<(), Limit> {
        self.exceeded().map_or(Ok(()), Err)
    }
}
