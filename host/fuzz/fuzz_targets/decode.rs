//! Messages come from outside: whatever the bytes are, decoding ends in a task whose names
//! are safe and whose payload is JSON, or in an error.
//!
//! `RUSTC_BOOTSTRAP=1 cargo fuzz run --sanitizer none decode`, in `host/`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use task_host::key::{BucketKey, TaskName};

fuzz_target!(|body: &[u8]| {
    let Ok(task) = task_host::message::decode(body) else { return };
    assert!(TaskName::new(task.name.as_str()).is_ok());
    for input in &task.inputs {
        assert!(BucketKey::new(task.base_directory.join(input).as_str()).is_ok());
    }
    if let Some(payload) = &task.payload {
        serde_json::from_str::<&serde_json::value::RawValue>(payload).expect("the payload is JSON");
    }
});
