//! A file: an input, or an output in memory or on the disk.

use std::fs;
use std::io;
use std::mem;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;

use super::clock::Times;
use super::types::{DescriptorStat, DescriptorType, ErrorCode, NewTimestamp};
use super::{Error, Result, Shared};
use crate::bucket::Content;
use crate::sandbox::disk::Source;
use crate::sandbox::quota::{Counted, Opening};
use crate::spill::SpilledFile;

/// One read returns at most this many bytes.
const MAX_READ: usize = 64 << 10;

pub(super) struct File {
    pub(super) id: u64,
    shared: Arc<Shared>,
    state: Mutex<FileState>,
    /// None for an input.
    counted: Option<Counted>,
}

struct FileState {
    body: Body,
    times: Times,
    /// The number of times the file is open.
    users: usize,
}

enum Body {
    /// An input in memory, or an output whose bytes were taken.
    Bytes(Bytes),
    Input {
        source: Arc<dyn Source>,
        size: u64,
        open: Option<Arc<fs::File>>,
    },
    Memory(Vec<u8>),
    Disk {
        file: Arc<SpilledFile>,
        size: u64,
        open: Option<Arc<fs::File>>,
    },
}

impl Body {
    fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Memory(bytes) => bytes.len() as u64,
            Self::Input { size, .. } | Self::Disk { size, .. } => *size,
        }
    }
}

impl File {
    pub(super) fn input(shared: &Arc<Shared>, bytes: Bytes) -> Arc<Self> {
        Self::new(shared, Body::Bytes(bytes), Times::all(shared.clock.started()), None)
    }

    pub(super) fn large_input(
        shared: &Arc<Shared>,
        source: Arc<dyn Source>,
        size: u64,
    ) -> Arc<Self> {
        let body = Body::Input { source, size, open: None };
        Self::new(shared, body, Times::all(shared.clock.started()), None)
    }

    pub(super) fn output(shared: &Arc<Shared>, counted: Counted) -> Arc<Self> {
        let times = Times::all(shared.clock.now());
        Self::new(shared, Body::Memory(Vec::new()), times, Some(counted))
    }

    fn new(shared: &Arc<Shared>, body: Body, times: Times, counted: Option<Counted>) -> Arc<Self> {
        let state = Mutex::new(FileState { body, times, users: 0 });
        Arc::new(Self { id: shared.next_id(), shared: shared.clone(), state, counted })
    }

    /// Opens the file, and the host's file if the bytes are in one.
    pub(super) fn open(self: &Arc<Self>, read: bool, write: bool) -> Result<Arc<OpenFile>> {
        let opening = self.shared.quota.open()?;
        let mut state = self.state.lock();
        let disk = &self.shared.disk;
        match &mut state.body {
            Body::Input { source, open: open @ None, .. } => {
                *open = Some(disk.open_input(source).map_err(|error| self.noted(error))?);
            }
            Body::Disk { file, open: open @ None, .. } => {
                *open = Some(disk.open(file).map_err(|error| self.noted(error))?);
            }
            _ => {}
        }
        state.users += 1;
        Ok(Arc::new(OpenFile { file: self.clone(), read, write, _opening: opening }))
    }

    fn close(&self) {
        let mut state = self.state.lock();
        state.users -= 1;
        if state.users > 0 {
            return;
        }
        match &mut state.body {
            Body::Input { source, open, .. } => {
                if let Some(file) = open.take() {
                    source.closes(&file);
                }
            }
            Body::Disk { open, .. } => *open = None,
            Body::Bytes(_) | Body::Memory(_) => {}
        }
    }

    pub(super) fn is_input(&self) -> bool {
        self.counted.is_none()
    }

    pub(super) fn stat(&self) -> DescriptorStat {
        let state = self.state.lock();
        state.times.stat(DescriptorType::RegularFile, state.body.size())
    }

    /// False if a time is invalid.
    pub(super) fn set_times(&self, accessed: NewTimestamp, modified: NewTimestamp) -> bool {
        let now = self.shared.clock.now();
        self.state.lock().times.set(accessed, modified, now)
    }

    /// Sets the file's time of change after a rename.
    pub(super) fn was_renamed(&self) {
        let now = self.shared.clock.now();
        self.state.lock().times.was_changed(now);
    }

    fn read(&self, len: usize, offset: u64) -> io::Result<Bytes> {
        if i64::try_from(offset).is_err() {
            return Err(rustix::io::Errno::INVAL.into());
        }
        let state = self.state.lock();
        let len = (len.min(MAX_READ) as u64).min(state.body.size().saturating_sub(offset)) as usize;
        if len == 0 {
            return Ok(Bytes::new());
        }
        let start = offset as usize;
        match &state.body {
            Body::Bytes(bytes) => Ok(bytes.slice(start..start + len)),
            Body::Memory(bytes) => Ok(Bytes::copy_from_slice(&bytes[start..start + len])),
            Body::Input { open, .. } | Body::Disk { open, .. } => {
                let file = open.clone();
                let source = match &state.body {
                    Body::Input { source, .. } => Some(source.clone()),
                    _ => None,
                };
                drop(state);
                let mut bytes = BytesMut::zeroed(len);
                let read = file
                    .ok_or_else(not_open)
                    .and_then(|file| uninterrupted(|| file.read_at(&mut bytes, offset)));
                let read = read.inspect_err(|error| {
                    if let Some(source) = source {
                        source.failed(error);
                    }
                    self.shared.quota.note(error);
                });
                bytes.truncate(read?);
                Ok(bytes.freeze())
            }
        }
    }

    /// Writes all of `bytes`, at `offset` or at the end.
    fn write(&self, bytes: &[u8], offset: Option<u64>) -> Result<()> {
        let mut state = self.state.lock();
        let size = state.body.size();
        let offset = offset.unwrap_or(size);
        if bytes.is_empty() {
            return Ok(());
        }
        let end = offset.saturating_add(bytes.len() as u64);
        self.grow(&mut state.body, end)?;
        match &mut state.body {
            Body::Memory(memory) => {
                memory[offset as usize..end as usize].copy_from_slice(bytes);
            }
            Body::Disk { open, size: now, .. } => {
                let written = open
                    .as_ref()
                    .ok_or_else(not_open)
                    .and_then(|open| open.write_all_at(bytes, offset));
                if let Err(error) = written {
                    // The file keeps its old size, even if a part of the bytes was written.
                    self.shared.quota.shrink(*now - size);
                    *now = size;
                    return Err(self.noted(error));
                }
            }
            Body::Bytes(_) | Body::Input { .. } => return Err(ErrorCode::NotPermitted.into()),
        }
        state.times.was_modified(self.shared.clock.now());
        Ok(())
    }

    pub(super) fn set_size(&self, size: u64) -> Result<()> {
        let mut state = self.state.lock();
        let now = state.body.size();
        let quota = &self.shared.quota;
        if size > now {
            self.grow(&mut state.body, size)?;
        }
        match &mut state.body {
            Body::Memory(bytes) if size < now => {
                let kept = bytes.capacity();
                bytes.truncate(size as usize);
                bytes.shrink_to_fit();
                quota.release((kept - bytes.capacity()) as u64);
            }
            Body::Memory(_) => {}
            Body::Disk { file, .. } if size == 0 => {
                let file = file.clone();
                state.body = Body::Memory(Vec::new());
                self.shared.disk.remove(file);
            }
            Body::Disk { open, size: at, .. } => {
                let set = open.as_ref().ok_or_else(not_open).and_then(|open| open.set_len(size));
                if let Err(error) = set {
                    quota.shrink(size.saturating_sub(now));
                    *at = now;
                    return Err(self.noted(error));
                }
                *at = size;
            }
            Body::Bytes(_) | Body::Input { .. } => return Err(ErrorCode::NotPermitted.into()),
        }
        quota.shrink(now.saturating_sub(size));
        state.times.was_modified(self.shared.clock.now());
        Ok(())
    }

    /// Extends the file to `end`, in memory or on the disk, and charges the quota.
    fn grow(&self, body: &mut Body, end: u64) -> Result<()> {
        let size = body.size();
        let Some(more) = end.checked_sub(size).filter(|more| *more > 0) else { return Ok(()) };
        let quota = &self.shared.quota;
        quota.grow(more)?;
        match body {
            Body::Memory(bytes) if let Some(room) = self.room_for(bytes, end) => {
                bytes.reserve_exact(room - bytes.len());
                bytes.resize(end as usize, 0);
            }
            Body::Memory(bytes) => {
                let disk = &self.shared.disk;
                let spilled =
                    disk.create().and_then(|(file, open)| match open.write_all_at(bytes, 0) {
                        Ok(()) => Ok((file, open)),
                        Err(error) => {
                            disk.remove(file);
                            Err(error)
                        }
                    });
                let (file, open) = spilled.map_err(|error| {
                    quota.shrink(more);
                    self.noted(error)
                })?;
                quota.release(bytes.capacity() as u64);
                *body = Body::Disk { file, size: end, open: Some(open) };
            }
            Body::Disk { size, .. } => *size = end,
            Body::Bytes(_) | Body::Input { .. } => {}
        }
        Ok(())
    }

    /// Charges and returns the capacity in memory for a file of `end` bytes. Doubles the capacity
    /// if there is room, so that a growing file is not copied at each write. None if the file must
    /// go to the disk.
    fn room_for(&self, bytes: &Vec<u8>, end: u64) -> Option<usize> {
        let (kept, most) = (bytes.capacity() as u64, self.shared.file_memory);
        if end <= kept {
            return Some(bytes.capacity());
        }
        let ample = end.max((2 * kept).min(most));
        let wanted = [ample, end].into_iter().filter(|_| end <= most);
        let room = wanted.into_iter().find(|wanted| self.shared.quota.keep(wanted - kept))?;
        usize::try_from(room).ok()
    }

    /// Records a failure of the host's own file, and returns the guest's error for it.
    fn noted(&self, error: io::Error) -> Error {
        self.shared.quota.note(&error);
        super::code_of(&error).into()
    }

    /// Takes the bytes. Call it when the guest has ended.
    pub(super) fn take(&self) -> Content {
        let mut state = self.state.lock();
        match mem::replace(&mut state.body, Body::Bytes(Bytes::new())) {
            Body::Memory(bytes) => Content::Bytes(bytes.into()),
            Body::Disk { file, size, .. } => Content::File { file, size },
            // Outputs are either in memory or on the disk.
            Body::Bytes(_) | Body::Input { .. } => Content::Bytes(Bytes::new()),
        }
    }
}

impl Drop for File {
    fn drop(&mut self) {
        if self.is_input() {
            return;
        }
        let quota = &self.shared.quota;
        let body = mem::replace(&mut self.state.get_mut().body, Body::Bytes(Bytes::new()));
        quota.shrink(body.size());
        match body {
            Body::Memory(bytes) => quota.release(bytes.capacity() as u64),
            // This thread may have no right to remove the file.
            Body::Disk { file, .. } => self.shared.disk.remove(file),
            Body::Bytes(_) | Body::Input { .. } => {}
        }
    }
}

/// An open file. Descriptors and streams share it.
pub(super) struct OpenFile {
    pub(super) file: Arc<File>,
    pub(super) read: bool,
    pub(super) write: bool,
    _opening: Opening,
}

impl OpenFile {
    /// Reads up to `len` bytes. Returns no bytes at the end of the file.
    pub(super) fn read(&self, len: usize, offset: u64) -> io::Result<Bytes> {
        let bytes = self.file.read(len, offset)?;
        self.file.shared.using.read(bytes.len());
        Ok(bytes)
    }

    /// Writes all of `bytes`, at `offset` or at the end.
    pub(super) fn write(&self, bytes: &[u8], offset: Option<u64>) -> Result<()> {
        self.file.write(bytes, offset)?;
        self.file.shared.using.wrote(bytes.len());
        Ok(())
    }

    /// Counts a read or write of a stream.
    pub(super) fn streamed(&self) {
        self.file.shared.using.call();
    }

    /// Checks that the guest may write to the file.
    pub(super) fn check_writable(&self) -> Result<()> {
        if self.file.is_input() {
            return Err(ErrorCode::NotPermitted.into());
        }
        if self.write { Ok(()) } else { Err(ErrorCode::BadDescriptor.into()) }
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        self.file.close();
    }
}

fn not_open() -> io::Error {
    io::Error::other("a file of the host is not open")
}

fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}
