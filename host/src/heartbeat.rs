//! Heartbeats: each host writes its current state as a small object, so that people can watch a
//! fleet without a server.
//!
//! A heartbeat is stored beside the queue's messages if the queue is a directory, and otherwise in
//! the bucket (`place.rs`). A host replaces its heartbeat regularly and removes it when it ends
//! (`writer.rs`). If a heartbeat is no longer replaced, readers treat its host as silent
//! (`reader.rs`). Tasks do not depend on heartbeats.

mod place;
mod reader;
mod writer;

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::activity::snapshot::{LONGEST_TEXT, MOST_CAUSES, Snapshot};

pub use place::{Place, PlaceError};
pub use reader::{Heard, Reader};
pub use writer::Heart;

/// The maximum size of a heartbeat, in bytes.
pub const LONGEST: usize = 64 << 10;
/// The maximum number of running tasks in a heartbeat. The longest-running tasks are kept.
const MOST_RUNNING: usize = 100;
/// The interval of a host whose heartbeat does not contain its interval.
const USUAL: Duration = Duration::from_secs(30);
/// A host is silent after this number of intervals without a heartbeat.
const MISSED: u32 = 3;
/// The minimum time after which a host is silent. Some file systems store times in steps of two
/// seconds.
const SHORTEST_SILENCE: Duration = Duration::from_secs(3);
/// Older heartbeats are not read, and hosts remove them.
const TOO_OLD: Duration = Duration::from_secs(24 * 3600);

/// The state of a host. The fields are those of [`Snapshot`], and the interval.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Heartbeat {
    /// The time between two heartbeats of this host.
    pub every_seconds: f64,
    /// What the host is doing.
    #[serde(flatten)]
    pub snapshot: Snapshot,
}

impl Heartbeat {
    /// The heartbeat as JSON of at most [`LONGEST`] bytes. If it would be longer, each list loses
    /// entries at its end.
    fn into_bytes(mut self) -> Bytes {
        let snapshot = &mut self.snapshot;
        snapshot.running.truncate(MOST_RUNNING);
        snapshot.failures.truncate(MOST_CAUSES);
        snapshot.outages.truncate(MOST_CAUSES);
        for outage in &mut snapshot.outages {
            outage.truncate(outage.floor_char_boundary(LONGEST_TEXT));
        }
        loop {
            let bytes = serde_json::to_vec(&self).unwrap_or_default();
            let Snapshot { running, names, failures, outages, .. } = &mut self.snapshot;
            let lists = [running.len(), names.len(), failures.len(), outages.len()];
            if bytes.len() <= LONGEST || lists == [0; 4] {
                return bytes.into();
            }
            running.truncate(lists[0] / 2);
            names.truncate(lists[1] / 2);
            failures.truncate(lists[2] / 2);
            outages.truncate(lists[3] / 2);
        }
    }

    /// Parses a heartbeat. `None` if the bytes are not one.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let heartbeat: Self = serde_json::from_slice(bytes).ok()?;
        (!heartbeat.snapshot.host.id.is_empty()).then_some(heartbeat)
    }

    /// The time without another heartbeat after which the host is silent.
    fn silence(&self) -> Duration {
        let every = Duration::try_from_secs_f64(self.every_seconds).unwrap_or(USUAL);
        let every = if every.is_zero() { USUAL } else { every };
        every.saturating_mul(MISSED).clamp(SHORTEST_SILENCE, TOO_OLD)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activity::snapshot::{About, Example, Failures, Name, Running};

    fn crowded() -> Snapshot {
        let text = |length: usize| "\u{1}é\"".repeat(length / 4);
        let running = |n: usize| Running {
            name: text(200),
            id: n.to_string(),
            last_line: Some(text(300)),
            ..Running::default()
        };
        let failures = |n: usize| Failures {
            cause: format!("{n} {}", text(300)),
            example: Some(Example { text: text(2000), ..Example::default() }),
            ..Failures::default()
        };
        Snapshot {
            host: About { id: "n1.2".into(), ..About::default() },
            running: (0..1000).map(running).collect(),
            failures: (0..50).map(failures).collect(),
            names: (0..1000).map(|n| Name { name: format!("{n}"), ..Name::default() }).collect(),
            outages: vec![text(10_000); 60],
            ..Snapshot::default()
        }
    }

    #[test]
    fn a_heartbeat_is_small_whatever_a_host_does() {
        let snapshot = crowded();
        let bytes = Heartbeat { every_seconds: 30.0, snapshot }.into_bytes();
        assert!(bytes.len() <= LONGEST && bytes.len() > LONGEST / 4, "{}", bytes.len());
        let read = Heartbeat::parse(&bytes).unwrap();
        assert_eq!(read.snapshot.host.id, "n1.2");
        assert_eq!(read.every_seconds, 30.0);
        assert_eq!(read.snapshot.running[0].id, "0", "the longest-running are kept");
        assert!(!read.snapshot.failures.is_empty());
    }

    #[test]
    fn a_host_is_silent_after_three_intervals() {
        let silence = |every_seconds| {
            Heartbeat { every_seconds, snapshot: Snapshot::default() }.silence().as_secs()
        };
        assert_eq!(silence(30.0), 90);
        assert_eq!(silence(120.0), 360);
        assert_eq!(silence(0.2), 3);
        for odd in [0.0, -1.0, 1e300, f64::NAN] {
            assert_eq!(silence(odd), 90, "{odd}");
        }
        assert_eq!(silence(1e9), 24 * 3600);
    }

    #[test]
    fn what_is_no_heartbeat_is_not_read_as_one() {
        for text in ["", "{}", "[]", "{\"host\": {\"id\": \"\"}}", "{\"host\": 3}", "no"] {
            assert_eq!(Heartbeat::parse(text.as_bytes()), None, "{text}");
        }
        let newer =
            r#"{"host": {"id": "a.1", "more": [1]}, "time": 3.5, "state": "working", "x": {}}"#;
        let read = Heartbeat::parse(newer.as_bytes()).unwrap();
        assert_eq!((read.snapshot.time, read.silence()), (3.5, Duration::from_secs(90)));
    }
}
