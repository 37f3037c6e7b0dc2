//! Streams of a file's bytes. Reads and writes run synchronously on the guest's thread.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use wasmtime_wasi::p2::{InputStream, OutputStream, Pollable, StreamError, StreamResult};

use super::Error;
use super::file::OpenFile;

/// A stream takes at most this many bytes in one write.
const MAX_WRITE: usize = 64 << 10;

pub(super) struct Reader {
    file: Arc<OpenFile>,
    offset: u64,
}

impl Reader {
    pub(super) fn new(file: &Arc<OpenFile>, offset: u64) -> Self {
        Self { file: file.clone(), offset }
    }
}

#[async_trait::async_trait]
impl Pollable for Reader {
    async fn ready(&mut self) {}
}

#[async_trait::async_trait]
impl InputStream for Reader {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        if size == 0 {
            return Ok(Bytes::new());
        }
        self.file.streamed();
        let bytes = self
            .file
            .read(size, self.offset)
            .map_err(|error| StreamError::LastOperationFailed(error.into()))?;
        if bytes.is_empty() {
            return Err(StreamError::Closed);
        }
        self.offset += bytes.len() as u64;
        Ok(bytes)
    }
}

pub(super) struct Writer {
    file: Arc<OpenFile>,
    /// None to append: each write goes to the end of the file.
    offset: Option<u64>,
}

impl Writer {
    pub(super) fn at(file: &Arc<OpenFile>, offset: u64) -> Self {
        Self { file: file.clone(), offset: Some(offset) }
    }

    pub(super) fn at_end(file: &Arc<OpenFile>) -> Self {
        Self { file: file.clone(), offset: None }
    }
}

#[async_trait::async_trait]
impl Pollable for Writer {
    async fn ready(&mut self) {}
}

impl OutputStream for Writer {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.file.streamed();
        self.file.write(&bytes, self.offset).map_err(|error| match error {
            Error::Code(code) => StreamError::LastOperationFailed(code.into()),
            Error::Trap(error) => StreamError::Trap(error),
        })?;
        if let Some(offset) = &mut self.offset {
            *offset = offset.saturating_add(bytes.len() as u64);
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

/// The error code of a stream's error.
pub(super) fn code_of(error: &wasmtime::Error) -> Option<super::types::ErrorCode> {
    if let Some(code) = error.downcast_ref() {
        return Some(*code);
    }
    error.downcast_ref::<io::Error>().map(super::code_of)
}
