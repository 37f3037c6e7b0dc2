//! macOS.

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

/// For reading a file without a record that it was used, which macOS has not.
pub const IS_NO_USE: OFlags = OFlags::empty();

/// Device and inode of a file.
pub fn place(stat: &Stat) -> (u64, u64) {
    (u64::from(stat.st_dev.cast_unsigned()), stat.st_ino)
}

/// The kind of a file, and its permissions.
pub fn mode(stat: &Stat) -> u32 {
    u32::from(stat.st_mode)
}

/// When a file was last read: seconds and nanoseconds since 1970.
pub fn used(stat: &Stat) -> (i64, u64) {
    (stat.st_atime, u64::try_from(stat.st_atime_nsec).unwrap_or_default())
}

/// When a file was last written: seconds and nanoseconds since 1970.
pub fn modified(stat: &Stat) -> (i64, u64) {
    (stat.st_mtime, u64::try_from(stat.st_mtime_nsec).unwrap_or_default())
}

/// macOS reports a damaged file system by no error of its own.
pub fn is_damage(_errno: Errno) -> bool {
    false
}

/// The identity of what `path` leads to from `dir`; of `dir` itself if the path is empty.
pub fn identify(dir: impl AsFd, path: &Path) -> Result<Identity, Errno> {
    let stat = match path.as_os_str().is_empty() {
        true => fstat(dir)?,
        false => statat(dir, path, AtFlags::empty())?,
    };
    let (device, inode) = place(&stat);
    Ok(Identity { device, inode, mount: 0 })
}

/// macOS has no numbers of mounts.
pub fn mount_of(_path: &Path) -> Option<u64> {
    None
}

/// Makes `to` a copy of `from` that shares its blocks. macOS does that only for a file that does not
/// exist yet.
///
/// # Errors
/// Always.
pub fn share_blocks(_to: &File, _from: &File) -> Result<(), Errno> {
    Err(Errno::NOTSUP)
}

/// Asks the system to read an open file into memory. macOS reads ahead by itself.
pub fn read_ahead(_file: &File) {}

/// Writes to the disk all that was written to the file system of a directory.
pub fn sync_file_system(dir: impl AsFd) -> Result<(), Errno> {
    // Begins to write all files; the other call waits until the disk has written them.
    rustix::fs::sync();
    fcntl_fullfsync(dir)
}

/// A new file without a name, for writing: it is removed at once.
///
/// # Errors
/// The system's, if the file can't be made.
pub fn open_unnamed(dir: impl AsFd, path: impl Arg) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = openat(dir, path, flags, Mode::empty())?;
    let name = format!(".task-host-{}", uuid::Uuid::new_v4());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = openat(&dir, &*name, flags, Mode::RUSR | Mode::WUSR)?;
    unlinkat(&dir, &*name, AtFlags::empty())?;
    Ok(file)
}

/// A new file in memory, which macOS has not.
pub fn file_in_memory(_name: &str) -> io::Result<(File, PathBuf)> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Ends a connection whose other end does not answer for so long.
///
/// # Errors
/// The system's.
pub fn limit_silence(socket: &SockRef<'_>, time: Duration) -> io::Result<()> {
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(time))
}

/// True for the error of a file system that has no such call, or no such kind of it.
pub fn is_unsupported(errno: Errno) -> bool {
    matches!(errno, Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::NOTSUP)
}

/// A path that leads to this program.
pub fn this_program() -> PathBuf {
    std::env::current_exe().unwrap_or_else(|_| PathBuf::from("host"))
}

/// How long the machine has been asleep since it booted.
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

/// Calls `each` for every entry of a directory, also for `.` and `..`.
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

/// A listing of a directory that reads one piece after the other.
#[derive(Debug)]
pub struct Pieces(Dir);

impl Pieces {
    /// The size of a piece in entries.
    const SIZE: usize = 4000;

    /// Begins at the start of `dir`.
    pub fn of(dir: OwnedFd) -> Result<Self, Errno> {
        Ok(Self(Dir::new(dir)?))
    }

    /// Calls `each` for every entry of the next piece, and with the directory. Returns whether there may be more.
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

/// Notifications about new files in a directory, of which there are none: who waits for a file
/// lists the directory.
#[derive(Debug)]
pub struct Watch;

impl Watch {
    /// Always `NOSYS`.
    pub fn begin(_dir: &Path) -> Result<Self, Errno> {
        Err(Errno::NOSYS)
    }

    /// Waits for ever.
    pub async fn changed(&self) {
        std::future::pending().await
    }

    /// Reads nothing.
    pub fn read(&self, _each: impl FnMut(&str)) -> bool {
        false
    }
}
