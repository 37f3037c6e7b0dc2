//! What this process knows of a message that the service can't write on it.
//!
//! A service names each copy of a message: one that is sent again is another copy. Knowledge of
//! a copy ends with the process, or when many others came after it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Copies of one generation. When it is full, the generation before it is forgotten.
const MOST: usize = 10_000;
/// Reasons that are kept of one copy, the last of them, and bytes of each.
const REASONS: usize = 3;
const REASON: usize = 300;

/// What is known of one copy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct CopyRecord {
    /// How often this process received it.
    pub(super) receives: u32,
    /// Executions that failed here and that the copy does not tell of.
    pub(super) attempts: u32,
    /// Why the last of them failed, oldest first.
    pub(super) failures: Vec<String>,
    /// Another copy was sent in its place, and this one could not be deleted yet.
    pub(super) is_replaced: bool,
}

/// All copies that something is known of.
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
    fn state(&self) -> MutexGuard<'_, Generations> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, copy: &str, change: impl FnOnce(&mut CopyRecord)) {
        let mut state = self.state();
        let mut known =
            state.young.remove(copy).or_else(|| state.old.remove(copy)).unwrap_or_default();
        if state.young.len() >= self.most {
            state.old = std::mem::take(&mut state.young);
        }
        change(&mut known);
        state.young.insert(copy.to_owned(), known);
    }

    /// Notes that this copy was received. Returns what was known of it before.
    pub(super) fn received(&self, copy: &str) -> CopyRecord {
        let mut before = CopyRecord::default();
        self.change(copy, |known| {
            before = known.clone();
            known.receives = known.receives.saturating_add(1);
        });
        before
    }

    /// Notes that an execution failed which the copy will not tell of.
    pub(super) fn failed(&self, copy: &str, reason: &str) {
        self.change(copy, |known| {
            known.attempts = known.attempts.saturating_add(1);
            if known.failures.len() >= REASONS {
                known.failures.remove(0);
            }
            known.failures.push(reason[..reason.floor_char_boundary(REASON)].to_owned());
        });
    }

    /// Notes that another copy was sent in the place of this one.
    pub(super) fn replaced(&self, copy: &str) {
        self.change(copy, |known| known.is_replaced = true);
    }

    /// True if another copy was sent in the place of this one.
    pub(super) fn is_replaced(&self, copy: &str) -> bool {
        let state = self.state();
        state.young.get(copy).or_else(|| state.old.get(copy)).is_some_and(|k| k.is_replaced)
    }

    /// The copy is gone.
    pub(super) fn forget(&self, copy: &str) {
        let mut state = self.state();
        if state.young.remove(copy).is_none() {
            state.old.remove(copy);
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        let state = self.state();
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
