//! Tasks that were released because other tasks held the memory that they needed. When such a task
//! is delivered again, it runs alone, because only then is enough memory certain.

use std::collections::HashSet;

use parking_lot::Mutex;

/// The maximum number of messages to remember. When it is reached, all are forgotten.
const MAX_REMEMBERED: usize = 10_000;

/// The ids of the messages of these tasks.
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

    /// Whether the task of a message lacked memory. Forgets the task.
    pub(crate) fn take(&self, id: &str) -> bool {
        self.0.lock().remove(id)
    }
}
