//! The file that a put takes: found without following a link, and a regular file.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use cap_std::fs::Dir;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, fstat, openat, statat};
use rustix::io::Errno;

use crate::dirs::open_dir;
use crate::key::BucketKey;

/// A file that was left in a directory by somebody who isn't trusted.
#[derive(Debug)]
pub(super) struct Outgoing<'a> {
    top: BorrowedFd<'a>,
    parent: Option<OwnedFd>,
    name: &'a OsStr,
    /// Its length in bytes.
    pub(super) size: u64,
    /// The file system that it is in.
    pub(super) device: u64,
}

/// Why a file can't be put.
#[derive(Debug)]
pub(super) enum Refused {
    /// It is a link or anything else that is not a file of its own; what it is instead.
    Not(&'static str),
    /// The file system failed.
    Failed(io::Error),
}

impl From<Errno> for Refused {
    fn from(error: Errno) -> Self {
        Self::Failed(error.into())
    }
}

impl<'a> Outgoing<'a> {
    /// Finds `file` in `dir`.
    pub(super) fn find(dir: &'a Dir, file: &'a BucketKey) -> Result<Self, Refused> {
        let mut segments = file.as_str().split('/');
        let name = segments.next_back().unwrap_or_default();
        let mut parent: Option<OwnedFd> = None;
        for segment in segments {
            let at = parent.as_ref().map_or(dir.as_fd(), AsFd::as_fd);
            parent = Some(match open_dir(at, segment) {
                Err(Errno::LOOP | Errno::NOTDIR) => {
                    return Err(Refused::Not("a file in a directory: there is a link on its way"));
                }
                other => other?,
            });
        }
        let (top, name) = (dir.as_fd(), OsStr::new(name));
        let at = parent.as_ref().map_or(top, AsFd::as_fd);
        let stat = statat(at, name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(Self { top, parent, name, size: check(&stat)?, device: stat.st_dev })
    }

    /// The directory it is in.
    pub(super) fn parent(&self) -> BorrowedFd<'_> {
        self.parent.as_ref().map_or(self.top, AsFd::as_fd)
    }

    /// Its name there.
    pub(super) fn name(&self) -> &OsStr {
        self.name
    }

    /// Opens it for reading, and checks what was opened.
    pub(super) fn open(&self) -> Result<File, Refused> {
        // Neither waits for the other end of a FIFO nor becomes a controlling terminal.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        let fd = openat(self.parent(), self.name, flags | OFlags::CLOEXEC, Mode::empty())?;
        check(&fstat(&fd)?)?;
        Ok(File::from(fd))
    }
}

fn check(stat: &Stat) -> Result<u64, Refused> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile if stat.st_nlink == 1 => {
            u64::try_from(stat.st_size).map_err(|_| Refused::Not("a file with a size"))
        }
        FileType::RegularFile => Err(Refused::Not("a file of its own: it has a second name")),
        FileType::Directory => Err(Refused::Not("a file but a directory")),
        FileType::Symlink => Err(Refused::Not("a file but a link")),
        _ => Err(Refused::Not("a regular file")),
    }
}
