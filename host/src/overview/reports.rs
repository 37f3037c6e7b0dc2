//! Groups the reports of an error queue by cause, and reads them again only when their number
//! changes.

use std::time::{Duration, Instant};

use super::counted::Counted;
use crate::activity::snapshot::Failures;
use crate::queue::{self, Access, Address, Admin, QueueError};
use crate::transfer::errors::ErrorCauses;

/// The minimum time between two reads of a directory. It grows with the duration of a read.
const SOON: Duration = Duration::from_secs(5);
/// The share of time for reading: at most one part in this many.
const SHARE: u32 = 10;
/// The minimum time between two reads of a queue service, where each report must be leased.
const LATER: Duration = Duration::from_secs(600);

/// The reports of an error queue.
pub(super) struct Reports {
    address: Address,
    access: Access,
    /// `None` until the queue exists.
    queue: Option<Counted>,
    most: u64,
    failures: Vec<Failures>,
    read: Option<Reading>,
}

/// A read of the reports.
struct Reading {
    /// The number of reports at that time.
    count: Option<u64>,
    ended: Instant,
    took: Duration,
}

impl Reports {
    pub(super) fn new(address: Address, access: Access, most: u64) -> Self {
        Self { address, access, queue: None, most, failures: Vec::new(), read: None }
    }

    /// The failures by cause at the last read.
    pub(super) fn failures(&self) -> &[Failures] {
        &self.failures
    }

    /// Counts the reports, and reads them if a read is due. Returns their number, if the queue can
    /// count.
    pub(super) async fn look(&mut self, problems: &mut Vec<String>) -> Option<u64> {
        let count = match self.count().await {
            Ok(count) => count?,
            Err(error) => {
                problems.push(error.to_string());
                return None;
            }
        };
        let queue = self.queue.as_ref()?;
        if count == Some(0) {
            (self.failures, self.read) = (Vec::new(), None);
        } else if self.most > 0 && is_due(self.read.as_ref(), self.address.is_remote(), count) {
            let began = Instant::now();
            match read(queue.queue(), self.most).await {
                Ok(failures) => self.failures = failures,
                Err(error) => problems.push(format!("error reports can't be read: {error}")),
            }
            self.read = Some(Reading { count, ended: Instant::now(), took: began.elapsed() });
        }
        count
    }

    /// The number of reports, if the queue can count. The outer `Option` is `None` if there is no
    /// queue.
    async fn count(&mut self) -> Result<Option<Option<u64>>, QueueError> {
        let queue = match &mut self.queue {
            Some(queue) => queue,
            none => match queue::admin(&self.address, &self.access).await {
                Ok(queue) => none.insert(Counted::new(queue)),
                // The first host creates the queue.
                Err(QueueError::Invalid { .. }) => return Ok(None),
                Err(error) => return Err(error),
            },
        };
        Ok(Some(queue.counts().await?.enqueued))
    }
}

/// Whether to read the reports again, now that their number is `count`.
fn is_due(last: Option<&Reading>, leases: bool, count: Option<u64>) -> bool {
    let Some(last) = last else { return true };
    let pause = if leases { LATER } else { SOON.max(last.took * SHARE) };
    // If a queue can't count, its reports may have changed.
    (count.is_none() || last.count != count) && last.ended.elapsed() >= pause
}

/// Reads at most `most` reports, and releases their leases.
async fn read(queue: &dyn Admin, most: u64) -> Result<Vec<Failures>, QueueError> {
    let read = ErrorCauses::of(queue, most).await;
    queue.close().await;
    Ok(read?.sorted())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn report(id: usize, exception: &str) -> Bytes {
        let task = serde_json::json!({
            "basic_info": {"id": id, "name": "blur", "base_directory": "d", "inputs": []},
        });
        let report = serde_json::json!({
            "host_info": {}, "task": task, "exception": exception, "time": "2026-11-26T23:00:00Z",
        });
        report.to_string().into()
    }

    #[tokio::test]
    async fn reports_are_grouped_and_read_when_their_number_changes() {
        let root = tempfile::tempdir().unwrap();
        let address: Address = format!("fq://{}", root.path().display()).parse().unwrap();
        let access = queue::Access::default();
        let queue = queue::open(&address, &access).await.unwrap();
        let mut reports = Reports::new(address.clone(), access.clone(), u64::MAX);
        let mut problems = Vec::new();
        assert_eq!(reports.look(&mut problems).await, Some(0));
        let mut bodies: Vec<Bytes> = (0..6)
            .map(|id| match id % 3 {
                0 => report(id, "the file is damaged"),
                _ => report(id, &format!("open /inputs/{id}.png: no such file\nmore")),
            })
            .collect();
        bodies.push("no report".into());
        queue.send(&bodies).await.into_iter().for_each(Result::unwrap);
        reports.queue = None;
        assert_eq!(reports.look(&mut problems).await, Some(7));
        let mut counts: Vec<_> = reports.failures().iter().map(|f| f.given_up).collect();
        counts.sort();
        assert_eq!(counts, [2, 4], "{:?}", reports.failures());
        let missing = reports.failures().iter().find(|f| f.given_up == 4).unwrap();
        let example = missing.example.as_ref().unwrap();
        assert_eq!((&*missing.names, &*example.name), (&["blur".to_owned()][..], "blur"));
        assert!(example.text.ends_with("no such file") && !example.id.is_empty(), "{example:?}");
        assert!(missing.first > 1e9 && missing.first == missing.last);
        // A read is not due at once, nor while the number of reports stays the same.
        let mut last = reports.read.take().unwrap();
        assert!(!is_due(Some(&last), false, Some(8)));
        (last.took, last.ended) = (Duration::ZERO, Instant::now() - SOON);
        let due = |leases, count| is_due(Some(&last), leases, count);
        assert!(due(false, Some(8)) && due(false, None) && !due(false, Some(7)));
        assert!(!due(true, Some(8)), "leasing takes a longer pause");
        queue::admin(&address, &access).await.unwrap().purge().await.unwrap();
        reports.queue = None;
        assert_eq!(reports.look(&mut problems).await, Some(0));
        assert_eq!((reports.failures().len(), &*problems), (0, &[][..]));
    }
}
