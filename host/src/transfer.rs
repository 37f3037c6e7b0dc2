//! Messages in bulk: sent to a queue, copied or moved to another, and sent back from an error
//! queue.
//!
//! Nothing here writes to a terminal. An [`Observer`] is told about progress and refused messages.

pub mod audit;
pub mod check;
pub mod copy;
pub mod errors;
pub mod forward;
pub mod lines;
pub mod objects;
pub mod redrive;
mod refusals;
#[cfg(test)]
mod refusing_queue;
pub mod rerun;
pub mod send;

use std::fmt;
use std::sync::Arc;

pub use refusals::{Rejects, RejectsError};

use crate::queue::Address;

/// Receives the events of a transfer.
pub trait Observer: Send + Sync {
    /// This queue did not exist and was created.
    fn created(&self, queue: &Address);

    /// The transfer begins. `total` is the position at its end, if that is known.
    fn begins(&self, total: Option<u64>);

    /// `done` messages are transferred. The position counts in the unit of the total: bytes of
    /// files, or messages.
    fn progress(&self, done: u64, position: u64);

    /// A message was refused.
    fn refused(&self, origin: &MessageOrigin, problem: &dyn fmt::Display);

    /// In a dry run, the first message that would be sent.
    fn would_send(&self, _body: &[u8]) {}
}

/// Where a message of a transfer comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MessageOrigin {
    /// A line of a file: the file's name, and the line's number from 1.
    Line(Arc<str>, u64),
    /// The object with this key, or the message with this id.
    Named(String),
}

impl MessageOrigin {
    /// A message of a queue, by its id.
    fn message(id: &str) -> Self {
        Self::Named(format!("message {id}"))
    }
}

impl fmt::Display for MessageOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(file, number) => write!(f, "{file}, line {number}"),
            Self::Named(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ignores all events.
    pub(super) struct Unobserved;

    impl Observer for Unobserved {
        fn created(&self, _queue: &Address) {}
        fn begins(&self, _total: Option<u64>) {}
        fn progress(&self, _done: u64, _position: u64) {}
        fn refused(&self, _origin: &MessageOrigin, _problem: &dyn fmt::Display) {}
    }
}
