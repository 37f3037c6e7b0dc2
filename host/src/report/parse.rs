//! Reads reports of hosts and of other programs that use the same format.

use std::borrow::Cow;
use std::fmt;
use std::time::SystemTime;

use bytesize::ByteSize;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::{BasicInfo, Omitted};
use crate::{json, message};

/// True if a message has the fields that readers of reports rely on.
pub fn is_report(message: &[u8]) -> bool {
    let text = std::str::from_utf8(message).unwrap_or_default();
    let fields = json::parse(text).ok().and_then(json::Value::fields);
    let Some(fields) = fields else { return false };
    let has = |wanted: &str| fields.clone().any(|(name, _)| name.is(wanted));
    has("host_info") && has("task") && (has("exception") || has("result"))
}

/// A report, with the fields that commands on an error queue read.
#[derive(Debug, Deserialize)]
pub struct Report<'a> {
    #[serde(borrow)]
    task: &'a RawValue,
    exception: Option<Value>,
    result: Option<Value>,
    trace: Option<Value>,
    log: Option<Value>,
    attempt: Option<Value>,
    time: Option<Value>,
    host_info: Option<Value>,
}

impl<'a> Report<'a> {
    /// Reads a message as a report. None if it has no `task`.
    pub fn parse(body: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(body).ok()
    }

    /// The message that the report is about, byte for byte.
    ///
    /// # Errors
    /// If the report has only a summary of the message.
    pub fn message(&self) -> Result<Cow<'a, str>, Omitted<'static>> {
        let text = self.task.get();
        if message::decode(text.as_bytes()).is_err()
            && let Ok(omitted) = serde_json::from_str(text)
        {
            return Err(omitted);
        }
        // A message that could not be embedded as JSON is a string.
        Ok(json::parse(text).ok().and_then(json::Value::string).unwrap_or(Cow::Borrowed(text)))
    }

    /// Why the task failed. None in the report of a task that succeeded.
    pub fn exception(&self) -> Option<String> {
        let text = |e: &Value| e.as_str().map_or_else(|| e.to_string(), str::to_owned);
        self.exception.as_ref().map(text)
    }

    /// True if the task succeeded.
    pub fn is_done(&self) -> bool {
        let has_failed = |result: &Value| result["success"] == Value::Bool(false);
        self.exception.is_none() && self.result.as_ref().is_some_and(|r| !has_failed(r))
    }

    /// The guest's call stack, if it is known.
    pub fn trace(&self) -> Option<&str> {
        self.trace.as_ref()?.as_str()
    }

    /// The end of the guest's log.
    pub fn log(&self) -> Option<&str> {
        self.log.as_ref()?.as_str()
    }

    /// The number of the last attempt, from 1.
    pub fn attempt(&self) -> Option<u64> {
        self.attempt.as_ref()?.as_u64()
    }

    /// The name of the host's machine.
    pub fn host(&self) -> Option<&str> {
        self.host_info.as_ref()?.get("hostname")?.as_str()
    }

    /// When the report was made.
    pub fn time(&self) -> Option<SystemTime> {
        humantime::parse_rfc3339(self.time.as_ref()?.as_str()?).ok()
    }
}

/// Says that there is no message to send back, and describes the message.
impl fmt::Display for Omitted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { basic_info, sha256, bytes, .. } = self;
        f.write_str("has no message to send back: ")?;
        match basic_info {
            Some(BasicInfo { id, name, .. }) => {
                write!(f, "the message of task {name} {id} was too large for a report")?;
            }
            None => f.write_str("the message was too large for a report, or not UTF-8 text")?,
        }
        let size = ByteSize(*bytes as u64).display().iec();
        write!(f, " ({size}, SHA-256 {sha256}); send it again yourself")
    }
}
