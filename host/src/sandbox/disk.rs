//! The thread that opens files for the guests' threads.
//!
//! A guest's thread has no right to open files. This thread opens them for it: inputs and outputs
//! that are too large for memory.

use std::fs::File;
use std::io;
use std::sync::Arc;

use crate::digest::Digest;
use crate::spill::{SpillDir, SpilledFile};

/// A file that an input is read from.
pub trait Source: Send + Sync {
    /// The file, if it is already open.
    fn opened(&self) -> Option<Arc<File>> {
        None
    }

    /// The digest of its bytes, where it is known.
    fn digest(&self) -> Option<Digest> {
        None
    }

    /// Opens the file for reading.
    ///
    /// # Errors
    /// The file system's error. The task is never the cause.
    fn open(&self) -> io::Result<Arc<File>>;

    /// Called when reading the open file failed.
    fn failed(&self, _error: &io::Error) {}

    /// Called before the guest's last handle on the open file is closed. Runs on the guest's
    /// thread, which may only use files that are open.
    fn closes(&self, _file: &File) {}
}

type Errand = Box<dyn FnOnce(&SpillDir) + Send>;

/// A handle to the thread. The thread ends when the last handle is dropped.
#[derive(Clone)]
pub(super) struct Disk {
    errands: flume::Sender<Errand>,
    /// Owned here and not by the thread: the thread may outlive `main`, and then the directory
    /// would not be removed.
    _spill: Arc<SpillDir>,
}

impl Disk {
    /// Starts the thread.
    pub(super) fn start(spill: Arc<SpillDir>) -> io::Result<Self> {
        let (errands, queue) = flume::unbounded::<Errand>();
        let there = Arc::downgrade(&spill);
        std::thread::Builder::new().name("disk".to_owned()).spawn(move || {
            for errand in queue {
                let Some(spill) = there.upgrade() else { return };
                errand(&spill);
            }
        })?;
        Ok(Self { errands, _spill: spill })
    }

    /// Creates a file for a large output.
    pub(super) fn create(&self) -> io::Result<(Arc<SpilledFile>, Arc<File>)> {
        self.wait(|spill| spill.create().map(|(file, open)| (Arc::new(file), Arc::new(open))))
    }

    /// Opens a large output again.
    pub(super) fn open(&self, file: &Arc<SpilledFile>) -> io::Result<Arc<File>> {
        let file = file.clone();
        self.wait(move |_| file.open().map(Arc::new))
    }

    /// Opens an input.
    pub(super) fn open_input(&self, source: &Arc<dyn Source>) -> io::Result<Arc<File>> {
        if let Some(open) = source.opened() {
            return Ok(open);
        }
        let source = source.clone();
        self.wait(move |_| source.open())
    }

    /// Drops a handle on a large output's file. The last handle removes the file.
    pub(super) fn remove(&self, file: Arc<SpilledFile>) {
        // If the thread has ended, the file is dropped here.
        let _ = self.errands.send(Box::new(move |_| drop(file)));
    }

    fn wait<T: Send + 'static>(
        &self,
        work: impl FnOnce(&SpillDir) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let (reply, answer) = flume::bounded(1);
        let errand: Errand = Box::new(move |spill| drop(reply.send(work(spill))));
        let gone = || io::Error::other("the host's thread for files has ended");
        self.errands.send(errand).map_err(|_| gone())?;
        answer.recv().map_err(|_| gone())?
    }
}
