//! What the error queue and the done queue are told.
//!
//! `host_info`, `task`, and `exception` or `result` are what SimpleTasks' users read; the
//! other fields are ours.

use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use crate::digest::Digest;
use crate::key::BucketKey;
use crate::sandbox::Phase;

/// Who writes the report.
#[derive(Debug, Serialize)]
struct HostInfo {
    hostname: String,
    user: String,
}

static HOST_INFO: LazyLock<HostInfo> = LazyLock::new(|| HostInfo {
    hostname: rustix::system::uname().nodename().to_string_lossy().into_owned(),
    user: crate::config::user_name(),
});

/// The report of a task that is given up.
#[derive(Debug)]
pub struct ErrorReport<'a> {
    /// The message as it was received.
    pub message: &'a [u8],
    /// What went wrong, for people.
    pub exception: String,
    /// Which attempt this was, from 1.
    pub attempt: u32,
    /// What ended the attempts before.
    pub earlier: &'a [String],
    /// The call during which it happened.
    pub phase: Option<Phase>,
    /// The component that ran.
    pub component: Option<Digest>,
    /// The end of the guest's log.
    pub log: Option<&'a str>,
    /// Time spent on the last attempt.
    pub elapsed: Duration,
}

impl ErrorReport<'_> {
    /// The report as the text of a message.
    pub fn to_message(&self) -> Bytes {
        #[derive(Serialize)]
        struct Wire<'a> {
            host_info: &'static HostInfo,
            task: Box<RawValue>,
            exception: &'a str,
            attempt: u32,
            #[serde(skip_serializing_if = "<[_]>::is_empty")]
            earlier: &'a [String],
            #[serde(skip_serializing_if = "Option::is_none")]
            phase: Option<Phase>,
            #[serde(skip_serializing_if = "Option::is_none")]
            component: Option<String>,
            #[serde(skip_serializing_if = "Option::is_none")]
            log: Option<&'a str>,
            /// When the report was made, in UTC.
            time: String,
            elapsed_seconds: f64,
        }
        to_bytes(&Wire {
            time: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            host_info: &HOST_INFO,
            task: as_received(self.message),
            exception: &self.exception,
            attempt: self.attempt,
            earlier: self.earlier,
            phase: self.phase,
            component: self.component.map(|digest| digest.to_string()),
            log: self.log.filter(|log| !log.is_empty()),
            elapsed_seconds: self.elapsed.as_secs_f64(),
        })
    }
}

/// The report of a task that is done.
#[derive(Debug)]
pub struct DoneReport<'a> {
    /// The message as it was received.
    pub message: &'a [u8],
    /// What was published, as keys from the bucket's root.
    pub outputs: &'a [BucketKey],
    /// Which attempt this was, from 1.
    pub attempt: u32,
    /// The component that ran.
    pub component: Option<Digest>,
    /// Time spent on the attempt.
    pub elapsed: Duration,
}

impl DoneReport<'_> {
    /// The report as the text of a message.
    pub fn to_message(&self) -> Bytes {
        #[derive(Serialize)]
        struct Wire<'a> {
            host_info: &'static HostInfo,
            task: Box<RawValue>,
            result: Outcome<'a>,
            attempt: u32,
            #[serde(skip_serializing_if = "Option::is_none")]
            component: Option<String>,
            elapsed_seconds: f64,
        }
        #[derive(Serialize)]
        struct Outcome<'a> {
            success: bool,
            outputs: &'a [BucketKey],
        }
        to_bytes(&Wire {
            host_info: &HOST_INFO,
            task: as_received(self.message),
            result: Outcome { success: true, outputs: self.outputs },
            attempt: self.attempt,
            component: self.component.map(|digest| digest.to_string()),
            elapsed_seconds: self.elapsed.as_secs_f64(),
        })
    }
}

/// The message, character for character where it is JSON, and as one string where it is not.
fn as_received(message: &[u8]) -> Box<RawValue> {
    serde_json::from_slice::<Box<RawValue>>(message)
        .or_else(|_| to_raw_value(&String::from_utf8_lossy(message)))
        .unwrap_or_default()
}

fn to_bytes(report: &impl Serialize) -> Bytes {
    // Strings, numbers and checked JSON always serialise.
    serde_json::to_vec(report).unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error_report(message: &[u8]) -> serde_json::Value {
        let report = ErrorReport {
            message,
            exception: "it broke".to_owned(),
            attempt: 2,
            earlier: &["first".to_owned()],
            phase: Some(Phase::Execute),
            component: None,
            log: Some("a line\n"),
            elapsed: Duration::from_millis(1500),
        };
        serde_json::from_slice(&report.to_message()).unwrap()
    }

    #[test]
    fn an_error_report_has_what_simple_tasks_users_read() {
        let report = error_report(br#"{"basic_info": {"id": 12345678901234567}}"#);
        assert!(report["host_info"]["hostname"].is_string());
        assert!(report["host_info"]["user"].is_string());
        assert_eq!(report["task"]["basic_info"]["id"], 12345678901234567_i64);
        assert_eq!(report["exception"], "it broke");
        assert_eq!(report["earlier"][0], "first");
        assert_eq!(report["phase"], "execute");
        let time = humantime::parse_rfc3339(report["time"].as_str().unwrap()).unwrap();
        assert!(time.elapsed().unwrap() < Duration::from_secs(60), "{report}");
    }

    #[test]
    fn a_message_that_is_no_json_is_reported_as_text() {
        assert_eq!(error_report(b"{oops")["task"], "{oops");
        assert_eq!(error_report(b"\xff")["task"], "\u{fffd}");
    }
}
