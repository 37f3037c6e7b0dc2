//! Reports for the error queue and the done queue.
//!
//! Existing programs of SimpleTasks users read the fields `host_info`, `task`, and `exception` or
//! `result`. The other fields are additions of this host.
//!
//! A report is JSON that every queue accepts and every reader can parse, whatever the message or
//! the guest contributed. Queues have different size limits, so a report has several versions, each
//! shorter than the one before. The last has at most [`SHORTEST`] bytes.

mod parse;

use std::borrow::Cow;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
pub use parse::{Report, is_report};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::digest::Digest;
use crate::environment::Environment;
use crate::identity::{self, Identity};
use crate::json;
use crate::key::BucketKey;
use crate::message;
use crate::queue::{LONGEST_MESSAGE, Queue, QueueError};
use crate::sandbox::Phase;
use crate::stats::{Step, Steps};

/// The most bytes of the shortest version of a report.
pub const SHORTEST: usize = 4096;
/// The most bytes of the host's name or its user's name.
const LONGEST_NAME: usize = 256;
/// The most bytes of the description of a failed file call.
const FAILED_CALL: usize = 1024;
/// The most bytes of the reason for an earlier failure, and the most such reasons in a report.
const REASON: usize = 8 << 10;
const REASONS: usize = 16;

/// The host that wrote the report.
#[derive(Debug, Serialize)]
pub struct HostInfo {
    hostname: String,
    user: String,
}

impl HostInfo {
    /// The name of the machine.
    pub fn hostname(&self) -> &str {
        &self.hostname
    }
}

/// This host.
pub static HOST_INFO: LazyLock<HostInfo> = LazyLock::new(|| HostInfo {
    hostname: head(&rustix::system::uname().nodename().to_string_lossy(), LONGEST_NAME).into(),
    user: head(&Environment::of_process().user_name(), LONGEST_NAME).into(),
});

/// Sends the first version of a report that the queue accepts.
///
/// # Errors
/// [`QueueError::Invalid`] if the queue refuses all versions, or another error of the queue.
pub async fn send(
    queue: &dyn Queue,
    versions: impl Iterator<Item = Bytes>,
) -> Result<(), QueueError> {
    let mut refused = None;
    for version in versions {
        let sent: Result<(), QueueError> = queue.send(&[version]).await.into_iter().collect();
        match sent {
            // This version is probably too large.
            Err(error @ QueueError::Invalid { .. }) => refused = Some(error),
            Ok(()) => {
                if let Some(error) = refused {
                    tracing::warn!("the queue refused a report, so it was shortened: {error}");
                }
                return Ok(());
            }
            Err(error) => return Err(error),
        }
    }
    refused.map_or(Ok(()), Err)
}

/// The report of a rejected task.
#[derive(Debug)]
pub struct ErrorReport<'a> {
    /// The message as it was received.
    pub message: &'a [u8],
    /// The error, for people: the cause first.
    pub exception: String,
    /// The guest's call stack, if it is known.
    pub trace: Option<&'a str>,
    /// The guest's last failed file call, and why it failed.
    pub failed_call: Option<&'a str>,
    /// The number of the attempt, from 1.
    pub attempt: u32,
    /// Why earlier attempts failed.
    pub earlier: &'a [String],
    /// The call that failed.
    pub phase: Option<Phase>,
    /// The component that ran.
    pub component: Option<Digest>,
    /// The end of the guest's log.
    pub log: Option<&'a str>,
    /// The time and memory that the last attempt used.
    pub took: Took<'a>,
}

/// The time and memory that an attempt used.
#[derive(Debug, Clone, Copy)]
pub struct Took<'a> {
    /// The time that each step took.
    pub steps: &'a Steps,
    /// The guest's processor time, if it was measured.
    pub cpu_time: Option<Duration>,
    /// The guest's peak memory, in bytes. Zero if the guest did not run.
    pub memory: u64,
}

/// The fields of a report that contain [`Took`].
#[derive(Serialize)]
struct TookFields {
    /// The time of the attempt, without its wait for a slot.
    elapsed_seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_bytes: Option<u64>,
    /// Seconds of each step.
    #[serde(skip_serializing_if = "Option::is_none")]
    steps: Option<Map<String, Value>>,
}

impl Took<'_> {
    fn fields(&self, has_steps: bool) -> TookFields {
        let Self { steps, cpu_time, memory } = *self;
        let seconds = |step: Step| (step.name().to_owned(), steps.spent(step).as_secs_f64().into());
        TookFields {
            elapsed_seconds: steps.worked().as_secs_f64(),
            cpu_seconds: cpu_time.map(|time| time.as_secs_f64()),
            memory_bytes: Some(memory).filter(|memory| *memory > 0),
            steps: has_steps.then(|| Step::ALL.into_iter().map(seconds).collect()),
        }
    }
}

/// The contents of a version of an error report. Sizes are in bytes of JSON.
struct Extent {
    /// Whether the version contains the message, not only its digest.
    has_message: bool,
    /// Whether the version names the worker of the fleet and has the time of each step.
    has_worker: bool,
    /// The most reasons for earlier failures.
    reasons: usize,
    exception: usize,
    trace: usize,
    log: usize,
}

/// The versions of an error report, longest first. Most contain the message, because
/// `host queue redrive` needs it.
const EXTENTS: [Extent; 6] = [
    Extent { reasons: REASONS, exception: 64 << 10, trace: 64 << 10, log: 128 << 10, ..WHOLE },
    Extent { exception: 16 << 10, trace: 8 << 10, log: 8 << 10, ..WHOLE },
    Extent { exception: 4 << 10, ..WHOLE },
    Extent { exception: 256, has_worker: false, ..WHOLE },
    Extent { exception: 16 << 10, trace: 8 << 10, log: 8 << 10, has_message: false, ..WHOLE },
    Extent { exception: 1024, has_message: false, has_worker: false, ..WHOLE },
];

const WHOLE: Extent =
    Extent { has_message: true, has_worker: true, reasons: 0, exception: 0, trace: 0, log: 0 };

/// This host's identity as a worker of a fleet, if it is known.
fn worker() -> Option<&'static Identity> {
    Some(identity::of_process()).filter(|worker| !worker.is_unknown())
}

impl ErrorReport<'_> {
    /// The report as the text of a message, followed by ever shorter versions.
    pub fn versions(&self) -> impl Iterator<Item = Bytes> {
        ever_shorter(EXTENTS.iter().map(|extent| self.version(extent)))
    }

    fn version(&self, extent: &Extent) -> Bytes {
        #[derive(Serialize)]
        struct Wire<'a> {
            host_info: &'static HostInfo,
            #[serde(skip_serializing_if = "Option::is_none")]
            worker: Option<&'static Identity>,
            task: Received<'a>,
            exception: Cow<'a, str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            trace: Option<Cow<'a, str>>,
            #[serde(skip_serializing_if = "Option::is_none")]
            failed_call: Option<Cow<'a, str>>,
            attempt: u32,
            #[serde(skip_serializing_if = "Vec::is_empty")]
            earlier: Vec<Cow<'a, str>>,
            #[serde(skip_serializing_if = "Option::is_none")]
            phase: Option<Phase>,
            #[serde(skip_serializing_if = "Option::is_none")]
            component: Option<String>,
            #[serde(skip_serializing_if = "Option::is_none")]
            log: Option<Cow<'a, str>>,
            /// The time of the report in UTC.
            time: String,
            #[serde(flatten)]
            took: TookFields,
        }
        let log = self.log.filter(|log| !log.is_empty() && extent.log > 0);
        to_bytes(&Wire {
            host_info: &HOST_INFO,
            worker: worker().filter(|_| extent.has_worker),
            task: Received::new(self.message, extent.has_message),
            exception: head(&self.exception, extent.exception),
            trace: self.trace.filter(|_| extent.trace > 0).map(|text| head(text, extent.trace)),
            failed_call: self
                .failed_call
                .filter(|_| extent.trace > 0)
                .map(|text| head(text, FAILED_CALL)),
            attempt: self.attempt,
            earlier: earlier(self.earlier, extent.reasons),
            phase: self.phase,
            component: self.component.map(|digest| digest.to_string()),
            log: log.map(|log| tail(log, extent.log)),
            time: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            took: self.took.fields(extent.has_worker),
        })
    }
}

/// The last `most` reasons, after a note of how many are left out.
fn earlier(reasons: &[String], most: usize) -> Vec<Cow<'_, str>> {
    if most == 0 {
        return Vec::new();
    }
    let left_out = reasons.len().saturating_sub(most);
    let word = (left_out > 0).then(|| format!("({left_out} earlier reasons are left out)").into());
    let told = reasons[left_out..].iter().map(|reason| head(reason, REASON));
    word.into_iter().chain(told).collect()
}

/// The report of a task that succeeded.
#[derive(Debug)]
pub struct DoneReport<'a> {
    /// The message as it was received.
    pub message: &'a [u8],
    /// Keys of the published outputs, from the bucket's root.
    pub outputs: &'a [BucketKey],
    /// The number of the attempt, from 1.
    pub attempt: u32,
    /// The component that ran.
    pub component: Option<Digest>,
    /// The time and memory that the attempt used.
    pub took: Took<'a>,
}

impl DoneReport<'_> {
    /// The report as the text of a message, then a version with the number of outputs instead of
    /// their keys, then one with the digest of the message instead of the message.
    pub fn versions(&self) -> impl Iterator<Item = Bytes> {
        let versions = [(true, true), (true, false), (false, false)];
        ever_shorter(
            versions.into_iter().map(|(has_message, has_keys)| self.version(has_message, has_keys)),
        )
    }

    fn version(&self, has_message: bool, has_keys: bool) -> Bytes {
        #[derive(Serialize)]
        struct Wire<'a> {
            host_info: &'static HostInfo,
            #[serde(skip_serializing_if = "Option::is_none")]
            worker: Option<&'static Identity>,
            task: Received<'a>,
            result: Outcome<'a>,
            attempt: u32,
            #[serde(skip_serializing_if = "Option::is_none")]
            component: Option<String>,
            #[serde(flatten)]
            took: TookFields,
        }
        #[derive(Serialize)]
        struct Outcome<'a> {
            success: bool,
            outputs: Outputs<'a>,
        }
        #[derive(Serialize)]
        #[serde(untagged)]
        enum Outputs<'a> {
            Keys(&'a [BucketKey]),
            Count(usize),
        }
        let outputs = match has_keys {
            true => Outputs::Keys(self.outputs),
            false => Outputs::Count(self.outputs.len()),
        };
        to_bytes(&Wire {
            host_info: &HOST_INFO,
            worker: worker().filter(|_| has_message),
            task: Received::new(self.message, has_message),
            result: Outcome { success: true, outputs },
            attempt: self.attempt,
            component: self.component.map(|digest| digest.to_string()),
            took: self.took.fields(has_message),
        })
    }
}

/// A message within its report or receipt.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Received<'a> {
    /// The message byte for byte, if it is JSON that every reader and every queue accepts.
    Json(Box<RawValue>),
    /// Any other message, as a string. This includes a message that is itself a JSON string, so
    /// that a string here is always the text of a message.
    Text(Cow<'a, str>),
    /// A summary of a message that is too large for the report, or that would become a task if its
    /// invalid UTF-8 were replaced.
    Digest(Omitted<'a>),
}

/// A summary of a message that can't be in a report. It can't be mistaken for a task, because its
/// `inputs` is a number.
#[derive(Debug, Serialize, Deserialize)]
pub struct Omitted<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    basic_info: Option<BasicInfo>,
    /// The beginning of a message that is not a task.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<Cow<'a, str>>,
    sha256: String,
    bytes: usize,
}

#[derive(Debug, Serialize, Deserialize)]
struct BasicInfo {
    id: i64,
    name: String,
    base_directory: String,
    /// The number of inputs.
    inputs: usize,
}

impl<'a> Received<'a> {
    /// The most bytes of a message in a report. The rest of the report takes far less than the
    /// remaining quarter of the longest message.
    const LONGEST: usize = LONGEST_MESSAGE / 4 * 3;

    /// The message itself if `is_whole` is true and the message is not too large. Otherwise its
    /// digest.
    pub fn new(message: &'a [u8], is_whole: bool) -> Self {
        // Each byte that is not UTF-8 is replaced by a character of three bytes.
        let most = match std::str::from_utf8(message) {
            Ok(_) => Self::LONGEST,
            Err(_) => Self::LONGEST / 4,
        };
        if !is_whole || message.len() > most {
            return Self::Digest(Omitted::of(message));
        }
        match Self::whole(message) {
            Self::Text(text) if text.chars().map(size_in_json).sum::<usize>() > Self::LONGEST => {
                Self::Digest(Omitted::of(message))
            }
            whole => whole,
        }
    }

    fn whole(message: &'a [u8]) -> Self {
        let text = match String::from_utf8_lossy(message) {
            // With its invalid bytes replaced, the message would be a task that no producer sent,
            // and a redrive could send it to the queue.
            Cow::Owned(changed) if message::decode(changed.as_bytes()).is_ok() => {
                return Self::Digest(Omitted::of(message));
            }
            Cow::Owned(changed) => return Self::Text(changed.into()),
            Cow::Borrowed(text) => text,
        };
        let as_json = |text: &str| {
            let value = json::parse(text).ok().filter(|value| !value.is_string())?;
            let can_be_embedded = value.is_portable() && !value.text().contains(is_barred);
            can_be_embedded.then(|| RawValue::from_string(value.text().to_owned()).ok())?
        };
        match as_json(text) {
            Some(json) => Self::Json(json),
            None => Self::Text(text.into()),
        }
    }
}

impl<'a> Omitted<'a> {
    /// The most bytes of a name, a base directory, or the beginning of a text.
    const SHOWN: usize = 800;

    fn of(message: &'a [u8]) -> Self {
        let task = message::decode(message).ok();
        let text = task.is_none().then(|| {
            let start = &message[..message.len().min(Self::SHOWN)];
            head(&String::from_utf8_lossy(start), Self::SHOWN).into_owned().into()
        });
        let basic_info = task.map(|task| BasicInfo {
            id: task.id,
            name: head(task.name.as_str(), Self::SHOWN).into(),
            base_directory: head(task.base_directory.as_str(), Self::SHOWN).into(),
            inputs: task.inputs.len(),
        });
        Self { basic_info, text, sha256: Digest::of(message).to_string(), bytes: message.len() }
    }
}

/// Leaves out versions that are not shorter than all versions before.
fn ever_shorter(versions: impl Iterator<Item = Bytes>) -> impl Iterator<Item = Bytes> {
    let mut shortest = usize::MAX;
    versions.filter(move |version| {
        let is_shorter = version.len() < shortest;
        shortest = shortest.min(version.len());
        is_shorter
    })
}

/// The beginning of a text, at most `most` bytes of JSON.
fn head(text: &str, most: usize) -> Cow<'_, str> {
    const CUT: &str = " … (cut)";
    let cut = |room: usize| {
        let mut size = 0;
        text.char_indices().find(|(_, c)| {
            size += size_in_json(*c);
            size > room
        })
    };
    if cut(most).is_none() {
        return Cow::Borrowed(text);
    }
    let end = cut(most.saturating_sub(CUT.len())).map_or(text.len(), |(at, _)| at);
    Cow::Owned(format!("{}{CUT}", &text[..end]))
}

/// The end of a text, at most `most` bytes of JSON.
fn tail(text: &str, most: usize) -> Cow<'_, str> {
    const CUT: &str = "(cut) … ";
    let cut = |room: usize| {
        let mut size = 0;
        text.char_indices().rev().find(|(_, c)| {
            size += size_in_json(*c);
            size > room
        })
    };
    if cut(most).is_none() {
        return Cow::Borrowed(text);
    }
    let start = cut(most.saturating_sub(CUT.len())).map_or(0, |(at, c)| at + c.len_utf8());
    Cow::Owned(format!("{CUT}{}", &text[start..]))
}

/// The number of bytes that a character takes in a JSON string.
fn size_in_json(c: char) -> usize {
    match c {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        c if c < ' ' || is_barred(c) => 6,
        c => c.len_utf8(),
    }
}

/// True for a character that SQS does not accept, because XML 1.0 can't represent it. XML can't
/// represent control characters either, but JSON always escapes these.
fn is_barred(c: char) -> bool {
    matches!(c, '\u{fffe}' | '\u{ffff}')
}

fn to_bytes(report: &impl Serialize) -> Bytes {
    // Strings, numbers and checked JSON can always be written.
    let written = json::to_line(report, is_barred);
    debug_assert!(written.is_ok(), "{written:?}");
    written.unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::memory::MemoryQueue;
    use proptest::prelude::*;

    static STEPS: LazyLock<Steps> = LazyLock::new(|| {
        let mut steps = Steps::start();
        steps.done(Step::Decode);
        steps
    });

    fn report<'a>(message: &'a [u8], earlier: &'a [String], log: &'a str) -> ErrorReport<'a> {
        ErrorReport {
            message,
            exception: "it broke".to_owned(),
            trace: Some("  0: app::run at src/lib.rs:12"),
            failed_call: Some("open /inputs/a: no such file"),
            attempt: 2,
            earlier,
            phase: Some(Phase::Execute),
            component: Some(Digest::of(b"")),
            log: Some(log),
            took: Took { steps: &STEPS, cpu_time: None, memory: 1 << 20 },
        }
    }

    fn read(report: &Bytes) -> Value {
        let text = std::str::from_utf8(report).unwrap();
        let is_carried = |c: char| c >= ' ' && !is_barred(c);
        assert!(text.chars().all(is_carried), "a queue can't carry {text:?}");
        serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
    }

    fn whole(message: &[u8]) -> Value {
        let earlier = ["first".to_owned()];
        read(&report(message, &earlier, "a line\n").versions().next().unwrap())
    }

    fn task(payload: &str) -> String {
        format!(
            r#"{{"basic_info":{{"id":7,"name":"A","base_directory":"d","inputs":["i","j"]}},"payload_info":{payload}}}"#
        )
    }

    #[test]
    fn an_error_report_has_what_simple_tasks_users_read() {
        let report = whole(br#"{"basic_info": {"id": 12345678901234567}}"#);
        assert!(report["host_info"]["hostname"].is_string());
        assert!(report["host_info"]["user"].is_string());
        assert_eq!(report["task"]["basic_info"]["id"], 12345678901234567_i64);
        assert_eq!(report["exception"], "it broke");
        assert_eq!(report["earlier"][0], "first");
        assert_eq!(report["phase"], "execute");
        assert_eq!(report["trace"], "  0: app::run at src/lib.rs:12");
        assert_eq!(report["failed_call"], "open /inputs/a: no such file");
        assert_eq!(report["memory_bytes"], 1 << 20);
        for step in Step::ALL {
            assert!(report["steps"][step.name()].is_number(), "{report}");
        }
        let time = humantime::parse_rfc3339(report["time"].as_str().unwrap()).unwrap();
        assert!(time.elapsed().unwrap() < Duration::from_secs(60), "{report}");
    }

    #[test]
    fn a_message_that_some_reader_or_queue_can_not_take_is_reported_as_text() {
        for text in [
            "{oops",
            "",
            "\"a string\"",
            r#"{"a": NaN}"#,
            r#"{"a": "\ud800"}"#,
            "{\"a\": \"\u{ffff}\u{fffe}\"}",
            "\u{feff}{}",
            "\0\u{1}\u{1b}[31m",
            &("[".repeat(200) + &"]".repeat(200)),
            &("[".repeat(100_000) + &"]".repeat(100_000)),
            &"9".repeat(1_000_000),
        ] {
            assert!(whole(text.as_bytes())["task"] == text, "{text:.80}");
        }
        assert_eq!(whole(b"\xff")["task"], "\u{fffd}");
    }

    #[test]
    fn a_message_that_is_not_text_does_not_become_a_task() {
        let message = b"{\"basic_info\": {\"name\": \"A\", \"base_directory\": \"caf\xe9\"}}";
        assert!(message::decode(message).is_err());
        let report = report(message, &[], "").versions().next().unwrap();
        let omitted = Report::parse(&report).unwrap().message().unwrap_err().to_string();
        assert!(omitted.contains("not UTF-8 text"), "{omitted}");
        assert_eq!(read(&report)["task"]["sha256"], Digest::of(message).to_string());
    }

    #[test]
    fn what_a_guest_says_can_be_carried() {
        let words = "\0\u{1b}[31m \u{ffff}\u{fffe}\u{fdd0} \u{2028} \"\\ \r\n\t";
        let earlier = [words.to_owned()];
        let report = ErrorReport { exception: words.to_owned(), ..report(b"{}", &earlier, words) };
        let report = read(&report.versions().next().unwrap());
        assert_eq!(report["exception"], words);
        assert_eq!(report["log"], words);
        assert_eq!(report["earlier"][0], words);
    }

    #[test]
    fn an_error_report_gets_shorter_and_keeps_the_message_for_as_long_as_it_can() {
        let message = task(&format!("\"{}\"", "x".repeat(20_000)));
        let earlier = vec!["e".repeat(5_000); 40];
        let log = "l\n".repeat(30_000) + "the last line";
        let report = ErrorReport {
            exception: "x".repeat(100_000),
            ..report(message.as_bytes(), &earlier, &log)
        };
        let versions: Vec<Bytes> = report.versions().collect();
        assert!(versions.windows(2).all(|two| two[1].len() < two[0].len()));
        let read: Vec<Value> = versions.iter().map(read).collect();
        assert_eq!(read[0]["earlier"].as_array().unwrap().len(), REASONS + 1);
        assert!(read[0]["log"].as_str().unwrap().ends_with("the last line"));
        assert!(read[1]["earlier"].is_null() && read[2]["log"].is_null());
        assert!(read[1]["log"].as_str().unwrap().ends_with("the last line"));
        let is_whole = |report: &&Value| report["task"]["payload_info"].is_string();
        assert_eq!(read.iter().take_while(is_whole).count(), 4);
        assert!(versions[3].len() < message.len() + 1024, "little is added to the message");
        let last = read.last().unwrap();
        assert_eq!(last["task"]["basic_info"]["id"], 7);
        assert_eq!(last["task"]["basic_info"]["inputs"], 2);
        assert_eq!(last["task"]["bytes"], message.len());
        assert_eq!(last["task"]["sha256"], Digest::of(message.as_bytes()).to_string());
        // Even if a summary is sent to the task queue by mistake, it is not a task.
        assert!(message::decode(last["task"].to_string().as_bytes()).is_err());
    }

    #[test]
    fn no_message_makes_a_report_that_no_queue_takes() {
        for message in [vec![b'x'; LONGEST_MESSAGE], vec![0; LONGEST_MESSAGE / 4]] {
            let version = report(&message, &[], "").versions().next().unwrap();
            assert!(version.len() < LONGEST_MESSAGE / 4, "{}", version.len());
            assert_eq!(read(&version)["task"]["bytes"], message.len());
        }
    }

    #[test]
    fn a_done_report_gets_shorter() {
        let message = task(&format!("\"{}\"", "x".repeat(20_000)));
        let outputs: Vec<BucketKey> =
            (0..4000).map(|i| BucketKey::new(&format!("d/{i}")).unwrap()).collect();
        let report = DoneReport {
            message: message.as_bytes(),
            outputs: &outputs,
            attempt: 1,
            component: None,
            took: Took { steps: &STEPS, cpu_time: None, memory: 1 << 20 },
        };
        let versions: Vec<Bytes> = report.versions().collect();
        let read: Vec<Value> = versions.iter().map(read).collect();
        assert_eq!(read.len(), 3);
        assert_eq!(read[0]["result"]["outputs"].as_array().unwrap().len(), 4000);
        assert_eq!(read[1]["result"]["outputs"], 4000);
        assert!(read[1]["task"]["payload_info"].is_string());
        assert_eq!(read[2]["task"]["basic_info"]["name"], "A");
        assert!(versions[2].len() <= SHORTEST);
    }

    /// Sends both reports of a task whose payload has `payload` bytes to queues that take messages
    /// of `longest` bytes.
    async fn sent(payload: usize, longest: usize) -> [Result<Value, QueueError>; 2] {
        let message = task(&format!("\"{}\"", "x".repeat(payload)));
        let outputs: Vec<BucketKey> =
            (0..500).filter_map(|i| BucketKey::new(&format!("d/output-{i}")).ok()).collect();
        let error = ErrorReport {
            message: message.as_bytes(),
            exception: "\u{0}\u{ffff}".repeat(20_000),
            trace: None,
            failed_call: None,
            attempt: 1,
            earlier: &[],
            phase: None,
            component: None,
            log: Some("a long log"),
            took: Took { steps: &STEPS, cpu_time: None, memory: 1 << 20 },
        };
        let done = DoneReport {
            message: message.as_bytes(),
            outputs: &outputs,
            attempt: 1,
            component: None,
            took: Took { steps: &STEPS, cpu_time: None, memory: 1 << 20 },
        };
        let versions: [Vec<Bytes>; 2] = [error.versions().collect(), done.versions().collect()];
        let mut sent = Vec::new();
        for versions in versions {
            let queue = MemoryQueue::taking(longest);
            sent.push(match send(&queue, versions.into_iter()).await {
                Err(error) => Err(error),
                Ok(()) => {
                    let wait = Duration::ZERO;
                    let leased = queue.lease(2, Duration::from_secs(60), wait).await.unwrap();
                    assert_eq!(leased.len(), 1, "a report is sent once");
                    Ok(read(&leased[0].body))
                }
            });
        }
        sent.try_into().unwrap()
    }

    #[tokio::test]
    async fn a_report_that_a_queue_refuses_is_sent_shorter() {
        for payload in [0, 100, 200_000, 3_000_000] {
            for longest in [SHORTEST, 20_000, 262_144, usize::MAX] {
                for report in sent(payload, longest).await {
                    let report = report.unwrap();
                    assert_eq!(report["task"]["basic_info"]["id"], 7, "{payload} in {longest}");
                }
            }
        }
    }

    #[tokio::test]
    async fn a_queue_that_takes_no_report_at_all_is_told() {
        for report in sent(10, 10).await {
            assert!(matches!(report, Err(QueueError::Invalid { .. })), "{report:?}");
        }
    }

    /// Texts with characters that take many bytes in JSON.
    fn any_text() -> impl Strategy<Value = String> {
        let unit = prop_oneof![".", "[\u{0}-\u{1f}\"\\\\]", "[\u{fffe}\u{ffff}]", "[a-z]"];
        (proptest::collection::vec(unit, 0..20), 0_usize..600)
            .prop_map(|(units, times)| units.concat().repeat(times))
    }

    /// Tasks with odd names, and messages that are not tasks.
    fn any_message() -> impl Strategy<Value = Vec<u8>> {
        let of_task =
            ("[a-z\"\u{ffff}é]{1,80}", "[a-z\"\u{fffe}é]{1,80}(/[a-z\"é]{1,80}){0,4}", any_text());
        prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..5000),
            any_text().prop_map(String::into_bytes),
            of_task.prop_map(|(name, base, payload)| {
                let info = serde_json::json!({"name": name, "base_directory": base});
                serde_json::json!({"basic_info": info, "payload_info": payload})
                    .to_string()
                    .into_bytes()
            }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_version_can_be_read_and_carried_and_the_last_is_short(
            message in any_message(), exception in any_text(), log in any_text(), reason in any_text(),
        ) {
            let earlier = vec![reason; 3];
            let error = ErrorReport { exception, ..report(&message, &earlier, &log) };
            let done = DoneReport {
                message: &message,
                outputs: &[],
                attempt: 1,
                component: Some(Digest::of(b"")),
                took: Took { steps: &STEPS, cpu_time: None, memory: 1 << 20 },
            };
            for versions in [error.versions().collect::<Vec<_>>(), done.versions().collect()] {
                for version in &versions {
                    read(version);
                }
                prop_assert!(versions.last().unwrap().len() <= SHORTEST);
            }
        }

        #[test]
        fn a_cut_text_takes_no_more_room_than_it_may(text in any_text(), most in 20_usize..2000) {
            for cut in [head(&text, most), tail(&text, most)] {
                let size: usize = cut.chars().map(size_in_json).sum();
                prop_assert!(size <= most, "{size} of {most}");
            }
        }
    }
}
