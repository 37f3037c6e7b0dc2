//! Keys, prefixes, task names, digests, and the addresses of queues and buckets.
//!
//! Each line of an input is parsed as each of these. Two consecutive lines are also joined as a
//! prefix and a key.

use std::path::Component;

use task_host::bucket;
use task_host::config::parse;
use task_host::digest::Digest;
use task_host::key::{BucketKey, KeyError, MAX_KEY_BYTES, MAX_SEGMENT_BYTES, Prefix, TaskName};
use task_host::plain;
use task_host::queue;

pub(crate) fn check(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let mut before = Prefix::root();
    for line in text.split('\n') {
        shown(line);
        if let Some(key) = key(line) {
            below(&before, &key);
        }
        before = Prefix::new(line).unwrap_or_default();
        digest(line);
        queue_address(line);
        bucket_address(line);
        if let Ok(duration) = parse::duration(line) {
            let again = task_host::config::parse::duration(&format!("{}s", duration.as_secs()));
            assert_eq!(again.map(|again| again.as_secs()), Ok(duration.as_secs()));
        }
    }
}

/// Checks that escaped texts have no invisible characters.
fn shown(text: &str) {
    assert_eq!(plain::first_odd(&plain::escape(text)), None);
    let lines = plain::escape_lines(text);
    assert!(lines.chars().all(|c| plain::is_plain(c) || matches!(c, '\n' | '\t')));
}

fn key(text: &str) -> Option<BucketKey> {
    let key = BucketKey::new(text);
    assert_eq!(Prefix::new(text).is_ok(), key.is_ok());
    let output = BucketKey::of_output(text);
    let is_plain = plain::first_odd(text).is_none();
    assert_eq!(output.is_ok(), key.is_ok() && is_plain);
    assert_eq!(TaskName::new(text).is_ok(), output.is_ok());
    let key = match key {
        Ok(key) => key,
        Err(error) => {
            let shown = error.to_string();
            assert!(!shown.is_empty() && plain::first_odd(&shown).is_none());
            return None;
        }
    };
    assert_eq!(key.as_str(), text);
    assert!(text.len() <= MAX_KEY_BYTES);
    // A key that is joined to a directory stays below the directory.
    for part in key.as_path().components() {
        let Component::Normal(segment) = part else { panic!("{part:?} in {key}") };
        assert!(segment.len() <= MAX_SEGMENT_BYTES);
    }
    assert_eq!(key.as_path().components().count(), text.split('/').count());
    Some(key)
}

fn below(prefix: &Prefix, key: &BucketKey) {
    let joined = prefix.join(key);
    assert!(joined.starts_with(prefix) && joined.as_str().ends_with(key.as_str()));
    match BucketKey::new(joined.as_str()) {
        Ok(again) => assert_eq!(again, joined),
        Err(error) => assert!(matches!(error, KeyError::TooLong { .. }), "{joined} {error}"),
    }
}

fn digest(text: &str) {
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
    }
}

fn queue_address(text: &str) {
    match text.parse::<queue::Address>() {
        Ok(address) => {
            let again: queue::Address = address.to_string().parse().expect("its own URL");
            assert_eq!(again, address);
            assert_ne!(address.errors(), Some(address.clone()), "reports go to their own queue");
        }
        Err(error) => assert!(!error.problem.is_empty()),
    }
}

fn bucket_address(text: &str) {
    match text.parse::<bucket::Address>() {
        Ok(address) => {
            let again: bucket::Address = address.to_string().parse().expect("its own URL");
            assert_eq!(again, address);
            assert_eq!(address.overlaps(&again), address.path().is_none());
        }
        Err(error) => assert!(!error.problem.is_empty()),
    }
    if queue::sqs::check_body_bucket(text).is_ok() {
        assert!(text.to_ascii_lowercase().starts_with("s3://"));
    }
}
