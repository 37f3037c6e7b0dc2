//! The `id` field that the Python client needs in a message.
//!
//! Python deletes the message whose id is in the body, not the file that it leased. Python could
//! run a message without an `id`, but could never delete it. The host therefore adds an `id`, in a
//! form that it recognizes, to the messages that it sends, and removes it on delivery.

use std::borrow::Cow;
use std::os::fd::OwnedFd;

use bytes::Bytes;
use rustix::fs;
use rustix::io::Errno;

use super::dirs::REFUSED;
use super::files;
use crate::json;
use crate::queue::LONGEST_MESSAGE;

/// The maximum number of bytes of a file that are read: the body and its `id` field.
const LONGEST_STORED: usize = LONGEST_MESSAGE + 512;
/// Some editors write this before a UTF-8 text.
const BYTE_ORDER_MARK: &str = "\u{feff}";

/// The contents of a message's file.
pub(super) enum Body {
    Text(Bytes),
    /// The file is too long. The number is its size in bytes.
    TooLong(usize),
    /// The entry is a pipe or a directory.
    NotAFile,
}

/// Reads the body from the file of the message `id`.
pub(super) fn read(file: &OwnedFd, id: &str) -> Result<Body, Errno> {
    let mut stored = match files::read(file, files::FIRST_READ) {
        Err(errno) if files::is_not_a_file(errno) => return Ok(Body::NotAFile),
        stored => stored?,
    };
    if stored.len() == files::FIRST_READ {
        let size = files::size(&fs::fstat(file)?);
        if size > LONGEST_STORED {
            return Ok(Body::TooLong(size));
        }
        stored = files::read(file, LONGEST_STORED + 1)?;
        // The file may have grown since its size was read.
        if stored.len() > LONGEST_STORED {
            return Ok(Body::TooLong(stored.len()));
        }
    }
    without_id(&mut stored, id);
    Ok(Body::Text(stored.into()))
}

/// The problem with a message whose file has `size` bytes.
pub(super) fn too_long(file: &str, size: usize) -> String {
    format!(
        "its file {file} has {size} bytes; at most {LONGEST_MESSAGE} are read. Put large data into \
         an input"
    )
}

/// Where the file of a message that is too long is kept after the message is rejected, relative to
/// the queue directory.
pub(super) fn kept(id: &str) -> String {
    format!("host/{REFUSED}/{id}.json")
}

/// The bytes to store for a body. A JSON object gets the `id` field, other bodies stay unchanged.
/// If Python sent the body to another queue before, the body also has the `id` of that message.
/// Python uses the last of two `id` fields.
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

/// Removes the field that [`with_id`] added. Python writes a space after the colon, so a field
/// that Python added stays.
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
        assert_eq!(String::from_utf8_lossy(&back), sent, "not delivered as sent");
    }

    #[test]
    fn a_body_is_delivered_as_it_was_sent() {
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
