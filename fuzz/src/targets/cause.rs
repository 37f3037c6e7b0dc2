//! The causes of errors, which are the words of guests: each is one short line that a terminal can
//! show, and the numbers of a task make no difference. And the last words in a guest's log.

use task_host::cause::{self, LONGEST, fingerprint};
use task_host::plain;
use task_host::sandbox::foreign::last_words;

pub(crate) fn check(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let found = fingerprint(&text);
    assert!(!found.is_empty() && found.len() <= LONGEST);
    assert_eq!(plain::first_odd(&found), None);
    assert!(cause::is_of(&text, &found) && cause::is_of(&text, &text));
    // What follows the line of a cause does not matter, unless the first line announces it.
    let numbered = |n: u32| format!("tile {n} of task-{n}/a{n}.png: {}", text.trim());
    assert_eq!(fingerprint(&numbered(1007)), fingerprint(&numbered(4711)));
    if let Some((cause, trace)) = last_words(&text) {
        // It is a part of the log but for a position, and has an end.
        let told = cause.len() + trace.map_or(0, |trace| trace.len());
        assert!(!cause.is_empty() && told <= 2 * text.len() + 16);
    }
}
