//! Facts about messages that this process knows and the service cannot store.
//!
//! A message that is sent again is a new copy with a new id. The record of a copy is dropped when
//! the process ends, or after many newer copies.

use std::collections::HashMap;

use parking_lot::Mutex;
/// The maximum number of copies in one generation. When it is full, the previous generation is
/// dropped.
const MOST: usize = 10_000;
/// The number of most recent failures that are kept of a copy, and the maximum bytes of each.
const REASONS: usize = 3;
const REASON: usize = 300;

/// The record of one copy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct CopyRecord {
    /// The number of receives by this process.
    pub(super) receives: u32,
    /// The number of failed executions of this process that are not recorded in the copy.
    pub(super) attempts: u32,
    /// Why the most recent of them failed, oldest first.
    pub(super) failures: Vec<String>,
    /// Whether another copy replaces this one. This copy has not been deleted yet.
    pub(super) is_replaced: bool,
}

/// The records of all copies.
#[derive(Debug)]
pub(super) struct Copies {
    most: usize,
    state: Mutex<Generations>,
}

#[derive(Debug, Default)]
struct Generations {
    young: HashMap<String, CopyRecord>,
    old: HashMap<String, CopyRecord>,
}

impl Default for Copies {
    fn default() -> Self {
        Self { most: MOST, state: Mutex::default() }
    }
}

impl Copies {
    fn change(&self, copy: &str, change: impl FnOnce(&mut CopyRecord)) {
        let mut state = self.state.lock();
        let mut known =
            state.young.remove(copy).or_else(|| state.old.remove(copy)).unwrap_or_default();
        if state.young.len() >= self.most {
            state.old = std::mem::take(&mut state.young);
        }
        change(&mut known);
        state.young.insert(copy.to_owned(), known);
    }

    /// Records a receive of this copy. Returns the record before it.
    pub(super) fn received(&self, copy: &str) -> CopyRecord {
        let mut before = CopyRecord::default();
        self.change(copy, |known| {
            before = known.clone();
            known.receives = known.receives.saturating_add(1);
        });
        before
    }

    /// Records a failed execution that is not recorded in the copy.
    pub(super) fn failed(&self, copy: &str, reason: &str) {
        self.change(copy, |known| {
            known.attempts = known.attempts.saturating_add(1);
            if known.failures.len() >= REASONS {
                known.failures.remove(0);
            }
            known.failures.push(reason[..reason.floor_char_boundary(REASON)].to_owned());
        });
    }

    /// Records that another copy replaces this one.
    pub(super) fn replaced(&self, copy: &str) {
        self.change(copy, |known| known.is_replaced = true);
    }

    /// Whether another copy replaces this one.
    pub(super) fn is_replaced(&self, copy: &str) -> bool {
        let state = self.state.lock();
        state.young.get(copy).or_else(|| state.old.get(copy)).is_some_and(|k| k.is_replaced)
    }

    /// Drops the record of a copy that was deleted.
    pub(super) fn forget(&self, copy: &str) {
        let mut state = self.state.lock();
        if state.young.remove(copy).is_none() {
            state.old.remove(copy);
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        let state = self.state.lock();
        state.young.len() + state.old.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_known_until_it_is_gone() {
        let copies = Copies::default();
        assert_eq!(copies.received("a"), CopyRecord::default());
        copies.failed("a", &"é".repeat(500));
        copies.replaced("a");
        let known = copies.received("a");
        assert_eq!((known.receives, known.attempts, known.is_replaced), (1, 1, true));
        assert!(known.failures[0].len() <= REASON && known.failures[0].starts_with('é'));
        assert!(copies.is_replaced("a") && !copies.is_replaced("b"));
        copies.forget("a");
        assert_eq!((copies.received("a").receives, copies.len()), (0, 1));
    }

    #[test]
    fn no_more_is_kept_than_there_is_room_for() {
        let copies = Copies { most: 10, ..Copies::default() };
        for n in 0..1000 {
            copies.received(&n.to_string());
            // A copy in use is kept.
            copies.failed("used", "why");
        }
        assert!(copies.len() <= 21, "{}", copies.len());
        assert_eq!(copies.received("999").receives, 1);
        assert_eq!(copies.received("1").receives, 0);
        let used = copies.received("used");
        assert_eq!((used.attempts, used.failures.len()), (1000, REASONS));
    }
}
