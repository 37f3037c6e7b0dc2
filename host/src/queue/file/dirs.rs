//! The directories of a file queue, held open, and what is said when they fail.

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{self, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::queue::QueueError;

/// The directory, in `host/`, for what stood where a file of the queue should, and for messages
/// that are too long.
pub(super) const REFUSED: &str = "refused";

/// Permissions before the umask, as Python has them: a queue may be shared by a group.
pub(super) const FILE: Mode = Mode::from_raw_mode(0o666);
const DIRECTORY: Mode = Mode::from_raw_mode(0o777);

/// The directories of one queue. What is named relative to an open directory costs no walk
/// from the root, and stays in this queue whatever happens to the path.
#[derive(Debug)]
pub(super) struct Dirs {
    /// What the user calls the queue.
    pub(super) url: String,
    pub(super) path: PathBuf,
    /// Whether it is on a file system that writes to its server some time after the call.
    pub(super) remote: bool,
    pub(super) root: OwnedFd,
    pub(super) queue: OwnedFd,
    pub(super) movement: OwnedFd,
    /// What the three are, in the order of [`PARTS`].
    ids: [Id; 3],
}

/// The directories that make a queue, below its own.
const PARTS: [&str; 3] = ["", "queue", "movement"];

/// The device and the inode: which directory a path leads to.
type Id = (u64, u64);

impl Dirs {
    /// Opens the queue at `path`, and makes it there if there is none.
    pub(super) fn create(url: &str, path: &Path) -> Result<Dirs, QueueError> {
        let made = std::fs::create_dir_all(path)
            .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))
            .and_then(|()| {
                let root = directory(CWD, path)?;
                make(&root, "queue")?;
                make(&root, "movement")
            });
        match made {
            Ok(()) => Dirs::existing(url, path),
            // A place that can only be read may still be a queue that can only be looked at.
            Err(errno) => {
                Err(invalid(url, format!("can't make a queue in {path:?}: {}", FileError(errno))))
            }
        }
    }

    /// Opens the queue at `path`, which must exist. Changes nothing.
    pub(super) fn existing(url: &str, path: &Path) -> Result<Dirs, QueueError> {
        Dirs::open(url, path).map_err(|(path, errno)| match errno {
            Errno::NOENT | Errno::NOTDIR => invalid(
                url,
                format!(
                    "there is no queue in this place: {path:?} is not a directory{}; \
                     `host submit` and `host run` make a queue where there is none",
                    if path.is_symlink() { ", but a link, which is not followed" } else { "" }
                ),
            ),
            errno => invalid(url, format!("can't open {path:?}: {}", FileError(errno))),
        })
    }

    /// Opens again what is at the path now. What is missing there is not made: it may be an
    /// empty mount point.
    pub(super) fn again(&self) -> Result<Dirs, QueueError> {
        Dirs::open(&self.url, &self.path).map_err(|(path, errno)| self.away(&path, errno))
    }

    fn open(url: &str, path: &Path) -> Result<Dirs, (PathBuf, Errno)> {
        // The working directory may be another one when the queue is opened again.
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let part = |name: &str| {
            let path = part(&path, name);
            let open = || {
                // The path may have links; what is in the directory is not only its owner's.
                let dir =
                    if name.is_empty() { directory(CWD, &path) } else { part_of(CWD, &path) }?;
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

    /// Whether the path still leads to these directories. Fails if it leads to none.
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

    /// Whether two are the same directories, opened at different times.
    pub(super) fn are_those_of(&self, other: &Dirs) -> bool {
        self.ids == other.ids
    }

    fn away(&self, path: &Path, errno: Errno) -> QueueError {
        self.failed(format!("opening {path:?}"), errno)
    }

    /// Opens `host/NAME`, the directories that only we know of, and makes them if need be.
    pub(super) fn host(&self, name: &str) -> Result<OwnedFd, Errno> {
        let opened = |at: &OwnedFd, name: &str| match part_of(at, name) {
            Err(Errno::NOENT) => {
                make(at, name)?;
                part_of(at, name)
            }
            other => other,
        };
        opened(&opened(&self.root, "host")?, name)
    }

    /// Opens `host/NAME` if it is there.
    pub(super) fn host_if_any(&self, name: &str) -> Result<Option<OwnedFd>, Errno> {
        match part_of(&self.root, "host").and_then(|host| part_of(&host, name)) {
            Err(Errno::NOENT) => Ok(None),
            other => other.map(Some),
        }
    }

    /// Opens a file of the queue. What stands in its place and is not a file, such as a link, a
    /// pipe or a directory, is put into [`REFUSED`], which is said.
    pub(super) fn file(
        &self,
        at: &OwnedFd,
        name: &str,
        flags: OFlags,
    ) -> Result<(OwnedFd, Stat), Errno> {
        for _ in 0..3 {
            if let Some(opened) = open_file(at, name, flags)? {
                return Ok(opened);
            }
            self.set_aside(at, name)?;
        }
        // Somebody goes on putting it there.
        Err(Errno::AGAIN)
    }

    /// Removes a file of the queue unless it is gone already. A directory is put into
    /// [`REFUSED`].
    pub(super) fn remove(&self, at: &OwnedFd, name: &str) -> Result<(), Errno> {
        match remove(at, name) {
            Err(Errno::ISDIR) => self.set_aside(at, name),
            other => other,
        }
    }

    /// Puts what is no file of the queue where nobody trips over it. Two hosts may do it at
    /// once, and the second then takes away the file that the first has made: what is lost are
    /// counts, which whoever stood it there could have changed as well.
    fn set_aside(&self, at: &OwnedFd, name: &str) -> Result<(), Errno> {
        let kept = uuid::Uuid::new_v4().to_string();
        match fs::renameat(at, name, &self.host(REFUSED)?, &*kept) {
            Ok(()) => {
                tracing::warn!(
                    queue = self.url,
                    "{name:?} was where a file of the queue should be, and is none (a link, a \
                     pipe, a directory); it is now host/{REFUSED}/{kept}"
                );
                Ok(())
            }
            Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// Makes `host/NAME` if need be, and returns its path. Fails if the path leads elsewhere,
    /// so that nothing is made below an empty mount point.
    pub(super) fn host_path(&self, name: &str) -> Result<PathBuf, Errno> {
        let here = fs::fstat(self.host(name)?)?;
        let path = self.path.join("host").join(name);
        if id(&fs::stat(&path)?) == id(&here) { Ok(path) } else { Err(Errno::NOENT) }
    }

    pub(super) fn failed(&self, doing: impl Into<String>, errno: Errno) -> QueueError {
        QueueError::Unavailable {
            queue: self.url.clone(),
            doing: doing.into(),
            source: Box::new(FileError(errno)),
        }
    }

    pub(super) fn lost(&self, id: &str) -> QueueError {
        QueueError::LeaseLost { queue: self.url.clone(), id: id.to_owned() }
    }
}

fn part(path: &Path, name: &str) -> PathBuf {
    if name.is_empty() { path.to_owned() } else { path.join(name) }
}

pub(super) fn id(stat: &fs::Stat) -> Id {
    (stat.st_dev, stat.st_ino)
}

/// Whether a file system of this type, as statfs(2) has it, is somewhere else.
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

pub(super) fn invalid(url: &str, problem: impl Into<String>) -> QueueError {
    QueueError::Invalid { queue: url.to_owned(), problem: problem.into() }
}

/// Opens a directory.
pub(super) fn directory(
    at: impl std::os::fd::AsFd,
    path: impl rustix::path::Arg,
) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::io::retry_on_intr(|| {
        fs::openat(&at, path.as_cow_c_str()?.as_ref(), flags, Mode::empty())
    })
}

/// Opens a directory, and no link to one: whoever may write to the queue could make it lead to
/// anything.
fn part_of(at: impl std::os::fd::AsFd, path: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::io::retry_on_intr(|| {
        fs::openat(&at, path.as_cow_c_str()?.as_ref(), flags, Mode::empty())
    })
}

/// Opens a regular file, waiting for nobody. `None` for anything else: a link is not followed,
/// and a pipe has no other end.
pub(super) fn open_file(
    at: &OwnedFd,
    name: &str,
    flags: OFlags,
) -> Result<Option<(OwnedFd, Stat)>, Errno> {
    const CAREFUL: OFlags =
        OFlags::CLOEXEC.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);
    match rustix::io::retry_on_intr(|| fs::openat(at, name, flags | CAREFUL, FILE)) {
        Ok(file) => {
            let stat = fs::fstat(&file)?;
            let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
            Ok(is_file.then_some((file, stat)))
        }
        Err(Errno::LOOP | Errno::NXIO | Errno::NODEV | Errno::ISDIR) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// The size of a file, in bytes.
pub(super) fn size(stat: &Stat) -> usize {
    usize::try_from(stat.st_size).unwrap_or_default()
}

/// Makes a directory unless it is there.
pub(super) fn make(at: impl std::os::fd::AsFd, path: &str) -> Result<(), Errno> {
    match fs::mkdirat(at, path, DIRECTORY) {
        Err(Errno::EXIST) => Ok(()),
        other => other,
    }
}

/// Removes a file unless it is gone already.
pub(super) fn remove(at: impl std::os::fd::AsFd, name: &str) -> Result<(), Errno> {
    match fs::unlinkat(at, name, fs::AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// Writes all of it.
pub(super) fn write_all(fd: &OwnedFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::retry_on_intr(|| rustix::io::write(fd, bytes))? {
            0 => return Err(Errno::NOSPC),
            n => bytes = &bytes[n..],
        }
    }
    Ok(())
}

/// Reads a file from where it stands to its end, but no more than `most` bytes. A short read of
/// a regular file is its end, so most files take one call.
pub(super) fn read(fd: &OwnedFd, most: usize) -> Result<Vec<u8>, Errno> {
    let mut small = [std::mem::MaybeUninit::<u8>::uninit(); 8192];
    let room = most.min(small.len());
    let (read, rest) = rustix::io::read(fd, &mut small[..room])?;
    let mut bytes = read.to_vec();
    let mut is_over = !rest.is_empty();
    while !is_over && bytes.len() < most {
        bytes.reserve(bytes.len().max(64 * 1024).min(most - bytes.len()));
        let room = bytes.capacity() - bytes.len();
        let into = rustix::buffer::spare_capacity(&mut bytes);
        is_over = rustix::io::read(fd, into)? < room;
    }
    bytes.truncate(most);
    Ok(bytes)
}

/// Reads the lines of a file: all, or as many of the last as have `most` bytes. Returns how many
/// bytes come before them.
pub(super) fn read_lines(fd: &OwnedFd, most: usize) -> Result<(usize, Vec<u8>), Errno> {
    let bytes = read(fd, most)?;
    if bytes.len() < most {
        return Ok((0, bytes));
    }
    let mut skipped = size(&fs::fstat(fd)?).saturating_sub(most);
    fs::seek(fd, fs::SeekFrom::Start(skipped as u64))?;
    let mut bytes = read(fd, most)?;
    if skipped > 0 {
        // The first may have lost its beginning.
        let first = bytes.iter().position(|&b| b == b'\n').map_or(bytes.len(), |end| end + 1);
        bytes.drain(..first);
        skipped += first;
    }
    Ok((skipped, bytes))
}

/// An error of the file system, and what to do about it.
#[derive(Debug)]
pub(super) struct FileError(pub(super) Errno);

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hint = match self.0 {
            Errno::NOSPC | Errno::DQUOT => "make room on the file system of the queue",
            Errno::ACCESS | Errno::PERM => {
                "this user needs to read and write all of the queue's directory"
            }
            Errno::ROFS => "the file system is mounted read-only, and every lease is a write",
            Errno::NOTDIR => "a part of the path is a file, or a link in the queue's directory",
            Errno::NOENT => {
                "the queue's directory was removed, moved or unmounted, in whole or in part: put \
                 it back, or let `host submit` make a new queue there"
            }
            Errno::STALE => "the network file system has lost the directory: mount it again",
            Errno::NOTCONN => "the program that serves the file system has ended: mount it again",
            Errno::IO => "the disk or the way to it fails: see the kernel's log",
            Errno::NOLCK | Errno::NOSYS | Errno::OPNOTSUPP => {
                "the file system must have POSIX record locks (Lustre: mount with `flock`)"
            }
            Errno::MFILE | Errno::NFILE => "too many files are open: raise `ulimit -n`",
            Errno::NAMETOOLONG => "use a shorter path",
            _ => return write!(f, "{}", self.0),
        };
        write!(f, "{} ({hint})", self.0)
    }
}

impl std::error::Error for FileError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}
