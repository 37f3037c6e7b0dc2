//! The file calls of a guest: `wasi:filesystem`, with a quota, on the executing thread.
//!
//! [`GuestFiles`] stands in front of the stock implementation. It makes reads and writes
//! itself, in place: that is several times cheaper than the stock streams, it is the only
//! place where bytes can be counted before they are written, and it keeps everything a guest
//! causes on one thread, so that the kernel's rules for that thread cover all of it. What
//! it does not do itself it hands on, call by call; there is no default that a new method
//! of the interface could slip through.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering::Relaxed};

use bytes::{Bytes, BytesMut};
use bytesize::ByteSize;
use rustix::io::Errno;
use wasmtime::component::{HasData, Linker, Resource};
use wasmtime_wasi::filesystem::{Descriptor, Dir, WasiFilesystemCtxView};
use wasmtime_wasi::p2::bindings::filesystem::{preopens, types};
use wasmtime_wasi::p2::{
    DynInputStream, DynOutputStream, FsError, FsResult, InputStream, OutputStream, Pollable,
    ReaddirIterator, StreamError, StreamResult,
};
use wasmtime_wasi::{FsPerms, OpenMode};

use super::State;
use super::limits::Limit;
use crate::shortage;
use crate::workspace::{Directories, Spares};
use types::ErrorCode;

/// The most that one read hands to a guest, in bytes.
const MAX_READ: usize = 64 << 10;
/// The most that a stream takes in one write, in bytes.
const MAX_WRITE: usize = 64 << 10;
/// Refusals after which a guest that goes on trying is stopped.
const MAX_REFUSALS: u64 = 1000;

/// Puts the guest's file calls in the place of the stock ones.
pub(super) fn shadow(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    types::add_to_linker::<State, GuestFiles<'static>>(linker, view)?;
    preopens::add_to_linker::<State, GuestFiles<'static>>(linker, view)?;
    linker.allow_shadowing(false);
    Ok(())
}

fn view(state: &mut State) -> GuestFiles<'_> {
    GuestFiles {
        stock: WasiFilesystemCtxView { ctx: state.wasi.filesystem(), table: &mut state.table },
        preopens: &state.preopens,
        quota: &state.quota,
    }
}

/// The two directories that a guest is given.
pub(super) struct Preopens {
    inputs: Dir,
    outputs: Dir,
    spares: Arc<Spares>,
}

impl Preopens {
    pub(super) fn new(directories: Directories) -> Self {
        let dir = |dir: cap_std::fs::Dir, perms, mode| {
            Dir::new(
                dir.into_std_file(),
                perms,
                mode,
                /* allow_blocking_current_thread */ true,
            )
        };
        Self {
            inputs: dir(directories.inputs, FsPerms::ReadOnly, OpenMode::READ),
            outputs: dir(directories.outputs, FsPerms::ReadWrite, OpenMode::READ | OpenMode::WRITE),
            spares: directories.spares,
        }
    }
}

/// What a guest may still write, and what its calls met that is not its fault. Shared by the
/// streams of one instance.
pub(super) struct Quota {
    bytes: Account,
    files: Account,
    /// The number of the host's shortage that a call met; zero if none did.
    shortage: AtomicI32,
    /// A call failed with an I/O error whose cause is not known.
    io_failed: AtomicBool,
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

    fn charge(&self, amount: u64) -> Result<(), Refused> {
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
    fn refund(&self, amount: u64) {
        self.used.store(self.used.load(Relaxed).saturating_sub(amount), Relaxed);
    }

    fn is_used_up(&self) -> bool {
        self.used.load(Relaxed) >= self.limit
    }
}

/// What to answer a guest that is over its quota.
enum Refused {
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
    fn note(&self, error: &io::Error) {
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
    fn note_code(&self, code: ErrorCode, of: impl std::os::fd::AsFd) {
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

    /// Charges what a write of `len` bytes at `offset` adds to the file's size. A hole counts
    /// as if it were written.
    fn charge_growth(&self, file: &File, offset: u64, len: u64) -> Result<(), WriteError> {
        let end = offset.saturating_add(len);
        let size = file.metadata().inspect_err(|error| self.note(error))?.len();
        if end > size {
            self.bytes.charge(end - size)?;
        }
        Ok(())
    }

    /// Charges and writes as much of `bytes` as one system call takes.
    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> Result<usize, WriteError> {
        self.charge_growth(file, offset, bytes.len() as u64)?;
        loop {
            match file.write_at(bytes, offset) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                done => return Ok(done.inspect_err(|error| self.note(error))?),
            }
        }
    }
}

enum WriteError {
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

/// The view of an instance's state that answers its file calls.
pub(super) struct GuestFiles<'a> {
    stock: WasiFilesystemCtxView<'a>,
    preopens: &'a Preopens,
    quota: &'a Arc<Quota>,
}

impl HasData for GuestFiles<'static> {
    type Data<'a> = GuestFiles<'a>;
}

type Fd = Resource<Descriptor>;

impl GuestFiles<'_> {
    /// The file of a descriptor that may be written.
    fn writable(&self, fd: &Fd) -> FsResult<&Arc<File>> {
        match self.stock.table.get(fd)? {
            Descriptor::Dir(_) => Err(ErrorCode::BadDescriptor.into()),
            Descriptor::File(file) if file.perms.write_not_permitted() => {
                Err(ErrorCode::NotPermitted.into())
            }
            Descriptor::File(file) if !file.open_mode.contains(OpenMode::WRITE) => {
                Err(ErrorCode::BadDescriptor.into())
            }
            Descriptor::File(file) => Ok(&file.file),
        }
    }

    /// Makes a directory that is charged for.
    async fn make_directory_at(&mut self, fd: Fd, path: String) -> FsResult<()> {
        // One name, in a directory that may be written: no way to resolve, nothing to escape by.
        if !path.is_empty()
            && !path.contains('/')
            && path != "."
            && path != ".."
            && let Descriptor::Dir(dir) = self.stock.table.get(&fd)?
            && !dir.perms.write_not_permitted()
        {
            return Ok(self.preopens.spares.make_at(&*dir.dir, &path).map_err(io::Error::from)?);
        }
        types::HostDescriptor::create_directory_at(&mut self.stock, fd, path).await
    }

    fn readable(&self, fd: &Fd) -> FsResult<&Arc<File>> {
        match self.stock.table.get(fd)? {
            Descriptor::Dir(_) => Err(ErrorCode::IsDirectory.into()),
            Descriptor::File(file) => Ok(&file.file),
        }
    }
}

impl preopens::Host for GuestFiles<'_> {
    fn get_directories(&mut self) -> wasmtime::Result<Vec<(Fd, String)>> {
        let mut given = Vec::with_capacity(2);
        for (dir, name) in
            [(&self.preopens.inputs, "/inputs"), (&self.preopens.outputs, "/outputs")]
        {
            given.push((self.stock.table.push(Descriptor::Dir(dir.clone()))?, name.to_owned()));
        }
        Ok(given)
    }
}

impl types::Host for GuestFiles<'_> {
    fn convert_error_code(&mut self, error: FsError) -> wasmtime::Result<ErrorCode> {
        let code = self.stock.convert_error_code(error)?;
        self.quota.note_code(code, &*self.preopens.outputs.dir);
        Ok(code)
    }

    fn filesystem_error_code(
        &mut self,
        error: Resource<wasmtime::Error>,
    ) -> wasmtime::Result<Option<ErrorCode>> {
        // The kind that the streams below answer with has no number of the system's.
        let cause = self.stock.table.get(&error)?.downcast_ref::<io::Error>();
        if cause.is_some_and(|e| e.kind() == io::ErrorKind::QuotaExceeded) {
            return Ok(Some(ErrorCode::Quota));
        }
        self.stock.filesystem_error_code(error)
    }
}

impl types::HostDescriptor for GuestFiles<'_> {
    fn read_via_stream(&mut self, fd: Fd, offset: u64) -> FsResult<Resource<DynInputStream>> {
        let file = self.readable(&fd)?.clone();
        let stream = FileReader { file, offset, quota: self.quota.clone() };
        Ok(self.stock.table.push(Box::new(stream) as DynInputStream)?)
    }

    fn write_via_stream(&mut self, fd: Fd, offset: u64) -> FsResult<Resource<DynOutputStream>> {
        let file = self.writable(&fd)?.clone();
        let stream = FileWriter { file, at: At::Offset(offset), quota: self.quota.clone() };
        Ok(self.stock.table.push(Box::new(stream) as DynOutputStream)?)
    }

    fn append_via_stream(&mut self, fd: Fd) -> FsResult<Resource<DynOutputStream>> {
        let file = self.writable(&fd)?.clone();
        let stream = FileWriter { file, at: At::End, quota: self.quota.clone() };
        Ok(self.stock.table.push(Box::new(stream) as DynOutputStream)?)
    }

    async fn read(&mut self, fd: Fd, len: u64, offset: u64) -> FsResult<(Vec<u8>, bool)> {
        let bytes = read(self.readable(&fd)?, usize::try_from(len).unwrap_or(MAX_READ), offset)
            .inspect_err(|error| self.quota.note(error))?;
        let end = bytes.is_empty();
        Ok((bytes.into(), end))
    }

    async fn write(&mut self, fd: Fd, bytes: Vec<u8>, offset: u64) -> FsResult<u64> {
        Ok(self.quota.write(self.writable(&fd)?, &bytes, offset)? as u64)
    }

    async fn set_size(&mut self, fd: Fd, size: u64) -> FsResult<()> {
        self.quota.charge_growth(self.writable(&fd)?, size, 0)?;
        self.stock.set_size(fd, size).await
    }

    async fn open_at(
        &mut self,
        fd: Fd,
        path_flags: types::PathFlags,
        path: String,
        open_flags: types::OpenFlags,
        flags: types::DescriptorFlags,
    ) -> FsResult<Fd> {
        let again = || Resource::<Descriptor>::new_borrow(fd.rep());
        if open_flags.contains(types::OpenFlags::CREATE) {
            if !open_flags.contains(types::OpenFlags::EXCLUSIVE) {
                let existing = open_flags & !types::OpenFlags::CREATE;
                let opened =
                    self.stock.open_at(again(), path_flags, path.clone(), existing, flags).await;
                match opened {
                    Err(e) if matches!(e.downcast_ref(), Some(ErrorCode::NoEntry)) => {}
                    opened => return opened,
                }
            }
            self.quota.files.charge(1)?;
            let made = self.stock.open_at(fd, path_flags, path, open_flags, flags).await;
            return made.inspect_err(|_| self.quota.files.refund(1));
        }
        self.stock.open_at(fd, path_flags, path, open_flags, flags).await
    }

    async fn create_directory_at(&mut self, fd: Fd, path: String) -> FsResult<()> {
        // Libraries make the directories of each file that they write. One that is there
        // already costs nothing, and is no reason to be stopped.
        if self.quota.files.is_used_up() {
            let there = Resource::<Descriptor>::new_borrow(fd.rep());
            let none = types::PathFlags::empty();
            if self.stock.stat_at(there, none, path.clone()).await.is_ok() {
                return Err(ErrorCode::Exist.into());
            }
        }
        self.quota.files.charge(1)?;
        let made = self.make_directory_at(fd, path).await;
        made.inspect_err(|_| self.quota.files.refund(1))
    }

    async fn link_at(
        &mut self,
        fd: Fd,
        flags: types::PathFlags,
        old: String,
        new_fd: Fd,
        new: String,
    ) -> FsResult<()> {
        self.quota.files.charge(1)?;
        let made = self.stock.link_at(fd, flags, old, new_fd, new).await;
        made.inspect_err(|_| self.quota.files.refund(1))
    }

    async fn symlink_at(&mut self, fd: Fd, target: String, path: String) -> FsResult<()> {
        self.quota.files.charge(1)?;
        let made = self.stock.symlink_at(fd, target, path).await;
        made.inspect_err(|_| self.quota.files.refund(1))
    }

    // Whether and when bytes reach the disk is the host's business: publishing decides.
    async fn sync(&mut self, fd: Fd) -> FsResult<()> {
        self.stock.table.get(&fd)?;
        Ok(())
    }

    async fn sync_data(&mut self, fd: Fd) -> FsResult<()> {
        self.stock.table.get(&fd)?;
        Ok(())
    }

    async fn advise(&mut self, fd: Fd, _: u64, _: u64, _: types::Advice) -> FsResult<()> {
        self.stock.table.get(&fd)?;
        Ok(())
    }

    async fn get_flags(&mut self, fd: Fd) -> FsResult<types::DescriptorFlags> {
        self.stock.get_flags(fd).await
    }

    async fn get_type(&mut self, fd: Fd) -> FsResult<types::DescriptorType> {
        self.stock.get_type(fd).await
    }

    async fn set_times(
        &mut self,
        fd: Fd,
        accessed: types::NewTimestamp,
        modified: types::NewTimestamp,
    ) -> FsResult<()> {
        self.stock.set_times(fd, accessed, modified).await
    }

    async fn set_times_at(
        &mut self,
        fd: Fd,
        flags: types::PathFlags,
        path: String,
        accessed: types::NewTimestamp,
        modified: types::NewTimestamp,
    ) -> FsResult<()> {
        // The kernel's rules for this thread let it set the times of what it has opened, which a
        // link can't be.
        if !flags.contains(types::PathFlags::SYMLINK_FOLLOW) {
            let there = Resource::<Descriptor>::new_borrow(fd.rep());
            let found = self.stock.stat_at(there, flags, path.clone()).await?;
            if found.type_ == types::DescriptorType::SymbolicLink {
                return Err(ErrorCode::Unsupported.into());
            }
        }
        let flags = flags | types::PathFlags::SYMLINK_FOLLOW;
        self.stock.set_times_at(fd, flags, path, accessed, modified).await
    }

    async fn read_directory(&mut self, fd: Fd) -> FsResult<Resource<ReaddirIterator>> {
        self.stock.read_directory(fd).await
    }

    async fn stat(&mut self, fd: Fd) -> FsResult<types::DescriptorStat> {
        self.stock.stat(fd).await
    }

    async fn stat_at(
        &mut self,
        fd: Fd,
        flags: types::PathFlags,
        path: String,
    ) -> FsResult<types::DescriptorStat> {
        self.stock.stat_at(fd, flags, path).await
    }

    async fn readlink_at(&mut self, fd: Fd, path: String) -> FsResult<String> {
        self.stock.readlink_at(fd, path).await
    }

    async fn remove_directory_at(&mut self, fd: Fd, path: String) -> FsResult<()> {
        self.stock.remove_directory_at(fd, path).await
    }

    async fn rename_at(&mut self, fd: Fd, old: String, new_fd: Fd, new: String) -> FsResult<()> {
        self.stock.rename_at(fd, old, new_fd, new).await
    }

    async fn unlink_file_at(&mut self, fd: Fd, path: String) -> FsResult<()> {
        self.stock.unlink_file_at(fd, path).await
    }

    async fn is_same_object(&mut self, a: Fd, b: Fd) -> wasmtime::Result<bool> {
        self.stock.is_same_object(a, b).await
    }

    async fn metadata_hash(&mut self, fd: Fd) -> FsResult<types::MetadataHashValue> {
        self.stock.metadata_hash(fd).await
    }

    async fn metadata_hash_at(
        &mut self,
        fd: Fd,
        flags: types::PathFlags,
        path: String,
    ) -> FsResult<types::MetadataHashValue> {
        self.stock.metadata_hash_at(fd, flags, path).await
    }

    fn drop(&mut self, fd: Fd) -> wasmtime::Result<()> {
        types::HostDescriptor::drop(&mut self.stock, fd)
    }
}

impl types::HostDirectoryEntryStream for GuestFiles<'_> {
    async fn read_directory_entry(
        &mut self,
        stream: Resource<ReaddirIterator>,
    ) -> FsResult<Option<types::DirectoryEntry>> {
        self.stock.read_directory_entry(stream).await
    }

    fn drop(&mut self, stream: Resource<ReaddirIterator>) -> wasmtime::Result<()> {
        types::HostDirectoryEntryStream::drop(&mut self.stock, stream)
    }
}

/// Reads up to `len` bytes; none at the end of the file.
fn read(file: &File, len: usize, offset: u64) -> io::Result<Bytes> {
    let mut bytes = BytesMut::zeroed(len.min(MAX_READ));
    loop {
        match file.read_at(&mut bytes, offset) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            read => {
                bytes.truncate(read?);
                return Ok(bytes.freeze());
            }
        }
    }
}

struct FileReader {
    file: Arc<File>,
    offset: u64,
    quota: Arc<Quota>,
}

#[async_trait::async_trait]
impl Pollable for FileReader {
    async fn ready(&mut self) {}
}

#[async_trait::async_trait]
impl InputStream for FileReader {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        if size == 0 {
            return Ok(Bytes::new());
        }
        let bytes = read(&self.file, size, self.offset)
            .inspect_err(|error| self.quota.note(error))
            .map_err(|e| StreamError::LastOperationFailed(e.into()))?;
        if bytes.is_empty() {
            return Err(StreamError::Closed);
        }
        self.offset += bytes.len() as u64;
        Ok(bytes)
    }
}

struct FileWriter {
    file: Arc<File>,
    at: At,
    quota: Arc<Quota>,
}

enum At {
    Offset(u64),
    End,
}

#[async_trait::async_trait]
impl Pollable for FileWriter {
    async fn ready(&mut self) {}
}

#[async_trait::async_trait]
impl OutputStream for FileWriter {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        let mut offset = match self.at {
            At::Offset(offset) => offset,
            At::End => self.file.metadata().map_err(WriteError::Io)?.len(),
        };
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let written = self.quota.write(&self.file, rest, offset)?;
            rest = &rest[written..];
            offset += written as u64;
        }
        if let At::Offset(next) = &mut self.at {
            *next = offset;
        }
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(MAX_WRITE)
    }
}
