//! The digest of a task's content. It identifies the task, whichever message the task comes in.

use sha2::{Digest as _, Sha256};

use super::Task;
use crate::digest::Digest;
use crate::key::BucketKey;

/// The first line of the text that is hashed.
const CONTENT: &str = "task-host receipt 1";

/// The digest of a task's content: its name, base directory, id, inputs and payload.
pub fn content(task: &Task) -> Digest {
    let mut hasher = Sha256::new();
    let id = task.id.to_string();
    // Lines are unambiguous: names and keys have no line feeds, and inputs are not empty.
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
