//! Tasks back from an error queue.

use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use task_host::lease::{Lease, Leases, Settlement};
use task_host::queue::{self, Release};

use super::super::exit::Advice;
use super::super::settings::{fq_path, queue_url};
use super::super::show;
use super::super::telemetry::Screen;
use super::Outcome;

/// How long reports are held at a time; renewed while this command lives.
const HOLD: Duration = Duration::from_secs(60);
/// Reports that are handled in one go.
const BATCH: usize = 64;

/// Puts the tasks of the reports on `errors` back into `queue`. A report is deleted only
/// after its task was sent: a kill in between leads to a task that is there twice.
pub(super) async fn put_back(
    screen: &Screen,
    url: &str,
    access: &queue::Access,
    errors: &str,
    name: Option<&str>,
    limit: Option<u64>,
    dry_run: bool,
) -> anyhow::Result<Outcome> {
    let errors = queue_url(errors).map_err(|e| Advice::usage(format!("--from-errors: {e}")))?;
    if errors == url {
        return Err(Advice::usage("--from-errors is the queue that tasks are to go to")
            .hint("the queue is --fq or --queue; its error queue is its directory and `-errors`")
            .into());
    }
    if fq_path(&errors).is_some_and(|dir| !dir.exists()) {
        return Err(Advice::failed(format!("there is no queue {errors}")).into());
    }
    let reports = queue::open(&errors, access).await?;
    let target = if dry_run { None } else { Some(queue::open(url, access).await?) };
    // Hosts that run meanwhile may put the same tasks back here: those are for another time.
    let mut wanted = reports.counts().await?.enqueued.unwrap_or(u64::MAX);
    let limit = limit.unwrap_or(u64::MAX);
    let leases = Leases::new(reports.clone(), HOLD);
    let mut kept = Vec::new();
    let (mut sent, mut refused) = (0, 0);
    while wanted > 0 && sent < limit {
        let most = wanted.min(limit - sent).min(BATCH as u64);
        let leased = leases.lease(usize::try_from(most).unwrap_or(BATCH), Duration::ZERO).await?;
        if leased.is_empty() {
            break;
        }
        wanted -= leased.len() as u64;
        let mut batch: Vec<(Bytes, Lease)> = Vec::new();
        for lease in leased {
            match task_of(&lease.message().body, name) {
                Ok(Some(task)) => batch.push((task, lease)),
                Ok(None) => kept.push(lease),
                Err(problem) => {
                    refused += 1;
                    screen.tell(format_args!("report {}: {problem}", lease.message().id));
                    kept.push(lease);
                }
            }
        }
        let (bodies, leases): (Vec<Bytes>, Vec<Lease>) = batch.into_iter().unzip();
        let Some(target) = &target else {
            sent += bodies.len() as u64;
            kept.extend(leases);
            continue;
        };
        let results = target.send(&bodies).await;
        let mut failed = None;
        for (result, lease) in results.into_iter().zip(leases) {
            match result {
                Ok(()) => {
                    lease.settle(Settlement::Ack).await?;
                    sent += 1;
                }
                Err(error) => {
                    failed = Some(error);
                    kept.push(lease);
                }
            }
        }
        if let Some(error) = failed {
            give_back(kept).await;
            return Err(Advice::failed(error.to_string())
                .hint(format!("{} put back before that", show::count(sent, "task")))
                .into());
        }
    }
    give_back(kept).await;
    Ok(Outcome { queue: url.to_owned(), sent, refused, dry_run })
}

/// Reports that were only looked at are there for others at once.
async fn give_back(leases: Vec<Lease>) {
    for lease in leases {
        let released = lease.settle(Settlement::Release(Duration::ZERO, Release::Uncounted)).await;
        if let Err(error) = released {
            tracing::warn!("{error}");
        }
    }
}

/// The task of a report, byte for byte as its host got it; None if it has another name.
fn task_of(report: &[u8], name: Option<&str>) -> Result<Option<Bytes>, String> {
    #[derive(Deserialize)]
    struct Report<'a> {
        #[serde(borrow)]
        task: &'a RawValue,
    }
    let report: Report<'_> =
        serde_json::from_slice(report).map_err(|e| format!("is no error report: {e}"))?;
    let text = report.task.get();
    let task = task_host::message::decode(text.as_bytes())
        .map_err(|e| format!("what it reports on is no task and would fail again: {e}"))?;
    let is_wanted = name.is_none_or(|name| task.name.as_str() == name);
    Ok(is_wanted.then(|| Bytes::copy_from_slice(text.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_comes_back_byte_for_byte() {
        let task =
            r#"{ "basic_info" : {"name": "A", "base_directory": "d"}, "payload_info": 1.50 }"#;
        let report = format!(r#"{{"host_info": {{}}, "task": {task}, "exception": "x"}}"#);
        assert_eq!(task_of(report.as_bytes(), None).unwrap().unwrap(), task);
        assert_eq!(task_of(report.as_bytes(), Some("A")).unwrap().unwrap(), task);
        assert_eq!(task_of(report.as_bytes(), Some("B")).unwrap(), None);
    }

    #[test]
    fn what_is_no_task_stays_where_it_is() {
        assert!(task_of(b"{}", None).is_err());
        assert!(task_of(br#"{"task": "not JSON", "exception": "x"}"#, None).is_err());
    }
}
