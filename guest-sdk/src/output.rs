//! The files that a task writes, and a record of them.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{Error, Result, error::Context};

/// A buffered writer for one output. Call [`finish`](Self::finish): it writes the last bytes and
/// returns any error. The SDK rejects a task that leaves an output unfinished, so that no partial
/// file is published.
///
/// ```
/// # use task_host_sdk::{Guest, Ignored, Outcome, Result, Task, testing::Sandbox};
/// # #[derive(Default)]
/// # struct Squares;
/// # impl Guest for Squares {
/// #     type Payload = Ignored;
/// fn execute(&mut self, task: &Task) -> Result<Outcome> {
///     use std::io::Write;
///     let mut table = task.output("0_output/squares.csv")?;
///     for n in 0..4 {
///         writeln!(table, "{n},{}", n * n)?;
///     }
///     table.finish()?;
///     Ok(task.done())
/// }
/// # }
/// # let mut sandbox = Sandbox::new().unwrap();
/// # sandbox.run::<Squares>().unwrap();
/// # assert_eq!(sandbox.output("0_output/squares.csv").unwrap(), b"0,0\n1,1\n2,4\n3,9\n");
/// ```
#[derive(Debug)]
pub struct Output {
    key: String,
    path: PathBuf,
    writer: BufWriter<File>,
    record: Arc<Record>,
}

impl Output {
    /// Creates the file and its directories.
    pub(crate) fn create(directory: &Path, key: &str, record: &Arc<Record>) -> Result<Self> {
        let path = locate(directory, key)?;
        let file = File::create(&path).with_context(|| format!("output {key}"))?;
        record.begin(key);
        // The buffer is larger than the default of 8 KiB, because each write calls the host.
        let writer = BufWriter::with_capacity(64 * 1024, file);
        Ok(Self { key: key.to_owned(), path, writer, record: Arc::clone(record) })
    }

    /// The output's key: its path relative to the outputs directory.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the rest of the buffer and completes the output, so that [`Task::done`] lists it.
    ///
    /// [`Task::done`]: crate::Task::done
    ///
    /// # Errors
    /// If the rest cannot be written.
    pub fn finish(mut self) -> Result<()> {
        self.writer.flush().with_context(|| format!("output {}", self.key))?;
        self.record.finish(&self.key);
        Ok(())
    }
}

impl Write for Output {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.writer.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

impl Seek for Output {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.writer.seek(position)
    }
}

/// The unfinished outputs, and the finished ones in the order in which they were finished.
#[derive(Debug, Default)]
pub(crate) struct Record(Mutex<Written>);

#[derive(Debug, Default)]
struct Written {
    begun: BTreeSet<String>,
    finished: Vec<String>,
}

impl Record {
    fn begin(&self, key: &str) {
        self.written().begun.insert(key.to_owned());
    }

    pub(crate) fn finish(&self, key: &str) {
        let mut written = self.written();
        written.begun.remove(key);
        if !written.finished.iter().any(|k| k == key) {
            written.finished.push(key.to_owned());
        }
    }

    pub(crate) fn finished(&self) -> Vec<String> {
        self.written().finished.clone()
    }

    /// Fails if an output is unfinished.
    pub(crate) fn check_all_finished(&self) -> Result<()> {
        match self.written().begun.first() {
            None => Ok(()),
            Some(key) => Err(Error::reject(format!(
                "output {key} was not finished: call finish(), which writes the rest and returns errors"
            ))),
        }
    }

    fn written(&self) -> MutexGuard<'_, Written> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The path of the output `key`. Creates its directories.
pub(crate) fn locate(directory: &Path, key: &str) -> Result<PathBuf> {
    let segments = || key.split('/');
    if segments().any(|s| s.is_empty() || s == "." || s == "..") {
        return Err(Error::reject(format!(
            "output key {key:?} is not a relative path without empty segments, `.` and `..`, such as \"0_output/4.dat\""
        )));
    }
    let path = directory.join(key);
    if key.contains('/')
        && let Some(parent) = path.parent()
    {
        fs::create_dir_all(parent).with_context(|| format!("output {key}: its directory"))?;
    }
    Ok(path)
}
