//! Receipts: one small object for each finished task, which describes the task, its inputs and its
//! outputs.
//!
//! The key of a receipt is derived from the task's content, so redeliveries, copies and resends of
//! a task share one receipt. `receipt/store.rs` keeps receipts in the bucket.

mod store;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::json;
use crate::key::{BucketKey, RECEIPTS};
use crate::publish::{Published, PutOutput};
use crate::report::{HOST_INFO, HostInfo, Received};
use crate::sandbox::Mode;
use crate::stats::{Step, Steps};

pub use crate::message::content;
pub use store::{Found, Receipts};

/// The version of the format.
const FORMAT: u64 = 1;
/// The number of hexadecimal digits in the name of a receipt's directory. Ten million receipts are
/// in 256 directories of about 40,000 each. With more directories, the first tasks of a bucket
/// would have to create more of them.
const SHARD: usize = 2;
/// The longest message in bytes that is stored in its receipt. A receipt has only the digest of a
/// longer one.
const LONGEST_MESSAGE: usize = 64 << 10;
/// The object that replaces a receipt that was withdrawn.
const WITHDRAWN: &str = r#"{"receipt":1,"withdrawn":true}"#;
/// The largest receipt that is read, in bytes.
const LARGEST: u64 = 128 << 20;

/// The key of the receipt of the task with this content.
pub fn key(content: &Digest) -> BucketKey {
    let digits = content.to_string();
    let (shard, name) = digits.split_at(SHARD);
    BucketKey::internal(&format!("{RECEIPTS}/{shard}/{name}.json"))
}

/// The content of the task whose receipt has this key; `None` for any other key.
pub fn content_of(key: &BucketKey) -> Option<Digest> {
    let (shard, name) = key.as_str().strip_prefix(RECEIPTS)?.strip_prefix('/')?.split_once('/')?;
    let digits = (shard.len() == SHARD).then(|| format!("{shard}{name}"))?;
    digits.strip_suffix(".json")?.parse().ok()
}

/// An input that a task read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadInput {
    /// Its key, from the bucket's root.
    pub key: BucketKey,
    /// The digest of the bytes that the task read.
    pub sha256: Digest,
    /// The number of bytes.
    pub size: u64,
    /// The tag of the object's version.
    pub version: String,
}

/// The data of a new receipt.
#[derive(Debug)]
pub struct Draft<'a> {
    /// The digest of the task's content.
    pub content: Digest,
    /// The message as it was received.
    pub message: &'a [u8],
    /// The number of the attempt, from 1.
    pub attempt: u32,
    /// The component that ran.
    pub component: Digest,
    /// Where the component got the time and random numbers from.
    pub mode: Mode,
    /// The inputs that the task read.
    pub inputs: &'a [ReadInput],
    /// True if the task named inputs itself.
    pub planned: bool,
    /// The outputs that the task left.
    pub outputs: &'a [PutOutput],
    /// The times of the steps until now.
    pub steps: &'a Steps,
    /// The guest's peak memory, in bytes.
    pub memory: u64,
    /// The guest's processor time, if it was measured.
    pub cpu_time: Option<Duration>,
}

impl Draft<'_> {
    /// The receipt as it is stored: JSON on one line.
    pub fn to_bytes(&self) -> Bytes {
        #[derive(Serialize)]
        struct Wire<'a> {
            receipt: u64,
            content: Digest,
            component: Digest,
            attempt: u32,
            deterministic: bool,
            inputs: &'a [ReadInput],
            #[serde(skip_serializing_if = "std::ops::Not::not")]
            planned: bool,
            outputs: &'a [PutOutput],
            memory_bytes: u64,
            #[serde(skip_serializing_if = "Option::is_none")]
            cpu_seconds: Option<f64>,
            /// Seconds in each step.
            steps: BTreeMap<&'static str, f64>,
            host_info: &'static HostInfo,
            /// The time of the receipt in UTC.
            time: String,
            task_sha256: Digest,
            task: Received<'a>,
        }
        let steps = Step::ALL.into_iter().filter(|step| *step != Step::Settle);
        let wire = Wire {
            receipt: FORMAT,
            content: self.content,
            component: self.component,
            attempt: self.attempt,
            deterministic: self.mode == Mode::Deterministic,
            inputs: self.inputs,
            planned: self.planned,
            outputs: self.outputs,
            memory_bytes: self.memory,
            cpu_seconds: self.cpu_time.map(|time| time.as_secs_f64()),
            steps: steps.map(|step| (step.name(), self.steps.spent(step).as_secs_f64())).collect(),
            host_info: &HOST_INFO,
            time: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            task_sha256: Digest::of(self.message),
            task: Received::new(self.message, self.message.len() <= LONGEST_MESSAGE),
        };
        // Serializing these types to memory can't fail.
        json::to_line(&wire, |_| false).unwrap_or_default().into()
    }
}

/// A receipt as it is read.
#[derive(Debug, Clone, Deserialize)]
pub struct Receipt {
    content: Digest,
    /// The component that ran.
    pub component: Digest,
    /// The number of the attempt, from 1.
    pub attempt: u32,
    /// True if the guest's clocks and random numbers depended only on the task.
    #[serde(default)]
    pub deterministic: bool,
    /// The inputs that the task read.
    pub inputs: Vec<ReadInput>,
    /// True if the task named inputs itself.
    #[serde(default)]
    pub planned: bool,
    /// The outputs that the task left.
    pub outputs: Vec<PutOutput>,
}

/// Why the object under a receipt's key can't be used as the receipt. It counts as absent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// It is not a receipt, or only a part of one.
    #[error("is damaged: {0}")]
    Damaged(String),
    /// Another version of the host wrote it.
    #[error("has format {0}, and this host reads format {FORMAT}")]
    Format(u64),
    /// A user asked for the task to run again.
    #[error("was withdrawn")]
    Withdrawn,
    /// It was renamed or copied.
    #[error("is the receipt of another task")]
    Other,
}

impl Receipt {
    /// Parses the receipt of the task with this content.
    ///
    /// # Errors
    /// If the bytes are not a receipt of that task.
    pub fn parse(bytes: &[u8], content: &Digest) -> Result<Self, Unusable> {
        #[derive(Deserialize)]
        struct Head {
            receipt: u64,
            #[serde(default)]
            withdrawn: bool,
        }
        let damaged = |error: serde_json::Error| Unusable::Damaged(error.to_string());
        let Head { receipt: format, withdrawn } = serde_json::from_slice(bytes).map_err(damaged)?;
        if format != FORMAT {
            return Err(Unusable::Format(format));
        }
        if withdrawn {
            return Err(Unusable::Withdrawn);
        }
        let receipt: Self = serde_json::from_slice(bytes).map_err(damaged)?;
        if receipt.content != *content {
            return Err(Unusable::Other);
        }
        Ok(receipt)
    }

    /// The outputs, as if the task had just published them.
    pub fn published(&self) -> Published {
        Published {
            keys: self.outputs.iter().map(|output| output.key.clone()).collect(),
            // Saturates, because anybody who can write to the bucket can choose these numbers.
            bytes: self.outputs.iter().fold(0, |sum, output| sum.saturating_add(output.size)),
        }
    }

    /// The first output whose key or digest differs.
    pub fn first_difference<'a>(&'a self, other: &'a [PutOutput]) -> Option<&'a BucketKey> {
        let id = |output: &'a PutOutput| (&output.key, output.sha256);
        let (ours, theirs) = (self.outputs.iter().map(id), other.iter().map(id));
        let differs = ours.zip(theirs).find(|(one, other)| one != other).map(|(one, _)| one.0);
        let longer = match self.outputs.len() > other.len() {
            true => self.outputs.get(other.len()),
            false => other.get(self.outputs.len()),
        };
        differs.or(longer.map(|output| &output.key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{self, Task};

    fn task(text: &str) -> Task {
        message::decode(text.as_bytes()).unwrap()
    }

    const TASK: &str = r#"{"basic_info": {"id": 4, "name": "N", "base_directory": "d/e",
        "inputs": ["a", "b"]}, "payload_info": {"x": 1}}"#;

    #[test]
    fn the_key_is_the_digest_of_a_text_that_other_programs_can_make() {
        let text = "task-host receipt 1\nN\nd/e\n4\na\nb\n\n{\"x\": 1}";
        let digest = Digest::of(text.as_bytes());
        assert_eq!(content(&task(TASK)), digest);
        let digits = digest.to_string();
        let want = format!("_receipts/{}/{}.json", &digits[..2], &digits[2..]);
        assert_eq!(key(&digest).as_str(), want);
        assert_eq!(content_of(&key(&digest)), Some(digest));
        for other in ["_receipts/README.txt", "_receipts/abc/def.json", "d/abc/def.json"] {
            assert_eq!(content_of(&BucketKey::new(other).unwrap()), None);
        }
    }

    #[test]
    fn whatever_a_guest_receives_makes_another_task_and_nothing_else_does() {
        let digest = content(&task(TASK));
        for same in [
            TASK.replace("\"id\": 4", "\"id\": \"4\""),
            TASK.replacen('{', "{\"z\": 1,", 1),
            format!("{{\"payload\": {TASK}, \"queueName\": \"q\", \"id\": \"5f0c\"}}"),
        ] {
            assert_eq!(content(&task(&same)), digest, "{same}");
        }
        for other in [
            TASK.replace("\"id\": 4", "\"id\": 5"),
            TASK.replace("\"N\"", "\"M\""),
            TASK.replace("d/e", "d/f"),
            TASK.replace(r#""a", "b""#, r#""b", "a""#),
            TASK.replace(r#", "payload_info": {"x": 1}"#, ""),
            TASK.replace(r#"{"x": 1}"#, r#"{"x":1}"#),
            TASK.replace(r#"{"x": 1}"#, "null"),
        ] {
            assert_ne!(content(&task(&other)), digest, "{other}");
        }
    }

    fn sample(message: &[u8]) -> (Digest, Bytes) {
        let content = content(&task(TASK));
        let (key, version) = (BucketKey::new("d/e/a").unwrap(), "1".to_owned());
        let digest = Digest::of(b"A");
        let input = ReadInput { key: key.clone(), sha256: digest, size: 1, version };
        let output = PutOutput { key, sha256: digest, size: 1, version: String::new() };
        let draft = Draft {
            content,
            message,
            attempt: 2,
            component: digest,
            mode: Mode::Deterministic,
            inputs: &[input],
            planned: false,
            outputs: &[output],
            steps: &Steps::start(),
            memory: 65_536,
            cpu_time: None,
        };
        (content, draft.to_bytes())
    }

    #[test]
    fn what_is_written_is_read_again() {
        for message in [TASK.as_bytes(), b"\xff", &[b'x'; LONGEST_MESSAGE + 1]] {
            let (content, bytes) = sample(message);
            let receipt = Receipt::parse(&bytes, &content).unwrap();
            assert_eq!(receipt.outputs[0].sha256, Digest::of(b"A"));
            assert_eq!(receipt.published().bytes, 1);
            assert!(receipt.deterministic);
            assert!(bytes.len() < 3000, "{}", bytes.len());
        }
    }

    #[test]
    fn sizes_that_nobody_wrote_do_not_stop_a_host() {
        let (content, bytes) = sample(TASK.as_bytes());
        let mut receipt = Receipt::parse(&bytes, &content).unwrap();
        receipt.outputs[0].size = u64::MAX;
        receipt.outputs.push(receipt.outputs[0].clone());
        assert_eq!(receipt.published().bytes, u64::MAX);
    }

    #[test]
    fn a_receipt_that_is_cut_anywhere_is_damaged() {
        let (content, bytes) = sample(TASK.as_bytes());
        for end in 0..bytes.len() {
            let parsed = Receipt::parse(&bytes[..end], &content);
            assert!(matches!(parsed, Err(Unusable::Damaged(_))), "{end}");
        }
        let zeros = vec![0; bytes.len()];
        assert!(matches!(Receipt::parse(&zeros, &content), Err(Unusable::Damaged(_))));
    }

    #[test]
    fn a_receipt_of_another_format_or_task_says_which() {
        let (content, bytes) = sample(TASK.as_bytes());
        let newer = String::from_utf8(bytes.to_vec()).unwrap().replacen(":1,", ":2,", 1);
        let error = Receipt::parse(newer.as_bytes(), &content).unwrap_err();
        assert_eq!(error.to_string(), "has format 2, and this host reads format 1");
        assert_eq!(Receipt::parse(&bytes, &Digest::of(b"")).unwrap_err(), Unusable::Other);
        let withdrawn = Receipt::parse(WITHDRAWN.as_bytes(), &content).unwrap_err();
        assert_eq!(withdrawn, Unusable::Withdrawn);
    }

    #[test]
    fn the_first_output_that_differs_is_found() {
        let output = |key: &str, text: &str| PutOutput {
            key: BucketKey::new(key).unwrap(),
            sha256: Digest::of(text.as_bytes()),
            size: 1,
            version: String::new(),
        };
        let (content, bytes) = sample(TASK.as_bytes());
        let mut receipt = Receipt::parse(&bytes, &content).unwrap();
        receipt.outputs = vec![output("a", "1"), output("b", "2")];
        let check = |other: &[PutOutput], want: Option<&str>| {
            assert_eq!(receipt.first_difference(other).map(BucketKey::as_str), want);
        };
        check(&[output("a", "1"), output("b", "2")], None);
        check(&[output("a", "1"), output("b", "3")], Some("b"));
        check(&[output("a", "1")], Some("b"));
        check(&[output("a", "1"), output("b", "2"), output("c", "3")], Some("c"));
    }
}
