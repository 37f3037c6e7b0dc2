//! Messages: an accepted task is within the limits, and is the same after encoding and decoding.

use task_host::json;
use task_host::key::{BucketKey, Prefix, TaskName};
use task_host::message::{self, Draft, LONGEST, MOST_INPUTS, Task};
use task_host::receipt;

use crate::memory::bounded;

pub(crate) fn check(input: &[u8]) {
    // A key takes at least three bytes of a message, and about 50 bytes of memory.
    match bounded(64 * input.len() + 8192, || message::decode(input)) {
        Ok(task) => accepted(input, &task),
        Err(error) => {
            assert!(!error.at.is_empty() && !error.problem.is_empty());
            assert!(error.to_string().len() < 2000, "a long error: {error}");
        }
    }
}

fn accepted(input: &[u8], task: &Task) {
    assert!(input.len() <= LONGEST && task.inputs.len() <= MOST_INPUTS);
    assert_eq!(TaskName::new(task.name.as_str()).as_ref(), Ok(&task.name));
    let mut inputs = Vec::new();
    for input in &task.inputs {
        assert_eq!(BucketKey::new(input.as_str()).as_ref(), Ok(input));
        let key = task.base_directory.join(input);
        assert_eq!(BucketKey::new(key.as_str()).as_ref(), Ok(&key));
        assert!(!key.is_reserved() && key.starts_with(&task.base_directory), "{key}");
        inputs.push(input.as_str());
    }
    if let Some(payload) = &task.payload {
        assert_eq!(json::parse(payload).map(json::Value::text), Ok(payload.as_str()));
    }
    agrees_with_serde(input, task);
    // Only registered tasks and function calls of python-task-queue have no base directory.
    if task.base_directory.is_root() {
        return assert!(task.inputs.is_empty() && task.id == -1);
    }
    assert_eq!(Prefix::new(task.base_directory.as_str()).as_ref(), Ok(&task.base_directory));
    let draft = Draft {
        id: Some(task.id),
        name: task.name.as_str(),
        base_directory: task.base_directory.as_str(),
        inputs: &inputs,
        payload: task.payload.as_deref(),
    };
    let text = message::encode(&draft).expect("a task can be encoded");
    let again = message::decode(text.as_bytes()).expect("an encoded task can be decoded");
    assert_eq!(&again, task);
    assert_eq!(receipt::content(&again), receipt::content(task));
}

/// Checks that `serde_json` finds the same task, if it can read the message: it rejects Python's
/// numbers, and numbers and nesting beyond its limits.
fn agrees_with_serde(input: &[u8], task: &Task) {
    let text = std::str::from_utf8(input).expect("a task is text");
    let text = message::without_mark(text);
    let Ok(message) = serde_json::from_str::<serde_json::Value>(text) else { return };
    let of = |message: &serde_json::Value| {
        message.get("basic_info").cloned().map(|info| (info, message.get("payload_info").cloned()))
    };
    let Some((info, payload)) = of(&message).or_else(|| of(&message["payload"])) else { return };
    assert_eq!(info["name"], task.name.as_str());
    assert_eq!(info["base_directory"], task.base_directory.as_str());
    let inputs: Vec<&str> = task.inputs.iter().map(BucketKey::as_str).collect();
    match &info["inputs"] {
        serde_json::Value::Null => assert!(inputs.is_empty()),
        theirs => assert_eq!(*theirs, serde_json::Value::from(inputs)),
    }
    let ours = task.payload.as_deref().map(serde_json::from_str::<serde_json::Value>);
    assert_eq!(ours.transpose().ok(), Some(payload));
}
