//! The JSON reader for messages: it finds the same values as `serde_json`.

use serde_json::value::RawValue;
use task_host::json::{self, Value};
use task_host::plain;

use crate::memory::bounded;

/// The numbers that only Python writes.
const PYTHON: [&str; 2] = ["NaN", "Infinity"];

pub(crate) fn check(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    // Each level of nesting takes a byte of the heap.
    let ours = bounded(2 * text.len() + 64, || json::parse(text));
    let theirs = serde_json::from_str::<&RawValue>(text);
    match (&ours, &theirs) {
        (Ok(ours), Ok(theirs)) => assert_eq!(ours.text(), theirs.get()),
        (Err(_), Err(_)) => {}
        (Ok(_), Err(error)) => {
            assert!(PYTHON.iter().any(|number| text.contains(number)), "serde_json: {error}");
        }
        (Err(error), Ok(_)) => panic!("only serde_json reads it: {error}"),
    }
    let value = match ours {
        Ok(value) => value,
        Err(error) => return assert!(error.to_string().len() < 200),
    };
    assert_eq!(json::parse(value.text()), Ok(value), "the text of a value is the value");
    if let Ok(theirs) = theirs {
        let line = json::to_line(&theirs, |c| !plain::is_plain(c)).expect("JSON can be written");
        let line = String::from_utf8(line).expect("JSON is text");
        assert_eq!(plain::first_odd(&line), None, "{line}");
        if let Ok(theirs) = serde_json::from_str::<serde_json::Value>(text) {
            assert_same(value, &theirs);
            assert_eq!(serde_json::from_str::<serde_json::Value>(&line).ok(), Some(theirs));
        } else if value.is_portable() {
            // A number beyond the range of 64 bits is portable, because its text is kept.
            let error =
                serde_json::from_str::<serde_json::Value>(text).expect_err("refused before");
            assert!(error.to_string().starts_with("number out of range"), "{error}");
        }
    }
}

/// Checks that our reader finds the same value as `serde_json`, which reads at most 128 levels.
fn assert_same(ours: Value<'_>, theirs: &serde_json::Value) {
    match theirs {
        serde_json::Value::Array(theirs) => {
            let items: Vec<_> = ours.items().expect("an array").collect();
            assert_eq!(items.len(), theirs.len());
            items.into_iter().zip(theirs).for_each(|(ours, theirs)| assert_same(ours, theirs));
        }
        serde_json::Value::Object(theirs) => {
            let fields: Vec<_> = ours.fields().expect("an object").collect();
            assert!(fields.iter().all(|(name, _)| name.is_string()));
            for (name, theirs) in theirs {
                // serde_json keeps the last of several fields with the same name.
                let ours = fields.iter().rfind(|(field, _)| field.is(name)).expect("the field");
                assert_same(ours.1, theirs);
            }
        }
        serde_json::Value::String(theirs) => {
            assert_eq!(ours.string().as_deref(), Some(theirs.as_str()));
        }
        other => {
            assert!(!ours.is_string() && ours.items().is_none() && ours.fields().is_none());
            assert_eq!(
                serde_json::from_str::<serde_json::Value>(ours.text()).ok().as_ref(),
                Some(other)
            );
        }
    }
}
