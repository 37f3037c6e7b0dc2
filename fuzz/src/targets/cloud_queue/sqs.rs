//! Messages of SQS: a copy keeps the state of its message, and pointers lead only to bodies.

use task_host::queue::sqs::foreign::{self, Parsed};

use super::is_id;

/// The bucket for large bodies, and the prefix of its keys.
const BODIES: &str = "s3://bodies/messages";
const PREFIX: &str = "messages/";
/// A message id of SQS.
const COPY: &str = "219f8380-5770-4cc2-8c3e-5c715e145f5e";
/// The most bytes of a message.
const LIMIT: usize = 1 << 20;

pub(super) fn check(attributes: &[(&str, &str)], body: &str) {
    let parse = |attributes: &[(&str, &str)], reason: &str| {
        foreign::parse(COPY, body, attributes, BODIES, reason, LIMIT)
    };
    let parsed = parse(attributes, "it broke");
    assert!(is_id(&parsed.id), "{}", parsed.id);
    match &parsed.pointer {
        None => {}
        // A message can't make the host read or delete another object of the bucket.
        Some(Ok(key)) => {
            let name = key.strip_prefix(PREFIX).expect("a key below the prefix");
            let is_uuid = |c: char| matches!(c, '0'..='9' | 'a'..='f' | '-');
            assert!(name.len() == 36 && name.chars().all(is_uuid), "{name}");
        }
        Some(Err(problem)) => assert!(problem.len() < 5000, "a long error: {problem}"),
    }
    let Some(again) = &parsed.again else { return };
    assert!(again.len() <= 10, "SQS takes ten attributes");
    let again: Vec<(&str, &str)> = again.iter().map(|(n, v)| (&**n, &**v)).collect();
    let next = parse(&again, "it broke again");
    remembers(&parsed, &next);
}

/// Checks that the copy of a message has the same state, plus one failure.
fn remembers(before: &Parsed, after: &Parsed) {
    assert_eq!(after.id, before.id);
    assert_eq!(after.pointer, before.pointer);
    assert_eq!(after.attempts, before.attempts.saturating_add(1));
    assert_eq!(after.unaccounted, 0);
    if let Some(last) = after.failures.last() {
        assert_eq!(last, "it broke");
    }
    assert!(after.failures.iter().map(String::len).sum::<usize>() <= 4096);
}
