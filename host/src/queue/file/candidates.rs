//! Finding messages that may be leased, without listing the directory for each.
//!
//! A listing is read a piece at a time, across calls, and what was found in it is handed
//! out before the next piece is read. So a lease costs the same however long the queue is,
//! and so does the memory.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::fs::{self, AtFlags, FileType, RawDir};
use rustix::io::Errno;

use super::dirs::{Dirs, directory};
use super::name::Name;

/// Room for the piece of a listing that is read at a time: some 4,000 names.
const PIECE: usize = 256 * 1024;
/// Messages to be tried again are remembered up to this many; the next listing has the rest.
const AGAIN: usize = 4096;
/// Between two tries of messages that somebody is just writing or moving, for every so many.
const RETRY: (Duration, u32) = (Duration::from_millis(50), 64);
/// The first and the longest time between two listings that find nothing.
const IDLE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// A listing of a directory under way.
#[derive(Debug)]
pub(super) struct Listing {
    dir: OwnedFd,
    buffer: Vec<MaybeUninit<u8>>,
}

impl Listing {
    pub(super) fn of(dir: &OwnedFd) -> Result<Listing, Errno> {
        Ok(Listing {
            // A new description of the directory, with a position of its own.
            dir: directory(dir, ".")?,
            buffer: vec![MaybeUninit::uninit(); PIECE],
        })
    }

    /// Reads the next piece. `None` for a name is a file that is no message. Returns whether
    /// there may be more.
    pub(super) fn piece(
        &mut self,
        mut each: impl FnMut(&str, Option<Name>),
    ) -> Result<bool, Errno> {
        let mut raw = RawDir::new(&self.dir, &mut self.buffer);
        while let Some(entry) = raw.next() {
            let entry = entry?;
            let is_file = || match entry.file_type() {
                // Some file systems don't say what an entry is.
                FileType::Unknown => is_file(&self.dir, entry.file_name()),
                known => known == FileType::RegularFile,
            };
            match entry.file_name().to_str() {
                Ok("." | "..") => {}
                Ok(text) => each(text, Name::parse(text).filter(|_| is_file())),
                Err(_) => each(&entry.file_name().to_string_lossy(), None),
            }
            // Asking on would ask the kernel for the next piece.
            if raw.is_buffer_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Whether it is a file, and neither a directory nor a link, a pipe or a socket.
pub(super) fn is_file(dir: &OwnedFd, name: impl rustix::path::Arg) -> bool {
    fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile)
}

/// Where the names of messages to lease come from. Shared by all who lease.
#[derive(Debug)]
pub(super) struct Candidates {
    /// Names that were due when they were seen, in no order.
    ready: Vec<Name>,
    listing: Option<Listing>,
    /// Listings begun and ended since the queue was opened.
    begun: u64,
    ended: u64,
    /// The earliest second at which a message becomes due, as this listing saw it.
    next_due: Option<u64>,
    /// Messages that somebody is just writing or moving, and since when they have been seen.
    again: HashMap<Name, Instant>,
    idle: Duration,
    said_foreign: bool,
}

impl Default for Candidates {
    fn default() -> Candidates {
        Candidates {
            ready: Vec::new(),
            listing: None,
            begun: 0,
            ended: 0,
            next_due: None,
            again: HashMap::new(),
            idle: IDLE.0,
            said_foreign: false,
        }
    }
}

impl Candidates {
    /// The number of the next listing to begin: when it has ended, everything that is in the
    /// queue now has been seen.
    pub(super) fn next_listing(&self) -> u64 {
        self.begun + 1
    }

    pub(super) fn has_ended(&self, listing: u64) -> bool {
        self.ended >= listing
    }

    pub(super) fn next(&mut self) -> Option<Name> {
        self.ready.pop()
    }

    pub(super) fn has_more(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Reads the next piece of the listing, or the first of a new one.
    pub(super) fn refill(&mut self, dirs: &Dirs, now: u64) -> Result<(), Errno> {
        let mut listing = match self.listing.take() {
            Some(listing) => listing,
            None => {
                self.begun += 1;
                self.next_due = None;
                Listing::of(&dirs.queue)?
            }
        };
        let more = listing.piece(|text, name| match name {
            Some(name) => self.saw(name, now),
            None => self.saw_foreign(dirs, text),
        })?;
        if more {
            self.listing = Some(listing);
        } else {
            self.ended = self.begun;
        }
        // Hosts that read the same listing would otherwise run after the same names.
        fastrand::shuffle(&mut self.ready);
        Ok(())
    }

    /// Takes note of a message that is in the queue.
    pub(super) fn saw(&mut self, name: Name, now: u64) {
        let due = name.due();
        if due <= now {
            self.ready.push(name);
        } else if self.next_due.is_none_or(|next| due < next) {
            self.next_due = Some(due);
        }
    }

    /// Says that there is a file that is not a message, once.
    pub(super) fn saw_foreign(&mut self, dirs: &Dirs, text: &str) {
        if !self.said_foreign {
            self.said_foreign = true;
            tracing::warn!(
                queue = dirs.url,
                file = text,
                "a file in queue/ is not a message and is ignored, as will be others like it; \
                 the Python client can't work on a queue with such a file"
            );
        }
    }

    /// A message can't be leased just now.
    pub(super) fn try_again(&mut self, name: Name) {
        if self.again.len() < AGAIN {
            self.again.entry(name).or_insert_with(Instant::now);
        }
    }

    /// For how long a message has been one to try again.
    pub(super) fn tried_for(&self, name: &Name) -> Duration {
        self.again.get(name).map(Instant::elapsed).unwrap_or_default()
    }

    /// A message was leased, or is gone.
    pub(super) fn settled(&mut self, name: &Name) {
        if !self.again.is_empty() {
            self.again.remove(name);
        }
    }

    /// Hands out the messages that could not be leased before.
    pub(super) fn retry(&mut self) {
        self.ready.extend(self.again.keys().cloned());
    }

    /// How long to wait before that. Somebody may hold on to the locks of many messages: they
    /// are tried no more often together than a few.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        let (pause, of) = RETRY;
        let count = u32::try_from(self.again.len()).unwrap_or(u32::MAX);
        (count > 0).then(|| pause * count.div_ceil(of))
    }

    /// The second at which the next message becomes due, as far as is known.
    pub(super) fn next_due(&self) -> Option<u64> {
        self.next_due
    }

    /// Something was found: look again soon when there is nothing any more.
    pub(super) fn found(&mut self) {
        self.idle = IDLE.0;
    }

    /// Nothing was found: how long to wait before the next listing.
    pub(super) fn pause(&mut self) -> Duration {
        let pause = self.idle.mul_f64(0.5 + fastrand::f64() / 2.0);
        self.idle = (self.idle * 2).min(IDLE.1);
        pause
    }
}
