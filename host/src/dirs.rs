//! Opening and listing directories without following links.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, openat};
use rustix::io::Errno;

use crate::system::for_each_entry;

/// Opens a directory. Fails for a symbolic link.
pub(crate) fn open_dir(at: impl AsFd, path: impl rustix::path::Arg) -> rustix::io::Result<OwnedFd> {
    openat(
        at,
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// Calls `each` for every entry except `.` and `..`, from the start of the directory.
///
/// `dir` must not share its open file description, because reading moves its position.
pub(crate) fn for_each<E: From<Errno>>(
    dir: BorrowedFd<'_>,
    mut each: impl FnMut(&CStr, FileType) -> Result<(), E>,
) -> Result<(), E> {
    for_each_entry(dir, |name, kind| match name == c"." || name == c".." {
        true => Ok(()),
        false => each(name, kind),
    })
}
