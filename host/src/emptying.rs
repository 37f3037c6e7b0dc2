//! Emptying the directories of tasks, whatever guests left in them.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{
    AtFlags, FileType, Mode, RenameFlags, chmodat, renameat, renameat_with, statat, unlinkat,
};
use rustix::io::Errno;

use crate::dirs::{for_each, open_dir};

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
    Emptier { dir, budget, removed: 0, fresh_names: 0, spare }.run()
}

struct Emptier<'a> {
    dir: BorrowedFd<'a>,
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

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::Path;

    use rustix::fs::CWD;

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
