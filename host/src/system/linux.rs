//! System calls on Linux.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::fs::{
    Advice, AtFlags, CWD, FileType, MemfdFlags, Mode, OFlags, RawDir, SeekFrom, Stat, StatxFlags,
    fadvise, ioctl_ficlone, makedev, memfd_create, openat, seek, statat, statx, syncfs,
};
use rustix::io::Errno;
use rustix::path::Arg;
use rustix::time::{ClockId, clock_gettime};
use socket2::SockRef;
use tokio::io::unix::AsyncFd;

use super::{Identity, duration};

/// The flag for reading a file without changing its access time. Only the file's owner may use it.
pub const IS_NO_USE: OFlags = OFlags::NOATIME;

/// The device and inode of a file.
pub fn place(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

/// The kind and permissions of a file.
pub fn mode(stat: &Stat) -> u32 {
    stat.st_mode
}

/// The time of a file's last read, in seconds and nanoseconds since 1970.
pub fn used(stat: &Stat) -> (i64, u64) {
    (stat.st_atime, stat.st_atime_nsec)
}

/// The time of a file's last write, in seconds and nanoseconds since 1970.
pub fn modified(stat: &Stat) -> (i64, u64) {
    (stat.st_mtime, stat.st_mtime_nsec)
}

/// Whether an error means that the structure of the file system is damaged.
pub fn is_damage(errno: Errno) -> bool {
    errno == Errno::UCLEAN
}

/// The identity of the file or directory at `path` relative to `dir`, or of `dir` if the path is
/// empty.
pub fn identify(dir: impl AsFd, path: &Path) -> Result<Identity, Errno> {
    let is_dir = path.as_os_str().is_empty();
    let flags = if is_dir { AtFlags::EMPTY_PATH } else { AtFlags::empty() };
    match statx(dir.as_fd(), path, flags, StatxFlags::INO | StatxFlags::MNT_ID) {
        Ok(stat) => Ok(Identity {
            device: makedev(stat.stx_dev_major, stat.stx_dev_minor),
            inode: stat.stx_ino,
            mount: stat.stx_mnt_id,
        }),
        Err(Errno::NOSYS) => {
            let (device, inode) = place(&statat(dir, path, flags)?);
            Ok(Identity { device, inode, mount: 0 })
        }
        Err(error) => Err(error),
    }
}

/// The number of the mount that a path leads to.
pub fn mount_of(path: &Path) -> Option<u64> {
    Some(statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID).ok()?.stx_mnt_id)
}

/// Makes `to` a copy of `from` that shares its blocks.
///
/// # Errors
/// When the file system does not support shared blocks.
pub fn share_blocks(to: &File, from: &File) -> Result<(), Errno> {
    ioctl_ficlone(to, from)
}

/// Asks the system to read an open file into the page cache.
pub fn read_ahead(file: &File) {
    let _ = fadvise(file, 0, None, Advice::WillNeed);
}

/// Syncs the file system of a directory to the disk.
pub fn sync_file_system(dir: impl AsFd) -> Result<(), Errno> {
    syncfs(dir)
}

/// A new file without a name, for writing.
///
/// # Errors
/// `OPNOTSUPP`, `ISDIR`, `NOENT` or `INVAL` when the file system does not support such files.
pub fn open_unnamed(dir: impl AsFd, path: impl Arg) -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::TMPFILE | OFlags::CLOEXEC;
    openat(dir, path, flags, Mode::RUSR | Mode::WUSR)
}

/// A new file in memory, and a path at which this process and the processes that it starts can open
/// it.
pub fn file_in_memory(name: &str) -> io::Result<(File, PathBuf)> {
    let file = File::from(memfd_create(name, MemfdFlags::empty())?);
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    Ok((file, path))
}

/// Sets how long a connection lasts while its other end does not confirm sent data.
///
/// # Errors
/// The system's error.
pub fn limit_silence(socket: &SockRef<'_>, time: Duration) -> io::Result<()> {
    socket.set_tcp_user_timeout(Some(time))
}

/// Whether an error means that the file system does not support a call or an option of the call.
pub fn is_unsupported(errno: Errno) -> bool {
    matches!(errno, Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP)
}

/// A path that leads to this program, even after its file was replaced.
pub fn this_program() -> PathBuf {
    PathBuf::from("/proc/self/exe")
}

/// How long the machine has been suspended since it booted.
pub fn suspended() -> Duration {
    let since_boot = |clock| {
        let now = clock_gettime(clock);
        duration(now.tv_sec, now.tv_nsec)
    };
    // In this order, so that the difference is never too small.
    let awake = since_boot(ClockId::Monotonic);
    since_boot(ClockId::Boottime).saturating_sub(awake)
}

/// The memory of the machine in bytes, from the files below `root`.
pub fn memory(root: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = total.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib.saturating_mul(1 << 10))
}

/// Calls `each` for every entry of a directory from its start, including `.` and `..`.
///
/// Moves the position of `dir`, so `dir` must not share its open file description.
pub fn for_each_entry<E: From<Errno>>(
    dir: BorrowedFd<'_>,
    mut each: impl FnMut(&CStr, FileType) -> Result<(), E>,
) -> Result<(), E> {
    // Has room for at least one name of the maximum length. Most directories fit.
    let mut buffer = [MaybeUninit::uninit(); 4096];
    seek(dir, SeekFrom::Start(0))?;
    let mut entries = RawDir::new(dir, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        each(entry.file_name(), entry.file_type())?;
    }
    Ok(())
}

/// A listing of a directory that reads one piece at a time.
#[derive(Debug)]
pub struct Pieces {
    dir: OwnedFd,
    buffer: Vec<MaybeUninit<u8>>,
}

impl Pieces {
    /// The size of a piece in bytes: room for about 4,000 names.
    const SIZE: usize = 256 * 1024;

    /// Begins at the position of `dir`, which must not share its open file description.
    pub fn of(dir: OwnedFd) -> Result<Self, Errno> {
        Ok(Self { dir, buffer: vec![MaybeUninit::uninit(); Self::SIZE] })
    }

    /// Calls `each` with the directory and each entry of the next piece. Returns whether there may
    /// be more entries.
    pub fn next(
        &mut self,
        mut each: impl FnMut(BorrowedFd<'_>, &CStr, FileType),
    ) -> Result<bool, Errno> {
        let mut raw = RawDir::new(&self.dir, &mut self.buffer);
        while let Some(entry) = raw.next() {
            let entry = entry?;
            each(self.dir.as_fd(), entry.file_name(), entry.file_type());
            // Another call of `next` would read the next piece.
            if raw.is_buffer_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Events after which a directory must be listed.
const INCOMPLETE: ReadFlags = ReadFlags::QUEUE_OVERFLOW
    .union(ReadFlags::IGNORED)
    .union(ReadFlags::DELETE_SELF)
    .union(ReadFlags::MOVE_SELF);

/// Notifications about new files in a directory (inotify).
#[derive(Debug)]
pub struct Watch(AsyncFd<OwnedFd>);

impl Watch {
    /// Begins to watch a directory. Must be called in a Tokio runtime.
    pub fn begin(dir: &Path) -> Result<Self, Errno> {
        let fd = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let flags = WatchFlags::MOVED_TO
            | WatchFlags::CREATE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        inotify::add_watch(&fd, dir, flags)?;
        // SAFETY: an `OwnedFd` stays the same open descriptor while it exists, and `Watch` never
        // replaces it.
        let fd = unsafe { AsyncFd::register(fd) }.map_err(|_| Errno::IO)?;
        Ok(Self(fd))
    }

    /// Waits until there are events to [`read`](Watch::read).
    pub async fn changed(&self) {
        if self.0.readable().await.is_err() {
            // The runtime is shutting down. The caller has a timer too.
            std::future::pending::<()>().await;
        }
    }

    /// Reads the events, and calls `each` with the name of each new file. Returns `false` if
    /// events were lost or the directory was removed or moved.
    pub fn read(&self, mut each: impl FnMut(&str)) -> bool {
        let mut complete = true;
        let mut buffer = [MaybeUninit::uninit(); 16 * 1024];
        let _ = self.0.try_io(tokio::io::Interest::READABLE, |fd| {
            let mut events = inotify::Reader::new(fd, &mut buffer);
            loop {
                match events.next() {
                    Ok(event) if event.events().intersects(INCOMPLETE) => complete = false,
                    Ok(event) if event.events().contains(ReadFlags::ISDIR) => {}
                    Ok(event) => {
                        if let Some(Ok(name)) = event.file_name().map(CStr::to_str) {
                            each(name);
                        }
                    }
                    Err(Errno::INTR) => {}
                    // There are no more events. The error makes `changed` wait again.
                    Err(errno) => return Err::<(), _>(errno.into()),
                }
            }
        });
        complete
    }
}
