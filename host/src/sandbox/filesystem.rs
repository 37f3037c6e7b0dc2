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

use bytes::{Bytes, BytesMut};
use wasmtime::component::{HasData, Linker, Resource};
use wasmtime_wasi::filesystem::{Descriptor, Dir, WasiFilesystemCtxView};
use wasmtime_wasi::p2::bindings::filesystem::{preopens, types};
use wasmtime_wasi::p2::{
    DynInputStream, DynOutputStream, FsError, FsResult, InputStream, OutputStream, Pollable,
    ReaddirIterator, StreamError, StreamResult,
};
use wasmtime_wasi::{FsPerms, OpenMode};

use super::State;
use super::facts::Facts;
use super::open::{Listing, OpenFiles};
use super::quota::{Quota, WriteError};
use crate::workspace::{Directories, Spares};
use types::{ErrorCode, HostDescriptor};

/// The most that one read hands to a guest, in bytes.
const MAX_READ: usize = 64 << 10;
/// The most that a stream takes in one write, in bytes.
const MAX_WRITE: usize = 64 << 10;
/// The longest path that a guest may name, in bytes: as Linux has it. Some of the stock calls take
/// a path apart, which no time limit ends.
const MAX_PATH: usize = 4095;

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
        open: &mut state.open,
        facts: &state.facts,
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

/// The view of an instance's state that answers its file calls.
pub(super) struct GuestFiles<'a> {
    stock: WasiFilesystemCtxView<'a>,
    preopens: &'a Preopens,
    open: &'a mut OpenFiles,
    facts: &'a Facts,
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

    /// Opens what is there, or makes a file that is charged for. Nothing is counted as open.
    async fn open(
        &mut self,
        fd: Fd,
        path_flags: types::PathFlags,
        path: String,
        open_flags: types::OpenFlags,
        flags: types::DescriptorFlags,
    ) -> FsResult<Fd> {
        use types::OpenFlags;
        if open_flags.contains(OpenFlags::DIRECTORY)
            && open_flags.intersects(OpenFlags::CREATE | OpenFlags::EXCLUSIVE | OpenFlags::TRUNCATE)
        {
            return Err(ErrorCode::Invalid.into());
        }
        if !open_flags.contains(OpenFlags::CREATE) {
            return self.stock.open_at(fd, path_flags, path, open_flags, flags).await;
        }
        if self.is_input(&fd)? {
            return Err(ErrorCode::NotPermitted.into());
        }
        if !open_flags.contains(OpenFlags::EXCLUSIVE) {
            let existing = open_flags & !OpenFlags::CREATE;
            let again = Resource::<Descriptor>::new_borrow(fd.rep());
            match self.stock.open_at(again, path_flags, path.clone(), existing, flags).await {
                Err(e) if matches!(e.downcast_ref(), Some(ErrorCode::NoEntry)) => {}
                Ok(opened) if matches!(self.stock.table.get(&opened)?, Descriptor::Dir(_)) => {
                    self.stock.table.delete(opened)?;
                    return Err(ErrorCode::IsDirectory.into());
                }
                opened => return opened,
            }
        }
        self.quota.files.charge(1)?;
        let made = self.stock.open_at(fd, path_flags, path, open_flags, flags).await;
        made.inspect_err(|_| self.quota.files.refund(1))
    }

    /// True for what is in the directory that can't be changed.
    fn is_input(&self, fd: &Fd) -> FsResult<bool> {
        Ok(match self.stock.table.get(fd)? {
            Descriptor::Dir(dir) => dir.perms.write_not_permitted(),
            Descriptor::File(file) => file.perms.write_not_permitted(),
        })
    }

    /// What a guest is told of a file at or below `fd`.
    fn told(&self, fd: &Fd, stat: types::DescriptorStat) -> FsResult<types::DescriptorStat> {
        Ok(match self.is_input(fd)? {
            true => self.facts.of_input(stat),
            false => self.facts.of_output(stat),
        })
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
        let file = match self.writable(&fd) {
            // As `ftruncate` says it of a file that was opened for reading.
            Err(error)
                if matches!(error.downcast_ref(), Some(ErrorCode::BadDescriptor))
                    && matches!(self.stock.table.get(&fd)?, Descriptor::File(_)) =>
            {
                return Err(ErrorCode::Invalid.into());
            }
            file => file?,
        };
        self.quota.charge_growth(file, size, 0)?;
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
        check(&path)?;
        self.open.ask()?;
        let opened = self.open(fd, path_flags, path, open_flags, flags).await?;
        match self.stock.table.get(&opened)? {
            Descriptor::Dir(dir) => self.open.count(&dir.dir),
            Descriptor::File(file) => self.open.count(&file.file),
        }
        Ok(opened)
    }

    async fn create_directory_at(&mut self, fd: Fd, path: String) -> FsResult<()> {
        check(&path)?;
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
        check(&old)?;
        check(&new)?;
        self.quota.files.charge(1)?;
        let made = self.stock.link_at(fd, flags, old, new_fd, new).await;
        made.inspect_err(|_| self.quota.files.refund(1))
    }

    async fn symlink_at(&mut self, fd: Fd, target: String, path: String) -> FsResult<()> {
        check(&target)?;
        check(&path)?;
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
        check(&path)?;
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
        let Descriptor::Dir(dir) = self.stock.table.get(&fd)? else {
            return Err(ErrorCode::NotDirectory.into());
        };
        self.open.ask()?;
        let listing = Listing::open(&dir.dir).map_err(io::Error::from);
        let listing = listing.inspect_err(|error| self.quota.note(error))?;
        self.open.count(listing.dir());
        Ok(Resource::new_own(self.stock.table.push(listing)?.rep()))
    }

    async fn stat(&mut self, fd: Fd) -> FsResult<types::DescriptorStat> {
        let again = Resource::new_borrow(fd.rep());
        let stat = self.stock.stat(fd).await?;
        self.told(&again, stat)
    }

    async fn stat_at(
        &mut self,
        fd: Fd,
        flags: types::PathFlags,
        path: String,
    ) -> FsResult<types::DescriptorStat> {
        check(&path)?;
        let again = Resource::new_borrow(fd.rep());
        let stat = self.stock.stat_at(fd, flags, path).await?;
        self.told(&again, stat)
    }

    async fn readlink_at(&mut self, fd: Fd, path: String) -> FsResult<String> {
        check(&path)?;
        self.stock.readlink_at(fd, path).await
    }

    async fn remove_directory_at(&mut self, fd: Fd, path: String) -> FsResult<()> {
        check(&path)?;
        self.stock.remove_directory_at(fd, path).await
    }

    async fn rename_at(&mut self, fd: Fd, old: String, new_fd: Fd, new: String) -> FsResult<()> {
        check(&old)?;
        check(&new)?;
        self.stock.rename_at(fd, old, new_fd, new).await
    }

    async fn unlink_file_at(&mut self, fd: Fd, path: String) -> FsResult<()> {
        check(&path)?;
        self.stock.unlink_file_at(fd, path).await
    }

    async fn is_same_object(&mut self, a: Fd, b: Fd) -> wasmtime::Result<bool> {
        self.stock.is_same_object(a, b).await
    }

    async fn metadata_hash(&mut self, fd: Fd) -> FsResult<types::MetadataHashValue> {
        Ok(self.facts.number(self.stock.metadata_hash(fd).await?))
    }

    async fn metadata_hash_at(
        &mut self,
        fd: Fd,
        flags: types::PathFlags,
        path: String,
    ) -> FsResult<types::MetadataHashValue> {
        check(&path)?;
        Ok(self.facts.number(self.stock.metadata_hash_at(fd, flags, path).await?))
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
        self.stock.table.get_mut(&listing(&stream))?.next()
    }

    fn drop(&mut self, stream: Resource<ReaddirIterator>) -> wasmtime::Result<()> {
        self.stock.table.delete(listing(&stream))?;
        Ok(())
    }
}

/// What the guest knows as a stream of the stock kind: no other is ever made.
fn listing(stream: &Resource<ReaddirIterator>) -> Resource<Listing> {
    Resource::new_own(stream.rep())
}

/// Refuses a path that the system would refuse for its length.
fn check(path: &str) -> FsResult<()> {
    if path.len() > MAX_PATH { Err(ErrorCode::NameTooLong.into()) } else { Ok(()) }
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
