//! Finds the task of a report or a message in a queue or a file, and opens the component and the
//! inputs that `host run` would use.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytesize::ByteSize;
use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::value::RawValue;
use task_host::ahead::Ahead;
use task_host::bucket::{self, Bucket};
use task_host::catalog::Ready;
use task_host::config::{DataSettings, TrustSettings, parse};
use task_host::key::{Prefix, TaskName};
use task_host::message::{self, Task};
use task_host::needs::Reach;
use task_host::prefetch::Prefetch;
use task_host::publish::Protected;
use task_host::queue;
use task_host::report::Report;
use task_host::services;

use super::super::exit_code::Advice;
use super::super::local_runner::LocalRunner;
use super::super::output;
use super::super::settings::Settings;

/// The maximum number of messages that are read from a service. Each is leased until the right one
/// is found.
const MOST_LEASED: usize = 1000;
/// The maximum number of tasks that an error lists.
const SHOWN: usize = 5;

/// The task to find.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    /// The task's id, or the message's.
    pub(super) id: Option<&'a str>,
    /// The task's name.
    pub(super) name: Option<&'a str>,
}

/// A task that was found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) task: Task,
    /// The last attempt, if there is a report of it.
    pub(super) before: Option<Before>,
}

/// The last attempt of a task, from its report.
#[derive(Debug)]
pub(super) struct Before {
    pub(super) exception: String,
    pub(super) attempt: Option<u32>,
    pub(super) component: Option<String>,
    time: Option<SystemTime>,
}

/// The fields of a report that [`Report`] does not have.
#[derive(Deserialize)]
struct More {
    attempt: Option<u32>,
    component: Option<String>,
}

impl Found {
    /// The task in the body of a message: a report, or the task itself.
    fn read(body: &[u8]) -> Result<Self, String> {
        let Some(report) = Report::parse(body) else {
            let task = message::decode(body).map_err(|error| format!("not a task: {error}"))?;
            return Ok(Self { task, before: None });
        };
        let text = report.message().map_err(|omitted| format!("the report {omitted}"))?;
        let task = message::decode(text.as_bytes())
            .map_err(|error| format!("a report of what is not a task: {error}"))?;
        let More { attempt, component } =
            serde_json::from_slice(body).unwrap_or(More { attempt: None, component: None });
        let before = Before {
            exception: report.exception().unwrap_or_default(),
            attempt: attempt.filter(|attempt| *attempt > 0),
            component,
            time: report.time(),
        };
        Ok(Self { task, before: Some(before) })
    }

    fn time(&self) -> Option<SystemTime> {
        self.before.as_ref()?.time
    }
}

/// Collects the matching tasks, and keeps the one with the latest report.
struct Search<'a> {
    wanted: &'a Wanted<'a>,
    place: String,
    found: Option<Found>,
    /// Descriptions of matching tasks, each once even if it has several reports.
    matching: Vec<String>,
    /// The number of messages that were read.
    seen: usize,
    /// Why a message is not a task, for the first such message.
    problem: Option<String>,
}

impl<'a> Search<'a> {
    fn new(wanted: &'a Wanted<'a>, place: String) -> Self {
        Self { wanted, place, found: None, matching: Vec::new(), seen: 0, problem: None }
    }

    fn see(&mut self, message_id: Option<&str>, body: &[u8]) {
        self.seen += 1;
        let found = match Found::read(body) {
            Ok(found) => found,
            Err(problem) => {
                if self.wanted.id.is_none() || self.wanted.id == message_id {
                    self.problem.get_or_insert(problem);
                }
                return;
            }
        };
        let task = &found.task;
        let has_id =
            |id: &str| message_id == Some(id) || id.parse().is_ok_and(|id: i64| id == task.id);
        let is_wanted = self.wanted.id.is_none_or(has_id)
            && self.wanted.name.is_none_or(|name| name == task.name.as_str());
        if !is_wanted {
            return;
        }
        let described = format!("{} {} in {:?}", task.name, task.id, task.base_directory.as_str());
        if !self.matching.contains(&described) && self.matching.len() <= SHOWN {
            self.matching.push(described);
        }
        // A task may have failed more than once.
        if self.found.as_ref().is_none_or(|other| other.time() <= found.time()) {
            self.found = Some(found);
        }
    }

    fn end(self) -> anyhow::Result<Found> {
        let Self { wanted, place, found, matching, seen, problem } = self;
        let looked_at = output::count(seen as u64, "message");
        match found {
            Some(found) if matching.len() == 1 => Ok(found),
            Some(_) => {
                let more = if matching.len() > SHOWN { " and others" } else { "" };
                let shown = matching.into_iter().take(SHOWN).collect::<Vec<_>>().join(", ");
                Err(Advice::usage(format!("{place} has several such tasks: {shown}{more}"))
                    .hint("choose one with --id and --name")
                    .into())
            }
            None if let Some(problem) = problem => {
                Err(Advice::failed(format!("{place}: {problem}")).into())
            }
            None => {
                let which = match (wanted.name, wanted.id) {
                    (Some(name), Some(id)) => format!("task {name} {id}"),
                    (Some(name), None) => format!("task named {name}"),
                    (None, Some(id)) => format!("task with the id {id}"),
                    (None, None) => "task".to_owned(),
                };
                Err(Advice::failed(format!("{place} has no {which} ({looked_at} looked at)"))
                    .hint(
                        "`host queue ls` lists what a queue has; leased messages of a cloud \
                           queue can't be read",
                    )
                    .into())
            }
        }
    }
}

/// Finds the task in a file or a queue. Removes no message. Messages of a service are leased until
/// the right one is found, and are then released.
pub(super) async fn find(
    from: &str,
    wanted: &Wanted<'_>,
    settings: &Settings,
) -> anyhow::Result<Found> {
    let path = Path::new(from);
    // Not only regular files: for a shell, `<(command)` is a pipe.
    if path.exists() && !path.is_dir() {
        let bytes = std::fs::read(path).map_err(|e| Advice::failed(format!("{from}: {e}")))?;
        return find_in_text(&bytes, from, wanted);
    }
    let address = parse::queue(from).map_err(|e| Advice::usage(format!("--from: {from}: {e}")))?;
    let queue = queue::admin(&address, &settings.queue_access()?).await?;
    let most = if address.is_remote() { MOST_LEASED } else { usize::MAX };
    let mut search = Search::new(wanted, queue.to_string());
    let mut messages = queue.messages();
    let mut failed = None;
    while search.seen < most
        && let Some(message) = messages.next().await
    {
        match message {
            Ok(message) => search.see(Some(&message.id), &message.body),
            Err(error) => failed = Some(error),
        }
        // Stop early: reading a service's further messages would lease them.
        let is_enough = wanted.id.is_some() && search.found.is_some();
        if failed.is_some() || address.is_remote() && is_enough {
            break;
        }
    }
    drop(messages);
    queue.close().await;
    match failed {
        Some(error) => Err(error.into()),
        None => search.end(),
    }
}

/// A line of `host queue ls --json`.
#[derive(Deserialize)]
struct ListedLine<'a> {
    id: String,
    #[serde(borrow)]
    message: Option<&'a RawValue>,
    text: Option<String>,
}

/// Finds the task in a text: one report or message, or one per line. A line may also have the
/// format of `host queue ls --json`.
fn find_in_text(text: &[u8], name: &str, wanted: &Wanted<'_>) -> anyhow::Result<Found> {
    let mut search = Search::new(wanted, name.to_owned());
    if Found::read(text).is_ok() {
        search.see(None, text);
        return search.end();
    }
    for line in text.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty()) {
        match serde_json::from_slice::<ListedLine<'_>>(line) {
            Ok(ListedLine { id, message: Some(message), .. }) => {
                search.see(Some(&id), message.get().as_bytes());
            }
            Ok(ListedLine { id, text: Some(text), .. }) => search.see(Some(&id), text.as_bytes()),
            _ => search.see(None, line),
        }
    }
    search.end()
}

/// The buckets of a task, as a host would use them.
pub(super) struct Buckets {
    data: DataSettings,
    access: bucket::Access,
}

impl Buckets {
    pub(super) fn of(settings: &Settings) -> anyhow::Result<Self> {
        let data: DataSettings = settings.get()?;
        let access = settings.bucket_access()?;
        Ok(Self { data, access })
    }

    /// The source of inputs, through the cache.
    pub(super) async fn inputs(&self, bench: &LocalRunner) -> anyhow::Result<Prefetch> {
        let address = self.data.input_bucket.as_ref().unwrap_or(&self.data.bucket);
        Ok(Prefetch {
            bucket: bucket::open(address, &self.access).await?,
            cache: bench.cache.clone(),
            freshness: Duration::ZERO,
            ahead: Ahead::new(ByteSize::gib(1)),
        })
    }

    /// The keys that plans of tasks may read.
    pub(super) fn reach(&self) -> anyhow::Result<Reach> {
        Ok(services::reach(&self.data)?)
    }

    /// The component of tasks of that name.
    pub(super) async fn component(
        &self,
        name: &TaskName,
        bench: &LocalRunner,
        settings: &Settings,
    ) -> anyhow::Result<Ready> {
        let (bucket, prefix) = self.components().await?;
        let policy = settings.get::<TrustSettings>()?.policy(&settings.tasks()?);
        Ok(bench.fetch(bucket, prefix, policy, name).await?)
    }

    /// The bytes of that component, which is in the cache already.
    pub(super) async fn wasm(
        &self,
        name: &TaskName,
        bench: &LocalRunner,
    ) -> anyhow::Result<Vec<u8>> {
        let (bucket, prefix) = self.components().await?;
        let key = prefix.join(&name.file());
        let blob = bench.cache.fetch(&*bucket, &key, Duration::from_secs(60)).await?;
        let mut wasm = Vec::new();
        bench.cache.read(&blob)?.read_to_end(&mut wasm)?;
        Ok(wasm)
    }

    /// The bucket and the prefix of components.
    async fn components(&self) -> anyhow::Result<(Arc<dyn Bucket>, Prefix)> {
        Ok(match &self.data.components {
            Some(dir) => (bucket::open_dir(dir)?, Prefix::root()),
            None => {
                let bucket = bucket::open(&self.data.bucket, &self.access).await?;
                (bucket, self.data.component_prefix.clone())
            }
        })
    }

    /// The bucket for outputs, and the keys in it that no task may write.
    pub(super) async fn outputs(&self) -> anyhow::Result<(Arc<dyn Bucket>, Vec<Protected>)> {
        // Anonymous access is only for reading.
        let access = bucket::Access {
            anonymous: false,
            gzip_outputs: self.data.gzip_outputs.clone(),
            ..self.access.clone()
        };
        let bucket = bucket::open_for_outputs(&self.data.bucket, &access).await?;
        Ok((bucket, services::protected(&self.data)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(id: i64) -> String {
        format!(r#"{{"basic_info": {{"id": {id}, "name": "A", "base_directory": "d"}}}}"#)
    }

    fn report(id: i64, time: &str) -> String {
        let task = task(id);
        format!(
            r#"{{"task": {task}, "exception": "{time} no", "attempt": 3, "time": "2026-11-26T{time}Z"}}"#
        )
    }

    fn find(text: &str, id: Option<&str>) -> Result<Found, String> {
        let wanted = Wanted { id, name: None };
        find_in_text(text.as_bytes(), "x.json", &wanted).map_err(|error| error.to_string())
    }

    #[test]
    fn a_task_is_found_in_a_message_a_report_and_a_listing() {
        let found = find(&task(3), None).unwrap();
        assert!(found.before.is_none() && found.task.id == 3);
        let found = find(&report(4, "10:00:00"), None).unwrap();
        assert_eq!(found.before.unwrap().attempt, Some(3));
        let listed = |id: i64| format!(r#"{{"id": "m{id}", "due": 0, "message": {}}}"#, task(id));
        let text = format!("{}\n{}\n", listed(1), listed(2));
        for id in ["2", "m2"] {
            assert_eq!(find(&text, Some(id)).unwrap().task.id, 2);
        }
    }

    #[test]
    fn the_last_report_of_a_task_counts() {
        let text = [report(4, "10:00:00"), report(4, "12:00:00"), report(4, "11:00:00")].join("\n");
        assert_eq!(find(&text, Some("4")).unwrap().before.unwrap().exception, "12:00:00 no");
    }

    #[test]
    fn what_is_not_clear_is_not_run() {
        let text = [task(1), task(2)].join("\n");
        let error = find(&text, None).unwrap_err();
        assert_eq!(error, "x.json has several such tasks: A 1 in \"d\", A 2 in \"d\"");
        let error = find(&text, Some("3")).unwrap_err();
        assert_eq!(error, "x.json has no task with the id 3 (2 messages looked at)");
        let error = find("oops", None).unwrap_err();
        assert!(error.starts_with("x.json: not a task: message: is not JSON"), "{error}");
    }
}
