//! Empty directories, kept for when one is needed.
//!
//! Most tasks have `0_input/` and `0_output/`. Making a directory and removing it costs more
//! than moving one on any disk file system, and far more on an ext4 without a journal that is
//! mounted with `discard`: there a removal waits for the disk (3 ms in a virtual machine).
//!
//! Nobody is to see when a directory was used before, so its times are set before a task gets it.
//! That happens when the task gets its workspace: the kernel's rules for the thread of a guest let
//! it set no times by name.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cap_std::fs::Dir;
use rustix::fs::{
    AtFlags, CWD, Mode, RenameFlags, Stat, Timespec, Timestamps, UTIME_NOW, fstat, mkdirat,
    renameat_with, statat, utimensat,
};
use rustix::io::Errno;

use crate::dirs;
use crate::emptying;

/// How many are kept.
const MOST: usize = 32;
/// One that is larger than this has held many entries, and shows it.
const LARGEST: i64 = 4096;

/// The spare directories of a workspace.
#[derive(Debug)]
pub struct Spares {
    path: PathBuf,
    dir: OwnedFd,
    /// The mode of a directory that was just made.
    mode: u32,
    names: Mutex<Names>,
}

#[derive(Debug, Default)]
struct Names {
    kept: Vec<String>,
    /// Those whose times say nothing of their past.
    fresh: Vec<String>,
    /// Directories that were asked for since the last preparation.
    asked: usize,
    next: u64,
}

impl Spares {
    pub(super) fn make(path: PathBuf) -> io::Result<Self> {
        std::fs::create_dir(&path)?;
        let dir = dirs::open_dir(CWD, &path)?;
        let mode = fstat(&dir)?.st_mode;
        Ok(Self { path, dir, mode, names: Mutex::default() })
    }

    /// Prepares as many for the next task as the last one asked for.
    pub(super) fn freshen(&self) {
        let mut names = self.names();
        let wanted = std::mem::take(&mut names.asked);
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let times = Timestamps { last_access: now, last_modification: now };
        // One that was prepared for a task that did not need it is older than the next task.
        let unused = std::mem::take(&mut names.fresh);
        names.kept.extend(unused);
        while names.fresh.len() < wanted
            && let Some(spare) = names.kept.pop()
        {
            if utimensat(&self.dir, &*spare, &times, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
                names.fresh.push(spare);
            }
        }
    }

    /// Makes a directory `name` in `at`, as `mkdir` does: from a spare one if there is one.
    ///
    /// # Errors
    /// Those of `mkdir`; and when a name of several segments leads out of `at`.
    pub fn make_dir(&self, at: &Dir, name: &str) -> io::Result<()> {
        if name.contains('/') || name == "." || name == ".." {
            // The way there has to be looked at, which is what cap-std is for.
            return at.create_dir(name);
        }
        Ok(self.make_at(at, name)?)
    }

    /// The same for a path that is known not to lead through links or out of `at`.
    pub(crate) fn make_at(&self, at: impl AsFd, path: &str) -> Result<(), Errno> {
        let fresh = || mkdirat(&at, path, Mode::from_raw_mode(0o777));
        let spare = {
            let mut names = self.names();
            names.asked += 1;
            names.fresh.pop()
        };
        let Some(spare) = spare else { return fresh() };
        match renameat_with(&self.dir, &*spare, &at, path, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(()),
            Err(error) => {
                self.names().fresh.push(spare);
                match error {
                    Errno::EXIST | Errno::NOTDIR => Err(error),
                    // The kernel's rules for this thread, or a file system without such a
                    // rename: `mkdir` knows what is wrong, if anything is.
                    _ => fresh(),
                }
            }
        }
    }

    /// Takes an empty directory away, if it is as good as new and there is room for it.
    pub(super) fn keep(&self, at: BorrowedFd<'_>, name: &CStr) -> bool {
        let as_new = |stat: Stat| stat.st_mode == self.mode && stat.st_size <= LARGEST;
        let mut names = self.names();
        if names.kept.len() + names.fresh.len() >= MOST
            || !statat(at, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(as_new)
        {
            return false;
        }
        let spare = names.next.to_string();
        names.next += 1;
        let kept = renameat_with(at, name, &self.dir, &*spare, RenameFlags::NOREPLACE).is_ok();
        if kept {
            names.kept.push(spare);
        }
        kept
    }

    /// Removes them all, as far as that can be done.
    pub(super) fn remove(&self) {
        *self.names() = Names::default();
        let _ = emptying::empty(self.dir.as_fd(), u64::MAX, &mut |_, _| false);
        let _ = std::fs::remove_dir(&self.path);
    }

    fn names(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn ready(&self) -> usize {
        let names = self.names();
        names.kept.len() + names.fresh.len()
    }
}
