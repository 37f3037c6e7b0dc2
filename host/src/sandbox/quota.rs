//! What a guest may still write, counted before it is written.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering::Relaxed};

use bytesize::ByteSize;
use rustix::io::Errno;
use wasmtime_wasi::p2::bindings::filesystem::types::ErrorCode;
use wasmtime_wasi::p2::{FsError, StreamError};

use super::limits::Limit;
use crate::shortage;

/// Refusals after which a guest that goes on trying is stopped.
const MAX_REFUSALS: u64 = 1000;

/// What a guest may still write, and what its calls met that is not its fault. Shared by the
/// streams of one instance.
pub(super) struct Quota {
    bytes: Account,
    pub(super) files: Account,
    /// The number of the host's shortage that a call met; zero if none did.
    shortage: AtomicI32,
    /// A call failed with an I/O error whose cause is not known.
    io_failed: AtomicBool,
}

pub(super) struct Account {
    limit: u64,
    used: AtomicU64,
    refused: AtomicU64,
}

impl Account {
    fn new(limit: u64) -> Self {
        Self { limit, used: AtomicU64::new(0), refused: AtomicU64::new(0) }
    }

    pub(super) fn charge(&self, amount: u64) -> Result<(), Refused> {
        let used = self.used.load(Relaxed).saturating_add(amount);
        if used <= self.limit {
            self.used.store(used, Relaxed);
            Ok(())
        } else if self.refused.fetch_add(1, Relaxed) < MAX_REFUSALS {
            Err(Refused::Quota)
        } else {
            Err(Refused::Stop)
        }
    }

    /// Takes back a charge for what was not made.
    pub(super) fn refund(&self, amount: u64) {
        self.used.store(self.used.load(Relaxed).saturating_sub(amount), Relaxed);
    }

    pub(super) fn is_used_up(&self) -> bool {
        self.used.load(Relaxed) >= self.limit
    }
}

/// What to answer a guest that is over its quota.
pub(super) enum Refused {
    Quota,
    Stop,
}

impl From<Refused> for FsError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Quota => ErrorCode::Quota.into(),
            Refused::Stop => FsError::trap(wasmtime::format_err!("the quota is used up")),
        }
    }
}

impl From<Refused> for StreamError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Quota => StreamError::LastOperationFailed(
                io::Error::from(io::ErrorKind::QuotaExceeded).into(),
            ),
            Refused::Stop => StreamError::trap("the quota is used up"),
        }
    }
}

impl Quota {
    pub(super) fn new(bytes: ByteSize, files: u64) -> Self {
        Self {
            bytes: Account::new(bytes.as_u64()),
            files: Account::new(files),
            shortage: AtomicI32::new(0),
            io_failed: AtomicBool::new(false),
        }
    }

    /// The host's shortage that a call of the guest met.
    pub(super) fn shortage(&self) -> Option<Errno> {
        let number = self.shortage.load(Relaxed);
        (number != 0).then(|| Errno::from_raw_os_error(number))
    }

    /// True when a call failed with an I/O error that may or may not be the host's fault.
    pub(super) fn io_failed(&self) -> bool {
        self.io_failed.load(Relaxed)
    }

    /// The bytes that the guest has written.
    pub(super) fn written(&self) -> u64 {
        self.bytes.used.load(Relaxed)
    }

    /// Takes note of an error that a guest is about to see.
    pub(super) fn note(&self, error: &io::Error) {
        if let Some(errno) = shortage::errno(error)
            && (shortage::is_of_the_process(errno)
                || shortage::is_of_a_disk(errno)
                // Guests' libraries make an I/O error of it.
                || errno == Errno::FBIG)
        {
            self.shortage.store(errno.raw_os_error(), Relaxed);
        }
    }

    /// The same for an error of the stock calls, which have left the system's number away.
    pub(super) fn note_code(&self, code: ErrorCode, of: impl std::os::fd::AsFd) {
        let errno = match code {
            ErrorCode::InsufficientSpace => Errno::NOSPC,
            ErrorCode::InsufficientMemory => Errno::NOMEM,
            ErrorCode::FileTooLarge => Errno::FBIG,
            ErrorCode::Io => match rustix::io::fcntl_dupfd_cloexec(of, 0) {
                Err(errno) => errno,
                Ok(_) => return self.io_failed.store(true, Relaxed),
            },
            _ => return,
        };
        self.shortage.store(errno.raw_os_error(), Relaxed);
    }

    /// The limit that the guest was stopped by, if it was.
    pub(super) fn exceeded(&self) -> Option<Limit> {
        if self.bytes.refused.load(Relaxed) > 0 {
            Some(Limit::OutputBytes(ByteSize(self.bytes.limit)))
        } else if self.files.refused.load(Relaxed) > 0 {
            Some(Limit::OutputFiles(self.files.limit))
        } else {
            None
        }
    }

    /// # Errors
    /// The limit that the guest was stopped by, if it was.
    pub(super) fn check(&self) -> Result<(), Limit> {
        self.exceeded().map_or(Ok(()), Err)
    }

    /// Charges what a write of `len` bytes at `offset` adds to the file's size. A hole counts
    /// as if it were written.
    pub(super) fn charge_growth(
        &self,
        file: &File,
        offset: u64,
        len: u64,
    ) -> Result<(), WriteError> {
        let end = offset.saturating_add(len);
        let size = file.metadata().inspect_err(|error| self.note(error))?.len();
        if end > size {
            self.bytes.charge(end - size)?;
        }
        Ok(())
    }

    /// Charges and writes as much of `bytes` as one system call takes.
    pub(super) fn write(
        &self,
        file: &File,
        bytes: &[u8],
        offset: u64,
    ) -> Result<usize, WriteError> {
        self.charge_growth(file, offset, bytes.len() as u64)?;
        loop {
            match file.write_at(bytes, offset) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                done => return Ok(done.inspect_err(|error| self.note(error))?),
            }
        }
    }
}

pub(super) enum WriteError {
    Refused(Refused),
    Io(io::Error),
}

impl From<Refused> for WriteError {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

impl From<io::Error> for WriteError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<WriteError> for FsError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Refused(refused) => refused.into(),
            WriteError::Io(error) => error.into(),
        }
    }
}

impl From<WriteError> for StreamError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Refused(refused) => refused.into(),
            WriteError::Io(error) => StreamError::LastOperationFailed(error.into()),
        }
    }
}
