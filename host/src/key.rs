//! Untrusted names that become paths: task names, bucket prefixes and keys.
//!
//! Names are checked here once, before any I/O. A value of these types can be joined to a directory
//! or a prefix without escaping it.

use std::borrow::Borrow;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use crate::plain;

/// The first segment of the keys of receipts, which is reserved for the host.
pub const RECEIPTS: &str = "_receipts";
/// The first segment of the keys of heartbeats, which is reserved for the host.
pub const HOSTS: &str = "_hosts";
/// The longest key, in bytes of UTF-8: the limit of S3 and Google Cloud Storage.
pub const MAX_KEY_BYTES: usize = 1024;
/// The longest segment between two slashes, in bytes: the limit of Linux file systems.
pub const MAX_SEGMENT_BYTES: usize = 255;

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Nothing, or only white space.
    #[error("is blank")]
    Blank,
    /// Starts with a slash.
    #[error("is an absolute path; it has to be relative")]
    Absolute,
    /// Two slashes in a row, or one at the end.
    #[error("has an empty segment (a doubled or trailing slash)")]
    EmptySegment,
    /// A segment is `.` or `..`.
    #[error("has a `{0}` segment")]
    Dots(&'static str),
    /// Has a backslash.
    #[error("has a backslash; segments are separated by `/`")]
    Backslash,
    /// Has a control character, which no path or log line should carry.
    #[error("has the control character {0:?}")]
    Control(char),
    /// A new name has an invisible character, or one that changes how others are shown.
    #[error(
        "has the character U+{:04X}, which is not shown or changes how the rest is shown",
        u32::from(*.0)
    )]
    Odd(char),
    /// Looks like a URL.
    #[error("starts with a URL scheme; it has to be a plain relative path")]
    Scheme,
    /// Is reserved for the host.
    #[error("is in `{RECEIPTS}` or `{HOSTS}`, which are reserved for the host")]
    Reserved,
    /// Too long for a bucket or a file system.
    #[error("is too long: {what} of {len} bytes, the limit is {max}")]
    TooLong {
        /// `a key` or `a segment`.
        what: &'static str,
        /// Its length in bytes.
        len: usize,
        /// The limit in bytes.
        max: usize,
    },
}

/// A checked relative path of one or more segments: a key in a bucket, or a file below
/// `/inputs` or `/outputs`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BucketKey(Arc<str>);

impl BucketKey {
    /// Checks `text`.
    ///
    /// # Errors
    /// The rule that `text` breaks.
    pub fn new(text: &str) -> Result<Self, KeyError> {
        check(text)?;
        Ok(Self(text.into()))
    }

    /// A key that the host builds from its own names.
    pub(crate) fn internal(text: &str) -> Self {
        debug_assert!(check(text).is_ok(), "{text}");
        Self(text.into())
    }

    /// Checks the key of a new object. Existing objects may have characters that new ones may not.
    ///
    /// # Errors
    /// The rule that `text` breaks.
    pub fn of_output(text: &str) -> Result<Self, KeyError> {
        let key = Self::new(text)?;
        check_plain(text)?;
        Ok(key)
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The key as a relative path.
    pub fn as_path(&self) -> &Path {
        Path::new(&*self.0)
    }

    /// True for a key that is reserved for the host: neither an input nor an output of a task.
    pub fn is_reserved(&self) -> bool {
        is_reserved(&self.0)
    }

    /// Everything before the last slash, if there is one.
    pub fn parent(&self) -> Option<&str> {
        self.0.rsplit_once('/').map(|(parent, _)| parent)
    }

    /// True when the key is below `prefix` or is `prefix` itself.
    pub fn starts_with(&self, prefix: &Prefix) -> bool {
        prefix.is_root()
            || self
                .0
                .strip_prefix(prefix.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

/// A bucket prefix without a trailing slash; empty for the bucket's root.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Prefix(Arc<str>);

impl Prefix {
    /// The bucket's root.
    pub fn root() -> Self {
        Self::default()
    }

    /// Checks `text`, which has to name at least one segment.
    ///
    /// # Errors
    /// The rule that `text` breaks.
    pub fn new(text: &str) -> Result<Self, KeyError> {
        check(text)?;
        Ok(Self(text.into()))
    }

    /// A prefix that the host builds from its own names.
    pub(crate) fn internal(text: &str) -> Self {
        debug_assert!(check(text).is_ok(), "{text}");
        Self(text.into())
    }

    /// True for the bucket's root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The prefix as text, without a trailing slash.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True when all keys below this prefix are at or below `other`.
    pub fn is_within(&self, other: &Self) -> bool {
        other.is_root() || (!self.is_root() && BucketKey(self.0.clone()).starts_with(other))
    }

    /// The prefix `relative` below this one.
    pub fn below(&self, relative: &Self) -> Self {
        match (self.is_root(), relative.is_root()) {
            (true, _) => relative.clone(),
            (_, true) => self.clone(),
            _ => Self(format!("{}/{}", self.0, relative.0).into()),
        }
    }

    /// The key of `relative` below this prefix.
    pub fn join(&self, relative: &BucketKey) -> BucketKey {
        if self.is_root() {
            relative.clone()
        } else {
            BucketKey(format!("{}/{}", self.0, relative.0).into())
        }
    }
}

/// The name of a task, which selects its component.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskName(Arc<str>);

impl TaskName {
    /// Checks `text`.
    ///
    /// # Errors
    /// The rule that `text` breaks.
    pub fn new(text: &str) -> Result<Self, KeyError> {
        check(text)?;
        check_plain(text)?;
        Ok(Self(text.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The component's file, relative to the directory of components: `NAME.wasm`.
    pub fn file(&self) -> BucketKey {
        BucketKey(format!("{}.wasm", self.0).into())
    }

    /// The key of the component's signature, below the components' prefix.
    pub fn signature_file(&self) -> BucketKey {
        BucketKey(format!("{}.wasm.minisig", self.0).into())
    }
}

impl Borrow<str> for BucketKey {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for TaskName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

macro_rules! show_as_text {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(&self.0)
            }
        }
    )*};
}
show_as_text!(BucketKey, Prefix, TaskName);

impl<'de> serde::Deserialize<'de> for BucketKey {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(d)?;
        Self::new(&text).map_err(serde::de::Error::custom)
    }
}

fn check(text: &str) -> Result<(), KeyError> {
    if text.trim().is_empty() {
        return Err(KeyError::Blank);
    }
    if text.len() > MAX_KEY_BYTES {
        return Err(KeyError::TooLong { what: "a key", len: text.len(), max: MAX_KEY_BYTES });
    }
    if let Some(c) = text.chars().find(|c| c.is_control()) {
        return Err(KeyError::Control(c));
    }
    if text.contains('\\') {
        return Err(KeyError::Backslash);
    }
    if text.starts_with('/') {
        return Err(KeyError::Absolute);
    }
    for (i, segment) in text.split('/').enumerate() {
        match segment {
            // For example `s3://bucket/key` or `file:/etc/passwd`.
            _ if i == 0 && segment.ends_with(':') => return Err(KeyError::Scheme),
            "" => return Err(KeyError::EmptySegment),
            "." => return Err(KeyError::Dots(".")),
            ".." => return Err(KeyError::Dots("..")),
            _ if segment.len() > MAX_SEGMENT_BYTES => {
                return Err(KeyError::TooLong {
                    what: "a segment",
                    len: segment.len(),
                    max: MAX_SEGMENT_BYTES,
                });
            }
            _ => {}
        }
    }
    Ok(())
}

/// Checks that a base directory is not reserved for the host.
///
/// # Errors
/// [`KeyError::Reserved`].
pub fn check_not_reserved(base_directory: &str) -> Result<(), KeyError> {
    if is_reserved(base_directory) { Err(KeyError::Reserved) } else { Ok(()) }
}

/// Ignores case and invisible characters, because some file systems do.
fn is_reserved(text: &str) -> bool {
    let first = text.split('/').next().unwrap_or_default();
    let seen = first.chars().filter(|c| plain::is_plain(*c)).flat_map(char::to_uppercase);
    [RECEIPTS, HOSTS].iter().any(|name| seen.clone().eq(name.chars().flat_map(char::to_uppercase)))
}

/// A name as a case-insensitive file system sees it. Converted character by character, so that the
/// result does not depend on the context.
pub fn lowercase(text: &str) -> String {
    text.chars().flat_map(char::to_lowercase).collect()
}

fn check_plain(text: &str) -> Result<(), KeyError> {
    plain::first_odd(text).map_or(Ok(()), |c| Err(KeyError::Odd(c)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_escape_or_mislead_are_refused() {
        for (text, want) in [
            ("", "is blank"),
            (" \t", "is blank"),
            ("/etc/passwd", "is an absolute path; it has to be relative"),
            ("a//b", "has an empty segment (a doubled or trailing slash)"),
            ("a/", "has an empty segment (a doubled or trailing slash)"),
            ("../a", "has a `..` segment"),
            ("a/../b", "has a `..` segment"),
            ("a/./b", "has a `.` segment"),
            ("a\\b", "has a backslash; segments are separated by `/`"),
            ("a\nb", "has the control character '\\n'"),
            ("a\0b", "has the control character '\\0'"),
            ("s3://b/k", "starts with a URL scheme; it has to be a plain relative path"),
            ("file:/etc", "starts with a URL scheme; it has to be a plain relative path"),
        ] {
            assert_eq!(BucketKey::new(text).unwrap_err().to_string(), want, "{text:?}");
        }
        assert!(matches!(BucketKey::new(&"a".repeat(1025)), Err(KeyError::TooLong { .. })));
        assert!(matches!(BucketKey::new(&"a".repeat(256)), Err(KeyError::TooLong { .. })));
    }

    #[test]
    fn keys_of_the_host_are_known_however_a_file_system_compares_names() {
        for text in
            ["_receipts", "_receipts/a", "_Receipts/a", "_receipt\u{17f}", "_rec\u{200d}eipts/a"]
                .into_iter()
                .chain(["_hosts", "_hosts/a", "_HOSTS/a", "_ho\u{17f}ts/a"])
        {
            assert!(BucketKey::new(text).unwrap().is_reserved(), "{text:?}");
        }
        for text in ["receipts", "_receipts2/a", "d/_receipts", "_receipts.txt", "_host", "hosts"] {
            assert!(!BucketKey::new(text).unwrap().is_reserved(), "{text:?}");
        }
    }

    #[test]
    fn ordinary_keys_are_taken_as_they_are() {
        for text in ["a", "0_input/4.dat", "a..b/c", "é/ü", "x:y/z", "a b/c", "..."] {
            assert_eq!(BucketKey::new(text).unwrap().as_str(), text);
        }
    }

    #[test]
    fn new_names_are_plain_and_names_of_what_is_there_may_be_anything() {
        for (text, code_point) in
            [("a\u{202e}gpj", "U+202E"), ("NO\u{200b}OP", "U+200B"), ("a\u{fe0f}", "U+FE0F")]
        {
            let want = format!(
                "has the character {code_point}, which is not shown or changes how the rest is shown"
            );
            assert_eq!(TaskName::new(text).unwrap_err().to_string(), want);
            assert_eq!(BucketKey::of_output(text).unwrap_err().to_string(), want);
            assert!(BucketKey::new(text).is_ok() && Prefix::new(text).is_ok());
        }
        for text in ["NO_OP", "ΔF/F", "e\u{301}", "日本 語", "mod.sub.fn"] {
            assert!(TaskName::new(text).is_ok() && BucketKey::of_output(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn a_prefix_is_a_prefix_only_at_a_slash() {
        let key = BucketKey::new("components/a.wasm").unwrap();
        assert!(key.starts_with(&Prefix::new("components").unwrap()));
        assert!(!key.starts_with(&Prefix::new("comp").unwrap()));
        assert!(key.starts_with(&Prefix::root()));
        assert_eq!(Prefix::root().join(&key), key);
        assert_eq!(Prefix::new("x").unwrap().join(&key).as_str(), "x/components/a.wasm");
    }
}
