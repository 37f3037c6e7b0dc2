//! Listing a directory in pieces, so that memory does not grow with the queue.

use std::os::fd::OwnedFd;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::files::{directory, is_regular_at};
use super::name::Name;
use crate::system::Pieces;

/// A listing under way.
#[derive(Debug)]
pub(super) struct Listing(Pieces);

impl Listing {
    pub(super) fn of(dir: &OwnedFd) -> Result<Listing, Errno> {
        // Opened again, for a position of its own.
        Ok(Listing(Pieces::of(directory(dir, ".")?)?))
    }

    /// Reads the next piece. Calls `each` with every entry, and with its name as a message if it
    /// is one. Returns whether there may be more.
    pub(super) fn piece(
        &mut self,
        mut each: impl FnMut(&str, Option<Name>),
    ) -> Result<bool, Errno> {
        self.0.next(|dir, name, kind| {
            let is_file = || match kind {
                // Some file systems don't tell the type of an entry.
                FileType::Unknown => is_regular_at(dir, name),
                known => known == FileType::RegularFile,
            };
            match name.to_str() {
                Ok("." | "..") => {}
                Ok(text) => each(text, Name::parse(text).filter(|_| is_file())),
                Err(_) => each(&name.to_string_lossy(), None),
            }
        })
    }
}
