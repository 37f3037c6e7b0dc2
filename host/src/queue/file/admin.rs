//! Operations to inspect and repair a queue.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};
use rustix::fs::{self, OFlags};
use rustix::io::Errno;

use super::body::Body;
use super::clock::{self, Clock};
use super::dirs::Dirs;
use super::files;
use super::listing::Listing;
use super::lock_wait::pauses;
use super::movement::{Movement, Opened};
use super::name::Name;
use super::{body, counters, leftovers};
use crate::queue::{self, Counts, Facts, Listed, QueueError};

/// How long to wait for the lock of a movement file or a counter.
const PATIENCE: Duration = Duration::from_secs(10);

/// A file queue for its operator. Opening it changes nothing. The methods block.
#[derive(Debug)]
pub struct Admin {
    dirs: Dirs,
}

impl Admin {
    /// Opens the queue in the directory `path`, which must exist.
    pub fn open(url: &str, path: &Path) -> Result<Admin, QueueError> {
        Dirs::existing(url, path).map(|dirs| Admin { dirs })
    }

    /// Counts the messages, as `ptq status` does.
    pub fn counts(&self) -> Result<Counts, QueueError> {
        // Reading the file system's clock would create a file.
        counters::counts(&self.dirs, clock::of_host())
    }

    /// Returns all messages in any order. Only a few are in memory at a time. A message that is
    /// sent, leased or deleted meanwhile may be missing, or appear twice.
    pub fn messages(&self) -> Result<Messages<'_>, QueueError> {
        MessageNames::begin(&self.dirs).map(|names| Messages { names })
    }

    /// Ends all leases and delays, so that every message can be leased at once. Workers lose their
    /// leases. Returns the number of messages.
    pub fn release_all(&self) -> Result<u64, QueueError> {
        let now = Clock::default().now(&self.dirs).as_secs();
        let mut released = 0;
        let mut names = MessageNames::begin(&self.dirs)?;
        while let Some(name) = names.next()? {
            if name.due() > now {
                let failed =
                    |errno| self.dirs.failed(format!("releasing message {}", name.id()), errno);
                released += u64::from(self.release(&name, &name.at(now)).map_err(failed)?);
            }
        }
        Ok(released)
    }

    fn release(&self, name: &Name, to: &Name) -> Result<bool, Errno> {
        let open = || match Movement::open_or_create(&self.dirs, name.id())? {
            Opened::Locked(opened) => Ok(Some(opened)),
            Opened::Busy | Opened::Missing => Ok(None),
        };
        let (movement, history) = patiently(open)?;
        let is_new = history.is_empty();
        let line = to.line();
        movement.append(&line)?;
        match fs::renameat(&self.dirs.queue, name.as_str(), &self.dirs.queue, to.as_str()) {
            Ok(()) => Ok(true),
            Err(errno) => {
                movement.take_back(line.len());
                if is_new {
                    // The message was deleted, so it needs no movement file.
                    self.dirs.remove(&self.dirs.movement, name.id())?;
                }
                if errno == Errno::NOENT { Ok(false) } else { Err(errno) }
            }
        }
    }

    /// Sets the counters of sent and completed messages to zero.
    pub fn rezero(&self) -> Result<(), QueueError> {
        patiently(|| Ok(counters::rezero(&self.dirs)?.then_some(())))
            .map_err(|errno| self.dirs.failed("resetting the counters", errno))
    }

    /// Removes all messages, and sets the counters to zero. Workers lose their leases. Returns the
    /// number of messages.
    pub fn purge(&self) -> Result<u64, QueueError> {
        let failed = |errno| self.dirs.failed("removing the messages", errno);
        let began = Clock::default().now(&self.dirs);
        let mut removed = 0;
        let mut names = MessageNames::begin(&self.dirs)?;
        while let Some(name) = names.next()? {
            self.dirs.remove(&self.dirs.queue, name.as_str()).map_err(failed)?;
            self.dirs.remove(&self.dirs.movement, name.id()).map_err(failed)?;
            removed += 1;
        }
        // A message that is sent meanwhile has a newer movement file, which is not removed.
        leftovers::remove_before(&self.dirs, began).map_err(failed)?;
        self.rezero()?;
        Ok(removed)
    }
}

/// The methods block, because an operator's command does nothing else meanwhile.
#[async_trait]
impl queue::Admin for Admin {
    async fn counts(&self) -> Result<Counts, QueueError> {
        self.counts()
    }

    fn messages(&self) -> BoxStream<'_, Result<Listed, QueueError>> {
        match self.messages() {
            Ok(messages) => stream::iter(messages).boxed(),
            Err(error) => stream::iter([Err(error)]).boxed(),
        }
    }

    async fn release_all(&self) -> Result<u64, QueueError> {
        self.release_all()
    }

    async fn rezero(&self) -> Result<(), QueueError> {
        self.rezero()
    }

    async fn purge(&self) -> Result<Option<u64>, QueueError> {
        self.purge().map(Some)
    }

    async fn facts(&self) -> Result<Facts, QueueError> {
        let notes = clock::warning(&self.dirs).into_iter().collect();
        Ok(Facts { notes, ..Facts::default() })
    }
}

impl fmt::Display for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.dirs.url)
    }
}

/// The messages of a queue.
#[derive(Debug)]
pub struct Messages<'a> {
    names: MessageNames<'a>,
}

impl Iterator for Messages<'_> {
    type Item = Result<Listed, QueueError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.names.next() {
                Ok(None) => return None,
                Err(error) => return Some(Err(error)),
                Ok(Some(name)) => match read(self.names.dirs, &name) {
                    // The message was leased or deleted since it was listed.
                    Err(Errno::NOENT) | Ok(None) => {}
                    Ok(Some(listed)) => return Some(Ok(listed)),
                    Err(errno) => {
                        let doing = format!("reading message {}", name.id());
                        return Some(Err(self.names.dirs.failed(doing, errno)));
                    }
                },
            }
        }
    }
}

/// Returns `None` for an entry that is not a message, despite its name.
fn read(dirs: &Dirs, name: &Name) -> Result<Option<Listed>, Errno> {
    let Some(file) = files::open(&dirs.queue, name.as_str(), OFlags::RDONLY)? else {
        return Ok(None);
    };
    let (body, unread) = match body::read(&file, name.id())? {
        Body::NotAFile => return Ok(None),
        Body::Text(body) => (body, None),
        Body::TooLong(size) => (Bytes::new(), Some(body::too_long(name.as_str(), size))),
    };
    let due = Some(Duration::from_secs(name.due()));
    Ok(Some(Listed { id: name.id().to_owned(), due, sent: None, body, unread }))
}

/// The names of the messages, read one piece of the listing at a time.
#[derive(Debug)]
struct MessageNames<'a> {
    dirs: &'a Dirs,
    listing: Listing,
    names: Vec<Name>,
    more: bool,
}

impl<'a> MessageNames<'a> {
    fn begin(dirs: &'a Dirs) -> Result<MessageNames<'a>, QueueError> {
        let listing =
            Listing::of(&dirs.queue).map_err(|errno| dirs.failed("listing the messages", errno))?;
        Ok(MessageNames { dirs, listing, names: Vec::new(), more: true })
    }

    fn next(&mut self) -> Result<Option<Name>, QueueError> {
        while self.names.is_empty() && self.more {
            let names = &mut self.names;
            let piece = self.listing.piece(|_, name| names.extend(name));
            // The listing ends after an error: the next call would fail again.
            self.more = *piece.as_ref().unwrap_or(&false);
            piece.map_err(|errno| self.dirs.failed("listing the messages", errno))?;
        }
        Ok(self.names.pop())
    }
}

/// Repeats `attempt` until it returns a value.
fn patiently<T>(attempt: impl Fn() -> Result<Option<T>, Errno>) -> Result<T, Errno> {
    let mut pauses = pauses(PATIENCE);
    loop {
        if let Some(done) = attempt()? {
            return Ok(done);
        }
        std::thread::sleep(pauses.next().ok_or(Errno::AGAIN)?);
    }
}
