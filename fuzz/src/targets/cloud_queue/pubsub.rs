//! Messages of Pub/Sub: a copy keeps the state of its message and the producer's attributes.

use std::collections::HashMap;
use std::time::Duration;

use task_host::queue::pubsub::foreign;

use super::is_id;

/// A message id of Pub/Sub.
const COPY: &str = "2070443601311540";

pub(super) fn check(attributes: &[(&str, &str)], body: &[u8]) {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    let attributes: HashMap<String, String> = attributes.iter().map(owned).collect();
    let parse = |attributes: HashMap<String, String>, body: &[u8], reason: &str| {
        foreign::parse(COPY, body, attributes, Duration::from_millis(1500), reason)
    };
    let parsed = parse(attributes.clone(), body, "it broke");
    assert!(is_id(&parsed.id), "{}", parsed.id);
    assert!(parsed.failures.len() <= 10);

    let (again, kept) = parsed.again;
    assert_eq!(again, body);
    // A copy keeps the producer's own attributes, and the host adds few.
    let theirs = |attributes: &HashMap<String, String>| {
        let mut theirs: Vec<_> = attributes.clone().into_iter().collect();
        theirs.retain(|(name, _)| !name.starts_with("task-host-"));
        theirs.sort();
        theirs
    };
    assert_eq!(theirs(&kept), theirs(&attributes));
    assert!(kept.len() <= theirs(&kept).len() + 14);
    let next = parse(kept, &again, "it broke again");
    assert_eq!(next.id, parsed.id);
    assert_eq!(next.attempts, parsed.attempts.saturating_add(1));
    assert_eq!(next.failures.last().map(String::as_str), Some("it broke"));
}
