//! Groups the reports of an error queue by the causes of the failures.

use std::collections::HashMap;
use std::time::UNIX_EPOCH;

use futures_util::StreamExt;

use crate::activity::snapshot::{Example, Failures, LONGEST_NAME, LONGEST_TEXT};
use crate::cause;
use crate::message;
use crate::queue::{Admin, QueueError};
use crate::report::Report;

/// The maximum number of causes. Further causes are counted together.
const MOST_CAUSES: usize = 1000;
/// How many names of tasks are kept for each cause.
const MOST_NAMES: usize = 5;
/// The name for the causes that are counted together.
const OTHER_CAUSES: &str = "other causes";

/// Error reports by cause.
#[derive(Debug, Default)]
pub struct ErrorCauses {
    causes: HashMap<String, Failures>,
    /// Messages that were read.
    pub read: u64,
    /// Reports of tasks that are done.
    pub done: u64,
    /// Messages that are not reports.
    pub others: u64,
}

impl ErrorCauses {
    /// Reads at most `most` messages of a queue.
    ///
    /// # Errors
    /// If the queue can't be read.
    pub async fn of(queue: &dyn Admin, most: u64) -> Result<Self, QueueError> {
        let mut found = Self::default();
        let mut messages = queue.messages();
        while found.read < most
            && let Some(message) = messages.next().await.transpose()?
        {
            found.add(&message.body);
        }
        Ok(found)
    }

    /// Adds a message, which may be a report.
    pub fn add(&mut self, body: &[u8]) {
        self.read += 1;
        let report = Report::parse(body);
        let is_done = report.as_ref().is_some_and(Report::is_done);
        let Some((report, exception)) =
            report.and_then(|report| report.exception().map(|exception| (report, exception)))
        else {
            match is_done {
                true => self.done += 1,
                false => self.others += 1,
            }
            return;
        };
        let mut cause = cause::fingerprint(&exception);
        if self.causes.len() >= MOST_CAUSES && !self.causes.contains_key(&cause) {
            OTHER_CAUSES.clone_into(&mut cause);
        }
        let task = report.message().ok().and_then(|text| message::decode(text.as_bytes()).ok());
        let (name, id) = match &task {
            Some(task) => (cut(task.name.as_str(), LONGEST_NAME), task.id.to_string()),
            None => Default::default(),
        };
        // Reports of other programs have no time.
        let time = report.time().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let time = time.map_or(0.0, |time| time.as_secs_f64());
        let failures = self.causes.entry(cause.clone()).or_insert_with(|| Failures {
            cause,
            first: time,
            last: time,
            example: Some(Example {
                name: name.clone(),
                id,
                attempt: u32::try_from(report.attempt().unwrap_or_default()).unwrap_or(u32::MAX),
                text: cut(exception.lines().next().unwrap_or_default(), LONGEST_TEXT),
            }),
            ..Failures::default()
        });
        failures.count += 1;
        failures.given_up += 1;
        failures.first = failures.first.min(time);
        failures.last = failures.last.max(time);
        let names = &mut failures.names;
        if names.len() < MOST_NAMES && !name.is_empty() && !names.contains(&name) {
            names.push(name);
        }
    }

    /// The causes, the most frequent first.
    pub fn sorted(self) -> Vec<Failures> {
        let mut all: Vec<Failures> = self.causes.into_values().collect();
        all.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.cause.cmp(&b.cause)));
        all
    }
}

fn cut(text: &str, most: usize) -> String {
    text[..text.floor_char_boundary(most)].to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reports_of_one_cause_are_one_line() {
        let mut found = ErrorCauses::default();
        for n in 0..100 {
            let task = json!({"basic_info": {"id": n, "name": "A", "base_directory": "d"}});
            let exception = match n % 3 {
                0 => format!("no room for {n}\nand more"),
                _ => format!("open /inputs/{n}.png: no such file"),
            };
            let time = format!("1970-01-01T00:{:02}:00Z", n % 60);
            let report =
                json!({"host_info": {}, "task": task, "exception": exception, "time": time});
            found.add(report.to_string().as_bytes());
        }
        found.add(b"nonsense");
        found.add(br#"{"host_info": {}, "task": {}, "result": {"success": true}}"#);
        assert_eq!((found.read, found.done, found.others), (102, 1, 1));
        let causes = found.sorted();
        let lines: Vec<(u64, &str)> =
            causes.iter().map(|one| (one.count, one.cause.as_str())).collect();
        assert_eq!(lines, [(66, "open …: no such file"), (34, "no room for #")]);
        let room = &causes[1];
        assert_eq!((room.first, room.last), (0.0, 57.0 * 60.0));
        assert_eq!(room.names, ["A"]);
        assert_eq!(room.example.as_ref().unwrap().text, "no room for 0");
    }
}
