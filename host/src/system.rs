//! What Linux and macOS do differently.
//!
//! Workers run on Linux. On macOS, people write tasks, try them and send them: nothing there is
//! confined by the kernel, and new messages of a directory are found by listing it.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "macos")]
mod macos;

use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::CWD;
use rustix::io::Errno;

#[cfg(target_os = "linux")]
pub use linux::*;
#[cfg(target_os = "macos")]
pub use macos::*;

/// A time that the system gives as seconds and nanoseconds. One before zero is zero.
pub fn duration(seconds: i64, nanos: impl TryInto<u32>) -> Duration {
    let nanos = nanos.try_into().unwrap_or_default();
    Duration::new(u64::try_from(seconds).unwrap_or_default(), nanos)
}

/// A directory as the system knows it. Reliable only while the directory is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The number of its file system.
    pub device: u64,
    pub inode: u64,
    /// The number of the mount that leads to it. Zero where the system does not say.
    pub mount: u64,
}

impl Identity {
    /// Of the directory that `path` leads to.
    ///
    /// # Errors
    /// The system's.
    pub fn of(path: &Path) -> Result<Self, Errno> {
        identify(CWD, path)
    }

    /// Of an open directory.
    ///
    /// # Errors
    /// The system's.
    pub fn of_open(dir: impl AsFd) -> Result<Self, Errno> {
        identify(dir, Path::new(""))
    }

    /// True when a file can be renamed from one directory to the other.
    pub fn shares_mount_with(self, other: Self) -> bool {
        (self.device, self.mount) == (other.device, other.mount)
    }
}
