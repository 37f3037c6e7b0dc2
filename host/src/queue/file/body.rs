//! The `id` that the Python client looks for in a message, put in and taken out again.
//!
//! Python deletes what the `id` in the body says, and not what it leased: a message without
//! one can be run by it, but never deleted. So ours get one, written so that we know it
//! again, and are delivered without it, as they were sent.

use std::borrow::Cow;
use std::os::fd::OwnedFd;

use bytes::Bytes;
use rustix::fs::Stat;
use rustix::io::Errno;

use super::dirs::{self, REFUSED};
use crate::json;
use crate::queue::LONGEST_MESSAGE;

/// Bytes of the longest file that is read: the body, and the `id` that is put into it.
const LONGEST_STORED: usize = LONGEST_MESSAGE + 512;
/// What some editors put before a text in UTF-8.
const BYTE_ORDER_MARK: &str = "\u{feff}";

/// The body in a message's file, or how many bytes the file has, which are too many.
pub(super) fn read(file: &OwnedFd, stat: &Stat, id: &str) -> Result<Result<Bytes, usize>, Errno> {
    let size = dirs::size(stat);
    if size > LONGEST_STORED {
        return Ok(Err(size));
    }
    // It may be growing.
    let mut stored = dirs::read(file, LONGEST_STORED + 1)?;
    if stored.len() > LONGEST_STORED {
        return Ok(Err(stored.len()));
    }
    without_id(&mut stored, id);
    Ok(Ok(stored.into()))
}

/// What is said of a message whose file has that many bytes.
pub(super) fn too_long(file: &str, size: usize) -> String {
    format!(
        "its file {file} has {size} bytes, and was not read: {LONGEST_MESSAGE} are the most; put \
         what is large into an input"
    )
}

/// What becomes of it when it is given up.
pub(super) fn kept(id: &str) -> String {
    format!("host/{REFUSED}/{id}.json")
}

/// The bytes to store for a body. All but JSON objects are left as they are. A body that Python
/// sent to another queue has that message's `id`; of two fields Python takes the last.
pub(super) fn with_id<'a>(body: &'a [u8], id: &str) -> Cow<'a, [u8]> {
    let text = std::str::from_utf8(body).unwrap_or_default();
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
    let fields = json::parse(text).ok().and_then(json::Value::fields);
    let end = body.iter().rposition(|&b| b == b'}');
    let (Some(mut fields), Some(end)) = (fields, end) else {
        return Cow::Borrowed(body);
    };
    let comma = if fields.next().is_none() { "" } else { "," };
    let mut stored = Vec::with_capacity(body.len() + id.len() + 9);
    stored.extend_from_slice(&body[..end]);
    stored.extend_from_slice(format!("{comma}\"id\":\"{id}\"").as_bytes());
    stored.extend_from_slice(&body[end..]);
    Cow::Owned(stored)
}

/// The stored bytes without what [`with_id`] put in. Python writes a space after the colon,
/// so what it sent stays as it is.
pub(super) fn without_id(stored: &mut Vec<u8>, id: &str) {
    let Some(end) = stored.iter().rposition(|&b| b == b'}') else {
        return;
    };
    let mark = format!("\"id\":\"{id}\"");
    if stored[..end].ends_with(mark.as_bytes()) {
        let mut start = end - mark.len();
        if stored[..start].last() == Some(&b',') {
            start -= 1;
        }
        stored.drain(start..end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(sent: &str, stored: &str) {
        let bytes = with_id(sent.as_bytes(), "u-1");
        assert_eq!(String::from_utf8_lossy(&bytes), stored);
        let mut back = bytes.into_owned();
        without_id(&mut back, "u-1");
        assert_eq!(String::from_utf8_lossy(&back), sent, "does not come back as sent");
    }

    #[test]
    fn a_body_comes_back_as_it_was_sent() {
        check(r#"{"a": 1}"#, r#"{"a": 1,"id":"u-1"}"#);
        check("{\"a\": {\"id\": 2} }\n", "{\"a\": {\"id\": 2} ,\"id\":\"u-1\"}\n");
        check(r#"{"a": [NaN, -Infinity]}"#, r#"{"a": [NaN, -Infinity],"id":"u-1"}"#);
        check("{}", r#"{"id":"u-1"}"#);
        check("\u{feff}{\"a\": 1}\r\n", "\u{feff}{\"a\": 1,\"id\":\"u-1\"}\r\n");
        check(" { } ", " { \"id\":\"u-1\"} ");
        check(r#"{"ü": "}"}"#, r#"{"ü": "}","id":"u-1"}"#);
        check(
            r#"{"n": 123456789012345678901234567890.10}"#,
            r#"{"n": 123456789012345678901234567890.10,"id":"u-1"}"#,
        );
    }

    #[test]
    fn the_id_of_another_queue_is_not_the_last() {
        check(r#"{"id": "old"}"#, r#"{"id": "old","id":"u-1"}"#);
        check(r#"{"a": 1, "id":"u-0"}"#, r#"{"a": 1, "id":"u-0","id":"u-1"}"#);
        check(r#"{"id": 7, "a": {}}"#, r#"{"id": 7, "a": {},"id":"u-1"}"#);
        check(r#"{"id":"u-1"}"#, r#"{"id":"u-1","id":"u-1"}"#);
    }

    #[test]
    fn what_is_not_an_object_is_left_alone() {
        for body in ["[1]", "", "}", "{", "{} x", "\"text\"", "{\"a\":1", "[{}]", "NaN"] {
            check(body, body);
        }
    }
}
