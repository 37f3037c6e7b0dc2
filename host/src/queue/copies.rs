//! What this process knows about a message and the service cannot store.
//!
//! A message that is sent again is a new copy with a new id. What is known about a copy is forgotten
//! when the process ends, or after many newer copies.

use std::collections::HashMap;

use parking_lot::Mutex;
/// Copies in one generation. When it is full, the previous generation is forgotten.
const MOST: usize = 10_000;
/// How many of the last failures are kept of a copy, and how many bytes of each.
const REASONS: usize = 3;
const REASON: usize = 300;

/// What is known about one copy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct CopyRecord {
    /// How often this process received it.
    pub(super) receives: u32,
    /// Failed executions of this process that the copy does not carry.
    pub(super) attempts: u32,
    /// Why the last of those failed, oldest first.
    pub(super) failures: Vec<String>,
    /// Another copy replaces this one, which could not be deleted yet.
    pub(super) is_replaced: bool,
}

/// All copies that something is known about.
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

    /// Records a receive of this copy. Returns what was known before.
    pub(super) fn received(&self, copy: &str) -> CopyRecord {
        let mut before = CopyRecord::default();
        self.change(copy, |known| {
            before = known.clone();
            known.receives = known.receives.saturating_add(1);
        });
        before
    }

    /// Records a failed execution that the copy does not carry.
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

    /// Forgets a copy, which was deleted.
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
            // What is in use is kept.
            copies.failed("used", "why");
        }
        assert!(copies.len() <= 21, "{}", copies.len());
        assert_eq!(copies.received("999").receives, 1);
        assert_eq!(copies.received("1").receives, 0);
        let used = copies.received("used");
        assert_eq!((used.attempts, used.failures.len()), (1000, REASONS));
    }
}
