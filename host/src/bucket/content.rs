//! The bytes of an object that is put.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;

use crate::blocking::blocking;
use crate::digest::Digest;
use crate::spill::SpilledFile;

/// The bytes of an object that is put. A clone shares them.
#[derive(Debug, Clone)]
pub enum Content {
    /// In memory.
    Bytes(Bytes),
    /// In a file of the host, which a put may move.
    File {
        /// The file.
        file: Arc<SpilledFile>,
        /// Its length in bytes.
        size: u64,
    },
}

impl Content {
    /// The number of bytes.
    pub fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File { size, .. } => *size,
        }
    }

    /// The digest of the bytes.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn digest(&self) -> io::Result<Digest> {
        match self {
            Self::Bytes(bytes) => Ok(Digest::of(bytes)),
            Self::File { file, .. } => Ok(Digest::of_reader(file.open()?)?.0),
        }
    }

    /// Opens the content for reading.
    pub(super) fn open(&self) -> io::Result<Opened> {
        Ok(match self {
            Self::Bytes(bytes) => Opened::Bytes(bytes.clone()),
            Self::File { file, .. } => Opened::File(Arc::new(file.open()?)),
        })
    }
}

impl<T: Into<Bytes>> From<T> for Content {
    fn from(bytes: T) -> Self {
        Self::Bytes(bytes.into())
    }
}

/// Content that is open for reading.
#[derive(Debug, Clone)]
pub(super) enum Opened {
    Bytes(Bytes),
    File(Arc<File>),
}

impl Opened {
    /// Reads `len` bytes from `start`.
    pub(super) async fn read(&self, start: u64, len: u64) -> io::Result<Bytes> {
        match self {
            Self::Bytes(bytes) => {
                let (start, len) = (start as usize, len as usize);
                Ok(bytes.slice(start..start + len))
            }
            Self::File(file) => {
                let file = file.clone();
                blocking(move || {
                    let mut bytes = vec![0; len as usize];
                    file.read_exact_at(&mut bytes, start)?;
                    Ok(bytes.into())
                })
                .await
            }
        }
    }
}
