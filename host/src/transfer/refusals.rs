//! Counts refused messages, reports them to the observer, and keeps them in a file if one is named.

use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::{MessageOrigin, Observer};

/// The file of the messages that were not sent, one per line. It is removed if it stays empty.
pub struct Rejects {
    path: PathBuf,
    file: BufWriter<File>,
    lines: u64,
    failed: Option<io::Error>,
}

/// Why rejected messages could not be kept in a file.
#[derive(Debug, thiserror::Error)]
pub enum RejectsError {
    /// The file exists, and may be the one that messages are read from.
    #[error("{} already exists", .0.display())]
    Exists(PathBuf),
    /// The file could not be created or written.
    #[error("can't {doing} {}: {source}", path.display())]
    Io {
        /// `create` or `write`.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

impl Rejects {
    /// Creates the file.
    ///
    /// # Errors
    /// If the file exists, or can't be created.
    pub fn create(path: &Path) -> Result<Self, RejectsError> {
        let file = File::create_new(path).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => RejectsError::Exists(path.to_owned()),
            _ => RejectsError::Io { doing: "create", path: path.to_owned(), source },
        })?;
        Ok(Self { path: path.to_owned(), file: BufWriter::new(file), lines: 0, failed: None })
    }

    fn add(&mut self, text: &[u8]) {
        let written = self.file.write_all(text).and_then(|()| self.file.write_all(b"\n"));
        self.lines += 1;
        if let Err(error) = written {
            self.failed.get_or_insert(error);
        }
    }

    /// Completes the file. Returns its number of lines.
    fn finish(mut self) -> Result<u64, RejectsError> {
        match self.failed.take().map_or_else(|| self.file.flush(), Err) {
            Ok(()) => Ok(self.lines),
            Err(source) => {
                Err(RejectsError::Io { doing: "write", path: self.path.clone(), source })
            }
        }
    }
}

impl Drop for Rejects {
    fn drop(&mut self) {
        if self.lines == 0 {
            // An empty file that can't be removed does no harm.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// The state that the parts of a transfer share to report refused messages.
pub(super) struct Refusals {
    pub(super) observer: Arc<dyn Observer>,
    counted: Mutex<Counted>,
}

struct Counted {
    refused: u64,
    rejects: Option<Rejects>,
}

impl Refusals {
    pub(super) fn new(observer: Arc<dyn Observer>, rejects: Option<Rejects>) -> Self {
        Self { observer, counted: Mutex::new(Counted { refused: 0, rejects }) }
    }

    /// Counts a message as refused, and keeps its text if there is one.
    pub(super) fn add(
        &self,
        origin: &MessageOrigin,
        problem: &dyn fmt::Display,
        text: Option<&[u8]>,
    ) {
        {
            let mut counted = self.counted.lock();
            counted.refused += 1;
            if let (Some(rejects), Some(text)) = (&mut counted.rejects, text) {
                rejects.add(text);
            }
        }
        self.observer.refused(origin, problem);
    }

    /// Keeps the text of a valid message that was not sent. False if there is no file for it.
    pub(super) fn keep(&self, text: &[u8]) -> bool {
        match &mut self.counted.lock().rejects {
            Some(rejects) => {
                rejects.add(text);
                true
            }
            None => false,
        }
    }

    /// The number of refused messages.
    pub(super) fn count(&self) -> u64 {
        self.counted.lock().refused
    }

    /// True if messages that are not sent are kept in a file.
    pub(super) fn keeps(&self) -> bool {
        self.counted.lock().rejects.is_some()
    }

    /// Completes the file. Returns the number of its lines.
    pub(super) fn finish(&self) -> Result<u64, RejectsError> {
        let rejects = self.counted.lock().rejects.take();
        rejects.map_or(Ok(0), Rejects::finish)
    }
}
