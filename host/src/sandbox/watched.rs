//! The state of a running guest, for other threads: its call, its memory, its last line.
//!
//! The guest's thread only stores numbers. The readers do all other work.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Phase;
use super::log::Sink;

/// The times of calls are stored relative to this time.
static BASE: LazyLock<Instant> = LazyLock::new(Instant::now);
const PHASES: [Phase; 5] = Phase::ALL;
/// The lower bits of [`Watched::call`] that hold the call. The other bits are nanoseconds.
const PHASE_BITS: u32 = 3;

/// The state of a running guest, for other threads. One value may be used for several guests, one
/// after another.
#[derive(Default)]
pub struct Watched {
    /// The current call and its start. Zero if no guest has begun.
    call: AtomicU64,
    memory: AtomicU64,
    log: Mutex<Option<Sink>>,
}

impl std::fmt::Debug for Watched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watched")
            .field("phase", &self.phase())
            .field("memory", &self.memory())
            .finish_non_exhaustive()
    }
}

impl Watched {
    /// Forgets the last guest.
    pub fn clear(&self) {
        self.call.store(0, Relaxed);
        self.memory.store(0, Relaxed);
        *self.log.lock() = None;
    }

    /// The guest's current call and its start. None if no guest has begun.
    pub fn phase(&self) -> Option<(Phase, Instant)> {
        let call = self.call.load(Relaxed);
        let phase = PHASES[(call % (1 << PHASE_BITS)) as usize];
        (call != 0).then(|| (phase, *BASE + Duration::from_nanos(call >> PHASE_BITS)))
    }

    /// The most memory that the guest has had, in bytes.
    pub fn memory(&self) -> u64 {
        self.memory.load(Relaxed)
    }

    /// The last line that the guest printed, or the last `most` bytes of that line. None if the
    /// guest printed nothing or has ended.
    pub fn last_line(&self, most: usize) -> Option<String> {
        // Clones the handle, so that the lock is not held while the text is read.
        let log = self.log.lock().clone();
        log?.last_line(most)
    }

    pub(super) fn prints_to(&self, log: &Sink) {
        *self.log.lock() = Some(log.clone());
    }

    pub(super) fn enters(&self, phase: Phase) {
        let nanoseconds = u64::try_from(BASE.elapsed().as_nanos()).unwrap_or(u64::MAX);
        // Adds one, because zero means that no guest has begun.
        let call = (nanoseconds.saturating_add(1) << PHASE_BITS) + phase as u64;
        self.call.store(call, Relaxed);
    }

    pub(super) fn holds(&self, bytes: u64) {
        self.memory.store(bytes, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_seen_until_the_next_one_takes_its_place() {
        let watched = Watched::default();
        assert_eq!((watched.phase(), watched.memory(), watched.last_line(9)), (None, 0, None));
        let log = Sink::new(100, None);
        watched.prints_to(&log);
        assert_eq!(watched.last_line(9), None);
        for (place, phase) in PHASES.into_iter().enumerate() {
            assert_eq!(phase as usize, place);
            let before = Instant::now();
            watched.enters(phase);
            let (seen, since) = watched.phase().unwrap();
            assert_eq!(seen, phase);
            assert!(since + Duration::from_micros(1) >= before && since <= Instant::now());
        }
        watched.holds(1 << 20);
        log.push(b"tile 1\ntile 2\n");
        assert_eq!(watched.memory(), 1 << 20);
        assert_eq!(watched.last_line(9).as_deref(), Some("tile 2"));
        watched.clear();
        assert_eq!((watched.phase(), watched.memory(), watched.last_line(9)), (None, 0, None));
    }
}
