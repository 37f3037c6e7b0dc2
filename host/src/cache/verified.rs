//! The blobs that this process knows to be undamaged, because it read or wrote them.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use parking_lot::Mutex;
use rustix::fs::Stat;

use crate::digest::Digest;
use crate::system::{modified, place};

/// The maximum number of blobs in a generation. There are two generations.
const GENERATION: usize = 65_536;

/// The metadata that distinguishes files. The change time is left out, because each hard link
/// updates it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Stamp {
    /// Device and inode.
    place: (u64, u64),
    pub(super) size: u64,
    modified: (i64, u64),
}

impl Stamp {
    pub(super) fn of(stat: &Stat) -> Self {
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        Self { place: place(stat), size, modified: modified(stat) }
    }
}

/// The most recently verified blobs. A forgotten blob is verified again.
#[derive(Debug, Default)]
pub(super) struct Verified {
    generations: Mutex<Generations>,
    hasher: RandomState,
}

#[derive(Debug, Default)]
struct Generations {
    young: HashMap<Digest, u64>,
    old: HashMap<Digest, u64>,
}

impl Verified {
    /// True when the blob was verified and is still the same file.
    pub(super) fn has(&self, digest: &Digest, stamp: &Stamp) -> bool {
        let hash = self.hasher.hash_one(stamp);
        let mut known = self.generations.lock();
        if let Some(seen) = known.young.get(digest) {
            return *seen == hash;
        }
        match known.old.remove(digest) {
            Some(seen) => {
                known.add(*digest, seen);
                seen == hash
            }
            None => false,
        }
    }

    pub(super) fn add(&self, digest: Digest, stamp: &Stamp) {
        let hash = self.hasher.hash_one(stamp);
        self.generations.lock().add(digest, hash);
    }
}

impl Generations {
    fn add(&mut self, digest: Digest, hash: u64) {
        if self.young.len() >= GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(digest, hash);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_known_and_memory_has_a_bound() {
        let verified = Verified::default();
        let stamp = |ino| Stamp { place: (1, ino), size: 1, modified: (1, 1) };
        let digest = |n: usize| Digest::of(&n.to_le_bytes());
        verified.add(digest(0), &stamp(0));
        for n in 1..4 * GENERATION {
            verified.add(digest(n), &stamp(1));
            if n % 1000 == 0 {
                assert!(verified.has(&digest(0), &stamp(0)), "{n}");
            }
        }
        assert!(!verified.has(&digest(0), &stamp(2)), "it is another file now");
        assert!(!verified.has(&digest(1), &stamp(1)), "not used for long");
        let known = verified.generations.lock();
        assert!(known.young.len() + known.old.len() <= 2 * GENERATION);
    }
}
