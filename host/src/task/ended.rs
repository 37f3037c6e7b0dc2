//! Tasks whose end is settled in fact, but not in their queue: the outputs are published, or
//! the report is sent, and the message could not be deleted.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use crate::publish::Published;

/// Messages that are remembered. Only those that could not be deleted are.
const REMEMBERED: usize = 10_000;

/// How far a task got whose message is still in its queue.
#[derive(Debug, Clone)]
pub(crate) enum End {
    /// Its outputs are published, and the done queue does not know.
    Published(Published),
    /// Only its message is left to delete.
    Done,
    /// It was given up, and its report is sent.
    GivenUp,
}

/// The ends of tasks by the ids of their messages. When such a message comes again, its task
/// is not run again.
#[derive(Debug, Default)]
pub(crate) struct Ended(Mutex<Memory>);

#[derive(Debug, Default)]
struct Memory {
    ends: HashMap<String, End>,
    /// Oldest first.
    order: VecDeque<String>,
}

impl Ended {
    /// What is known of a message's task.
    pub(crate) fn recall(&self, message: &str) -> Option<End> {
        let memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        memory.ends.get(message).cloned()
    }

    /// Remembers the end of a task, in the place of what was known before.
    pub(super) fn remember(&self, message: &str, end: End) {
        let mut memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if memory.ends.insert(message.to_owned(), end).is_none() {
            memory.order.push_back(message.to_owned());
        }
        if memory.order.len() > REMEMBERED
            && let Some(oldest) = memory.order.pop_front()
        {
            memory.ends.remove(&oldest);
        }
    }

    /// The message is deleted.
    pub(super) fn forget(&self, message: &str) {
        let mut memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if memory.ends.remove(message).is_some() {
            memory.order.retain(|known| known != message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_ends_are_remembered_until_their_messages_are_gone() {
        let ended = Ended::default();
        for n in 0..=REMEMBERED {
            ended.remember(&n.to_string(), End::Done);
        }
        assert!(ended.recall("0").is_none() && ended.recall("1").is_some());
        ended.remember("1", End::GivenUp);
        assert!(matches!(ended.recall("1"), Some(End::GivenUp)));
        ended.forget("1");
        assert!(ended.recall("1").is_none());
    }
}
