//! Tasks that were given back because they needed memory that other tasks held. They run alone when
//! they come again: only then is it sure that they can end.

use std::collections::HashSet;

use parking_lot::Mutex;

/// The most messages to remember. When there are more, all are forgotten.
const MAX_REMEMBERED: usize = 10_000;

/// The ids of their messages.
#[derive(Debug, Default)]
pub(crate) struct Crowded(Mutex<HashSet<String>>);

impl Crowded {
    /// Remembers the task of a message.
    pub(crate) fn remember(&self, id: &str) {
        let mut ids = self.0.lock();
        if ids.len() >= MAX_REMEMBERED {
            ids.clear();
        }
        ids.insert(id.to_owned());
    }

    /// Whether the task of a message lacked memory. Forgets it.
    pub(crate) fn take(&self, id: &str) -> bool {
        self.0.lock().remove(id)
    }
}
