//! Parsers of settings: from text to a typed value.
//!
//! An error message completes the sentence `--lease: "1s" …`. It says what is wrong and what would
//! be right.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::builder::{OsStringValueParser, TypedValueParser};
use globset::{GlobBuilder, GlobMatcher};

use super::{Paths, Prefixes};
use crate::bucket::{self, StoredEncoding};
use crate::catalog::Keys;
use crate::confinement::Confine;
use crate::environment::with_home;
use crate::key::{Prefix, check_not_reserved};
use crate::notice::{Cloud, Notices};
use crate::queue;
use crate::queue::sqs::check_body_bucket;
use crate::sandbox::{LEAST_HOST_MEMORY, MOST_LOG};
use crate::scheme;

/// A value, or what is wrong with its text.
pub type Parsed<T> = Result<T, String>;

/// The address of a queue. A plain path is a directory. A bare name has to be an existing
/// directory, because it could also be meant as the name of an SQS queue, as in python-task-queue.
pub fn queue(text: &str) -> Parsed<queue::Address> {
    let address: queue::Address = text.parse().map_err(|e: queue::AddressError| e.problem)?;
    let is_bare = !text.contains(['/', ':']) && !text.starts_with(['.', '~']);
    match address.directory() {
        Some(path) if is_bare && !path.exists() => Err(format!(
            "could be a new directory or an SQS queue; write ./{text} for the directory, or \
             sqs://{text} for SQS"
        )),
        _ => Ok(address),
    }
}

/// The address of a bucket. A plain path is a directory.
pub(super) fn bucket(text: &str) -> Parsed<bucket::Address> {
    text.parse().map_err(|error: bucket::AddressError| error.problem)
}

/// The address of a bucket for large messages.
pub(super) fn message_bucket(text: &str) -> Parsed<bucket::Address> {
    check_body_bucket(text).and_then(|()| bucket(text))
}

/// A path, in which a leading `~` is the home directory.
pub(super) fn path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().try_map(|path: OsString| match path.to_str() {
        Some("") => Err("is empty; write a path".to_owned()),
        Some(text) => {
            scheme::check_path(text)?;
            with_home(text).map(PathBuf::from)
        }
        None => Ok(PathBuf::from(path)),
    })
}

/// Paths that exist, separated by colons.
pub(super) fn paths(text: &str) -> Parsed<Paths> {
    let paths = text.split(':').map(|path| {
        let path = PathBuf::from(with_home(path)?);
        match path.exists() {
            true => Ok(path),
            false => Err(format!("has {path:?}, which does not exist")),
        }
    });
    paths.collect::<Parsed<_>>().map(Paths)
}

/// The public keys in a file.
pub(super) fn component_keys(path: &str) -> Parsed<Keys> {
    let text = std::fs::read_to_string(with_home(path)?)
        .map_err(|error| format!("can't be read: {error}"))?;
    Keys::parse(&text)
}

/// `on`, `off` or `require`.
pub(super) fn confine(text: &str) -> Parsed<Confine> {
    match text {
        "on" => Ok(Confine::On),
        "off" => Ok(Confine::Off),
        "require" => Ok(Confine::Require),
        _ => Err("is not one of on, off and require".to_owned()),
    }
}

/// A cloud, `auto` or `none`.
pub(super) fn notices(text: &str) -> Parsed<Notices> {
    match text {
        "auto" => Ok(Notices::Auto),
        "aws" => Ok(Notices::Of(Cloud::Aws)),
        "google" => Ok(Notices::Of(Cloud::Google)),
        "azure" => Ok(Notices::Of(Cloud::Azure)),
        "none" => Ok(Notices::Off),
        _ => Err("is not one of auto, aws, google, azure and none".to_owned()),
    }
}

/// A prefix of keys in a bucket.
pub(super) fn prefix(text: &str) -> Parsed<Prefix> {
    Prefix::new(text.trim_end_matches('/')).map_err(|error| error.to_string())
}

/// Prefixes of keys, separated by colons. A single slash is the bucket's root.
pub(super) fn readable(text: &str) -> Parsed<Prefixes> {
    let prefixes = text.split(':').map(|text| match text {
        "/" => Ok(Prefix::root()),
        text => component_prefix(text).map_err(|problem| format!("has {text:?}, which {problem}")),
    });
    prefixes.collect::<Parsed<_>>().map(Prefixes)
}

/// The prefix of components or logs. It may not be below a prefix that belongs to the host.
pub(super) fn component_prefix(text: &str) -> Parsed<Prefix> {
    let prefix = prefix(text)?;
    check_not_reserved(prefix.as_str()).map_err(|error| error.to_string())?;
    if prefix.as_str().split('/').any(|segment| segment == bucket::TMP) {
        return Err(format!(
            "has a segment `{}`, which hosts use for unfinished files",
            bucket::TMP
        ));
    }
    Ok(prefix)
}

/// A glob pattern of paths, in which `*` stops at a slash.
pub(super) fn glob(text: &str) -> Parsed<GlobMatcher> {
    let glob = GlobBuilder::new(text).literal_separator(true).build();
    Ok(glob.map_err(|error| format!("is not a pattern: {error}"))?.compile_matcher())
}

/// `decode` or `keep`.
pub(super) fn stored_encoding(text: &str) -> Parsed<StoredEncoding> {
    match text {
        "decode" => Ok(StoredEncoding::Decode),
        "keep" => Ok(StoredEncoding::Keep),
        _ => Err("is neither decode nor keep".to_owned()),
    }
}

/// A duration such as `5m`, `1h 30m` or `250ms`. A bare number is in seconds.
pub fn duration(text: &str) -> Parsed<Duration> {
    if let Ok(seconds) = text.parse() {
        return Ok(Duration::from_secs(seconds));
    }
    humantime::parse_duration(text)
        .map_err(|_| "is not a time; write for example 30s, 5m or 1h 30m".to_owned())
}

/// A duration that is not zero.
pub fn positive_duration(text: &str) -> Parsed<Duration> {
    match duration(text)? {
        Duration::ZERO => Err("must be more than 0".to_owned()),
        time => Ok(time),
    }
}

/// A lease duration.
pub(super) fn lease(text: &str) -> Parsed<Duration> {
    let (shortest, longest) = (Duration::from_secs(2), Duration::from_secs(12 * 3600));
    match duration(text)? {
        time if (shortest..=longest).contains(&time) => Ok(time),
        _ => Err("must be from 2s to 12h".to_owned()),
    }
}

/// A size such as `512MiB` or `4GB`. A bare number is in bytes.
pub fn size(text: &str) -> Parsed<ByteSize> {
    text.parse()
        .map_err(|_| "is not a size in bytes; write for example 512MiB, 4GB or 100000".to_owned())
}

/// The memory of a task. A component has 32-bit addresses and memory pages of 64 KiB.
pub(super) fn task_memory(text: &str) -> Parsed<ByteSize> {
    match size(text)? {
        size if size > ByteSize::gib(4) => {
            Err("is more than a component can address; the maximum is 4GiB".to_owned())
        }
        size if size < ByteSize::kib(64) => {
            Err("is too small for any task; the minimum is 64KiB".to_owned())
        }
        size => Ok(size),
    }
}

/// The bytes of a task's log.
pub(super) fn log(text: &str) -> Parsed<ByteSize> {
    match size(text)? {
        size if size > MOST_LOG => {
            Err(format!("is too large; the maximum is {}", MOST_LOG.display().iec()))
        }
        size => Ok(size),
    }
}

/// The host's own memory for one task. Calls and handles always take some of it.
pub(super) fn host_memory(text: &str) -> Parsed<ByteSize> {
    match size(text)? {
        size if size < LEAST_HOST_MEMORY => Err(format!(
            "is too small for any task; the minimum is {}",
            LEAST_HOST_MEMORY.display().iec()
        )),
        size => Ok(size),
    }
}

/// The memory of the compiling process. The process needs some memory before it can compile.
pub(super) fn compile_memory(text: &str) -> Parsed<ByteSize> {
    match size(text)? {
        size if size < ByteSize::mib(64) => {
            Err("is too small to compile a component; the minimum is 64MiB".to_owned())
        }
        size => Ok(size),
    }
}

/// A whole number from `least` to `most`, which may have `_` between its digits.
fn within(text: &str, least: i128, most: i128) -> Parsed<i128> {
    let digits = text.replace('_', "");
    let unsigned = digits.strip_prefix(['-', '+']).unwrap_or(&digits);
    if unsigned.is_empty() || unsigned.contains(|c: char| !c.is_ascii_digit()) {
        return Err("is not a whole number; write for example 8 or 10_000".to_owned());
    }
    match digits.parse() {
        Ok(n) if n < least && least >= 0 => Err(format!("must be {least} or more")),
        Ok(n) if n < least => Err(format!("is too small; the minimum is {least}")),
        Ok(n) if n <= most => Ok(n),
        Err(_) if digits.starts_with('-') => Err(format!("must be {least} or more")),
        _ => Err(format!("is too large; the maximum is {most}")),
    }
}

/// A whole number.
pub fn whole(text: &str) -> Parsed<u64> {
    within(text, 0, u64::MAX.into()).map(|n| n as u64)
}

/// A whole number that is not zero.
pub fn positive(text: &str) -> Parsed<u64> {
    within(text, 1, u64::MAX.into()).map(|n| n as u64)
}

/// A whole number of 32 bits.
pub fn small(text: &str) -> Parsed<u32> {
    within(text, 0, u32::MAX.into()).map(|n| n as u32)
}

/// A whole number of 32 bits that is not zero.
pub fn small_positive(text: &str) -> Parsed<u32> {
    within(text, 1, u32::MAX.into()).map(|n| n as u32)
}

/// The id of a task.
pub fn id(text: &str) -> Parsed<i64> {
    within(text, i64::MIN.into(), i64::MAX.into()).map(|n| n as i64)
}

/// A number of slots.
pub(super) fn parallel(text: &str) -> Parsed<usize> {
    match positive(text)? {
        n @ 1..=4096 => Ok(n as usize),
        _ => Err("is more than a host can run; the maximum is 4096".to_owned()),
    }
}

/// A number of waiting tasks.
pub(super) fn prefetch(text: &str) -> Parsed<usize> {
    match whole(text)? {
        n @ 0..=100_000 => Ok(n as usize),
        _ => Err("is more than a host can hold; the maximum is 100000".to_owned()),
    }
}

/// The number of files that a task may have open. Each takes a handle.
pub(super) fn open_files(text: &str) -> Parsed<u64> {
    match positive(text)? {
        n @ 1..=10_000 => Ok(n),
        _ => Err("is more than a task can have open; the maximum is 10000".to_owned()),
    }
}

/// The value of a switch in a variable or a file.
pub fn switch(text: &str) -> Parsed<bool> {
    match text {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err("is neither true nor false".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_read_as_people_write_them() {
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("1h 30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert!(duration("soon").is_err());
        assert_eq!(size("1GiB"), Ok(ByteSize::gib(1)));
        assert_eq!(size("4096"), Ok(ByteSize(4096)));
        assert!(size("much").is_err());
        assert_eq!(whole("10_000"), Ok(10_000));
        assert_eq!(positive("0").unwrap_err(), "must be 1 or more");
        assert_eq!(positive("-1").unwrap_err(), "must be 1 or more");
        assert_eq!(whole("-1").unwrap_err(), "must be 0 or more");
        assert_eq!(id("-9223372036854775808"), Ok(i64::MIN));
        assert_eq!(id("-9_223_372_036_854_775_808"), Ok(i64::MIN));
        assert!(id("-9223372036854775809").unwrap_err().starts_with("is too small; the minimum"));
        assert!(small("4294967296").unwrap_err().ends_with("the maximum is 4294967295"));
        assert!(
            whole(&"9".repeat(60)).unwrap_err().ends_with("the maximum is 18446744073709551615")
        );
        for text in ["", "-", "x", "1.5", "1 000", "--1", "1-"] {
            assert!(whole(text).unwrap_err().starts_with("is not a whole number"), "{text}");
        }
        assert_eq!(prefix("components/").unwrap().as_str(), "components");
    }

    #[test]
    fn a_prefix_is_one_that_a_bucket_can_have() {
        for text in ["_receipts", "_Hosts/x", ".task-host-tmp", "logs/.task-host-tmp/x", "a/../b"] {
            assert!(component_prefix(text).is_err(), "{text}");
        }
        assert_eq!(component_prefix("task-host-tmp/a/").unwrap().as_str(), "task-host-tmp/a");
    }

    #[test]
    fn a_task_has_the_memory_that_a_component_can_use() {
        assert_eq!(task_memory("4GiB"), Ok(ByteSize::gib(4)));
        assert!(task_memory("5GB").unwrap_err().contains("the maximum is 4GiB"));
        assert!(task_memory("0").unwrap_err().contains("the minimum is 64KiB"));
    }
}
