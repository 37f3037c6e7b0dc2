//! Tasks back from an error queue or a dead-letter queue to the queue that they are of.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::value::RawValue;
use task_host::json;
use task_host::queue::{self, Access, Address};

use super::carry::{Carrier, Choice};
use super::console::Console;
use super::exit_code::Advice;
use super::output;
use super::progress_line::ProgressLine;
use super::refusals::{Place, Refusals};
use super::sender::{self, Target};

/// Tasks that are shown of those that a dry run finds.
const EXAMPLES: usize = 5;

/// Which tasks go back.
#[derive(Debug, Clone, Default)]
pub(crate) struct Filter {
    /// Those of this name.
    pub(crate) name: Option<String>,
    /// Those with this id.
    pub(crate) id: Option<i64>,
    /// Those whose report has this text in its exception.
    pub(crate) text: Option<String>,
    /// Those that were reported before this time since 1970.
    pub(crate) before: Option<Duration>,
    /// Those that were reported after this time since 1970.
    pub(crate) after: Option<Duration>,
}

/// What goes back, and where.
#[derive(Debug)]
pub(crate) struct Redrive {
    /// URL of the queue with the reports, or with the tasks themselves.
    pub(crate) from: String,
    /// URL of the queue that the tasks go to.
    pub(crate) to: String,
    pub(crate) filter: Filter,
    /// Tasks that go back, at the most.
    pub(crate) limit: Option<u64>,
    pub(crate) dry_run: bool,
}

/// What went back, or would.
#[derive(Debug, Default)]
pub(crate) struct Redriven {
    pub(crate) sent: u64,
    /// Messages that the filter did not let through.
    pub(crate) left: u64,
    /// Messages that are no task and report on none, or could not be sent.
    pub(crate) refused: u64,
    /// What was sent, by the tasks' names.
    pub(crate) names: BTreeMap<String, u64>,
    /// Some of what a dry run found, for people.
    pub(crate) examples: Vec<String>,
    pub(crate) is_interrupted: bool,
    pub(crate) is_cut_short: bool,
}

impl Redrive {
    /// Does it. A message leaves its queue only after its task was sent.
    ///
    /// # Errors
    /// When one of the queues can't be used.
    pub(crate) async fn run(self, screen: &Console, access: &Access) -> anyhow::Result<Redriven> {
        if self.from == self.to {
            return Err(Advice::usage(format!("{} can't go back into itself", self.from))
                .hint(
                    "the queue is --fq or --queue; its error queue has the same name and `-errors`",
                )
                .into());
        }
        if self.from.parse::<Address>()?.directory().is_some_and(|dir| !dir.exists()) {
            return Err(Advice::failed(format!("there is no queue {}", self.from)).into());
        }
        if self.dry_run {
            self.look(screen, access).await
        } else {
            self.carry(screen, access).await
        }
    }

    async fn carry(self, screen: &Console, access: &Access) -> anyhow::Result<Redriven> {
        let source = queue::open(&self.from.parse()?, access).await?;
        let target = Target::open(screen, &self.to, access).await?;
        let is_remote = sender::is_remote(&self.from)? || sender::is_remote(&self.to)?;
        let there = source.counts().await?.enqueued;
        // Hosts that run meanwhile may put the same tasks back here: those are for another
        // time. What a service counts is only about right.
        let looks = match there {
            Some(n) if sender::is_remote(&self.from)? => n.saturating_add(n / 10 + 100),
            Some(n) => n,
            None => u64::MAX,
        };
        let filter = self.filter;
        let choose = move |body: &Bytes| match Found::of(body) {
            Ok(found) if filter.lets(&found) => Choice::Send(found.task, found.name),
            Ok(_) => Choice::Leave,
            Err(problem) => Choice::Refuse(problem),
        };
        let limit = self.limit.unwrap_or(u64::MAX);
        let whole = there.map(|there| there.min(limit));
        let carrier = Carrier {
            source,
            is_remote,
            target,
            choose: Box::new(choose),
            limit,
            looks,
            verb: "put back",
        };
        let done = carrier.run(screen, whole).await?;
        Ok(Redriven {
            sent: done.sent,
            left: done.left,
            refused: done.refused,
            names: done.names,
            examples: Vec::new(),
            is_interrupted: done.is_interrupted,
            is_cut_short: done.is_cut_short,
        })
    }

    /// What would be done. Messages that somebody holds would not be.
    async fn look(self, screen: &Console, access: &Access) -> anyhow::Result<Redriven> {
        let source = queue::admin(&self.from.parse()?, access).await?;
        let refusals = Refusals::new(screen, None)?;
        let mut meter =
            ProgressLine::new(screen, "messages", "looked at", source.counts().await?.enqueued);
        let limit = self.limit.unwrap_or(u64::MAX);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut done = Redriven::default();
        let mut looked = 0;
        let mut messages = source.messages();
        while let Some(message) = messages.next().await.transpose()? {
            looked += 1;
            meter.at(looked, looked);
            if message.due.is_some_and(|due| due > now) {
                continue;
            }
            let found = match message.unread {
                Some(problem) => Err(problem),
                None => Found::of(&message.body),
            };
            match found {
                Ok(found) if self.filter.lets(&found) => {
                    if done.sent < limit {
                        if done.examples.len() < EXAMPLES {
                            done.examples.push(found.describe());
                        }
                        done.sent += 1;
                        *done.names.entry(found.name).or_default() += 1;
                    }
                }
                Ok(_) => done.left += 1,
                Err(problem) => {
                    let place = Place::Named(format!("message {}", message.id));
                    refusals.add(&place, &problem, None);
                }
            }
        }
        drop((messages, meter));
        source.close().await;
        done.refused = refusals.finish()?;
        Ok(done)
    }
}

/// A report, as far as commands read it.
#[derive(Deserialize)]
pub(crate) struct Report<'a> {
    #[serde(borrow)]
    task: &'a RawValue,
    exception: Option<serde_json::Value>,
    time: Option<serde_json::Value>,
}

/// What a report has of a message that was too large for it.
#[derive(Deserialize)]
pub(crate) struct Summary {
    basic_info: Option<Info>,
    sha256: String,
    bytes: u64,
}

/// Of the task that such a message was.
#[derive(Deserialize)]
struct Info {
    id: i64,
    name: String,
}

impl<'a> Report<'a> {
    pub(crate) fn read(body: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(body).ok()
    }

    /// The message that is reported on, byte for byte.
    pub(crate) fn message(&self) -> Cow<'a, str> {
        // A message that could not be embedded stands there as one string.
        let text = self.task.get();
        json::parse(text).ok().and_then(json::Value::string).unwrap_or(Cow::Borrowed(text))
    }

    /// What there is instead of the message, if it was too large.
    pub(crate) fn summary(&self) -> Option<Summary> {
        let is_task = task_host::message::decode(self.task.get().as_bytes()).is_ok();
        serde_json::from_str(self.task.get()).ok().filter(|_| !is_task)
    }

    /// Why the task was given up. None for the report of one that is done.
    pub(crate) fn exception(&self) -> Option<String> {
        let text = |e: &serde_json::Value| e.as_str().map_or_else(|| e.to_string(), str::to_owned);
        self.exception.as_ref().map(text)
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { basic_info, sha256, bytes } = self;
        write!(f, "has no message to send back: ")?;
        if let Some(Info { id, name }) = basic_info {
            write!(f, "that of {name} {id} ")?;
        } else {
            write!(f, "it ")?;
        }
        let bytes = output::number(*bytes);
        write!(
            f,
            "was too large for a report ({bytes} bytes, SHA-256 {sha256}); send it again from \
             where it came from"
        )
    }
}

/// A task that may go back.
#[derive(Debug)]
struct Found {
    /// The message, byte for byte as it was sent first.
    task: Bytes,
    name: String,
    id: i64,
    /// Why it was given up, if it is a report that says so.
    exception: Option<String>,
    /// The time since 1970 of the report.
    time: Option<Duration>,
}

impl Found {
    /// The task that a message is or reports on.
    fn of(body: &Bytes) -> Result<Self, String> {
        // Services put on their dead-letter queues what they could not deliver, as it was.
        let plain = match task_host::message::decode(body) {
            Ok(task) => {
                let (name, id) = (task.name.to_string(), task.id);
                return Ok(Self { task: body.clone(), name, id, exception: None, time: None });
            }
            Err(error) => error,
        };
        let report = Report::read(body)
            .ok_or_else(|| format!("is neither a task nor a report of one: {plain}"))?;
        if let Some(summary) = report.summary() {
            return Err(summary.to_string());
        }
        let text = report.message();
        let task = task_host::message::decode(text.as_bytes()).map_err(|e| {
            format!("the message it reports on is not a task and would fail again: {e}")
        })?;
        let time =
            report.time.as_ref().and_then(|time| humantime::parse_rfc3339(time.as_str()?).ok());
        Ok(Self {
            task: Bytes::copy_from_slice(text.as_bytes()),
            name: task.name.to_string(),
            id: task.id,
            exception: report.exception(),
            time: time.and_then(|time| time.duration_since(UNIX_EPOCH).ok()),
        })
    }

    fn describe(&self) -> String {
        let task = format!("{} {}", self.name, self.id);
        match &self.exception {
            Some(exception) => format!("{task}: {}", output::cut(exception, 100)),
            None => task,
        }
    }
}

impl Filter {
    fn lets(&self, found: &Found) -> bool {
        let has_text =
            |text: &String| found.exception.as_ref().is_some_and(|e| e.contains(text.as_str()));
        self.name.as_ref().is_none_or(|name| *name == found.name)
            && self.id.is_none_or(|id| id == found.id)
            && self.text.as_ref().is_none_or(has_text)
            && self.before.is_none_or(|before| found.time.is_some_and(|time| time < before))
            && self.after.is_none_or(|after| found.time.is_some_and(|time| time > after))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TASK: &str =
        r#"{ "basic_info" : {"id": 7, "name": "A", "base_directory": "d"}, "payload_info": 1.50 }"#;

    fn report() -> Bytes {
        let time = "1970-01-01T00:01:40Z";
        format!(
            r#"{{"host_info": {{}}, "task": {TASK}, "exception": "no room", "time": "{time}"}}"#
        )
        .into()
    }

    #[test]
    fn a_task_comes_back_byte_for_byte() {
        assert_eq!(Found::of(&report()).unwrap().task, TASK);
        assert_eq!(Found::of(&Bytes::from(TASK)).unwrap().task, TASK, "from a dead-letter queue");
    }

    #[test]
    fn what_is_no_task_stays_where_it_is() {
        let check = |body: &'static str, want: &str| {
            let problem = Found::of(&Bytes::from(body)).unwrap_err();
            assert!(problem.starts_with(want), "{body}: {problem}");
        };
        check("{}", "is neither a task nor a report of one");
        check(
            r#"{"task": "not JSON", "exception": "x"}"#,
            "the message it reports on is not a task",
        );
        check(
            r#"{"task": {"basic_info": {"id": 7, "name": "A", "base_directory": "d", "inputs": 2},
                "sha256": "e3b0", "bytes": 4000000}, "exception": "x"}"#,
            "has no message to send back: that of A 7 was too large for a report (4,000,000 bytes, \
             SHA-256 e3b0); send it again",
        );
        check(
            r#"{"task": {"text": "oops", "sha256": "e3b0", "bytes": 9}, "exception": "x"}"#,
            "has no message to send back: it was too large",
        );
    }

    #[test]
    fn whatever_a_host_reports_comes_back_byte_for_byte_or_not_at_all() {
        use task_host::report::ErrorReport;
        let check = |payload: &str| {
            let message = format!(
                r#"{{ "x": "\u00e9\/", "basic_info": {{"name": "A", "base_directory": "d", "inputs": ["i"]}}, "payload_info": {payload} }}"#
            );
            let report = ErrorReport {
                message: message.as_bytes(),
                exception: "no room".to_owned(),
                attempt: 1,
                earlier: &[],
                phase: None,
                component: None,
                log: None,
                elapsed: Duration::ZERO,
            };
            let mut back = 0;
            for version in report.versions() {
                match Found::of(&version) {
                    Ok(found) => {
                        assert_eq!(found.task, message);
                        assert_eq!(found.exception.as_deref(), Some("no room"));
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
            let found = Found::of(&report()).unwrap();
            assert_eq!(filter.lets(&found), of_report, "{filter:?}");
            let plain = Found::of(&Bytes::from(TASK)).unwrap();
            assert_eq!(filter.lets(&plain), of_plain, "{filter:?} of a plain task");
        };
        let none = Filter::default;
        let seconds = |n| Some(Duration::from_secs(n));
        check(none(), true, true);
        check(Filter { name: Some("A".into()), ..none() }, true, true);
        check(Filter { name: Some("B".into()), ..none() }, false, false);
        check(Filter { id: Some(7), ..none() }, true, true);
        check(Filter { id: Some(8), name: Some("A".into()), ..none() }, false, false);
        check(Filter { text: Some("room".into()), ..none() }, true, false);
        check(Filter { text: Some("time".into()), ..none() }, false, false);
        // A plain task does not say when it was given up.
        check(Filter { before: seconds(101), ..none() }, true, false);
        check(Filter { before: seconds(100), ..none() }, false, false);
        check(Filter { after: seconds(99), ..none() }, true, false);
        check(Filter { after: seconds(100), ..none() }, false, false);
    }
}
