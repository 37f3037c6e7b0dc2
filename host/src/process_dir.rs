//! A directory for the temporary files of one process. It is removed when the process ends or, if
//! the process was killed, by a later one.
//!
//! A parent directory holds one directory per process. Each contains a lock file that its process
//! keeps locked (`flock`). The kernel releases the lock however the process ends, so a later
//! process recognises leftovers and removes them.

use std::ffi::{CStr, CString, OsStr};
use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat, renameat, unlinkat};
use rustix::io::Errno;

use crate::dirs::{for_each, open_dir};

/// The lock file in a process's directory. Other files there may be named after messages, and no
/// message id begins with a dot.
const LOCK: &CStr = c".lock";
/// The file in the parent that is locked while a directory is added or claimed.
const PARENT_LOCK: &str = ".lock";
/// How long a process waits for the parent's lock, which is only held briefly.
const PATIENCE: Duration = Duration::from_secs(5);

/// Handles the files in a dead process's directory before they are removed. If it fails, the
/// directory stays for the next sweep.
pub(crate) type Settle<'a> = &'a mut dyn FnMut(&OwnedFd) -> io::Result<()>;

/// A directory of this process. Dropping it removes it.
#[derive(Debug)]
pub(crate) struct ProcessDir {
    path: PathBuf,
    parent: PathBuf,
    dir: OwnedFd,
    remove_parent: bool,
    stays: bool,
    /// Holds the lock while it is open.
    _lock: File,
}

impl ProcessDir {
    /// Removes the leftovers of dead processes below `parent`, and makes a directory there.
    pub(crate) fn claim(parent: &Path) -> io::Result<Self> {
        make_parent(parent)?;
        sweep(parent)?;
        Self::make(parent)
    }

    /// As [`ProcessDir::claim`]. Also, the last process that drops its directory removes the
    /// parent, which must not be a link.
    pub(crate) fn claim_and_tidy(parent: &Path) -> io::Result<Self> {
        make_parent(parent)?;
        sweep_no_link(parent)?;
        let mut made = Self::make(parent)?;
        made.remove_parent = true;
        Ok(made)
    }

    /// Makes a directory below `parent` without removing leftovers.
    pub(crate) fn make(parent: &Path) -> io::Result<Self> {
        loop {
            make_parent(parent)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let dir = match openat(CWD, parent, flags, Mode::empty()) {
                Err(Errno::NOENT) => continue,
                dir => dir?,
            };
            let _parent_lock = match lock_parent(&dir) {
                Ok(Some(lock)) => Some(lock),
                // The last user of the parent has just removed it.
                Ok(None) => continue,
                // Without locks, no process removes leftovers either.
                Err(error) if error.kind() == io::ErrorKind::Unsupported => None,
                Err(error) => return Err(error),
            };
            return Self::make_locked(parent);
        }
    }

    fn make_locked(parent: &Path) -> io::Result<Self> {
        let path = parent.join(uuid::Uuid::new_v4().to_string());
        std::fs::create_dir(&path)?;
        let dir = open_dir(CWD, &path)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let lock = File::from(openat(&dir, LOCK, flags, Mode::from_raw_mode(0o666))?);
        match lock.lock() {
            // Then no process will remove it as a leftover. Everything else works.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
            locked => locked?,
        }
        let parent = parent.to_owned();
        Ok(Self { path, parent, dir, remove_parent: false, stays: false, _lock: lock })
    }

    /// The path of the directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The open directory.
    pub(crate) fn dir(&self) -> &OwnedFd {
        &self.dir
    }

    /// False when the directory was removed.
    pub(crate) fn is_there(&self) -> bool {
        rustix::fs::fstat(&self.dir).is_ok_and(|stat| stat.st_nlink > 0)
    }

    /// Leaves the directory to the next sweep instead of removing it on drop.
    pub(crate) fn stay(&mut self) {
        self.stays = true;
    }

    fn remove(&self) -> io::Result<()> {
        let name = self.path.file_name().unwrap_or_default();
        let name = CString::new(name.as_bytes())?;
        let parent = openat(&self.dir, c"..", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        remove_process_dir(&parent, &name, &open_dir(&self.dir, c".")?)
    }
}

impl Drop for ProcessDir {
    fn drop(&mut self) {
        if self.stays {
            return;
        }
        // The next sweep removes whatever can't be removed now.
        let _ = self.remove();
        if self.remove_parent {
            remove_unused_parent(&self.parent);
        }
    }
}

/// Removes the leftovers of dead processes below `parent`.
fn sweep(parent: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match openat(CWD, parent, flags, Mode::empty()) {
        Ok(dir) => sweep_in(&dir, parent, &mut |_| Ok(())),
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Removes the leftovers of dead processes in the directory `dir`, whose path is `parent`. Follows
/// no link, because other users may be able to write to `dir`.
pub(crate) fn sweep_in(dir: &OwnedFd, parent: &Path, settle: Settle<'_>) -> io::Result<()> {
    let mut dead = Vec::new();
    {
        let _parent_lock = match lock_parent(dir) {
            Ok(Some(lock)) => lock,
            Ok(None) => return Ok(()),
            // Dead processes can't be recognised without locks, or while another process holds this
            // lock.
            Err(error) if error.kind() == io::ErrorKind::Unsupported || is_held(&error) => {
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let listed = openat(dir, c".", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        for_each(listed.as_fd(), |name, _| {
            // Skips files, links, and directories that can't be opened or were removed.
            let Ok(process) = open_dir(dir, name) else { return Ok(()) };
            let lock = open_lock(&process, LOCK, OFlags::RDWR);
            match lock.and_then(|lock| Ok(lock.try_lock().map(|()| lock)?)) {
                // While this process holds the lock, no other process removes the directory. So it
                // can be removed after the parent's lock is released.
                Ok(lock) => dead.push((name.to_owned(), process, Some(lock))),
                // A directory gets its lock under the parent's lock. One without a lock is being
                // removed, or its removal was interrupted.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    dead.push((name.to_owned(), process, None));
                }
                Err(error) if is_held(&error) => {}
                Err(error) => {
                    let path = parent.join(OsStr::from_bytes(name.to_bytes()));
                    tracing::debug!(path = %path.display(), %error, "not recognised, left alone");
                }
            }
            Ok::<(), io::Error>(())
        })?;
    }
    for (name, process, _lock) in dead {
        let path = parent.join(OsStr::from_bytes(name.to_bytes()));
        match settle(&process).and_then(|()| remove_process_dir(dir, &name, &process)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(
                    path = %path.display(), %error,
                    "could not remove the leftovers of a dead process"
                );
            }
            _ => tracing::debug!(path = %path.display(), "removed leftovers of a dead process"),
        }
    }
    Ok(())
}

/// Removes the leftovers of dead processes below `parent`, and `parent` itself if no process uses
/// it. `parent` must not be a link.
pub(crate) fn sweep_and_tidy(parent: &Path) -> io::Result<()> {
    sweep_no_link(parent)?;
    remove_unused_parent(parent);
    Ok(())
}

fn sweep_no_link(parent: &Path) -> io::Result<()> {
    match open_dir(CWD, parent) {
        Ok(dir) => sweep_in(&dir, parent, &mut |_| Ok(())),
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Makes the directory unless it exists. Other processes may be removing it meanwhile.
fn make_parent(parent: &Path) -> io::Result<()> {
    loop {
        let error = match std::fs::create_dir_all(parent) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => error,
            made => return made,
        };
        match parent.symlink_metadata() {
            // The directory exists, or was removed between the two calls. Try again.
            Ok(found) if found.is_dir() => {}
            Err(gone) if gone.kind() == io::ErrorKind::NotFound => {}
            Ok(_) => return Err(error),
            // On a failing disk, the disk's own error is the cause.
            Err(cause) => return Err(cause),
        }
    }
}

/// Locks the parent; `None` when the parent has just been removed.
fn lock_parent(parent: &OwnedFd) -> io::Result<Option<File>> {
    let open = || open_lock(parent, PARENT_LOCK, OFlags::WRONLY | OFlags::CREATE);
    let opened = match open() {
        Err(error) if is_not_a_file(&error) => {
            clear_away(parent, PARENT_LOCK)?;
            open()
        }
        opened => opened,
    };
    let lock = match opened {
        Ok(lock) => lock,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let started = Instant::now();
    loop {
        match lock.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if started.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(TryLockError::WouldBlock) => {
                let text = format!("another process does not release the lock file {PARENT_LOCK}");
                return Err(io::Error::new(io::ErrorKind::WouldBlock, text));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    // During the wait, the file may have been unlinked with its directory.
    Ok((lock.metadata()?.nlink() > 0).then_some(lock))
}

fn is_held(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

/// Opens a lock file. It has to be a regular file: opening a pipe would wait, and a link could lead
/// anywhere.
fn open_lock(dir: &OwnedFd, name: impl rustix::path::Arg, flags: OFlags) -> io::Result<File> {
    let careful = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let lock = File::from(openat(dir, name, flags | careful, Mode::from_raw_mode(0o666))?);
    if lock.metadata()?.is_file() { Ok(lock) } else { Err(Errno::NXIO.into()) }
}

/// True when the name of a lock file belongs to a link, a pipe or a directory.
fn is_not_a_file(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::LOOP | Errno::NXIO | Errno::NODEV | Errno::ISDIR)
    )
}

/// Frees a name. A directory is renamed, so that the next sweep removes it like a dead process's.
fn clear_away(dir: &OwnedFd, name: &str) -> Result<(), Errno> {
    match unlinkat(dir, name, AtFlags::empty()) {
        // macOS returns `EPERM` for a directory.
        Err(Errno::ISDIR | Errno::PERM) => {
            renameat(dir, name, dir, uuid::Uuid::new_v4().to_string())
        }
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

fn remove_unused_parent(parent: &Path) {
    let Ok(dir) = open_dir(CWD, parent) else { return };
    let Ok(Some(_lock)) = lock_parent(&dir) else { return };
    let Ok(mut entries) = std::fs::read_dir(parent) else { return };
    if entries.all(|e| e.is_ok_and(|e| e.file_name() == PARENT_LOCK)) {
        let _ = std::fs::remove_file(parent.join(PARENT_LOCK));
        let _ = std::fs::remove_dir(parent);
    }
}

/// Removes a process's directory. The lock file is removed last, so that the next sweep recognises
/// the rest of an interrupted removal.
fn remove_process_dir(parent: &OwnedFd, name: &CStr, dir: &OwnedFd) -> io::Result<()> {
    let inside = cap_std::fs::Dir::from_std_file(File::from(dir.try_clone()?));
    loop {
        let mut entries = Vec::new();
        for_each(dir.as_fd(), |entry, _| {
            if entry != LOCK {
                entries.push(entry.to_owned());
            }
            Ok::<(), Errno>(())
        })?;
        // A listing may miss entries while others are added, so only an empty listing ends the
        // loop.
        if entries.is_empty() {
            break;
        }
        for entry in entries {
            match unlinkat(dir, &entry, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::ISDIR | Errno::PERM) => {
                    inside.remove_dir_all(OsStr::from_bytes(entry.to_bytes()))?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
    match unlinkat(dir, LOCK, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn names(path: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(path)
            .unwrap()
            .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_a_killed_process_left_is_removed_and_what_a_live_one_holds_is_not() {
        let parent = tempfile::tempdir().unwrap();
        let live = ProcessDir::claim(parent.path()).unwrap();
        let dead = parent.path().join("dead");
        std::fs::create_dir_all(dead.join("a/b")).unwrap();
        std::fs::write(dead.join(".lock"), "").unwrap();
        std::fs::write(dead.join("a/b/half"), "half").unwrap();
        // As if its process was killed between removing the lock and the directory.
        std::fs::create_dir(parent.path().join("nearly-removed")).unwrap();

        let new = ProcessDir::claim(parent.path()).unwrap();
        assert!(!dead.exists());
        assert!(!parent.path().join("nearly-removed").exists());
        assert!(live.path().exists() && new.path().exists());
        drop((live, new));
        assert_eq!(names(parent.path()), [PARENT_LOCK]);
    }

    #[test]
    fn what_others_put_among_the_directories_of_processes_leads_nowhere_and_holds_up_nobody() {
        let root = tempfile::tempdir().unwrap();
        let (parent, others) = (root.path().join("tmp"), root.path().join("others"));
        std::fs::create_dir_all(others.join("work")).unwrap();
        std::fs::write(others.join("work/thesis"), "mine").unwrap();
        let fifo = |path: &Path| rustix::fs::mkfifoat(CWD, path, Mode::RWXU).unwrap();
        fifo(&others.join("fifo"));
        let lock = parent.join(PARENT_LOCK);
        let put: [&dyn Fn(); 5] = [
            &|| fifo(&lock),
            &|| symlink(others.join("fifo"), &lock).unwrap(),
            &|| symlink(others.join("new"), &lock).unwrap(),
            &|| std::fs::create_dir_all(lock.join("more")).unwrap(),
            &|| drop(std::os::unix::net::UnixListener::bind(&lock).unwrap()),
        ];
        for put in put {
            std::fs::create_dir_all(parent.join("dead")).unwrap();
            symlink(&others, parent.join("dead/link")).unwrap();
            symlink(&others, parent.join("link")).unwrap();
            for (dir, is_link) in [("pipe", false), ("linked", true)] {
                std::fs::create_dir(parent.join(dir)).unwrap();
                match is_link {
                    true => symlink(others.join("fifo"), parent.join(dir).join(".lock")).unwrap(),
                    false => fifo(&parent.join(dir).join(".lock")),
                }
            }
            put();
            let made = ProcessDir::claim(&parent).unwrap();
            assert!(made.path().exists() && !parent.join("dead").exists());
            assert!(parent.join("pipe").exists() && parent.join("linked").exists());
            drop(made);
            std::fs::remove_dir_all(&parent).unwrap();
        }
        // The parent itself is a link.
        symlink(&others, &parent).unwrap();
        assert!(sweep_and_tidy(&parent).is_err() && ProcessDir::claim_and_tidy(&parent).is_err());
        assert_eq!(names(&others), ["fifo", "work"]);
        assert_eq!(names(&others.join("work")), ["thesis"]);
    }

    #[test]
    fn a_lock_that_somebody_holds_on_to_ends_the_wait() {
        let parent = tempfile::tempdir().unwrap();
        let lock = File::create(parent.path().join(PARENT_LOCK)).unwrap();
        lock.lock().unwrap();
        std::fs::create_dir(parent.path().join("dead")).unwrap();
        assert!(is_held(&ProcessDir::claim(parent.path()).err().unwrap()));
        assert!(parent.path().join("dead").exists(), "it may be a living one's");
        drop(lock);
        ProcessDir::claim(parent.path()).unwrap();
        assert!(!parent.path().join("dead").exists());
    }

    #[test]
    fn the_last_user_takes_a_tidied_parent_along() {
        let root = tempfile::tempdir().unwrap();
        let parent = root.path().join("tmp");
        let first = ProcessDir::claim_and_tidy(&parent).unwrap();
        let second = ProcessDir::claim_and_tidy(&parent).unwrap();
        drop(first);
        assert!(parent.exists());
        drop(second);
        assert!(!parent.exists());
    }

    #[test]
    fn many_that_come_and_go_at_once_get_a_directory_each() {
        let root = tempfile::tempdir().unwrap();
        let parent = root.path().join("tmp");
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        let made = ProcessDir::claim_and_tidy(&parent).unwrap();
                        std::fs::write(made.path().join("mine"), "").unwrap();
                        assert_eq!(names(made.path()), [".lock", "mine"]);
                    }
                });
            }
        });
        assert!(!parent.exists());
    }
}
