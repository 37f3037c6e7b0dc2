//! Lists a directory in pieces, so that memory does not grow with the queue.

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
        // Open the directory again, so that the listing has its own position.
        Ok(Listing(Pieces::of(directory(dir, ".")?)?))
    }

    /// Reads the next piece. Calls `each` with every entry, and with the parsed name if the entry
    /// is a message. Returns whether there may be more.
    pub(super) fn piece(
        &mut self,
        mut each: impl FnMut(&str, Option<Name>),
    ) -> Result<bool, Errno> {
        self.0.next(|dir, name, kind| {
            let is_file = || match kind {
                // Some file systems don't report the type of an entry.
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
