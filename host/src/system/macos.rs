//! System calls on macOS.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, Stat, fcntl_fullfsync, fstat, openat, statat, unlinkat,
};
use rustix::io::Errno;
use rustix::path::Arg;
use socket2::{SockRef, TcpKeepalive};

use super::{Identity, duration};

/// The flag for reading a file without changing its access time. macOS has no such flag.
pub const IS_NO_USE: OFlags = OFlags::empty();

/// The device and inode of a file.
pub fn place(stat: &Stat) -> (u64, u64) {
    (u64::from(stat.st_dev.cast_unsigned()), stat.st_ino)
}

/// The kind and permissions of a file.
pub fn mode(stat: &Stat) -> u32 {
    u32::from(stat.st_mode)
}

/// The time of a file's last read, in seconds and nanoseconds since 1970.
pub fn used(stat: &Stat) -> (i64, u64) {
    (stat.st_atime, u64::try_from(stat.st_atime_nsec).unwrap_or_default())
}

/// The time of a file's last write, in seconds and nanoseconds since 1970.
pub fn modified(stat: &Stat) -> (i64, u64) {
    (stat.st_mtime, u64::try_from(stat.st_mtime_nsec).unwrap_or_default())
}

/// Whether an error means that the structure of the file system is damaged. macOS has no such
/// error.
pub fn is_damage(_errno: Errno) -> bool {
    false
}

/// The identity of the file or directory at `path` relative to `dir`, or of `dir` if the path is
/// empty.
pub fn identify(dir: impl AsFd, path: &Path) -> Result<Identity, Errno> {
    let stat = match path.as_os_str().is_empty() {
        true => fstat(dir)?,
        false => statat(dir, path, AtFlags::empty())?,
    };
    let (device, inode) = place(&stat);
    Ok(Identity { device, inode, mount: 0 })
}

/// The number of the mount that a path leads to. macOS has no such numbers.
pub fn mount_of(_path: &Path) -> Option<u64> {
    None
}

/// Makes `to` a copy of `from` that shares its blocks. macOS supports this only if the copy does
/// not exist yet.
///
/// # Errors
/// Always.
pub fn share_blocks(_to: &File, _from: &File) -> Result<(), Errno> {
    Err(Errno::NOTSUP)
}

/// Asks the system to read an open file into the page cache. Does nothing on macOS.
pub fn read_ahead(_file: &File) {}

/// Syncs the file system of a directory to the disk.
pub fn sync_file_system(dir: impl AsFd) -> Result<(), Errno> {
    // `sync` starts to write all files. `fcntl_fullfsync` waits until the disk has written them.
    rustix::fs::sync();
    fcntl_fullfsync(dir)
}

/// A new file without a name, for writing. The file is created with a name and removed at once.
///
/// # Errors
/// The system's error, if the file can't be created.
pub fn open_unnamed(dir: impl AsFd, path: impl Arg) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = openat(dir, path, flags, Mode::empty())?;
    let name = format!(".task-host-{}", uuid::Uuid::new_v4());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = openat(&dir, &*name, flags, Mode::RUSR | Mode::WUSR)?;
    unlinkat(&dir, &*name, AtFlags::empty())?;
    Ok(file)
}

/// A new file in memory. macOS has no such files.
pub fn file_in_memory(_name: &str) -> io::Result<(File, PathBuf)> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Makes the system close a connection whose other end has not answered for `time`. macOS probes only
/// connections on which no data is under way.
///
/// # Errors
/// The system's error.
pub fn limit_silence(socket: &SockRef<'_>, time: Duration) -> io::Result<()> {
    // Half of the time without data, and then three probes in the other half.
    let (idle, between) = (time / 2, (time / 6).max(Duration::from_secs(1)));
    let probes = TcpKeepalive::new().with_time(idle).with_interval(between).with_retries(3);
    socket.set_tcp_keepalive(&probes)
}

/// Whether an error means that the file system does not support a call or an option of the call.
pub fn is_unsupported(errno: Errno) -> bool {
    matches!(errno, Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::NOTSUP)
}

/// A path that leads to this program.
pub fn this_program() -> PathBuf {
    std::env::current_exe().unwrap_or_else(|_| PathBuf::from("host"))
}

/// How long the machine has been suspended since it booted.
pub fn suspended() -> Duration {
    let since_boot = |clock| {
        let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the call writes only to `now`.
        unsafe { libc::clock_gettime(clock, &raw mut now) };
        duration(now.tv_sec, now.tv_nsec)
    };
    // In this order, so that the difference is never too small.
    let awake = since_boot(libc::CLOCK_UPTIME_RAW);
    since_boot(libc::CLOCK_MONOTONIC_RAW).saturating_sub(awake)
}

/// The memory of the machine in bytes.
pub fn memory(_root: &Path) -> Option<u64> {
    let mut bytes = 0_u64;
    let mut size = size_of::<u64>();
    // SAFETY: the name ends with a zero, and the call writes at most `size` bytes to `bytes`.
    let failed = unsafe {
        libc::sysctlbyname(
            c"hw.memsize".as_ptr(),
            (&raw mut bytes).cast(),
            &raw mut size,
            std::ptr::null_mut(),
            0,
        )
    };
    (failed == 0).then_some(bytes)
}

/// Calls `each` for every entry of a directory, including `.` and `..`.
pub fn for_each_entry<E: From<Errno>>(
    dir: BorrowedFd<'_>,
    mut each: impl FnMut(&CStr, FileType) -> Result<(), E>,
) -> Result<(), E> {
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        each(entry.file_name(), entry.file_type())?;
    }
    Ok(())
}

/// A listing of a directory that reads one piece at a time.
#[derive(Debug)]
pub struct Pieces(Dir);

impl Pieces {
    /// The size of a piece in entries.
    const SIZE: usize = 4000;

    /// Begins at the start of `dir`.
    pub fn of(dir: OwnedFd) -> Result<Self, Errno> {
        Ok(Self(Dir::new(dir)?))
    }

    /// Calls `each` with the directory and each entry of the next piece. Returns whether there may
    /// be more entries.
    pub fn next(
        &mut self,
        mut each: impl FnMut(BorrowedFd<'_>, &CStr, FileType),
    ) -> Result<bool, Errno> {
        for _ in 0..Self::SIZE {
            let Some(entry) = self.0.next() else { return Ok(false) };
            let entry = entry?;
            each(self.0.fd()?, entry.file_name(), entry.file_type());
        }
        Ok(true)
    }
}

/// Notifications about new files in a directory. They are not implemented on macOS, so callers list
/// the directory.
#[derive(Debug)]
pub struct Watch;

impl Watch {
    /// Always fails with `NOSYS`.
    pub fn begin(_dir: &Path) -> Result<Self, Errno> {
        Err(Errno::NOSYS)
    }

    /// Waits forever.
    pub async fn changed(&self) {
        std::future::pending().await
    }

    /// Reads nothing.
    pub fn read(&self, _each: impl FnMut(&str)) -> bool {
        false
    }
}
