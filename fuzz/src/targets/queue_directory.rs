//! File names, lease receipts, bodies and movement files in a queue directory.
//!
//! The first line of an input is used as a name and as a receipt. The rest is used as a body and as
//! a movement file.

mod movement;

use task_host::json;
use task_host::queue::file::foreign;

use super::first_line;

/// The longest file name on Linux, in bytes.
const LONGEST: usize = 255;
/// An id that the queue chooses for a body. A sender can't know it in advance.
const ID: &str = "8d8a8f2c-9f0b-4a3e-8f57-0d5c0a9a2f11";

pub(crate) fn check(input: &[u8]) {
    let (line, rest) = first_line(input);
    if let Ok(line) = std::str::from_utf8(line) {
        name(line);
        receipt(line);
        movement::check(line, rest);
    }
    body(rest);
}

fn name(text: &str) {
    let Some((due, id)) = foreign::parse_name(text) else { return };
    // The id is also used as a file name, and as a word of a line.
    let is_safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    assert!(id.chars().all(is_safe) && !id.starts_with('.') && !id.contains("--"), "{id}");
    assert!(text.ends_with(&format!("--{id}.json")));
    for due in [due, u64::MAX] {
        let again = foreign::name(due, &id);
        assert!(again.len() <= LONGEST);
        assert_eq!(foreign::parse_name(&again), Some((due, id.clone())));
    }
}

fn receipt(text: &str) {
    let Some(again) = foreign::receipt(text) else { return };
    let (name, _) = text.split_once(' ').expect("a receipt has two words");
    assert!(foreign::parse_name(name).is_some(), "it is the proof of no lease: {text}");
    assert_eq!(foreign::receipt(&again), Some(again));
}

fn body(sent: &[u8]) {
    let has_id = sent.windows(ID.len()).any(|part| part == ID.as_bytes());
    let stored = foreign::stored(sent, ID);
    if !has_id {
        assert_eq!(foreign::body(stored.clone(), ID), sent, "not delivered as sent");
    }
    // A file that another program wrote.
    let read = foreign::body(sent.to_vec(), ID);
    assert!(has_id || read == sent);
    let read = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).ok();
    if let Some(serde_json::Value::Object(mut fields)) = read(sent) {
        fields.insert("id".to_owned(), ID.into());
        assert_eq!(read(&stored), Some(fields.into()), "Python can't delete it");
    } else if std::str::from_utf8(sent).is_ok_and(|text| json::parse(text).is_err()) {
        let mark = "\u{feff}".as_bytes();
        assert!(stored == sent || sent.starts_with(mark), "what is not JSON was changed");
    }
}
