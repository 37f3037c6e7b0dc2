//! The causes of guests' errors: each is one short line that a terminal can show, and does not
//! depend on the numbers in an error. Also the error at the end of a guest's log.

use task_host::cause::{self, LONGEST, fingerprint};
use task_host::plain;
use task_host::sandbox::foreign::last_words;

pub(crate) fn check(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let found = fingerprint(&text);
    assert!(!found.is_empty() && found.len() <= LONGEST);
    assert_eq!(plain::first_odd(&found), None);
    assert!(cause::is_of(&text, &found) && cause::is_of(&text, &text));
    // The lines after the line of the cause do not matter, unless the first line announces them.
    let numbered = |n: u32| format!("tile {n} of task-{n}/a{n}.png: {}", text.trim());
    assert_eq!(fingerprint(&numbered(1007)), fingerprint(&numbered(4711)));
    if let Some((cause, trace)) = last_words(&text) {
        // The cause and the call stack are parts of the log, except for a position.
        let told = cause.len() + trace.map_or(0, |trace| trace.len());
        assert!(!cause.is_empty() && told <= 2 * text.len() + 16);
    }
}
