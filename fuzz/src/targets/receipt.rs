//! Receipts: an accepted receipt is the same after writing and reading, and names its task.

use task_host::digest::Digest;
use task_host::key::BucketKey;
use task_host::receipt::{self, Draft, Receipt};
use task_host::sandbox::Mode;
use task_host::stats::Steps;

use crate::memory::bounded;

pub(crate) fn check(input: &[u8]) {
    if let Ok(text) = std::str::from_utf8(input) {
        key(text);
    }
    let said = serde_json::from_slice::<serde_json::Value>(input).ok();
    let said = said.and_then(|receipt| receipt["content"].as_str()?.parse::<Digest>().ok());
    let content = said.unwrap_or(Digest::of(b""));
    let parsed = bounded(64 * input.len() + 8192, || Receipt::parse(input, &content));
    let other = Digest::of(&content.0);
    assert!(Receipt::parse(input, &other).is_err(), "it is the receipt of two tasks");
    let receipt = match parsed {
        Ok(receipt) => receipt,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let published = receipt.published();
    assert_eq!(published.keys.len(), receipt.outputs.len());
    assert!(receipt.outputs.iter().all(|output| output.size <= published.bytes));
    assert_eq!(receipt.first_difference(&receipt.outputs), None);
    if let Some((first, rest)) = receipt.outputs.split_first() {
        assert!(receipt.first_difference(rest).is_some() || rest.is_empty());
        assert_eq!(receipt.first_difference(&[]), Some(&first.key));
    }
    let draft = Draft {
        content,
        message: input,
        attempt: 1,
        component: receipt.component,
        inputs: &receipt.inputs,
        planned: receipt.planned,
        outputs: &receipt.outputs,
        steps: &Steps::start(),
        memory: 0,
        cpu_time: None,
        mode: Mode::Ordinary,
    };
    let again = Receipt::parse(&draft.to_bytes(), &content).expect("our own receipt");
    assert_eq!(again.component, receipt.component);
    assert_eq!((again.inputs, again.outputs), (receipt.inputs, receipt.outputs));
}

/// Checks that the key of a receipt identifies the content of its task, and that no other key does.
fn key(text: &str) {
    let content = Digest::of(text.as_bytes());
    assert_eq!(receipt::content_of(&receipt::key(&content)), Some(content));
    let Ok(key) = BucketKey::new(text) else { return };
    if let Some(content) = receipt::content_of(&key) {
        assert_eq!(receipt::key(&content), key);
    }
}
