//! The names of messages that may be leased, found without a directory listing for each lease.
//!
//! A listing is read in pieces, across calls. All names of a piece are handed out before the next
//! piece is read, so the time and memory of a lease do not depend on the length of the queue.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use rustix::io::Errno;

use super::dirs::Dirs;
use super::listing::Listing;
use super::name::Name;

/// The maximum number of busy messages that are remembered. The next listing finds the others
/// again.
const MOST_BUSY: usize = 4096;
/// The pause before busy messages are tried again, for each group of messages of this size.
const RETRY: (Duration, u32) = (Duration::from_millis(50), 64);
/// The pauses between listings that find nothing: up to 50 ms at first, and up to 5 s later. The
/// jitter adds up to the base pause again.
const IDLE: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(25))
    .with_max_delay(Duration::from_millis(2500))
    .with_factor(2.0)
    .without_max_times()
    .with_jitter();

/// The names of messages to lease. All callers of one queue share them.
#[derive(Debug)]
pub(super) struct Candidates {
    /// Names that were due when they were seen, in random order.
    ready: Vec<Name>,
    listing: Option<Listing>,
    /// The numbers of listings begun and ended since the queue was opened.
    begun: u64,
    ended: u64,
    /// The earliest second at which a leased or delayed message becomes due, as far as this
    /// listing has seen.
    next_due: Option<u64>,
    /// Messages that another process is writing or moving, and when that was first seen.
    busy: HashMap<Name, Instant>,
    idle: ExponentialBackoff,
    has_warned: bool,
}

impl Default for Candidates {
    fn default() -> Candidates {
        Candidates {
            ready: Vec::new(),
            listing: None,
            begun: 0,
            ended: 0,
            next_due: None,
            busy: HashMap::new(),
            idle: IDLE.build(),
            has_warned: false,
        }
    }
}

impl Candidates {
    /// The number of the next listing to begin. When that listing has ended, it has seen every
    /// message that is in the queue now.
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

    /// Reads the next piece of the listing, or the first piece of a new one.
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
        // Shuffle, so that hosts that read the same listing do not compete for the same names.
        fastrand::shuffle(&mut self.ready);
        Ok(())
    }

    /// Records a message that is in the queue.
    pub(super) fn saw(&mut self, name: Name, now: u64) {
        let due = name.due();
        if due <= now {
            self.ready.push(name);
        } else if self.next_due.is_none_or(|next| due < next) {
            self.next_due = Some(due);
        }
    }

    /// Warns once that the queue contains an entry that is not a message.
    pub(super) fn saw_foreign(&mut self, dirs: &Dirs, text: &str) {
        if !self.has_warned {
            self.has_warned = true;
            tracing::warn!(
                queue = dirs.url,
                file = text,
                "ignoring an entry in queue/ that is not a message, and others like it; the \
                 Python client fails on a queue with such an entry"
            );
        }
    }

    /// Records a message that cannot be leased at the moment.
    pub(super) fn saw_busy(&mut self, name: Name) {
        if self.busy.len() < MOST_BUSY {
            self.busy.entry(name).or_insert_with(Instant::now);
        }
    }

    /// How long a message has been busy.
    pub(super) fn busy_for(&self, name: &Name) -> Duration {
        self.busy.get(name).map(Instant::elapsed).unwrap_or_default()
    }

    /// Forgets a message that was leased or is gone.
    pub(super) fn forget(&mut self, name: &Name) {
        if !self.busy.is_empty() {
            self.busy.remove(name);
        }
    }

    /// Hands out the busy messages again.
    pub(super) fn retry_busy(&mut self) {
        self.ready.extend(self.busy.keys().cloned());
    }

    /// How long to wait before [`Candidates::retry_busy`]. The time grows with the number of busy
    /// messages, which limits the attempts per second.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        let (pause, of) = RETRY;
        let count = u32::try_from(self.busy.len()).unwrap_or(u32::MAX);
        (count > 0).then(|| pause * count.div_ceil(of))
    }

    /// The second at which the next message becomes due, if known.
    pub(super) fn next_due(&self) -> Option<u64> {
        self.next_due
    }

    /// Records that a message was leased. The next pause is short again.
    pub(super) fn found(&mut self) {
        self.idle = IDLE.build();
    }

    /// How long to wait before the next listing, after a listing that found nothing.
    pub(super) fn pause(&mut self) -> Duration {
        self.idle.next().unwrap_or(Duration::from_secs(5))
    }
}
