//! Keeps the cache within its bound: counts bytes, and removes what was not used for longest.
//!
//! One thread scans and removes; it starts with a scan, since what earlier hosts left counts
//! too, and scans again from time to time, since other hosts may share the directory. What
//! a task holds is not removed: a blob with a second name is in a task's inputs, and one
//! that is pinned is on its way there.

use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use tokio::sync::oneshot;

use super::blobs::{Blobs, ScannedBlob, cost, scan};
use super::index::Index;
use crate::digest::Digest;

/// The least time between two scans; and a scan is never more than a hundredth of the time.
const RESCAN: Duration = Duration::from_secs(60);
/// How many of the blobs that were not used for longest a scan remembers.
const REMEMBERED: usize = 65_536;
/// How long nothing is tried after all that was left turned out to be in use.
const STUCK: Duration = Duration::from_secs(1);

/// The bytes of the cache, and who asks for more of them.
#[derive(Debug)]
pub(super) struct Capacity {
    usage: Arc<Usage>,
    requests: Sender<Request>,
}

#[derive(Debug)]
struct Usage {
    max: u64,
    /// What blobs take on disk.
    stored: AtomicU64,
    /// What downloads under way will take.
    reserved: AtomicU64,
    /// All that was ever stored by this process: what a scan may have missed.
    added: AtomicU64,
    /// Eviction ahead of need has been asked for.
    asked_ahead: AtomicBool,
    pins: Mutex<HashMap<Digest, usize>>,
}

struct Request {
    /// Bytes to free even when the cache is within its bound, because the disk is full.
    free: u64,
    done: Option<oneshot::Sender<()>>,
}

/// Capacity for a download. Dropping it gives it back; [`Reservation::stored`] makes it permanent.
#[derive(Debug)]
pub(super) struct Reservation {
    usage: Arc<Usage>,
    cost: u64,
}

/// Keeps a blob from being removed by this process.
#[derive(Debug)]
pub(super) struct Pin {
    usage: Arc<Usage>,
    digest: Digest,
}

impl Capacity {
    pub(super) fn new(max: u64, blobs: &Arc<Blobs>, index: Arc<Index>) -> std::io::Result<Self> {
        let usage = Arc::new(Usage {
            max,
            stored: AtomicU64::new(0),
            reserved: AtomicU64::new(0),
            added: AtomicU64::new(0),
            asked_ahead: AtomicBool::new(false),
            pins: Mutex::default(),
        });
        let (requests, received) = channel();
        let (oldest, scanned, stuck) = (VecDeque::new(), None, None);
        let blobs = Arc::downgrade(blobs);
        let evictor = Evictor { usage: usage.clone(), blobs, index, oldest, scanned, stuck };
        std::thread::Builder::new()
            .name("cache-eviction".into())
            .spawn(move || evictor.run(&received))?;
        Ok(Self { usage, requests })
    }

    /// Waits until there is capacity for a file of `size` bytes, as far as that can be had.
    pub(super) async fn reserve(&self, size: u64) -> Reservation {
        let cost = cost(size);
        self.usage.reserved.fetch_add(cost, Ordering::Relaxed);
        let reserved = Reservation { usage: self.usage.clone(), cost };
        let total = self.usage.total();
        if total > self.usage.max {
            self.ask(0).await;
        } else if total > self.usage.ahead()
            && !self.usage.asked_ahead.swap(true, Ordering::Relaxed)
        {
            // Most downloads don't have to wait then.
            let _ = self.requests.send(Request { free: 0, done: None });
        }
        reserved
    }

    /// Removes blobs of about `size` bytes because the disk is full.
    pub(super) async fn free(&self, size: u64) {
        self.ask(cost(size).max(self.stored() / 10)).await;
    }

    /// Waits until the thread has done this, and all that it was asked before.
    pub(super) async fn ask(&self, free: u64) {
        let (done, waiting) = oneshot::channel();
        if self.requests.send(Request { free, done: Some(done) }).is_ok() {
            // An error means that the thread is gone, and with it the hope for capacity.
            let _ = waiting.await;
        }
    }

    pub(super) fn pin(&self, digest: Digest) -> Pin {
        *self.usage.pins().entry(digest).or_default() += 1;
        Pin { usage: self.usage.clone(), digest }
    }

    /// The bytes that blobs take on disk, as far as is known.
    pub(super) fn stored(&self) -> u64 {
        self.usage.stored.load(Ordering::Relaxed)
    }
}

impl Usage {
    fn total(&self) -> u64 {
        self.stored.load(Ordering::Relaxed) + self.reserved.load(Ordering::Relaxed)
    }

    /// From here on, capacity is made ahead of need.
    fn ahead(&self) -> u64 {
        self.max / 100 * 95
    }

    /// What is left after making capacity.
    fn target(&self) -> u64 {
        self.max / 100 * 90
    }

    fn pins(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, usize>> {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remove(&self, cost: u64) {
        let less = |stored: u64| Some(stored.saturating_sub(cost));
        let _ = self.stored.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }
}

impl Reservation {
    /// The download is a blob now.
    pub(super) fn stored(self) {
        self.usage.added.fetch_add(self.cost, Ordering::Relaxed);
        self.usage.stored.fetch_add(self.cost, Ordering::Relaxed);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.usage.reserved.fetch_sub(self.cost, Ordering::Relaxed);
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.usage.pins();
        if let Some(count) = pins.get_mut(&self.digest) {
            *count -= 1;
            if *count == 0 {
                pins.remove(&self.digest);
            }
        }
    }
}

/// The thread that removes.
struct Evictor {
    usage: Arc<Usage>,
    /// Weak, since the directories of a process go when it drops its cache, and a scan may take
    /// longer.
    blobs: Weak<Blobs>,
    index: Arc<Index>,
    /// What the last scan found to be unused for longest, the oldest first.
    oldest: VecDeque<ScannedBlob>,
    /// The directory of that scan.
    scanned: Option<Arc<OwnedFd>>,
    /// Since when nothing more could be removed.
    stuck: Option<Instant>,
}

impl Evictor {
    fn run(mut self, requests: &Receiver<Request>) {
        let mut next_scan = Instant::now() + self.scan();
        // Entries outlive their blobs until the next start; they are small.
        let blobs = &self.blobs;
        self.index.prune(|digest| !blobs.upgrade().is_some_and(|blobs| blobs.is_gone(digest)));
        loop {
            match requests.recv_timeout(next_scan.saturating_duration_since(Instant::now())) {
                Ok(request) => {
                    self.serve(request.free);
                    if let Some(done) = request.done {
                        let _ = done.send(());
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    next_scan = Instant::now() + self.scan();
                    self.serve(0);
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn serve(&mut self, free: u64) {
        self.usage.asked_ahead.store(false, Ordering::Relaxed);
        if self.is_replaced() {
            // What was counted is gone with its directory.
            self.scan();
        }
        let total = self.usage.total();
        let over = total > self.usage.ahead();
        let excess = if over { total.saturating_sub(self.usage.target()) } else { 0 };
        let wanted = excess.max(free);
        if wanted == 0 || self.stuck.is_some_and(|since| since.elapsed() < STUCK) {
            return;
        }
        let freed = self.evict(wanted);
        self.stuck = None;
        if freed < wanted {
            self.stuck = Some(Instant::now());
            if self.usage.total() > self.usage.max {
                tracing::warn!(
                    limit = %ByteSize(self.usage.max), used = %ByteSize(self.usage.total()),
                    "the cache is over its limit: tasks are using what is left in it"
                );
            }
        }
        tracing::debug!(freed = %ByteSize(freed), "removed from the cache");
    }

    fn is_replaced(&self) -> bool {
        let Some(blobs) = self.blobs.upgrade() else { return false };
        !self.scanned.as_ref().is_some_and(|scanned| Arc::ptr_eq(scanned, &blobs.dir()))
    }

    fn evict(&mut self, wanted: u64) -> u64 {
        let mut freed = 0;
        let mut freed_at_scan = None;
        while freed < wanted {
            if let Some(seen) = self.oldest.pop_front() {
                // Held until the blob is gone, so that nobody pins it in between.
                let Some(blobs) = self.blobs.upgrade() else { break };
                let pins = self.usage.pins();
                if !pins.contains_key(&seen.digest) && blobs.remove_unused(&seen) {
                    drop(pins);
                    self.usage.remove(seen.cost);
                    freed += seen.cost;
                }
            } else if freed_at_scan == Some(freed) {
                break;
            } else {
                freed_at_scan = Some(freed);
                self.scan();
            }
        }
        freed
    }

    /// Counts all blobs and finds the oldest. Says when it would like to do it again.
    fn scan(&mut self) -> Duration {
        let started = Instant::now();
        let added_before = self.usage.added.load(Ordering::Relaxed);
        let mut stored = 0;
        // The youngest of those kept is at the top, and leaves when an older one comes.
        let mut oldest: BinaryHeap<ScannedBlob> = BinaryHeap::new();
        // A directory that was moved away works as before, so that no failure tells of it.
        let current = self.blobs.upgrade().map(|blobs| blobs.current_dir());
        let Some(dir) = current else { return RESCAN };
        let each = |seen: ScannedBlob| {
            stored += seen.cost;
            if oldest.len() < REMEMBERED {
                oldest.push(seen);
            } else if oldest.peek().is_some_and(|youngest| seen < *youngest) {
                oldest.pop();
                oldest.push(seen);
            }
        };
        match dir.and_then(|dir| scan(&*dir, each).map(|()| dir)) {
            Ok(dir) => self.scanned = Some(dir),
            Err(error) => {
                tracing::warn!(%error, "the cache could not be scanned; its size is not known");
                return RESCAN;
            }
        }
        // What was added meanwhile may have been missed. Counting some twice does less harm
        // than not at all.
        stored += self.usage.added.load(Ordering::Relaxed) - added_before;
        self.usage.stored.store(stored, Ordering::Relaxed);
        self.oldest = oldest.into_sorted_vec().into();
        RESCAN.max(started.elapsed() * 100)
    }
}
