//! The directories of a file queue, held open.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{self, CWD, OFlags};
use rustix::io::Errno;

use super::error::{self, invalid};
use super::files::{self, directory, directory_no_link, make_directory};
use crate::queue::QueueError;
use crate::system::place;

/// The directory in `host/` for entries found in the place of one of the queue's files, and for
/// messages that are too long.
pub(super) const REFUSED: &str = "refused";

/// The directories of one queue. Opening a file relative to an open directory is cheap, and never
/// leaves this queue, even if the path changes.
#[derive(Debug)]
pub(super) struct Dirs {
    /// The queue's URL, as the user wrote it.
    pub(super) url: String,
    pub(super) path: PathBuf,
    /// Whether the file system sends written data to its server only after the call has returned.
    pub(super) remote: bool,
    pub(super) root: OwnedFd,
    pub(super) queue: OwnedFd,
    pub(super) movement: OwnedFd,
    /// The identities of the three directories, in the order of [`PARTS`].
    ids: [DirId; 3],
}

/// The directories that every queue has, relative to the queue directory.
const PARTS: [&str; 3] = ["", "queue", "movement"];

/// Device and inode of a directory.
type DirId = (u64, u64);

impl Dirs {
    /// Opens the queue at `path`, and creates it if it does not exist.
    pub(super) fn create(url: &str, path: &Path) -> Result<Dirs, QueueError> {
        let made = std::fs::create_dir_all(path)
            .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))
            .and_then(|()| {
                let root = directory(CWD, path)?;
                make_directory(&root, "queue")?;
                make_directory(&root, "movement")
            });
        match made {
            Ok(()) => Dirs::existing(url, path),
            Err(errno) => {
                let problem =
                    format!("can't create a queue in {path:?}: {}", error::at(path, errno));
                Err(invalid(url, problem))
            }
        }
    }

    /// Opens the queue at `path`, which must exist. Changes nothing.
    pub(super) fn existing(url: &str, path: &Path) -> Result<Dirs, QueueError> {
        Dirs::open(url, path).map_err(|(path, errno)| match errno {
            Errno::NOENT | Errno::NOTDIR => {
                let is_link = if path.is_symlink() {
                    "is a link, which the host does not follow"
                } else {
                    "is not a directory"
                };
                let problem = format!(
                    "there is no queue here: {path:?} {is_link}; `host submit` and `host run` \
                     create a queue"
                );
                invalid(url, problem)
            }
            errno => invalid(url, format!("can't open {path:?}: {}", error::at(&path, errno))),
        })
    }

    /// Opens the directories that the path leads to now. Creates none, because the path may be a
    /// mount point whose file system is not mounted.
    pub(super) fn reopen(&self) -> Result<Dirs, QueueError> {
        Dirs::open(&self.url, &self.path).map_err(|(path, errno)| self.away(&path, errno))
    }

    fn open(url: &str, path: &Path) -> Result<Dirs, (PathBuf, Errno)> {
        // Make the path absolute: the working directory may change before the queue is opened
        // again.
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let part = |name: &str| {
            let path = part(&path, name);
            let open = || {
                // The user chose the path and may use links in it. Others can write below it.
                let dir = match name.is_empty() {
                    true => directory(CWD, &path),
                    false => directory_no_link(CWD, &path),
                }?;
                let id = id(&fs::fstat(&dir)?);
                Ok((dir, id))
            };
            open().map_err(|errno| (path.clone(), errno))
        };
        let [root, queue, movement] = PARTS;
        let ((root, a), (queue, b), (movement, c)) = (part(root)?, part(queue)?, part(movement)?);
        Ok(Dirs {
            remote: fs::fstatfs(&root).is_ok_and(|stat| is_remote(stat.f_type as u64)),
            root,
            queue,
            movement,
            ids: [a, b, c],
            path,
            url: url.to_owned(),
        })
    }

    /// Whether the path still leads to these directories. Fails if one does not exist.
    pub(super) fn are_in_place(&self) -> Result<bool, QueueError> {
        let mut same = true;
        for (is, name) in self.ids.iter().zip(PARTS) {
            let path = part(&self.path, name);
            match rustix::io::retry_on_intr(|| fs::stat(&path)) {
                Ok(stat) => same &= *is == id(&stat),
                Err(errno) => return Err(self.away(&path, errno)),
            }
        }
        Ok(same)
    }

    /// Whether both have the same directories, opened at different times.
    pub(super) fn are_those_of(&self, other: &Dirs) -> bool {
        self.ids == other.ids
    }

    fn away(&self, path: &Path, errno: Errno) -> QueueError {
        self.failed(format!("opening {path:?}"), errno)
    }

    /// Opens `host/NAME`, and creates it if it does not exist.
    pub(super) fn host(&self, name: &str) -> Result<OwnedFd, Errno> {
        let opened = |at: &OwnedFd, name: &str| match directory_no_link(at, name) {
            Err(Errno::NOENT) => {
                make_directory(at, name)?;
                directory_no_link(at, name)
            }
            other => other,
        };
        opened(&opened(&self.root, "host")?, name)
    }

    /// Opens `host/NAME` if it exists.
    pub(super) fn host_if_any(&self, name: &str) -> Result<Option<OwnedFd>, Errno> {
        let host = directory_no_link(&self.root, "host");
        match host.and_then(|host| directory_no_link(&host, name)) {
            Err(Errno::NOENT) => Ok(None),
            other => other.map(Some),
        }
    }

    /// Creates `host/NAME` if it does not exist, and returns its path. Fails if the path leads to
    /// another directory, so that nothing is created below an empty mount point.
    pub(super) fn host_path(&self, name: &str) -> Result<PathBuf, Errno> {
        let here = fs::fstat(self.host(name)?)?;
        let path = self.path.join("host").join(name);
        if id(&fs::stat(&path)?) == id(&here) { Ok(path) } else { Err(Errno::NOENT) }
    }

    /// Opens a regular file of the queue. An entry of another kind is moved to [`REFUSED`].
    pub(super) fn file(&self, at: &OwnedFd, name: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        self.replacing(at, name, || files::open_regular(at, name, flags))
    }

    /// Repeats `attempt` until it finds a file, and moves away entries that are not files.
    pub(super) fn replacing<T>(
        &self,
        at: &OwnedFd,
        name: &str,
        attempt: impl Fn() -> Result<Option<T>, Errno>,
    ) -> Result<T, Errno> {
        for _ in 0..3 {
            if let Some(found) = attempt()? {
                return Ok(found);
            }
            self.set_aside(at, name)?;
        }
        // Another program keeps putting the entry back.
        Err(Errno::AGAIN)
    }

    /// Removes a file of the queue unless it is already gone. A directory is moved to
    /// [`REFUSED`].
    pub(super) fn remove(&self, at: &OwnedFd, name: &str) -> Result<(), Errno> {
        match files::remove(at, name) {
            Err(Errno::ISDIR) => self.set_aside(at, name),
            other => other,
        }
    }

    /// Moves an entry that is not a file to [`REFUSED`]. If two hosts do this at the same time, the
    /// second may move the file that the first has created since. That loses counts, but the
    /// program that put the entry there could have changed the counts too.
    fn set_aside(&self, at: &OwnedFd, name: &str) -> Result<(), Errno> {
        let kept = uuid::Uuid::new_v4().to_string();
        match fs::renameat(at, name, &self.host(REFUSED)?, &*kept) {
            Ok(()) => {
                tracing::warn!(
                    queue = self.url,
                    "{name:?} is a link, a pipe or a directory where the queue needs a file; \
                     moved it to host/{REFUSED}/{kept}"
                );
                Ok(())
            }
            Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    pub(super) fn failed(&self, doing: impl Into<String>, errno: Errno) -> QueueError {
        QueueError::Unavailable {
            queue: self.url.clone(),
            doing: doing.into(),
            source: error::at(&self.path, errno),
        }
    }

    pub(super) fn lost(&self, id: &str) -> QueueError {
        QueueError::LeaseLost { queue: self.url.clone(), id: id.to_owned() }
    }
}

fn part(path: &Path, name: &str) -> PathBuf {
    if name.is_empty() { path.to_owned() } else { path.join(name) }
}

pub(super) fn id(stat: &fs::Stat) -> DirId {
    place(stat)
}

/// Whether a file system's type, as statfs(2) returns it, is a network or user-space one.
fn is_remote(magic: u64) -> bool {
    const NFS: u64 = 0x6969;
    const SMB: u64 = 0x517B;
    const CIFS: u64 = 0xFF53_4D42;
    const SMB2: u64 = 0xFE53_4D42;
    const AFS: u64 = 0x5346_414F;
    const CEPH: u64 = 0x00C3_6400;
    const LUSTRE: u64 = 0x0BD0_0BD0;
    const GPFS: u64 = 0x4750_4653;
    const FUSE: u64 = 0x6573_5546;
    const NINE_P: u64 = 0x0102_1997;
    // Some kernels sign-extend the 32 bits.
    let magic = magic & 0xFFFF_FFFF;
    [NFS, SMB, CIFS, SMB2, AFS, CEPH, LUSTRE, GPFS, FUSE, NINE_P].contains(&magic)
}
