//! The files of a guest: `wasi:filesystem`, on a tree in the host's memory.
//!
//! A guest has two directories, `/inputs` and `/outputs`. They exist only in the host's memory:
//! `files/tree.rs` looks up the guest's paths, `files/file.rs` holds the bytes. Every call is
//! answered on the thread that executes the guest.

mod clock;
mod failed;
mod file;
mod streams;
#[cfg(test)]
mod tests;
mod tree;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::io::Errno;
use wasmtime::component::{HasData, Linker, Resource, ResourceTable, ResourceTableError};
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream};

use self::bindings::wasi::filesystem::{preopens, types};
use self::clock::{Clock, Numbers};
pub(super) use self::failed::FailedCall;
use self::file::File;
use self::streams::{Reader, Writer};
use self::tree::{Dir, Listing, OpenDir, Opened};
use super::State;
use super::disk::{Disk, Source};
use super::limits::{Limit, Limits};
use super::log::Sink;
use super::mode::World;
use super::quota::{Quota, Refused};
use crate::bucket::Content;
use crate::key::BucketKey;
use types::ErrorCode;

/// The guest's log explains at most this many error codes.
const MAX_SAID: u8 = 3;

mod bindings {
    //! `wasi:filesystem`, with the host's own types for its resources.
    wasmtime::component::bindgen!({
        path: "src/sandbox/files/wit",
        world: "files",
        imports: { default: trappable },
        require_store_data_send: true,
        trappable_error_type: {
            "wasi:filesystem/types.error-code" => super::Error,
        },
        with: {
            "wasi:io/error": wasmtime_wasi_io::bindings::wasi::io::error,
            "wasi:io/streams": wasmtime_wasi_io::bindings::wasi::io::streams,
            "wasi:clocks/wall-clock": wasmtime_wasi::p2::bindings::clocks::wall_clock,
            "wasi:filesystem/types.descriptor": super::tree::Opened,
            "wasi:filesystem/types.directory-entry-stream": super::tree::Listing,
        },
    });
}

/// The error of a guest's file call.
#[expect(unreachable_pub, reason = "`bindgen!` exports it, inside this crate")]
#[derive(Debug)]
pub enum Error {
    /// The call returns this error to the guest.
    Code(ErrorCode),
    /// The guest is stopped.
    Trap(wasmtime::Error),
}

type Result<T> = std::result::Result<T, Error>;

impl From<ErrorCode> for Error {
    fn from(code: ErrorCode) -> Self {
        Self::Code(code)
    }
}

impl From<ResourceTableError> for Error {
    fn from(error: ResourceTableError) -> Self {
        Self::Trap(error.into())
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Quota => Self::Code(ErrorCode::Quota),
            Refused::Stop => Self::Trap(wasmtime::format_err!("the quota is used up")),
        }
    }
}

/// The error code for an error of the operating system.
fn code_of(error: &io::Error) -> ErrorCode {
    match Errno::from_io_error(error) {
        Some(Errno::INVAL) => ErrorCode::Invalid,
        Some(Errno::NOSPC) => ErrorCode::InsufficientSpace,
        Some(Errno::DQUOT) => ErrorCode::Quota,
        Some(Errno::NOMEM) => ErrorCode::InsufficientMemory,
        Some(Errno::FBIG) => ErrorCode::FileTooLarge,
        Some(Errno::ROFS) => ErrorCode::ReadOnly,
        _ => ErrorCode::Io,
    }
}

/// An input of a task.
pub struct Input {
    /// Its path below `/inputs`.
    pub path: BucketKey,
    /// Its bytes.
    pub content: InputContent,
}

/// The bytes of an input. A clone shares them.
#[derive(Clone)]
pub enum InputContent {
    /// In memory.
    Bytes(Bytes),
    /// In a file, which the host opens when the guest opens the input.
    File {
        /// The file.
        source: Arc<dyn Source>,
        /// Its length in bytes.
        size: u64,
    },
}

/// The numbers of a guest's file calls and bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FileUse {
    /// Calls for files and directories, including reads and writes.
    pub calls: u64,
    /// Bytes that the guest read.
    pub read: u64,
    /// Bytes that the guest wrote.
    pub written: u64,
    /// Whether the guest looked up anything in `/inputs`.
    pub sought_inputs: bool,
}

/// The counts behind [`FileUse`] while the guest runs. Only the guest's own thread changes them.
#[derive(Default)]
struct Using {
    calls: AtomicU64,
    read: AtomicU64,
    written: AtomicU64,
    sought_inputs: AtomicBool,
}

impl Using {
    fn add(count: &AtomicU64, more: u64) {
        // Cheaper than an atomic addition, and enough for one thread.
        count.store(count.load(Relaxed).wrapping_add(more), Relaxed);
    }

    fn call(&self) {
        Self::add(&self.calls, 1);
    }

    fn read(&self, bytes: usize) {
        Self::add(&self.read, bytes as u64);
    }

    fn wrote(&self, bytes: usize) {
        Self::add(&self.written, bytes as u64);
    }

    fn so_far(&self) -> FileUse {
        FileUse {
            calls: self.calls.load(Relaxed),
            read: self.read.load(Relaxed),
            written: self.written.load(Relaxed),
            sought_inputs: self.sought_inputs.load(Relaxed),
        }
    }
}

/// A file that a guest left in `/outputs`.
#[derive(Debug)]
pub struct Output {
    /// Its path below `/outputs`.
    pub path: BucketKey,
    /// Its bytes.
    pub content: Content,
}

/// The state that all files of one instance share.
struct Shared {
    quota: Arc<Quota>,
    using: Using,
    disk: Disk,
    clock: Clock,
    numbers: Numbers,
    log: Sink,
    /// An output of up to this many bytes is kept in memory.
    file_memory: u64,
    ids: AtomicU64,
    said: AtomicU8,
    /// The last call that failed.
    failed: Mutex<Option<FailedCall>>,
}

impl Shared {
    fn next_id(&self) -> u64 {
        self.ids.fetch_add(1, Relaxed)
    }

    /// Explains an error code in the guest's log.
    fn say(&self, what: &dyn fmt::Display) {
        if self.said.load(Relaxed) < MAX_SAID {
            self.said.fetch_add(1, Relaxed);
            self.log.push(format!("host: {what}\n").as_bytes());
        }
    }
}

/// The files of one instance.
#[derive(Clone)]
pub(super) struct Tree {
    inputs: Arc<Dir>,
    outputs: Arc<Dir>,
    shared: Arc<Shared>,
}

impl Tree {
    pub(super) fn new(
        inputs: Vec<Input>,
        limits: &Limits,
        quota: Arc<Quota>,
        disk: Disk,
        log: Sink,
        world: Option<&World>,
    ) -> Self {
        let shared = Arc::new(Shared {
            quota,
            using: Using::default(),
            disk,
            clock: Clock::start(world.map(|world| world.clock.clone())),
            numbers: Numbers::new(world),
            log,
            file_memory: limits.output_file_memory.as_u64(),
            ids: AtomicU64::new(0),
            said: AtomicU8::new(0),
            failed: Mutex::new(None),
        });
        let tree = Self {
            inputs: Dir::top(&shared, false),
            outputs: Dir::top(&shared, true),
            shared: shared.clone(),
        };
        let mut inputs = inputs;
        if world.is_some() {
            // The order in which inputs were fetched varies, and the files are numbered in order.
            inputs.sort_by(|one, other| one.path.cmp(&other.path));
        }
        for input in inputs {
            let file = match input.content {
                InputContent::Bytes(bytes) => File::input(&shared, bytes),
                InputContent::File { source, size } => File::large_input(&shared, source, size),
            };
            tree.inputs.add_input(&input.path, file);
        }
        tree
    }

    /// The same files, with an empty and read-only `/outputs`.
    pub(super) fn without_outputs(self) -> Self {
        let outputs = Dir::top(&self.shared, false);
        Self { outputs, ..self }
    }

    /// What the guest has done with its files so far.
    pub(super) fn used(&self) -> FileUse {
        self.shared.using.so_far()
    }

    /// The last call that failed.
    pub(super) fn failed_call(&self) -> Option<FailedCall> {
        self.shared.failed.lock().clone()
    }

    /// Takes the outputs in the order of their paths. Call it when the guest has ended.
    ///
    /// # Errors
    /// The limit of the host's memory for the guest, if the paths of the outputs exceed it.
    pub(super) fn into_outputs(self) -> std::result::Result<Vec<Output>, Limit> {
        self.outputs.take_all()
    }
}

/// Links `wasi:filesystem`.
pub(super) fn add_to_linker(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    fn view(state: &mut State) -> Files<'_> {
        Files { table: &mut state.table, tree: &state.files }
    }
    types::add_to_linker::<State, Files<'static>>(linker, view)?;
    preopens::add_to_linker::<State, Files<'static>>(linker, view)
}

/// The view of an instance's state that answers its file calls.
struct Files<'a> {
    table: &'a mut ResourceTable,
    tree: &'a Tree,
}

impl HasData for Files<'static> {
    type Data<'a> = Files<'a>;
}

type Fd = Resource<Opened>;

impl Files<'_> {
    /// Records a call that failed.
    fn noting<T>(&self, call: &str, fd: &Fd, path: &str, result: Result<T>) -> Result<T> {
        if let Err(Error::Code(code)) = &result
            && let Ok(dir) = self.other_dir(fd)
        {
            let Tree { inputs, outputs, shared } = self.tree;
            let directory = match dir {
                dir if Arc::ptr_eq(dir, inputs) => "/inputs/",
                dir if Arc::ptr_eq(dir, outputs) => "/outputs/",
                _ => "…/",
            };
            *shared.failed.lock() = Some(FailedCall::new(call, directory, path, *code));
        }
        result
    }

    /// The file or directory of a call. Counts the call.
    fn get(&self, fd: &Fd) -> Result<&Opened> {
        self.tree.shared.using.call();
        Ok(self.table.get(fd)?)
    }

    /// The directory in which a call looks up a path. Counts the call.
    fn dir(&self, fd: &Fd) -> Result<&Arc<Dir>> {
        let dir = self.get(fd)?.dir()?;
        if !dir.is_writable {
            self.tree.shared.using.sought_inputs.store(true, Relaxed);
        }
        Ok(dir)
    }

    /// The second directory of a call, which is not counted again.
    fn other_dir(&self, fd: &Fd) -> Result<&Arc<Dir>> {
        self.table.get(fd)?.dir()
    }
}

impl preopens::Host for Files<'_> {
    fn get_directories(&mut self) -> wasmtime::Result<Vec<(Fd, String)>> {
        let mut given = Vec::with_capacity(2);
        for (dir, name) in [(&self.tree.inputs, "/inputs"), (&self.tree.outputs, "/outputs")] {
            given.push((self.table.push(Opened::Dir(OpenDir::given(dir)))?, name.to_owned()));
        }
        Ok(given)
    }
}

impl types::Host for Files<'_> {
    fn convert_error_code(&mut self, error: Error) -> wasmtime::Result<ErrorCode> {
        match error {
            Error::Code(code) => Ok(code),
            Error::Trap(error) => Err(error),
        }
    }

    fn filesystem_error_code(
        &mut self,
        error: Resource<wasmtime::Error>,
    ) -> wasmtime::Result<Option<ErrorCode>> {
        Ok(streams::code_of(self.table.get(&error)?))
    }
}

impl types::HostDescriptor for Files<'_> {
    fn read_via_stream(&mut self, fd: Fd, offset: u64) -> Result<Resource<DynInputStream>> {
        let file = self.get(&fd)?.file(ErrorCode::IsDirectory)?;
        if !file.read {
            return Err(ErrorCode::BadDescriptor.into());
        }
        let stream: DynInputStream = Box::new(Reader::new(file, offset));
        Ok(self.table.push(stream)?)
    }

    fn write_via_stream(&mut self, fd: Fd, offset: u64) -> Result<Resource<DynOutputStream>> {
        let file = self.get(&fd)?.file(ErrorCode::BadDescriptor)?;
        file.check_writable()?;
        let stream: DynOutputStream = Box::new(Writer::at(file, offset));
        Ok(self.table.push(stream)?)
    }

    fn append_via_stream(&mut self, fd: Fd) -> Result<Resource<DynOutputStream>> {
        let file = self.get(&fd)?.file(ErrorCode::BadDescriptor)?;
        file.check_writable()?;
        let stream: DynOutputStream = Box::new(Writer::at_end(file));
        Ok(self.table.push(stream)?)
    }

    fn read(&mut self, fd: Fd, len: u64, offset: u64) -> Result<(Vec<u8>, bool)> {
        let file = self.get(&fd)?.file(ErrorCode::IsDirectory)?;
        if !file.read {
            return Err(ErrorCode::BadDescriptor.into());
        }
        let read = file.read(usize::try_from(len).unwrap_or(usize::MAX), offset);
        let bytes = read.map_err(|error| code_of(&error))?;
        let is_end = bytes.is_empty();
        Ok((bytes.into(), is_end))
    }

    fn write(&mut self, fd: Fd, bytes: Vec<u8>, offset: u64) -> Result<u64> {
        let file = self.get(&fd)?.file(ErrorCode::BadDescriptor)?;
        file.check_writable()?;
        file.write(&bytes, Some(offset))?;
        Ok(bytes.len() as u64)
    }

    fn set_size(&mut self, fd: Fd, size: u64) -> Result<()> {
        let file = self.get(&fd)?.file(ErrorCode::BadDescriptor)?;
        if !file.write && !file.file.is_input() {
            // `ftruncate` fails with this error on a file that was opened for reading.
            return Err(ErrorCode::Invalid.into());
        }
        file.check_writable()?;
        file.file.set_size(size)
    }

    fn open_at(
        &mut self,
        fd: Fd,
        _: types::PathFlags,
        path: String,
        open: types::OpenFlags,
        flags: types::DescriptorFlags,
    ) -> Result<Fd> {
        let opened = self.dir(&fd)?.open(&path, open, flags);
        let opened = self.noting("open", &fd, &path, opened)?;
        Ok(self.table.push(opened)?)
    }

    fn create_directory_at(&mut self, fd: Fd, path: String) -> Result<()> {
        let made = self.dir(&fd)?.make_dir(&path);
        self.noting("create directory", &fd, &path, made)
    }

    fn remove_directory_at(&mut self, fd: Fd, path: String) -> Result<()> {
        let removed = self.dir(&fd)?.remove_dir(&path);
        self.noting("remove directory", &fd, &path, removed)
    }

    fn unlink_file_at(&mut self, fd: Fd, path: String) -> Result<()> {
        let removed = self.dir(&fd)?.remove_file(&path);
        self.noting("remove", &fd, &path, removed)
    }

    fn rename_at(&mut self, fd: Fd, old: String, new_fd: Fd, new: String) -> Result<()> {
        let renamed = self.dir(&fd)?.rename(&old, self.other_dir(&new_fd)?, &new);
        self.noting("rename", &fd, &old, renamed)
    }

    // Linux returns `EPERM` on a file system that does not support links.
    fn link_at(
        &mut self,
        fd: Fd,
        flags: types::PathFlags,
        old: String,
        new_fd: Fd,
        new: String,
    ) -> Result<()> {
        tree::check_length(&old)?;
        tree::check_length(&new)?;
        let _ = (self.dir(&fd)?, self.other_dir(&new_fd)?);
        if flags.contains(types::PathFlags::SYMLINK_FOLLOW) {
            return Err(ErrorCode::Invalid.into());
        }
        Err(ErrorCode::NotPermitted.into())
    }

    fn symlink_at(&mut self, fd: Fd, target: String, path: String) -> Result<()> {
        tree::check_length(&target)?;
        tree::check_length(&path)?;
        let _ = self.dir(&fd)?;
        Err(ErrorCode::NotPermitted.into())
    }

    fn readlink_at(&mut self, fd: Fd, path: String) -> Result<String> {
        let _ = self.dir(&fd)?.look(&path)?;
        Err(ErrorCode::Invalid.into())
    }

    // `sync` does nothing. Outputs become durable when they are published.
    fn sync(&mut self, fd: Fd) -> Result<()> {
        self.get(&fd).map(drop)
    }

    fn sync_data(&mut self, fd: Fd) -> Result<()> {
        self.get(&fd).map(drop)
    }

    fn advise(&mut self, fd: Fd, _: u64, _: u64, _: types::Advice) -> Result<()> {
        self.get(&fd)?.file(ErrorCode::BadDescriptor).map(drop)
    }

    fn get_flags(&mut self, fd: Fd) -> Result<types::DescriptorFlags> {
        Ok(self.get(&fd)?.flags())
    }

    fn get_type(&mut self, fd: Fd) -> Result<types::DescriptorType> {
        Ok(self.get(&fd)?.node().stat().type_)
    }

    fn stat(&mut self, fd: Fd) -> Result<types::DescriptorStat> {
        Ok(self.get(&fd)?.node().stat())
    }

    fn stat_at(
        &mut self,
        fd: Fd,
        _: types::PathFlags,
        path: String,
    ) -> Result<types::DescriptorStat> {
        let found = self.dir(&fd)?.look(&path);
        Ok(self.noting("stat", &fd, &path, found)?.stat())
    }

    fn set_times(
        &mut self,
        fd: Fd,
        accessed: types::NewTimestamp,
        modified: types::NewTimestamp,
    ) -> Result<()> {
        tree::set_times(&self.get(&fd)?.node(), accessed, modified)
    }

    fn set_times_at(
        &mut self,
        fd: Fd,
        _: types::PathFlags,
        path: String,
        accessed: types::NewTimestamp,
        modified: types::NewTimestamp,
    ) -> Result<()> {
        tree::set_times(&self.dir(&fd)?.look(&path)?, accessed, modified)
    }

    fn read_directory(&mut self, fd: Fd) -> Result<Resource<Listing>> {
        let listing = Listing::open(self.dir(&fd)?)?;
        Ok(self.table.push(listing)?)
    }

    fn is_same_object(&mut self, a: Fd, b: Fd) -> wasmtime::Result<bool> {
        self.tree.shared.using.call();
        Ok(self.table.get(&a)?.is_same(self.table.get(&b)?))
    }

    fn metadata_hash(&mut self, fd: Fd) -> Result<types::MetadataHashValue> {
        Ok(tree::hash(&self.get(&fd)?.node(), &self.tree.shared))
    }

    fn metadata_hash_at(
        &mut self,
        fd: Fd,
        _: types::PathFlags,
        path: String,
    ) -> Result<types::MetadataHashValue> {
        Ok(tree::hash(&self.dir(&fd)?.look(&path)?, &self.tree.shared))
    }

    fn drop(&mut self, fd: Fd) -> wasmtime::Result<()> {
        self.table.delete(fd)?;
        Ok(())
    }
}

impl types::HostDirectoryEntryStream for Files<'_> {
    fn read_directory_entry(
        &mut self,
        stream: Resource<Listing>,
    ) -> Result<Option<types::DirectoryEntry>> {
        self.tree.shared.using.call();
        Ok(self.table.get_mut(&stream)?.next())
    }

    fn drop(&mut self, stream: Resource<Listing>) -> wasmtime::Result<()> {
        self.table.delete(stream)?;
        Ok(())
    }
}
