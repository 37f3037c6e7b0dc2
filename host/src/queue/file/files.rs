//! Operations on single files and directories.
//!
//! Anyone with write access to the queue directory can put anything into it. Therefore no function
//! here follows a link or waits for another process, and reads have a limit.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::{self, Errno};
use rustix::path::Arg;

use crate::system::{duration, modified};

/// Permissions before the umask, the same as Python's, so that a group can share a queue.
pub(super) const FILE: Mode = Mode::from_raw_mode(0o666);
const DIRECTORY: Mode = Mode::from_raw_mode(0o777);

/// The size of the first read in bytes. Most files of a queue are smaller and need no second read.
pub(super) const FIRST_READ: usize = 8192;

/// Opens a directory. The path may contain links.
pub(super) fn directory(at: impl AsFd, path: impl Arg) -> Result<OwnedFd, Errno> {
    open_directory(at, path, OFlags::empty())
}

/// Opens a directory that must not be a link. A user who can write to the queue could make a link
/// lead anywhere.
pub(super) fn directory_no_link(at: impl AsFd, path: impl Arg) -> Result<OwnedFd, Errno> {
    open_directory(at, path, OFlags::NOFOLLOW)
}

fn open_directory(at: impl AsFd, path: impl Arg, more: OFlags) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | more;
    io::retry_on_intr(|| fs::openat(&at, path.as_cow_c_str()?.as_ref(), flags, Mode::empty()))
}

/// Opens a file. Returns `None` for a link or a socket, a directory to be written, or a pipe to be
/// only written. Other pipes and directories are opened; they are detected when [`read`] fails with
/// [`is_not_a_file`].
pub(super) fn open(at: &OwnedFd, name: &str, flags: OFlags) -> Result<Option<OwnedFd>, Errno> {
    const CAREFUL: OFlags =
        OFlags::CLOEXEC.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);
    match io::retry_on_intr(|| fs::openat(at, name, flags | CAREFUL, FILE)) {
        Ok(file) => Ok(Some(file)),
        Err(Errno::LOOP | Errno::NXIO | Errno::NODEV | Errno::ISDIR) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Opens a regular file. Returns `None` for anything else.
pub(super) fn open_regular(
    at: &OwnedFd,
    name: &str,
    flags: OFlags,
) -> Result<Option<OwnedFd>, Errno> {
    let Some(file) = open(at, name, flags)? else { return Ok(None) };
    let is_regular = is_regular(&fs::fstat(&file)?);
    Ok(is_regular.then_some(file))
}

/// Whether a failed read means that the open file is a pipe or a directory.
pub(super) fn is_not_a_file(errno: Errno) -> bool {
    matches!(errno, Errno::SPIPE | Errno::ISDIR)
}

pub(super) fn is_regular(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

/// Whether an entry is a regular file, and not a directory, a link, a pipe or a socket.
pub(super) fn is_regular_at(dir: impl AsFd, name: impl Arg) -> bool {
    fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| is_regular(&stat))
}

/// The size of a file in bytes.
pub(super) fn size(stat: &Stat) -> usize {
    usize::try_from(stat.st_size).unwrap_or_default()
}

/// The time of the last write to a file, since 1970.
pub(super) fn written(stat: &Stat) -> Duration {
    let (seconds, nanos) = modified(stat);
    duration(seconds, nanos)
}

/// Creates a directory unless it exists.
pub(super) fn make_directory(at: impl AsFd, path: &str) -> Result<(), Errno> {
    match fs::mkdirat(at, path, DIRECTORY) {
        Err(Errno::EXIST) => Ok(()),
        other => other,
    }
}

/// Removes a file unless it is already gone.
pub(super) fn remove(at: impl AsFd, name: &str) -> Result<(), Errno> {
    match fs::unlinkat(at, name, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// Writes all bytes.
pub(super) fn write_all(fd: &OwnedFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match io::retry_on_intr(|| io::write(fd, bytes))? {
            0 => return Err(Errno::NOSPC),
            n => bytes = &bytes[n..],
        }
    }
    Ok(())
}

/// Reads at most `most` bytes from the start of a file.
pub(super) fn read(fd: &OwnedFd, most: usize) -> Result<Vec<u8>, Errno> {
    read_from(fd, 0, most)
}

/// Reads up to `most` bytes at `start`. A short read of a regular file means its end, so most files
/// take one call.
fn read_from(fd: &OwnedFd, start: usize, most: usize) -> Result<Vec<u8>, Errno> {
    let mut small = [MaybeUninit::<u8>::uninit(); FIRST_READ];
    let room = most.min(small.len());
    let (read, rest) = io::pread(fd, &mut small[..room], start as u64)?;
    let mut bytes = read.to_vec();
    let mut is_over = !rest.is_empty();
    while !is_over && bytes.len() < most {
        bytes.reserve(bytes.len().max(64 * 1024).min(most - bytes.len()));
        let room = bytes.capacity() - bytes.len();
        let at = (start + bytes.len()) as u64;
        let into = rustix::buffer::spare_capacity(&mut bytes);
        is_over = io::pread(fd, into, at)? < room;
    }
    bytes.truncate(most);
    Ok(bytes)
}

/// Reads the last complete lines of a file, up to `most` bytes. Also returns the number of bytes
/// before them.
pub(super) fn read_last_lines(fd: &OwnedFd, most: usize) -> Result<(usize, Vec<u8>), Errno> {
    let bytes = read(fd, most)?;
    if bytes.len() < most {
        return Ok((0, bytes));
    }
    let mut skipped = size(&fs::fstat(fd)?).saturating_sub(most);
    let mut bytes = read_from(fd, skipped, most)?;
    if skipped > 0 {
        // The first line may be incomplete.
        let first = bytes.iter().position(|&b| b == b'\n').map_or(bytes.len(), |end| end + 1);
        bytes.drain(..first);
        skipped += first;
    }
    Ok((skipped, bytes))
}
