//! What people do to a queue, as against hosts: look into it, and set it right.

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};
use rustix::fs::{self, AtFlags, OFlags};
use rustix::io::Errno;

use super::candidates::Listing;
use super::clock::{self, Clock, written};
use super::dirs::{Dirs, open_file};
use super::movement::{Movement, Opened};
use super::name::{Name, is_id};
use super::{ATTEMPTS, body, counters, dirs};
use crate::queue::{self, Counts, Facts, Listed, QueueError};

/// How long to wait for somebody who is just moving a message, or counting.
const PATIENCE: Duration = Duration::from_secs(10);

/// A file queue as its operator sees it. Opening it changes nothing. The methods block.
#[derive(Debug)]
pub struct Admin {
    dirs: Dirs,
}

impl Admin {
    /// Opens the queue in the directory `path`, which must be there.
    pub fn open(url: &str, path: &Path) -> Result<Admin, QueueError> {
        Dirs::existing(url, path).map(|dirs| Admin { dirs })
    }

    /// How many messages there are, as `ptq status` counts them.
    pub fn counts(&self) -> Result<Counts, QueueError> {
        // Reading the file system's clock would change something.
        counts(&self.dirs, clock::of_host())
    }

    /// All messages, in no order, a few at a time in memory. One that comes or goes or moves
    /// meanwhile may be missed, or be seen twice.
    pub fn messages(&self) -> Result<Messages<'_>, QueueError> {
        MessageNames::begin(&self.dirs).map(|names| Messages { names })
    }

    /// Makes all messages available at once, leased or not. Who holds one loses it. Returns
    /// how many there were.
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
        let movement = patiently(|| match Movement::open_or_make(&self.dirs, name.id())? {
            Opened::Locked(movement) => Ok(Some(movement)),
            Opened::Busy | Opened::Missing => Ok(None),
        })?;
        let is_new = movement.history()?.is_empty();
        let line = to.line();
        movement.append(&line)?;
        match fs::renameat(&self.dirs.queue, name.as_str(), &self.dirs.queue, to.as_str()) {
            Ok(()) => Ok(true),
            Err(errno) => {
                movement.take_back(line.len());
                if is_new {
                    // It was done meanwhile, and its movement file removed.
                    self.dirs.remove(&self.dirs.movement, name.id())?;
                }
                if errno == Errno::NOENT { Ok(false) } else { Err(errno) }
            }
        }
    }

    /// Sets the counters of messages sent and done to zero.
    pub fn rezero(&self) -> Result<(), QueueError> {
        patiently(|| Ok(counters::rezero(&self.dirs)?.then_some(())))
            .map_err(|errno| self.dirs.failed("setting the counters to zero", errno))
    }

    /// Removes all messages, and sets the counters to zero. Who holds a message loses it.
    /// Returns how many there were.
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
        // What was left behind by whomever; but a message may come meanwhile, and keeps its.
        forget_all_before(&self.dirs, began).map_err(failed)?;
        self.rezero()?;
        Ok(removed)
    }
}

/// Each method blocks: whoever looks into a queue has nothing else to do.
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
        let notes = clock::complaint(&self.dirs).into_iter().collect();
        Ok(Facts { notes, ..Facts::default() })
    }
}

impl fmt::Display for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.dirs.url)
    }
}

/// Removes what is left about messages if there are none. A Python client that leases a
/// message while another deletes it leaves an empty movement file, and the only cheap time
/// to tell that nobody needs it is when nobody needs any.
pub(super) fn forget_orphans(dirs: &Dirs, now: Duration) -> Result<(), Errno> {
    let mut listing = Listing::of(&dirs.queue)?;
    let (mut empty, mut more) = (true, true);
    while empty && more {
        more = listing.piece(|_, name| empty &= name.is_none())?;
    }
    if !empty {
        return Ok(());
    }
    // One that is just being sent has its movement file first.
    forget_all_before(dirs, now.saturating_sub(Duration::from_secs(60)))
}

/// Removes movement files and reasons that were last written before that time.
fn forget_all_before(dirs: &Dirs, time: Duration) -> Result<(), Errno> {
    forget_before(dirs, &dirs.movement, time, is_movement)?;
    match dirs.host_if_any(ATTEMPTS)? {
        Some(attempts) => forget_before(dirs, &attempts, time, |_, _| true),
        None => Ok(()),
    }
}

/// Removes the files about messages that were last written before that time. What else there
/// is, is not ours.
fn forget_before(
    dirs: &Dirs,
    dir: &OwnedFd,
    time: Duration,
    is_ours: impl Fn(&OwnedFd, &str) -> bool,
) -> Result<(), Errno> {
    let mut listing = Listing::of(dir)?;
    let mut more = true;
    while more {
        let mut ids = Vec::new();
        more = listing.piece(|text, _| ids.push(text.to_owned()))?;
        for id in ids.iter().filter(|id| is_id(id)) {
            match fs::statat(dir, &**id, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => {
                    let is_file =
                        fs::FileType::from_raw_mode(stat.st_mode) == fs::FileType::RegularFile;
                    if is_file && written(&stat) < time && is_ours(dir, id) {
                        dirs.remove(dir, id)?;
                    }
                }
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
    Ok(())
}

/// Whether a file is the movement file of a message with this id: empty, or with a name of
/// that message in its first line.
fn is_movement(dir: &OwnedFd, id: &str) -> bool {
    // The first line that is not empty; of a file that begins otherwise, nobody knows.
    const BEGINNING: usize = 4096;
    let Ok(Some((file, _))) = open_file(dir, id, OFlags::RDONLY) else { return false };
    let Ok(text) = dirs::read(&file, BEGINNING) else { return false };
    let first = text.split(|&b| b == b'\n').find(|line| !line.is_empty());
    first.is_none_or(|line| {
        let name = str::from_utf8(line).ok().and_then(Name::parse);
        name.is_some_and(|name| name.id() == id)
    })
}

/// Counts by listing the directory.
pub(super) fn counts(dirs: &Dirs, now: Duration) -> Result<Counts, QueueError> {
    let now = now.as_secs();
    let count = || {
        let (mut enqueued, mut leased) = (0, 0);
        let mut listing = Listing::of(&dirs.queue)?;
        let each = |_: &str, name: Option<Name>| {
            if let Some(name) = name {
                enqueued += 1;
                leased += u64::from(name.due() > now);
            }
        };
        let mut each = each;
        while listing.piece(&mut each)? {}
        Ok(Counts {
            enqueued: Some(enqueued),
            leased: Some(leased),
            inserted: counters::insertions(dirs)?,
            completed: counters::completions(dirs)?,
        })
    };
    count().map_err(|errno| dirs.failed("counting the messages", errno))
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
                    // It was leased or done since it was listed.
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

/// `None` for what is no message, whatever its name.
fn read(dirs: &Dirs, name: &Name) -> Result<Option<Listed>, Errno> {
    let Some((file, stat)) = open_file(&dirs.queue, name.as_str(), OFlags::RDONLY)? else {
        return Ok(None);
    };
    let (body, unread) = match body::read(&file, &stat, name.id())? {
        Ok(body) => (body, None),
        Err(size) => (Bytes::new(), Some(body::too_long(name.as_str(), size))),
    };
    let due = Some(Duration::from_secs(name.due()));
    Ok(Some(Listed { id: name.id().to_owned(), due, sent: None, body, unread }))
}

/// The names of the messages, a piece of the listing at a time.
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
            // After an error there is nothing more: asking again would fail again.
            self.more = *piece.as_ref().unwrap_or(&false);
            piece.map_err(|errno| self.dirs.failed("listing the messages", errno))?;
        }
        Ok(self.names.pop())
    }
}

/// Tries until there is something.
fn patiently<T>(attempt: impl Fn() -> Result<Option<T>, Errno>) -> Result<T, Errno> {
    let started = Instant::now();
    loop {
        if let Some(done) = attempt()? {
            return Ok(done);
        }
        if started.elapsed() > PATIENCE {
            return Err(Errno::AGAIN);
        }
        std::thread::sleep(Duration::from_micros(fastrand::u64(500..20_000)));
    }
}
