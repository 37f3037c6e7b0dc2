//! The digest of a task's content, which identifies the task in whatever message it comes.

use sha2::{Digest as _, Sha256};

use super::Task;
use crate::digest::Digest;
use crate::key::BucketKey;

/// The first line of the text whose digest it is.
const CONTENT: &str = "task-host receipt 1";

/// The digest of what a guest receives of a task: name, base directory, id, inputs and payload.
pub fn content(task: &Task) -> Digest {
    let mut hasher = Sha256::new();
    let id = task.id.to_string();
    // No name or key has a line feed, and no input is empty.
    let lines = [CONTENT, task.name.as_str(), task.base_directory.as_str(), &id];
    for line in lines.into_iter().chain(task.inputs.iter().map(BucketKey::as_str)) {
        hasher.update(line);
        hasher.update("\n");
    }
    if let Some(payload) = &task.payload {
        hasher.update("\n");
        hasher.update(payload);
    }
    Digest(hasher.finalize().into())
}
