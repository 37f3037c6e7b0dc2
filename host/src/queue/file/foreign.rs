//! Parsers of the data that other programs write into a queue directory, for the fuzz targets.

use super::body;
use super::history::History;
use super::name::Name;
use super::receipt::LeaseReceipt;
use crate::queue::Receipt;

/// The second and the id in the name of a message's file.
pub fn parse_name(text: &str) -> Option<(u64, String)> {
    Name::parse(text).map(|name| (name.due(), name.id().to_owned()))
}

/// The name of the file of the message `id`, due at `due`.
pub fn name(due: u64, id: &str) -> String {
    Name::new(due, id).as_str().to_owned()
}

/// Decodes a receipt and encodes it again.
pub fn receipt(text: &str) -> Option<String> {
    LeaseReceipt::decode(&Receipt(text.to_owned())).map(|receipt| receipt.encode().0)
}

/// The bytes to store for the body of the message `id`.
pub fn stored(body: &[u8], id: &str) -> Vec<u8> {
    body::with_id(body, id).into_owned()
}

/// The body in the file of the message `id`.
pub fn body(mut stored: Vec<u8>, id: &str) -> Vec<u8> {
    body::without_id(&mut stored, id);
    stored
}

/// The content of a movement file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Movement {
    /// Whether the last line is incomplete.
    pub is_torn: bool,
    /// Whether the message was renamed since it was sent.
    pub was_moved: bool,
    /// The number of executions that failed.
    pub failed: u32,
    /// The number of executions that started and were not taken back.
    pub started: u32,
    /// The part of `started` under the lease whose first line begins at `since` and whose last name
    /// is `name`.
    pub started_under: u32,
    /// A name that the message never had, due at the second of `name` or later.
    pub unused: String,
}

/// Reads a movement file. `None` if `name` is not the name of a message.
pub fn movement(text: &[u8], since: usize, name: &str) -> Option<Movement> {
    let name = Name::parse(name)?;
    let history = History::of_text(text.to_vec());
    Some(Movement {
        is_torn: history.is_torn(),
        was_moved: history.was_moved(),
        failed: history.failed(),
        started: history.started(),
        started_under: history.started_under(since, &name),
        unused: history.unused(&name, name.due()).as_str().to_owned(),
    })
}
