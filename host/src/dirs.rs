//! Opening and listing directories without following links.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, openat};
use rustix::io::Errno;

use crate::system::for_each_entry;

/// Opens a directory. A link is an error.
pub(crate) fn open_dir(at: impl AsFd, path: impl rustix::path::Arg) -> rustix::io::Result<OwnedFd> {
    openat(
        at,
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// Calls `each` for every entry but `.` and `..`, from the start of the directory.
///
/// `dir` needs an open file description of its own, because its position moves.
pub(crate) fn for_each<E: From<Errno>>(
    dir: BorrowedFd<'_>,
    mut each: impl FnMut(&CStr, FileType) -> Result<(), E>,
) -> Result<(), E> {
    for_each_entry(dir, |name, kind| match name == c"." || name == c".." {
        true => Ok(()),
        false => each(name, kind),
    })
}
