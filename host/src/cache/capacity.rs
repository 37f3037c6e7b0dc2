//! Keeps the cache within its limit: counts bytes and evicts the least recently used blobs.
//!
//! One thread scans and evicts. It scans at the start, because blobs of earlier hosts count too,
//! and again from time to time, because other hosts may share the directory. A blob in use is
//! pinned and not evicted.

use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

use super::blobs::{Blobs, ScannedBlob, cost, scan};
use super::index::Index;
use crate::digest::Digest;
use crate::fault::{self, Step};

/// The minimum time between two scans. Scans also take at most a hundredth of the time.
const RESCAN: Duration = Duration::from_secs(60);
/// The number of least recently used blobs that a scan remembers.
const REMEMBERED: usize = 65_536;
/// The pause after an eviction that found only blobs in use.
const STUCK: Duration = Duration::from_secs(1);

/// The cache's use of disk space.
#[derive(Debug)]
pub(super) struct Capacity {
    usage: Arc<Usage>,
    requests: Sender<Request>,
}

#[derive(Debug)]
struct Usage {
    max: u64,
    /// Bytes of blobs on disk.
    stored: AtomicU64,
    /// Bytes that current downloads will take.
    reserved: AtomicU64,
    /// All bytes that this process ever stored. A scan may have missed the latest.
    added: AtomicU64,
    /// Eviction ahead of need has been requested.
    asked_ahead: AtomicBool,
    pins: Mutex<HashMap<Digest, usize>>,
}

struct Request {
    /// Bytes to free even when the cache is within its limit, because the disk is full.
    free: u64,
    done: Option<oneshot::Sender<()>>,
}

/// Space reserved for a download. Dropping it releases the space; [`Reservation::stored`] makes it
/// permanent.
#[derive(Debug)]
pub(super) struct Reservation {
    usage: Arc<Usage>,
    cost: u64,
}

/// Keeps this process from evicting a blob.
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

    /// Reserves space for a file of `size` bytes. Waits for eviction if the cache is over its
    /// limit, which it may stay if tasks use all blobs.
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
            // Evicts early, so that most downloads do not have to wait.
            let _ = self.requests.send(Request { free: 0, done: None });
        }
        reserved
    }

    /// Evicts about `size` bytes because the disk is full.
    pub(super) async fn free(&self, size: u64) {
        self.ask(cost(size).max(self.stored() / 10)).await;
    }

    /// Waits until the thread has served this request and all earlier ones.
    pub(super) async fn ask(&self, free: u64) {
        let (done, waiting) = oneshot::channel();
        if self.requests.send(Request { free, done: Some(done) }).is_ok() {
            // An error means that the thread is gone.
            let _ = waiting.await;
        }
    }

    pub(super) fn pin(&self, digest: Digest) -> Pin {
        *self.usage.pins().entry(digest).or_default() += 1;
        Pin { usage: self.usage.clone(), digest }
    }

    /// The size of all blobs on disk in bytes, as far as it is known.
    pub(super) fn stored(&self) -> u64 {
        self.usage.stored.load(Ordering::Relaxed)
    }
}

impl Usage {
    fn total(&self) -> u64 {
        self.stored.load(Ordering::Relaxed) + self.reserved.load(Ordering::Relaxed)
    }

    /// Eviction starts ahead of need above this number of bytes.
    fn ahead(&self) -> u64 {
        self.max / 100 * 95
    }

    /// Eviction ends at this number of bytes.
    fn target(&self) -> u64 {
        self.max / 100 * 90
    }

    fn pins(&self) -> MutexGuard<'_, HashMap<Digest, usize>> {
        self.pins.lock()
    }

    fn remove(&self, cost: u64) {
        let less = |stored: u64| Some(stored.saturating_sub(cost));
        let _ = self.stored.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }
}

impl Reservation {
    /// Records that the download is now a blob.
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

/// The eviction thread.
struct Evictor {
    usage: Arc<Usage>,
    /// Weak, so that a long scan does not keep the directories of a dropped cache.
    blobs: Weak<Blobs>,
    index: Arc<Index>,
    /// The least recently used blobs of the last scan, the oldest first.
    oldest: VecDeque<ScannedBlob>,
    /// The directory of that scan.
    scanned: Option<Arc<OwnedFd>>,
    /// When an eviction last freed too little.
    stuck: Option<Instant>,
}

impl Evictor {
    fn run(mut self, requests: &Receiver<Request>) {
        let mut next_scan = Instant::now() + self.scan();
        // Entries are pruned only here, at the start, because they are small.
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
            // The counted blobs are gone with their directory.
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
                    "the cache is over its limit, because running tasks use everything in it"
                );
            }
        }
        tracing::debug!(freed = %ByteSize(freed), "evicted from the cache");
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
                // The lock is held until the blob is removed, so that no task pins it in between.
                let Some(blobs) = self.blobs.upgrade() else { break };
                let pins = self.usage.pins();
                if !pins.contains_key(&seen.digest) && blobs.remove_unused(&seen) {
                    drop(pins);
                    self.usage.remove(seen.cost);
                    freed += seen.cost;
                    fault::point(Step::Evicted);
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

    /// Counts all blobs and finds the least recently used. Returns the time until the next scan.
    fn scan(&mut self) -> Duration {
        let started = Instant::now();
        let added_before = self.usage.added.load(Ordering::Relaxed);
        let mut stored = 0;
        // The top of the heap is the most recently used of the kept blobs. An older blob replaces
        // it.
        let mut oldest: BinaryHeap<ScannedBlob> = BinaryHeap::new();
        // Checks the path, because a directory that was moved away causes no failure.
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
                tracing::warn!(%error, "could not scan the cache; its size is unknown");
                return RESCAN;
            }
        }
        // The scan may have missed blobs that were added meanwhile. Counting some twice does less
        // harm than missing them.
        stored += self.usage.added.load(Ordering::Relaxed) - added_before;
        self.usage.stored.store(stored, Ordering::Relaxed);
        self.oldest = oldest.into_sorted_vec().into();
        RESCAN.max(started.elapsed() * 100)
    }
}
