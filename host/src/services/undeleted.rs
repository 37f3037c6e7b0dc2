//! Tasks that have ended although their messages are still in the queue: the outputs are
//! published or the report is sent, and the message could not be deleted.

use std::collections::{HashMap, VecDeque};

use parking_lot::Mutex;

use crate::digest::Digest;
use crate::publish::Published;

/// The most messages to remember. Only those that could not be deleted are.
const MAX_REMEMBERED: usize = 10_000;

/// How far a task got whose message is still in the queue.
#[derive(Debug, Clone)]
pub(crate) enum End {
    /// Its outputs are published. The done queue has no report yet.
    Published(Published),
    /// It is done. Only the message is left to delete.
    Done,
    /// It was rejected, and the report is sent.
    Rejected,
}

/// The ends of tasks by message. When such a message comes again, its task is not run again.
/// The key has the body as well, because on a service a sender can choose the id of another
/// message.
#[derive(Debug, Default)]
pub(crate) struct Undeleted(Mutex<Memory>);

#[derive(Debug, Default)]
struct Memory {
    ends: HashMap<Key, End>,
    /// Oldest first.
    order: VecDeque<Key>,
}

/// The id and the digest of the body of a message.
type Key = (String, Digest);

fn key(id: &str, body: &[u8]) -> Key {
    (id.to_owned(), Digest::of(body))
}

impl Undeleted {
    /// How the task of a message ended, if it has.
    pub(crate) fn recall(&self, id: &str, body: &[u8]) -> Option<End> {
        let memory = self.0.lock();
        // Most often nothing is remembered, and the body need not be hashed.
        if memory.ends.is_empty() { None } else { memory.ends.get(&key(id, body)).cloned() }
    }

    /// Remembers the end of a task, in place of what was known before.
    pub(crate) fn remember(&self, id: &str, body: &[u8], end: End) {
        let key = key(id, body);
        let mut memory = self.0.lock();
        if memory.ends.insert(key.clone(), end).is_none() {
            memory.order.push_back(key);
        }
        if memory.order.len() > MAX_REMEMBERED
            && let Some(oldest) = memory.order.pop_front()
        {
            memory.ends.remove(&oldest);
        }
    }

    /// Forgets a message that is deleted.
    pub(crate) fn forget(&self, id: &str, body: &[u8]) {
        let key = key(id, body);
        let mut memory = self.0.lock();
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
        let undeleted = Undeleted::default();
        for n in 0..=MAX_REMEMBERED {
            undeleted.remember(&n.to_string(), b"", End::Done);
        }
        assert!(undeleted.recall("0", b"").is_none() && undeleted.recall("1", b"").is_some());
        undeleted.remember("1", b"", End::Rejected);
        assert!(matches!(undeleted.recall("1", b""), Some(End::Rejected)));
        undeleted.forget("1", b"");
        assert!(undeleted.recall("1", b"").is_none());
    }

    #[test]
    fn a_message_with_the_id_of_another_is_another() {
        let undeleted = Undeleted::default();
        undeleted.remember("1", b"{}", End::Done);
        assert!(undeleted.recall("1", b"[]").is_none() && undeleted.recall("1", b"{}").is_some());
    }
}
