//! Tasks that have ended although their messages are still in the queue: the outputs are published
//! or the report is sent, but the message could not be deleted.

use std::collections::{HashMap, VecDeque};

use parking_lot::Mutex;

use crate::digest::Digest;
use crate::publish::Published;

/// The maximum number of messages to remember.
const MAX_REMEMBERED: usize = 10_000;

/// The progress of a task whose message is still in the queue.
#[derive(Debug, Clone)]
pub(crate) enum End {
    /// Its outputs are published, but its report is not in the done queue.
    Published(Published),
    /// It is done. Only its message must be deleted.
    Done,
    /// It was rejected, and its report is sent.
    Rejected,
}

/// The ends of tasks by message. When such a message is delivered again, its task does not run
/// again. The key includes the body, because on a queue service a sender can choose the id of
/// another message.
#[derive(Debug, Default)]
pub(crate) struct Undeleted(Mutex<Memory>);

#[derive(Debug, Default)]
struct Memory {
    ends: HashMap<Key, End>,
    /// Oldest first.
    order: VecDeque<Key>,
}

/// The id of a message, and the digest of its body.
type Key = (String, Digest);

fn key(id: &str, body: &[u8]) -> Key {
    (id.to_owned(), Digest::of(body))
}

impl Undeleted {
    /// The end of the task of a message, if it has ended.
    pub(crate) fn recall(&self, id: &str, body: &[u8]) -> Option<End> {
        let memory = self.0.lock();
        // Usually nothing is remembered, and then the body is not hashed.
        if memory.ends.is_empty() { None } else { memory.ends.get(&key(id, body)).cloned() }
    }

    /// Remembers the end of a task, and replaces an earlier one.
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

    /// Forgets a deleted message.
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
