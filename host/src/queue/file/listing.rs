//! Listing a directory in pieces, so that memory does not grow with the queue.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use rustix::fs::{FileType, RawDir};
use rustix::io::Errno;

use super::files::{directory, is_regular_at};
use super::name::Name;

/// The size of a piece in bytes: room for about 4,000 names.
const PIECE: usize = 256 * 1024;

/// A listing under way.
#[derive(Debug)]
pub(super) struct Listing {
    dir: OwnedFd,
    buffer: Vec<MaybeUninit<u8>>,
}

impl Listing {
    pub(super) fn of(dir: &OwnedFd) -> Result<Listing, Errno> {
        Ok(Listing {
            // Opened again, for a position of its own.
            dir: directory(dir, ".")?,
            buffer: vec![MaybeUninit::uninit(); PIECE],
        })
    }

    /// Reads the next piece. Calls `each` with every entry, and with its name as a message if it
    /// is one. Returns whether there may be more.
    pub(super) fn piece(
        &mut self,
        mut each: impl FnMut(&str, Option<Name>),
    ) -> Result<bool, Errno> {
        let mut raw = RawDir::new(&self.dir, &mut self.buffer);
        while let Some(entry) = raw.next() {
            let entry = entry?;
            let is_file = || match entry.file_type() {
                // Some file systems don't tell the type of an entry.
                FileType::Unknown => is_regular_at(&self.dir, entry.file_name()),
                known => known == FileType::RegularFile,
            };
            match entry.file_name().to_str() {
                Ok("." | "..") => {}
                Ok(text) => each(text, Name::parse(text).filter(|_| is_file())),
                Err(_) => each(&entry.file_name().to_string_lossy(), None),
            }
            // Another call of `next` would read the next piece.
            if raw.is_buffer_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
