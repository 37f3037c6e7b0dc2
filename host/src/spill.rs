//! Files for outputs that are too large for the host's memory.
//!
//! The files have names, in a directory of this process. Unnamed files would each need a
//! descriptor, and a task may leave thousands of large outputs. A file is removed when it is no
//! longer needed. The directory is removed when the process ends or, if it was killed, by a later
//! host.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use parking_lot::RwLock;
use rustix::fs::{AtFlags, Mode, OFlags, fstat, openat, stat, unlinkat};
use rustix::io::Errno;

use crate::ownership;
use crate::process_dir::ProcessDir;
use crate::shortage;
use crate::system::place;

/// A directory of this process for large outputs.
#[derive(Debug)]
pub struct SpillDir {
    root: PathBuf,
    home: RwLock<Option<Arc<ProcessDir>>>,
    names: AtomicU64,
}

/// A file in a [`SpillDir`]. Dropping this value removes the file, unless it was moved.
#[derive(Debug)]
pub struct SpilledFile {
    home: Arc<ProcessDir>,
    name: String,
    is_moved: AtomicBool,
}

/// The directory for large outputs could not be created.
#[derive(Debug, thiserror::Error)]
#[error(
    "work directory {root}: making a directory for this process failed: {source}; the host needs \
     to create directories there"
)]
pub struct SpillError {
    root: PathBuf,
    #[source]
    source: io::Error,
}

impl SpillDir {
    /// Removes the directories of dead processes below `root`, and creates one for this process.
    ///
    /// # Errors
    /// If the host can't create directories there, or if other users can.
    pub fn new(root: &Path) -> Result<Self, SpillError> {
        let spill = Self::when_needed(root);
        match spill.renew(None) {
            Ok(_) => Ok(spill),
            Err(source) => Err(SpillError { root: root.to_owned(), source }),
        }
    }

    /// As [`SpillDir::new`], but creates and removes nothing before the first file is created.
    pub fn when_needed(root: &Path) -> Self {
        Self { root: root.to_owned(), home: RwLock::default(), names: AtomicU64::new(0) }
    }

    /// The directory of this process, or `root` before it exists.
    pub fn path(&self) -> PathBuf {
        let home = self.home.read();
        home.as_ref().map_or(&*self.root, |home| home.path()).to_owned()
    }

    /// Creates an empty file. Creates the directory again if it was removed.
    ///
    /// # Errors
    /// Errors of the file system.
    pub fn create(&self) -> io::Result<(SpilledFile, File)> {
        let home = match self.home.read().clone() {
            Some(home) => home,
            None => self.renew(None)?,
        };
        match self.create_in(&home) {
            Err(Errno::NOENT | Errno::STALE) => Ok(self.create_in(&self.renew(Some(&home))?)?),
            created => Ok(created?),
        }
    }

    fn create_in(&self, home: &Arc<ProcessDir>) -> Result<(SpilledFile, File), Errno> {
        let name = self.names.fetch_add(1, Relaxed).to_string();
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = openat(home.dir(), &*name, flags, Mode::from_raw_mode(0o666))?;
        let is_moved = AtomicBool::new(false);
        Ok((SpilledFile { home: home.clone(), name, is_moved }, file.into()))
    }

    /// Creates the directory, unless another thread has replaced `gone` already.
    fn renew(&self, gone: Option<&Arc<ProcessDir>>) -> io::Result<Arc<ProcessDir>> {
        let mut home = self.home.write();
        if let Some(there) = &*home
            && !gone.is_some_and(|gone| Arc::ptr_eq(there, gone))
        {
            return Ok(there.clone());
        }
        ownership::make(&self.root, &[])?;
        let made = Arc::new(ProcessDir::claim(&self.root)?);
        if gone.is_some() {
            tracing::warn!(
                "the work directory {} was gone; the host made it again",
                self.root.display()
            );
        }
        Ok(home.insert(made).clone())
    }

    /// Checks that this process can open as many more files as a task needs.
    ///
    /// # Errors
    /// The system's error, and how to fix it.
    pub fn try_descriptors(&self) -> Result<(), String> {
        match &*self.home.read() {
            Some(home) => shortage::try_descriptors(home.dir()),
            None => Ok(()),
        }
    }

    /// Checks that a file can be created here and that `bytes` can be written to it.
    ///
    /// # Errors
    /// Errors of the file system.
    pub fn try_out(&self, bytes: usize) -> io::Result<()> {
        let (_file, mut open) = self.create()?;
        io::Write::write_all(&mut open, &vec![0; bytes])
    }
}

impl AsFd for SpilledFile {
    /// The file's directory.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.home.dir().as_fd()
    }
}

impl SpilledFile {
    /// The file's name in its directory.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Opens the file for reading and writing.
    ///
    /// # Errors
    /// Errors of the file system, also if the file was removed.
    pub fn open(&self) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(openat(self, &*self.name, flags, Mode::empty())?.into())
    }

    /// Records that the file was moved, so that it is not removed.
    pub fn was_moved(&self) {
        self.is_moved.store(true, Relaxed);
    }

    /// The device number of the file's file system.
    ///
    /// # Errors
    /// If the directory can't be examined.
    pub fn device(&self) -> Result<u64, Errno> {
        fstat(self).map(|stat| place(&stat).0)
    }

    /// True if the file's directory was removed or replaced.
    pub fn is_lost(&self) -> bool {
        let same = |open: &OwnedFd| {
            let (ours, there) = (fstat(open).ok()?, stat(self.home.path()).ok()?);
            Some(place(&ours) == place(&there))
        };
        !self.is_moved.load(Relaxed) && same(self.home.dir()) != Some(true)
    }
}

impl Drop for SpilledFile {
    fn drop(&mut self) {
        if !*self.is_moved.get_mut() {
            // Another process may have removed the file.
            let _ = unlinkat(&*self, &*self.name, AtFlags::empty());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_goes_with_its_last_user_and_the_directory_with_its_process() {
        let root = tempfile::tempdir().unwrap();
        let spill = SpillDir::new(root.path()).unwrap();
        let (first, _) = spill.create().unwrap();
        let (second, _) = spill.create().unwrap();
        let home = spill.path();
        let names = || std::fs::read_dir(&home).unwrap().count();
        assert_eq!(names(), 3, "two files and the lock");
        std::fs::rename(home.join(second.name()), root.path().join("moved")).unwrap();
        second.was_moved();
        drop((first, second));
        assert_eq!(names(), 1);
        assert!(root.path().join("moved").exists());
        drop(spill);
        assert!(!home.exists());
    }

    #[test]
    fn a_directory_that_is_removed_is_made_again() {
        let root = tempfile::tempdir().unwrap();
        let spill = SpillDir::new(&root.path().join("work")).unwrap();
        let (lost, _) = spill.create().unwrap();
        std::fs::remove_dir_all(root.path().join("work")).unwrap();
        let (kept, _) = spill.create().unwrap();
        assert!(lost.is_lost() && !kept.is_lost());
        assert!(lost.open().is_err() && kept.open().is_ok());
    }
}
