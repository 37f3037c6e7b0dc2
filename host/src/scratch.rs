//! Directories that belong to one process and go with it, also when it is killed.
//!
//! A parent directory holds one directory for each process that uses it, with a lock file
//! inside that the process keeps locked (`flock`). The kernel drops the lock however the
//! process ends, so whoever comes next can tell what is left over, and removes it.

use std::ffi::{CStr, OsStr};
use std::fs::{File, TryLockError};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{
    AtFlags, CWD, FileType, IFlags, Mode, OFlags, RawDir, RenameFlags, SeekFrom, chmodat,
    ioctl_getflags, ioctl_setflags, openat, renameat, renameat_with, seek, statat, unlinkat,
};
use rustix::io::Errno;

/// The file in a process's directory that the process keeps locked. Files of others in a
/// queue's are named after messages, and no message's id begins with a dot.
const LOCK: &CStr = c".lock";
/// The file in the parent that is locked while a directory is added or claimed.
const PARENT_LOCK: &str = ".lock";

/// How many places on the disk are tried, where there is a choice.
const PLACES: usize = 8;
/// A place where making a file takes no longer than this is good.
const QUICK: Duration = Duration::from_micros(25);

/// What is to be done about the files in a dead process's directory before they go. If it
/// fails, the directory stays for the next sweep.
pub(crate) type Settle<'a> = &'a mut dyn FnMut(&OwnedFd) -> io::Result<()>;

/// A directory of this process. Dropping it removes it.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
    parent: PathBuf,
    dir: OwnedFd,
    /// Whether another directory would be in another place on the disk.
    spread: bool,
    /// What making a file took in the best place that was found.
    pace: Duration,
    remove_parent: bool,
    stays: bool,
    /// Holds the lock for as long as it is open.
    _lock: File,
}

impl Scratch {
    /// Removes what dead processes left below `parent`, and makes a directory there.
    pub(crate) fn claim(parent: &Path) -> io::Result<Self> {
        make_parent(parent)?;
        sweep(parent)?;
        Self::make(parent)
    }

    /// As [`Scratch::claim`]; and the last one to go takes the parent along, which must not be a
    /// link.
    pub(crate) fn claim_and_tidy(parent: &Path) -> io::Result<Self> {
        make_parent(parent)?;
        sweep_no_link(parent)?;
        let mut scratch = Self::make(parent)?;
        scratch.remove_parent = true;
        Ok(scratch)
    }

    /// Makes a directory below `parent`, and leaves to others what the dead have left.
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
                // Then nobody sweeps either.
                Err(error) if error.kind() == io::ErrorKind::Unsupported => None,
                Err(error) => return Err(error),
            };
            let spread = spread_over_block_groups(parent);
            let mut best = Self::in_some_place(parent, spread)?;
            for _ in 1..PLACES {
                if !spread || best.pace <= QUICK {
                    break;
                }
                let other = Self::in_some_place(parent, spread)?;
                if other.pace < best.pace {
                    best = other;
                }
            }
            return Ok(best);
        }
    }

    fn in_some_place(parent: &Path, spread: bool) -> io::Result<Self> {
        let path = parent.join(uuid::Uuid::new_v4().to_string());
        std::fs::create_dir(&path)?;
        let dir = open_dir(CWD, &path)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let lock = File::from(openat(&dir, LOCK, flags, Mode::from_raw_mode(0o666))?);
        match lock.lock() {
            // Then it will not be swept, and all else works.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
            locked => locked?,
        }
        let pace = if spread { pace(&dir) } else { Duration::ZERO };
        Ok(Self {
            path,
            parent: parent.to_owned(),
            dir,
            spread,
            pace,
            remove_parent: false,
            stays: false,
            _lock: lock,
        })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The directory itself, open.
    pub(crate) fn dir(&self) -> &OwnedFd {
        &self.dir
    }

    /// Whether it is there still.
    pub(crate) fn is_there(&self) -> bool {
        rustix::fs::fstat(&self.dir).is_ok_and(|stat| stat.st_nlink > 0)
    }

    fn remove(&self) -> io::Result<()> {
        let name = self.path.file_name().unwrap_or_default();
        let name = std::ffi::CString::new(name.as_bytes())?;
        let parent = openat(&self.dir, c"..", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        remove_process_dir(&parent, &name, &open_dir(&self.dir, c".")?)
    }

    /// Leaves the directory to the next sweep.
    pub(crate) fn stay(&mut self) {
        self.stays = true;
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.stays {
            return;
        }
        // What can't be removed now is swept by the next process.
        let _ = self.remove();
        if self.remove_parent {
            remove_unused_parent(&self.parent);
        }
    }
}

/// How long it takes to make a file in a directory.
///
/// An ext4 without a journal does not use an inode again for minutes after its file was
/// removed. It looks for another one in the block group of the directory, from the group's
/// first, and passes over those one by one: a few hundred microseconds for each new file
/// where some thousand were removed lately.
fn pace(dir: &OwnedFd) -> Duration {
    let flags = OFlags::WRONLY | OFlags::TMPFILE | OFlags::CLOEXEC;
    let start = Instant::now();
    match openat(dir, c".", flags, Mode::RUSR | Mode::WUSR) {
        Ok(_file) => start.elapsed(),
        Err(_) => Duration::ZERO,
    }
}

/// Removes what dead processes left below `parent`.
fn sweep(parent: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match openat(CWD, parent, flags, Mode::empty()) {
        Ok(dir) => sweep_in(&dir, parent, &mut |_| Ok(())),
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Removes what dead processes left in a directory, whose path is `parent`. Everything in it may
/// be of whoever can write there, so no link is followed on the way to what is removed.
pub(crate) fn sweep_in(dir: &OwnedFd, parent: &Path, settle: Settle<'_>) -> io::Result<()> {
    let mut dead = Vec::new();
    {
        let _parent_lock = match lock_parent(dir) {
            Ok(Some(lock)) => lock,
            Ok(None) => return Ok(()),
            // Without locks the dead can't be told from the living, nor while somebody holds on
            // to this one.
            Err(error) if error.kind() == io::ErrorKind::Unsupported || is_held(&error) => {
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let listed = openat(dir, c".", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        for_each(listed.as_fd(), |name, _| {
            // A file, a link, what others may not open, or what went away: nothing of a process.
            let Ok(process) = open_dir(dir, name) else { return Ok(()) };
            let lock = open_lock(&process, LOCK, OFlags::RDWR);
            match lock.and_then(|lock| Ok(lock.try_lock().map(|()| lock)?)) {
                // Holding the lock makes it ours; it can be removed without holding up the
                // processes that wait for the parent's lock.
                Ok(lock) => dead.push((name.to_owned(), process, Some(lock))),
                // A directory gets its lock under the parent's lock; one without is being
                // removed, or the process that removed it was killed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    dead.push((name.to_owned(), process, None));
                }
                Err(error) if is_held(&error) => {}
                Err(error) => {
                    let path = parent.join(OsStr::from_bytes(name.to_bytes()));
                    tracing::debug!(path = %path.display(), %error, "left as it is");
                }
            }
            Ok::<(), io::Error>(())
        })?;
    }
    for (name, process, _lock) in dead {
        let path = parent.join(OsStr::from_bytes(name.to_bytes()));
        match settle(&process).and_then(|()| remove_process_dir(dir, &name, &process)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "leftovers of a dead process stay");
            }
            _ => tracing::debug!(path = %path.display(), "removed leftovers of a dead process"),
        }
    }
    Ok(())
}

/// Removes what dead processes left below a parent that the last process to leave should have
/// removed, and that must not be a link.
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

/// Makes the directory unless it is there, while others may be removing it.
fn make_parent(parent: &Path) -> io::Result<()> {
    loop {
        match std::fs::create_dir_all(parent) {
            // It was there when it was to be made, and gone when it was looked at.
            Err(error)
                if error.kind() == io::ErrorKind::AlreadyExists
                    && parent.symlink_metadata().map_or(true, |found| found.is_dir()) => {}
            made => return made,
        }
    }
}

/// How long a process waits for the lock of the parent, which is never held for long.
const PATIENCE: Duration = Duration::from_secs(5);

/// `None` when the parent has just been removed.
fn lock_parent(parent: &OwnedFd) -> io::Result<Option<File>> {
    let open = || open_lock(parent, PARENT_LOCK, OFlags::WRONLY | OFlags::CREATE);
    let opened = match open() {
        Err(error) if is_no_lock(&error) => {
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
                let text = format!("another process holds the lock `{PARENT_LOCK}` of the place");
                return Err(io::Error::new(io::ErrorKind::WouldBlock, text));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    // While we waited it may have been unlinked with its directory.
    Ok((lock.metadata()?.nlink() > 0).then_some(lock))
}

fn is_held(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

/// Opens a lock file, which has to be a regular file: a pipe would keep us waiting, and a link
/// could lead to anything.
fn open_lock(dir: &OwnedFd, name: impl rustix::path::Arg, flags: OFlags) -> io::Result<File> {
    let careful = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let lock = File::from(openat(dir, name, flags | careful, Mode::from_raw_mode(0o666))?);
    if lock.metadata()?.is_file() { Ok(lock) } else { Err(Errno::NXIO.into()) }
}

/// Whether what should be a lock is something else: a link, a pipe, a directory.
fn is_no_lock(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::LOOP | Errno::NXIO | Errno::NODEV | Errno::ISDIR)
    )
}

/// Removes what is no file; a directory gets another name, by which the next sweep takes it for
/// that of a dead process.
fn clear_away(dir: &OwnedFd, name: &str) -> Result<(), Errno> {
    match unlinkat(dir, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => renameat(dir, name, dir, uuid::Uuid::new_v4().to_string()),
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

/// Removes a tree whatever is in it. Its lock goes last but one, so that a removal that is
/// interrupted leaves something that the next sweep recognises.
fn remove_process_dir(parent: &OwnedFd, name: &CStr, dir: &OwnedFd) -> io::Result<()> {
    let emptier = Emptier {
        dir: dir.as_fd(),
        keep: Some(LOCK),
        budget: u64::MAX,
        removed: 0,
        fresh_names: 0,
        spare: &mut |_, _| false,
    };
    match emptier.run() {
        Ok(_) | Err(Stopped::OverBudget) => {}
        Err(Stopped::Failed(error)) => return Err(error.into()),
    }
    match unlinkat(dir, LOCK, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}

/// Sets ext4's top-directory flag, so that the directories made in `parent` are spread over
/// the disk's block groups, by their names: creating files slows down where many were
/// removed lately. False where the file system has no such flag, which does no harm.
pub(crate) fn spread_over_block_groups(parent: &Path) -> bool {
    let set = || {
        let dir = open_dir(CWD, parent)?;
        let flags = ioctl_getflags(&dir)?;
        ioctl_setflags(&dir, flags | IFlags::TOPDIR)
    };
    set().is_ok()
}

#[cfg(test)]
thread_local! {
    /// How many directories this thread has opened.
    pub(crate) static OPENED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// Opens a directory for listing; a link is an error.
pub(crate) fn open_dir(at: impl AsFd, path: impl rustix::path::Arg) -> rustix::io::Result<OwnedFd> {
    #[cfg(test)]
    OPENED.with(|opened| opened.set(opened.get() + 1));
    openat(
        at,
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// Why emptying a directory ended early.
#[derive(Debug)]
pub(crate) enum Stopped {
    /// It holds more than the caller wants removed in one go.
    OverBudget,
    /// The file system refused.
    Failed(Errno),
}

impl From<Errno> for Stopped {
    fn from(error: Errno) -> Self {
        Self::Failed(error)
    }
}

/// Empties a directory, whatever is in it: files, links, and trees of any depth; but moves and
/// removes no more than about `budget` entries. Returns how many there were. It has read the
/// directory to its end and found nothing when it returns `Ok`. A directory in it that is
/// empty by now is offered to `spare`, which says whether it took it away.
///
/// `dir` needs an open file description of its own, since its position is used.
pub(crate) fn empty(
    dir: BorrowedFd<'_>,
    budget: u64,
    spare: &mut dyn FnMut(BorrowedFd<'_>, &CStr) -> bool,
) -> Result<u64, Stopped> {
    Emptier { dir, keep: None, budget, removed: 0, fresh_names: 0, spare }.run()
}

struct Emptier<'a> {
    dir: BorrowedFd<'a>,
    keep: Option<&'static CStr>,
    budget: u64,
    removed: u64,
    fresh_names: u64,
    spare: &'a mut dyn FnMut(BorrowedFd<'_>, &CStr) -> bool,
}

impl Emptier<'_> {
    fn run(mut self) -> Result<u64, Stopped> {
        // Entries may be missed while others are added or removed, so a pass that removes
        // something is followed by another.
        loop {
            let before = self.removed;
            for_each(self.dir, |name, kind| self.remove(name, kind))?;
            if self.removed == before {
                return Ok(self.removed);
            }
        }
    }

    fn remove(&mut self, name: &CStr, kind: FileType) -> Result<(), Stopped> {
        if self.keep == Some(name) {
            return Ok(());
        }
        self.charge()?;
        if kind != FileType::Directory {
            match unlinkat(self.dir, name, AtFlags::empty()) {
                // Some file systems don't say what an entry is.
                Err(Errno::ISDIR | Errno::PERM) if is_dir(self.dir, name) => {}
                result => return Ok(result?),
            }
        }
        self.remove_dir(name)
    }

    fn charge(&mut self) -> Result<(), Stopped> {
        self.check_budget()?;
        self.removed += 1;
        Ok(())
    }

    fn check_budget(&self) -> Result<(), Stopped> {
        // A name is made up for each directory that is moved.
        let calls = self.removed.saturating_add(self.fresh_names);
        if calls >= self.budget { Err(Stopped::OverBudget) } else { Ok(()) }
    }

    /// Directories in the one that is removed become directories of `self.dir`, to be
    /// removed in their turn: like this no depth needs more than one open file.
    fn remove_dir(&mut self, name: &CStr) -> Result<(), Stopped> {
        let child = match open_dir(self.dir, name) {
            Err(Errno::ACCESS) => {
                chmodat(self.dir, name, Mode::RWXU, AtFlags::empty())?;
                open_dir(self.dir, name)?
            }
            other => other?,
        };
        let mut made_ours = false;
        loop {
            let mut found = false;
            for_each(child.as_fd(), |entry, kind| {
                found = true;
                let result = if kind == FileType::Directory || is_dir(child.as_fd(), entry) {
                    self.check_budget()?;
                    self.move_up(child.as_fd(), entry)
                } else {
                    self.charge()?;
                    unlinkat(&child, entry, AtFlags::empty())
                };
                match result {
                    // It could be opened, but has no write or search permission.
                    Err(Errno::ACCESS) if !made_ours => {
                        made_ours = true;
                        Ok(rustix::fs::fchmod(&child, Mode::RWXU)?)
                    }
                    result => Ok::<(), Stopped>(result?),
                }
            })?;
            if !found && (self.spare)(self.dir, name) {
                return Ok(());
            } else if !found {
                return Ok(unlinkat(self.dir, name, AtFlags::REMOVEDIR)?);
            }
        }
    }

    /// Moves a directory one level up, under a name that is free there.
    fn move_up(&mut self, from: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
        let mut may_chmod = true;
        loop {
            let fresh = format!(".{}", self.fresh_names);
            self.fresh_names += 1;
            let moved = match renameat_with(from, name, self.dir, &*fresh, RenameFlags::NOREPLACE) {
                // NFS can't; a plain rename replaces at most an empty directory, which is
                // as good.
                Err(Errno::INVAL | Errno::NOSYS) => renameat(from, name, self.dir, &*fresh),
                other => other,
            };
            match moved {
                Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => {}
                // Moving a directory writes its `..`, which takes write permission on it.
                Err(Errno::ACCESS) if may_chmod => {
                    may_chmod = false;
                    chmodat(from, name, Mode::RWXU, AtFlags::empty())?;
                }
                other => return other,
            }
        }
    }
}

fn is_dir(dir: BorrowedFd<'_>, name: &CStr) -> bool {
    statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

/// Calls `each` for every entry but `.` and `..`, from the start of the directory.
pub(crate) fn for_each<E: From<Errno>>(
    dir: BorrowedFd<'_>,
    mut each: impl FnMut(&CStr, FileType) -> Result<(), E>,
) -> Result<(), E> {
    // More than one name of the greatest length; most directories of a task fit.
    let mut buffer = [MaybeUninit::uninit(); 4096];
    seek(dir, SeekFrom::Start(0))?;
    let mut entries = RawDir::new(dir, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            each(name, entry.file_type())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

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
        let live = Scratch::claim(parent.path()).unwrap();
        let dead = parent.path().join("dead");
        std::fs::create_dir_all(dead.join("a/b")).unwrap();
        std::fs::write(dead.join(".lock"), "").unwrap();
        std::fs::write(dead.join("a/b/half"), "half").unwrap();
        // Killed between removing the lock and the directory.
        std::fs::create_dir(parent.path().join("nearly-removed")).unwrap();

        let new = Scratch::claim(parent.path()).unwrap();
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
            let scratch = Scratch::claim(&parent).unwrap();
            assert!(scratch.path().exists() && !parent.join("dead").exists());
            assert!(parent.join("pipe").exists() && parent.join("linked").exists());
            drop(scratch);
            std::fs::remove_dir_all(&parent).unwrap();
        }
        // The place itself, where the one who sweeps does not own what it is in.
        symlink(&others, &parent).unwrap();
        assert!(sweep_and_tidy(&parent).is_err() && Scratch::claim_and_tidy(&parent).is_err());
        assert_eq!(names(&others), ["fifo", "work"]);
        assert_eq!(names(&others.join("work")), ["thesis"]);
    }

    #[test]
    fn a_lock_that_somebody_holds_on_to_ends_the_wait() {
        let parent = tempfile::tempdir().unwrap();
        let lock = File::create(parent.path().join(PARENT_LOCK)).unwrap();
        lock.lock().unwrap();
        std::fs::create_dir(parent.path().join("dead")).unwrap();
        assert!(is_held(&Scratch::claim(parent.path()).err().unwrap()));
        assert!(parent.path().join("dead").exists(), "it may be a living one's");
        drop(lock);
        Scratch::claim(parent.path()).unwrap();
        assert!(!parent.path().join("dead").exists());
    }

    #[test]
    fn the_last_user_takes_a_tidied_parent_along() {
        let root = tempfile::tempdir().unwrap();
        let parent = root.path().join("tmp");
        let first = Scratch::claim_and_tidy(&parent).unwrap();
        let second = Scratch::claim_and_tidy(&parent).unwrap();
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
                        let scratch = Scratch::claim_and_tidy(&parent).unwrap();
                        std::fs::write(scratch.path().join("mine"), "").unwrap();
                        assert_eq!(names(scratch.path()), [".lock", "mine"]);
                    }
                });
            }
        });
        assert!(!parent.exists());
    }

    #[test]
    fn a_budget_bounds_the_directories_that_are_moved_too() {
        let root = tempfile::tempdir().unwrap();
        for i in 0..200 {
            std::fs::create_dir_all(root.path().join(format!("wide/{i}"))).unwrap();
        }
        let dir = open_dir(CWD, root.path()).unwrap();
        assert!(matches!(empty(dir.as_fd(), 10, &mut |_, _| false), Err(Stopped::OverBudget)));
        assert!(names(root.path()).len() <= 10, "{:?}", names(root.path()));
        assert!(empty(dir.as_fd(), u64::MAX, &mut |_, _| false).is_ok());
        assert_eq!(names(root.path()), Vec::<String>::new());
    }

    #[test]
    fn anything_a_guest_can_make_is_emptied() {
        let root = tempfile::tempdir().unwrap();
        let kept = root.path().join("kept");
        std::fs::write(&kept, "kept").unwrap();
        let path = root.path().join("outputs");
        std::fs::create_dir(&path).unwrap();

        let mut deep = open_dir(CWD, &path).unwrap();
        for _ in 0..1200 {
            rustix::fs::mkdirat(&deep, "d", Mode::RWXU).unwrap();
            deep = open_dir(&deep, "d").unwrap();
        }
        symlink(&kept, path.join("link")).unwrap();
        symlink("/", path.join("link-to-a-directory")).unwrap();
        std::fs::hard_link(&kept, path.join("hard")).unwrap();
        for name in [&b"\xff\xfe"[..], b"new\nline", b"-rf", b".0", b".1", "\u{202e}".as_bytes()] {
            std::fs::write(path.join(std::ffi::OsStr::from_bytes(name)), "x").unwrap();
        }
        std::fs::create_dir_all(path.join(".2/x/y")).unwrap();
        std::fs::write(path.join(".2/x/y/.3"), "x").unwrap();
        rustix::fs::mkfifoat(CWD, path.join("fifo"), Mode::RWXU).unwrap();
        for i in 0..500 {
            std::fs::create_dir_all(path.join(format!("many/{i}/sub"))).unwrap();
        }
        std::fs::create_dir_all(path.join("closed/inner/leaf")).unwrap();
        for closed in ["closed/inner/leaf", "closed/inner", "closed"] {
            let none = std::fs::Permissions::from_mode(0o000);
            std::fs::set_permissions(path.join(closed), none).unwrap();
        }

        let dir = open_dir(CWD, &path).unwrap();
        assert!(matches!(empty(dir.as_fd(), 10, &mut |_, _| false), Err(Stopped::OverBudget)));
        assert!(empty(dir.as_fd(), u64::MAX, &mut |_, _| false).unwrap() > 0);
        assert_eq!(names(&path), Vec::<String>::new());
        assert_eq!(empty(dir.as_fd(), u64::MAX, &mut |_, _| false).unwrap(), 0);
        assert_eq!(std::fs::read(&kept).unwrap(), b"kept");
    }
}
