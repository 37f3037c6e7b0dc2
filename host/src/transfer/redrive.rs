//! Sends the tasks of an error queue or a dead-letter queue back to their queue.

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::StreamExt;
use tokio_util::sync::CancellationToken;

use super::forward::{Choice, Forward, ForwardError, Forwarded};
use super::refusals::Refusals;
use super::send::Target;
use super::{MessageOrigin, Observer};
use crate::cause;
use crate::message;
use crate::queue::{self, Access, Address, QueueError};
use crate::report::Report;

/// How many tasks a dry run shows as examples.
const EXAMPLES: usize = 5;

/// Which tasks are sent back. A field that is `None` matches any task.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// The name of the task.
    pub name: Option<String>,
    /// The id of the task.
    pub id: Option<i64>,
    /// A part of the report's exception, of its cause, or of the task's log.
    pub text: Option<String>,
    /// The cause of the failure, or an error that has this cause.
    pub cause: Option<String>,
    /// The report was made before this time.
    pub before: Option<SystemTime>,
    /// The report was made after this time.
    pub after: Option<SystemTime>,
}

/// The settings of a redrive.
#[derive(Debug)]
pub struct Redrive {
    /// The queue with the reports, or with the tasks themselves.
    pub from: Address,
    /// The queue that the tasks go back to.
    pub to: Address,
    /// Which tasks to send back.
    pub filter: Filter,
    /// The maximum number of tasks to send back.
    pub limit: Option<u64>,
    /// Only find the tasks.
    pub dry_run: bool,
}

/// The tasks that were sent back or, in a dry run, would be.
#[derive(Debug, Default)]
pub struct Redriven {
    /// The messages. `left` counts those that do not match the filter, `done` those that report a
    /// task that is done, and `refused` those that are neither a task nor a report of one, or that
    /// could not be sent.
    pub messages: Forwarded,
    /// Some of the tasks that a dry run found.
    pub examples: Vec<Candidate>,
}

/// Why tasks were not sent back, or not all of them.
#[derive(Debug, thiserror::Error)]
pub enum RedriveError {
    /// The two queues are the same.
    #[error("the tasks of {0} can't be sent back to the same queue")]
    SameQueue(Address),
    /// The queue with the reports does not exist.
    #[error("there is no queue {0}")]
    NoQueue(Address),
    /// One of the queues failed.
    #[error(transparent)]
    Forward(#[from] ForwardError),
}

impl From<QueueError> for RedriveError {
    fn from(error: QueueError) -> Self {
        Self::Forward(error.into())
    }
}

impl Redrive {
    /// Sends the tasks back until `stop` is cancelled. A report is deleted only after its task was
    /// sent.
    ///
    /// # Errors
    /// If one of the queues can't be used.
    pub async fn run(
        self,
        access: &Access,
        observer: Arc<dyn Observer>,
        stop: &CancellationToken,
    ) -> Result<Redriven, RedriveError> {
        if self.from == self.to {
            return Err(RedriveError::SameQueue(self.from));
        }
        if self.from.directory().is_some_and(|dir| !dir.exists()) {
            return Err(RedriveError::NoQueue(self.from));
        }
        if self.dry_run {
            self.find(access, observer).await
        } else {
            let messages = self.send_back(access, observer, stop).await?;
            Ok(Redriven { messages, examples: Vec::new() })
        }
    }

    async fn send_back(
        self,
        access: &Access,
        observer: Arc<dyn Observer>,
        stop: &CancellationToken,
    ) -> Result<Forwarded, ForwardError> {
        let source = queue::open(&self.from, access).await?;
        let target = Target::open(&self.to, access, &*observer).await?;
        let total = source.counts().await?.enqueued;
        // Running hosts may report the same tasks again. The limit on looks leaves those reports
        // for another redrive. It has a margin, because the counts of a service are approximate.
        let looks = match total {
            Some(n) if self.from.is_remote() => n.saturating_add(n / 10 + 100),
            Some(n) => n,
            None => u64::MAX,
        };
        let limit = self.limit.unwrap_or(u64::MAX);
        let is_remote = self.from.is_remote() || self.to.is_remote();
        let filter = self.filter;
        let choose = move |body: &Bytes| match Candidate::of(body) {
            Ok(Some(candidate)) if filter.matches(&candidate) => {
                Choice::Send(candidate.task, candidate.name)
            }
            Ok(Some(_)) => Choice::Leave,
            Ok(None) => Choice::LeaveDone,
            Err(problem) => Choice::Refuse(problem),
        };
        let forward = Forward { source, is_remote, target, choose: Box::new(choose), limit, looks };
        forward.run(observer, stop, total.map(|total| total.min(limit))).await
    }

    /// Finds the tasks that would be sent back. Skips leased messages.
    async fn find(
        self,
        access: &Access,
        observer: Arc<dyn Observer>,
    ) -> Result<Redriven, RedriveError> {
        let source = queue::admin(&self.from, access).await?;
        observer.begins(source.counts().await?.enqueued);
        let refusals = Refusals::new(observer, None);
        let limit = self.limit.unwrap_or(u64::MAX);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut examples = Vec::new();
        let mut found = Forwarded::default();
        let mut looks = 0;
        let mut messages = source.messages();
        while let Some(message) = messages.next().await.transpose()? {
            looks += 1;
            refusals.observer.progress(looks, looks);
            if message.due.is_some_and(|due| due > now) {
                continue;
            }
            let candidate = match message.unread {
                Some(problem) => Err(problem),
                None => Candidate::of(&message.body),
            };
            match candidate {
                Ok(Some(candidate)) if self.filter.matches(&candidate) => {
                    if found.sent < limit {
                        found.sent += 1;
                        *found.names.entry(candidate.name.clone()).or_default() += 1;
                        if examples.len() < EXAMPLES {
                            examples.push(candidate);
                        }
                    }
                }
                Ok(Some(_)) => found.left += 1,
                Ok(None) => found.done += 1,
                Err(problem) => {
                    refusals.add(&MessageOrigin::message(&message.id), &problem, None);
                }
            }
        }
        drop(messages);
        source.close().await;
        found.refused = refusals.count();
        Ok(Redriven { messages: found, examples })
    }
}

/// A task that can be sent back.
#[derive(Debug)]
pub struct Candidate {
    /// The message, byte for byte as it was first sent.
    task: Bytes,
    name: String,
    id: i64,
    /// Why the task failed, if a report says so.
    exception: Option<String>,
    /// The log of the task.
    log: Option<String>,
    /// When it was reported.
    time: Option<SystemTime>,
}

impl Candidate {
    /// The task in a message: the message itself, or the task that it reports. `None` for the
    /// report of a task that is done.
    fn of(body: &Bytes) -> Result<Option<Self>, String> {
        // A dead-letter queue of a service has the messages themselves.
        let not_a_task = match message::decode(body) {
            Ok(task) => {
                let (name, id) = (task.name.to_string(), task.id);
                let task = body.clone();
                return Ok(Some(Self { task, name, id, exception: None, log: None, time: None }));
            }
            Err(error) => error,
        };
        let report = Report::parse(body)
            .ok_or_else(|| format!("is neither a task nor a report of a task: {not_a_task}"))?;
        if report.is_done() {
            return Ok(None);
        }
        let text = report.message().map_err(|omitted| omitted.to_string())?;
        let task = message::decode(text.as_bytes()).map_err(|e| {
            format!("reports a message that is not a task and would fail again: {e}")
        })?;
        Ok(Some(Self {
            task: Bytes::copy_from_slice(text.as_bytes()),
            name: task.name.to_string(),
            id: task.id,
            exception: report.exception(),
            log: report.log().map(str::to_owned),
            time: report.time(),
        }))
    }
}

/// Shows the task's name and id, and why it failed.
impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, id, .. } = self;
        match &self.exception {
            Some(exception) => write!(f, "{name} {id}: {exception}"),
            None => write!(f, "{name} {id}"),
        }
    }
}

impl Filter {
    fn matches(&self, candidate: &Candidate) -> bool {
        let Candidate { exception, log, .. } = candidate;
        let has_text = |text: &String| {
            let is_in = |place: &String| place.contains(text.as_str());
            exception.as_ref().is_some_and(|e| is_in(e) || is_in(&cause::fingerprint(e)))
                || log.as_ref().is_some_and(is_in)
        };
        let has_cause = |cause: &String| exception.as_ref().is_some_and(|e| cause::is_of(e, cause));
        self.name.as_ref().is_none_or(|name| *name == candidate.name)
            && self.id.is_none_or(|id| id == candidate.id)
            && self.text.as_ref().is_none_or(has_text)
            && self.cause.as_ref().is_none_or(has_cause)
            && self.before.is_none_or(|before| candidate.time.is_some_and(|time| time < before))
            && self.after.is_none_or(|after| candidate.time.is_some_and(|time| time > after))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const TASK: &str =
        r#"{ "basic_info" : {"id": 7, "name": "A", "base_directory": "d"}, "payload_info": 1.50 }"#;

    fn report() -> Bytes {
        let time = "1970-01-01T00:01:40Z";
        format!(
            r#"{{"host_info": {{}}, "task": {TASK}, "exception": "no room for 7 in /a/7.png",
                "log": "tile 3 of 9", "time": "{time}"}}"#
        )
        .into()
    }

    fn candidate(body: impl Into<Bytes>) -> Candidate {
        Candidate::of(&body.into()).unwrap().expect("a task that is not done")
    }

    #[test]
    fn a_task_that_is_done_is_not_sent_again() {
        let check = |fields: &str, is_done: bool| {
            let report = format!(r#"{{"host_info": {{}}, "task": {TASK}{fields}}}"#);
            let found = Candidate::of(&report.into()).unwrap();
            assert_eq!(found.is_none(), is_done, "{fields}");
        };
        check(r#", "result": {"success": true, "outputs": ["d/a"]}"#, true);
        check(r#", "result": "ok""#, true);
        check(r#", "result": {"success": false}"#, false);
        check(r#", "exception": "x""#, false);
        check(r#", "exception": "x", "result": {}"#, false);
        check("", false);
    }

    #[test]
    fn a_task_comes_back_byte_for_byte() {
        assert_eq!(candidate(report()).task, TASK);
        assert_eq!(candidate(TASK).task, TASK, "from a dead-letter queue");
    }

    #[test]
    fn what_is_no_task_stays_where_it_is() {
        let check = |body: &'static str, want: &str| {
            let problem = Candidate::of(&Bytes::from(body)).unwrap_err();
            assert!(problem.starts_with(want), "{body}: {problem}");
        };
        check("{}", "is neither a task nor a report of a task");
        check(r#"{"task": "not JSON", "exception": "x"}"#, "reports a message that is not a task");
        check(
            r#"{"task": {"basic_info": {"id": 7, "name": "A", "base_directory": "d", "inputs": 2},
                "sha256": "e3b0", "bytes": 4000000}, "exception": "x"}"#,
            "has no message to send back: the message of task A 7 was too large for a report \
             (3.8 MiB, SHA-256 e3b0); send it again",
        );
        check(
            r#"{"task": {"text": "oops", "sha256": "e3b0", "bytes": 9}, "exception": "x"}"#,
            "has no message to send back: the message was too large",
        );
    }

    #[test]
    fn whatever_a_host_reports_comes_back_byte_for_byte_or_not_at_all() {
        use crate::report::{ErrorReport, Took};
        use crate::stats::Steps;
        let check = |payload: &str| {
            let message = format!(
                r#"{{ "x": "\u00e9\/", "basic_info": {{"name": "A", "base_directory": "d", "inputs": ["i"]}}, "payload_info": {payload} }}"#
            );
            let steps = Steps::start();
            let report = ErrorReport {
                message: message.as_bytes(),
                exception: "no room".to_owned(),
                trace: None,
                failed_call: None,
                attempt: 1,
                earlier: &[],
                phase: None,
                component: None,
                log: None,
                took: Took { steps: &steps, cpu_time: None, memory: 0 },
            };
            let mut back = 0;
            for version in report.versions() {
                match Candidate::of(&version) {
                    Ok(candidate) => {
                        let candidate = candidate.expect("a failure");
                        assert_eq!(candidate.task, message);
                        assert_eq!(candidate.exception.as_deref(), Some("no room"));
                        back += 1;
                    }
                    Err(problem) => {
                        assert!(problem.starts_with("has no message to send back"), "{problem}");
                    }
                }
            }
            assert!(back > 0, "{payload:.40}");
        };
        check("1.50");
        check("[NaN, -Infinity, \"NaN\"]");
        check(r#""\ud800""#);
        check("\"\u{ffff} \u{fffe}\"");
        check(&("[".repeat(300) + &"]".repeat(300)));
        check(&("[".repeat(100_000) + &"]".repeat(100_000)));
        check(&"9".repeat(1_000_000));
        check(&format!("{{\"a\": -{}, \"a\": \"\\u0000\"}}", "1".repeat(5_000)));
        check(&format!("\"{}\"", "x".repeat(300_000)));
    }

    #[test]
    fn a_filter_lets_through_what_matches_all_of_it() {
        let check = |filter: Filter, of_report: bool, of_plain: bool| {
            assert_eq!(filter.matches(&candidate(report())), of_report, "{filter:?}");
            assert_eq!(filter.matches(&candidate(TASK)), of_plain, "{filter:?} of a plain task");
        };
        let none = Filter::default;
        let seconds = |n| Some(UNIX_EPOCH + Duration::from_secs(n));
        check(none(), true, true);
        check(Filter { name: Some("A".into()), ..none() }, true, true);
        check(Filter { name: Some("B".into()), ..none() }, false, false);
        check(Filter { id: Some(7), ..none() }, true, true);
        check(Filter { id: Some(8), name: Some("A".into()), ..none() }, false, false);
        check(Filter { text: Some("room".into()), ..none() }, true, false);
        check(Filter { text: Some("time".into()), ..none() }, false, false);
        check(Filter { text: Some("tile 3".into()), ..none() }, true, false);
        check(Filter { text: Some("for # in".into()), ..none() }, true, false);
        check(Filter { cause: Some("no room for # in …".into()), ..none() }, true, false);
        check(Filter { cause: Some("no room for 8 in /b.png".into()), ..none() }, true, false);
        check(Filter { cause: Some("no room".into()), ..none() }, false, false);
        // A message that is a task does not say when it failed.
        check(Filter { before: seconds(101), ..none() }, true, false);
        check(Filter { before: seconds(100), ..none() }, false, false);
        check(Filter { after: seconds(99), ..none() }, true, false);
        check(Filter { after: seconds(100), ..none() }, false, false);
    }
}
