//! The two directories that a task sees, emptied between tasks.
//!
//! A workspace is used by one task after the other: on ext4, making fresh directories costs
//! more than the whole rest of a small task. What a task leaves is removed, and both
//! directories are read to their end and found empty, before another task gets them.

mod spares;

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use cap_std::fs::Dir;
use rustix::fs::{CWD, fstat};

pub use self::spares::Spares;
use crate::dirs;
use crate::emptying::{self, Stopped};
use crate::key::BucketKey;
use crate::ownership;
use crate::process_dir::ProcessDir;
use crate::turns::Turns;

/// More entries than this are removed on a thread of their own.
const REMOVED_INLINE: u64 = 64;
/// A directory that once held many entries stays large on most file systems, and slow to
/// read for each later task. Above this many bytes a fresh one is the better deal.
const LARGE_DIRECTORY: i64 = 64 * 1024;

/// The workspaces of this process: as many as are in use at once, kept for the next task.
#[derive(Debug, Clone)]
pub struct Workspaces {
    pool: Arc<Pool>,
}

#[derive(Debug)]
struct Pool {
    /// Removed with the last workspace.
    home: ProcessDir,
    inputs: PathBuf,
    outputs: PathBuf,
    clean: Mutex<Vec<Arc<Slot>>>,
}

/// The two directories of one task. Dropping it is [`Workspace::recycle`].
#[derive(Debug)]
pub struct Workspace {
    /// Where the host places the task's inputs.
    pub inputs: Dir,
    /// Where the guest leaves its outputs.
    pub outputs: Dir,
    slot: Arc<Slot>,
    pool: Arc<Pool>,
}

#[derive(Debug)]
struct Slot {
    inputs_path: PathBuf,
    outputs_path: PathBuf,
    // Emptying lists them, which moves the position of an open file description: these are
    // not shared with anybody.
    inputs: OwnedFd,
    outputs: OwnedFd,
    spares: Arc<Spares>,
}

/// Handles on the directories of a workspace, for whoever runs its task.
#[derive(Debug)]
pub struct Directories {
    /// See [`Workspace::inputs`].
    pub inputs: Dir,
    /// See [`Workspace::outputs`].
    pub outputs: Dir,
    /// See [`Workspace::spares`].
    pub spares: Arc<Spares>,
}

/// A workspace could not be made.
#[derive(Debug, thiserror::Error)]
#[error(
    "work directory {path}: {doing} failed: {source}; the host needs to create directories there"
)]
pub struct WorkspaceError {
    path: PathBuf,
    doing: &'static str,
    #[source]
    source: io::Error,
}

impl Workspaces {
    /// Removes what dead processes left below `root`, and makes a directory for this one.
    ///
    /// # Errors
    /// When the host can't create directories there, or somebody else could too.
    pub fn new(root: &Path) -> Result<Self, WorkspaceError> {
        let claimed = ownership::make(root, &[]).and_then(|_| ProcessDir::claim(root));
        let home = claimed.map_err(|source| WorkspaceError {
            path: root.to_owned(),
            doing: "making a directory for this process",
            source,
        })?;
        let roots = [home.path().join("inputs"), home.path().join("outputs")];
        for root in &roots {
            std::fs::create_dir(root).map_err(|source| WorkspaceError {
                path: root.clone(),
                doing: "making it",
                source,
            })?;
        }
        let [inputs, outputs] = roots;
        let clean = Mutex::default();
        Ok(Self { pool: Arc::new(Pool { home, inputs, outputs, clean }) })
    }

    /// False when the directory of this process was removed, or its path leads elsewhere.
    pub fn is_there(&self) -> bool {
        self.pool.is_there()
    }

    /// The directory of this process, open.
    pub fn home_dir(&self) -> &OwnedFd {
        self.pool.home.dir()
    }

    /// Holds the inputs directories of all workspaces, and nothing else.
    pub fn inputs_root(&self) -> &Path {
        &self.pool.inputs
    }

    /// Holds the outputs directories of all workspaces, and their spare directories.
    pub fn outputs_root(&self) -> &Path {
        &self.pool.outputs
    }

    /// A workspace with two empty directories.
    ///
    /// # Errors
    /// When a new one is needed and can't be made.
    pub fn acquire(&self) -> Result<Workspace, WorkspaceError> {
        let clean = self.pool.clean.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let slot = match clean {
            Some(slot) => slot,
            None => Arc::new(self.pool.make()?),
        };
        let dir = |fd: &OwnedFd| {
            // cap-std lists through a description of its own, so a duplicate will do.
            fd.try_clone().map(|fd| Dir::from_std_file(fd.into()))
        };
        slot.spares.freshen();
        let (inputs, outputs) = match (dir(&slot.inputs), dir(&slot.outputs)) {
            (Ok(inputs), Ok(outputs)) => (inputs, outputs),
            (Err(source), _) | (_, Err(source)) => {
                let path = slot.outputs_path.clone();
                return Err(WorkspaceError { path, doing: "opening", source });
            }
        };
        Ok(Workspace { inputs, outputs, slot, pool: self.pool.clone() })
    }
}

impl Pool {
    fn is_there(&self) -> bool {
        let ours = fstat(self.home.dir());
        let found = rustix::fs::stat(self.home.path());
        matches!((ours, found), (Ok(ours), Ok(found))
            if (ours.st_dev, ours.st_ino) == (found.st_dev, found.st_ino))
    }

    fn make(&self) -> Result<Slot, WorkspaceError> {
        // ext4 picks the block group by the name.
        let name = uuid::Uuid::new_v4();
        let inputs_path = self.inputs.join(name.to_string());
        let outputs_path = self.outputs.join(name.to_string());
        // Beside the outputs, where the kernel's rules let a guest's thread move directories.
        let spares_path = self.outputs.join(format!("{name}.spares"));
        let make = || {
            std::fs::create_dir(&inputs_path)?;
            std::fs::create_dir(&outputs_path)?;
            let open = |path| dirs::open_dir(CWD, path);
            let spares = Arc::new(Spares::make(spares_path)?);
            Ok((open(&inputs_path)?, open(&outputs_path)?, spares))
        };
        match make() {
            Ok((inputs, outputs, spares)) => {
                Ok(Slot { inputs_path, outputs_path, inputs, outputs, spares })
            }
            Err(source) => Err(WorkspaceError {
                path: outputs_path.clone(),
                doing: "making a workspace",
                source,
            }),
        }
    }

    fn give_back(&self, slot: Arc<Slot>) {
        self.clean.lock().unwrap_or_else(PoisonError::into_inner).push(slot);
    }
}

impl Workspace {
    /// Handles on its directories, which have to be gone before it is recycled.
    ///
    /// # Errors
    /// When the process has too many files open.
    pub fn directories(&self) -> io::Result<Directories> {
        Ok(Directories {
            inputs: self.inputs.try_clone()?,
            outputs: self.outputs.try_clone()?,
            spares: self.spares().clone(),
        })
    }

    /// True when its directories were removed. `thoroughly`: also when they still are there,
    /// but not at the place where guests are kept to.
    pub fn was_removed(&self, thoroughly: bool) -> bool {
        let gone = |dir: &OwnedFd| fstat(dir).is_ok_and(|stat| stat.st_nlink == 0);
        gone(&self.slot.outputs) || (thoroughly && !self.pool.is_there())
    }

    /// Where [`Workspace::inputs`] is.
    pub fn inputs_path(&self) -> &Path {
        &self.slot.inputs_path
    }

    /// Where [`Workspace::outputs`] is.
    pub fn outputs_path(&self) -> &Path {
        &self.slot.outputs_path
    }

    /// Empty directories for whoever makes directories in this workspace.
    pub fn spares(&self) -> &Arc<Spares> {
        &self.slot.spares
    }

    /// Makes the directories on the way to some inputs. Where those of one directory follow each
    /// other, none is made twice. What fails here fails again, and is reported, when the input is
    /// placed.
    pub(crate) async fn make_parents(&self, inputs: &[&BucketKey]) {
        let mut turns = Turns::begin();
        let mut made = "";
        for input in inputs {
            let Some(parent) = input.parent().filter(|parent| *parent != made) else { continue };
            let pairs = made.bytes().zip(parent.bytes());
            let common = pairs.take_while(|(one, other)| one == other).count();
            for (end, _) in input.as_str().match_indices('/') {
                let is_made =
                    end <= common && matches!(made.as_bytes().get(end), None | Some(b'/'));
                if !is_made {
                    turns.pass().await;
                    let _ = self.slot.spares.make_at(&self.slot.inputs, &input.as_str()[..end]);
                }
            }
            made = parent;
        }
    }

    /// Empties both directories and keeps them for another task. A workspace that can't be
    /// emptied is abandoned: removed as far as it can be, and never used again.
    pub fn recycle(self) {}
}

impl Drop for Workspace {
    fn drop(&mut self) {
        let (slot, pool) = (self.slot.clone(), self.pool.clone());
        if !slot.empty(&pool, REMOVED_INLINE) {
            // Whoever drops a workspace may be a thread that others wait for.
            let spawned = std::thread::Builder::new()
                .name("empty-workspace".into())
                .spawn(move || slot.empty(&pool, u64::MAX));
            if let Err(error) = spawned {
                tracing::warn!(%error, "no thread to empty a workspace; it is left behind");
            }
        }
    }
}

impl Slot {
    /// Empties both directories and gives them back, or abandons them. False when that
    /// takes removing more than `budget` entries.
    fn empty(self: &Arc<Self>, pool: &Pool, budget: u64) -> bool {
        let mut worth_keeping = true;
        for dir in [&self.inputs, &self.outputs] {
            let mut spare = |at: BorrowedFd<'_>, name: &CStr| self.spares.keep(at, name);
            match emptying::empty(dir.as_fd(), budget, &mut spare) {
                Ok(removed) if removed <= REMOVED_INLINE => {}
                Ok(_) => {
                    let small = |stat: rustix::fs::Stat| stat.st_size <= LARGE_DIRECTORY;
                    worth_keeping &= fstat(dir).is_ok_and(small);
                }
                Err(Stopped::OverBudget) => return false,
                Err(Stopped::Failed(error)) => {
                    // With the work directory gone, there is nothing to be emptied.
                    if pool.home.is_there() {
                        tracing::warn!(
                            path = %self.outputs_path.display(), %error,
                            "a workspace could not be emptied and is not used again"
                        );
                    }
                    worth_keeping = false;
                }
            }
        }
        if worth_keeping {
            pool.give_back(self.clone());
        } else {
            self.spares.remove();
            for path in [&self.inputs_path, &self.outputs_path] {
                let _ = std::fs::remove_dir(path);
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait_until(mut done: impl FnMut() -> bool) {
        while !done() {
            std::thread::yield_now();
        }
    }

    fn clean(workspaces: &Workspaces) -> usize {
        workspaces.pool.clean.lock().unwrap().len()
    }

    #[test]
    fn nothing_of_one_task_is_there_for_the_next() {
        let root = tempfile::tempdir().unwrap();
        let workspaces = Workspaces::new(root.path()).unwrap();
        let first = workspaces.acquire().unwrap();
        let path = first.outputs_path().to_owned();
        first.inputs.write("input", "secret").unwrap();
        first.outputs.write("output", "secret").unwrap();
        first.outputs.write("é \u{202e}", "secret").unwrap();
        first.outputs.symlink("output", "link").unwrap();
        first.recycle();

        let second = workspaces.acquire().unwrap();
        assert_eq!(second.outputs_path(), path, "it is the same workspace again");
        assert_eq!(second.inputs.entries().unwrap().count(), 0);
        assert_eq!(second.outputs.entries().unwrap().count(), 0);
    }

    #[test]
    fn trees_and_crowds_are_emptied_without_holding_up_the_caller() {
        let root = tempfile::tempdir().unwrap();
        let workspaces = Workspaces::new(root.path()).unwrap();
        let used = workspaces.acquire().unwrap();
        used.outputs.create_dir_all("a/b/c/d").unwrap();
        used.outputs.write("a/b/c/d/file", "secret").unwrap();
        for i in 0..500 {
            used.inputs.write(format!("input-{i}"), "secret").unwrap();
        }
        drop(used);
        wait_until(|| clean(&workspaces) == 1);
        let next = workspaces.acquire().unwrap();
        assert_eq!(next.inputs.entries().unwrap().count(), 0);
        assert_eq!(next.outputs.entries().unwrap().count(), 0);
    }

    #[test]
    fn a_directory_that_has_grown_large_is_replaced() {
        let root = tempfile::tempdir().unwrap();
        let workspaces = Workspaces::new(root.path()).unwrap();
        let used = workspaces.acquire().unwrap();
        let path = used.slot.outputs_path.clone();
        for i in 0..3000 {
            used.outputs.write(format!("{i}-{}", "x".repeat(100)), "").unwrap();
        }
        // Some file systems give a directory no size; there it may be kept.
        let large = fstat(&used.slot.outputs).unwrap().st_size > LARGE_DIRECTORY;
        drop(used);
        wait_until(|| clean(&workspaces) == 1 || !path.exists());
        assert_eq!(path.exists(), !large);
    }

    #[test]
    fn a_directory_is_used_again_and_nothing_of_its_past_shows() {
        let root = tempfile::tempdir().unwrap();
        let workspaces = Workspaces::new(root.path()).unwrap();
        let first = workspaces.acquire().unwrap();
        let old = std::time::SystemTime::UNIX_EPOCH;
        let times = std::fs::FileTimes::new().set_modified(old).set_accessed(old);
        for name in ["secret", "of", "mine"] {
            first.spares().make_dir(&first.outputs, name).unwrap();
            first.outputs.write(format!("{name}/file"), "secret").unwrap();
            let mine = std::fs::File::open(first.outputs_path().join(name)).unwrap();
            mine.set_times(times).unwrap();
        }
        drop(first);
        assert_eq!(workspaces.pool.clean.lock().unwrap()[0].spares.ready(), 3);

        let second = workspaces.acquire().unwrap();
        let spares = second.spares().clone();
        for name in ["a", "b", "c", "d"] {
            spares.make_dir(&second.outputs, name).unwrap();
            assert_eq!(second.outputs.read_dir(name).unwrap().count(), 0);
            let modified = second.outputs.metadata(name).unwrap().modified().unwrap();
            assert!(modified.into_std().elapsed().unwrap().as_secs() < 3600);
        }
        assert_eq!(spares.ready(), 0, "the fourth was a fresh one");
        // As `mkdir` has it, and no way out.
        let kind = |name| spares.make_dir(&second.outputs, name).unwrap_err().kind();
        assert_eq!(kind("a"), io::ErrorKind::AlreadyExists);
        assert_eq!(kind("no/parent"), io::ErrorKind::NotFound);
        assert_eq!(kind("../../escaped"), io::ErrorKind::PermissionDenied);
        spares.make_dir(&second.outputs, "a/inner").unwrap();
        assert!(second.outputs.is_dir("a/inner"));
    }

    #[tokio::test]
    async fn the_directories_on_the_way_to_inputs_are_made() {
        let root = tempfile::tempdir().unwrap();
        let workspace = Workspaces::new(root.path()).unwrap().acquire().unwrap();
        let keys = ["a/b/c/1", "a/b/c/2", "a/b/d/3", "a/bc/4", "a-b/5", "a-b/c/6", "7"];
        let keys = keys.map(|key| BucketKey::new(key).unwrap());
        workspace.make_parents(&keys.iter().collect::<Vec<_>>()).await;
        for dir in ["a/b/c", "a/b/d", "a/bc", "a-b/c"] {
            assert!(workspace.inputs.is_dir(dir), "{dir}");
        }
        assert_eq!(workspace.inputs.entries().unwrap().count(), 2);
    }

    #[test]
    fn no_more_directories_are_kept_than_may_be_needed() {
        let root = tempfile::tempdir().unwrap();
        let workspaces = Workspaces::new(root.path()).unwrap();
        for _ in 0..5 {
            let used = workspaces.acquire().unwrap();
            for i in 0..40 {
                used.outputs.create_dir(i.to_string()).unwrap();
            }
            drop(used);
            assert!(workspaces.acquire().unwrap().spares().ready() <= 32);
        }
    }

    #[test]
    fn workspaces_in_use_at_once_are_different_ones() {
        let root = tempfile::tempdir().unwrap();
        let workspaces = Workspaces::new(root.path()).unwrap();
        let (a, b) = (workspaces.acquire().unwrap(), workspaces.acquire().unwrap());
        assert_ne!(a.inputs_path(), b.inputs_path());
        drop((a, b));
        assert_eq!(clean(&workspaces), 2);
    }

    #[test]
    fn the_process_directory_goes_with_its_last_workspace() {
        let root = tempfile::tempdir().unwrap();
        let workspaces = Workspaces::new(root.path()).unwrap();
        let home = workspaces.pool.home.path().to_owned();
        let used = workspaces.acquire().unwrap();
        used.outputs.write("output", "").unwrap();
        drop(workspaces);
        assert!(home.exists());
        drop(used);
        assert!(!home.exists());
    }
}
