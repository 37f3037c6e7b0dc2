//! Tasks whose end is settled in fact, but not in their queue: the outputs are published, or
//! the report is sent, and the message could not be deleted.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use crate::digest::Digest;
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

/// The ends of tasks by their messages. When such a message comes again, its task is not run
/// again. On a service a sender can give a message the id of another one, so the body counts as
/// well.
#[derive(Debug, Default)]
pub(crate) struct Ended(Mutex<Memory>);

#[derive(Debug, Default)]
struct Memory {
    ends: HashMap<Key, End>,
    /// Oldest first.
    order: VecDeque<Key>,
}

/// The id and the body of a message.
type Key = (String, Digest);

fn key(id: &str, body: &[u8]) -> Key {
    (id.to_owned(), Digest::of(body))
}

impl Ended {
    /// What is known of a message's task.
    pub(crate) fn recall(&self, id: &str, body: &[u8]) -> Option<End> {
        let memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Nearly always there is none, and the body need not be looked at.
        if memory.ends.is_empty() { None } else { memory.ends.get(&key(id, body)).cloned() }
    }

    /// Remembers the end of a task, in the place of what was known before.
    pub(super) fn remember(&self, id: &str, body: &[u8], end: End) {
        let key = key(id, body);
        let mut memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if memory.ends.insert(key.clone(), end).is_none() {
            memory.order.push_back(key);
        }
        if memory.order.len() > REMEMBERED
            && let Some(oldest) = memory.order.pop_front()
        {
            memory.ends.remove(&oldest);
        }
    }

    /// The message is deleted.
    pub(super) fn forget(&self, id: &str, body: &[u8]) {
        let key = key(id, body);
        let mut memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if memory.ends.remove(&key).is_some() {
            memory.order.retain(|known| *known != key);
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
            ended.remember(&n.to_string(), b"", End::Done);
        }
        assert!(ended.recall("0", b"").is_none() && ended.recall("1", b"").is_some());
        ended.remember("1", b"", End::GivenUp);
        assert!(matches!(ended.recall("1", b""), Some(End::GivenUp)));
        ended.forget("1", b"");
        assert!(ended.recall("1", b"").is_none());
    }

    #[test]
    fn a_message_with_the_id_of_another_is_another() {
        let ended = Ended::default();
        ended.remember("1", b"{}", End::Done);
        assert!(ended.recall("1", b"[]").is_none() && ended.recall("1", b"{}").is_some());
    }
}
