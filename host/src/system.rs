//! The differences between Linux and macOS.
//!
//! Workers run on Linux. macOS is supported for writing, trying and sending tasks. There, the
//! kernel confines nothing, and the host finds new messages of a directory by listing it.

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

/// A time that the system gives as seconds and nanoseconds. A negative time becomes zero.
pub fn duration(seconds: i64, nanos: impl TryInto<u32>) -> Duration {
    let nanos = nanos.try_into().unwrap_or_default();
    Duration::new(u64::try_from(seconds).unwrap_or_default(), nanos)
}

/// The system's identity of a directory. Reliable only while the directory is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The number of its file system.
    pub device: u64,
    pub inode: u64,
    /// The number of the mount that leads to the directory. Zero if the system does not report it.
    pub mount: u64,
}

impl Identity {
    /// The identity of the directory that `path` leads to.
    ///
    /// # Errors
    /// The system's error.
    pub fn of(path: &Path) -> Result<Self, Errno> {
        identify(CWD, path)
    }

    /// The identity of an open directory.
    ///
    /// # Errors
    /// The system's error.
    pub fn of_open(dir: impl AsFd) -> Result<Self, Errno> {
        identify(dir, Path::new(""))
    }

    /// Whether a file can be renamed from one directory to the other.
    pub fn shares_mount_with(self, other: Self) -> bool {
        (self.device, self.mount) == (other.device, other.mount)
    }
}
