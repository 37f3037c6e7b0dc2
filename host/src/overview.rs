//! The data of `host top` and `host dashboard`: all hosts of a queue, the queue, and why tasks
//! failed.
//!
//! The data come from the hosts' heartbeats, the queue's counts and the error queue. Nothing is
//! changed.

mod causes;
mod counted;
mod reports;

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::activity::snapshot::{Failures, Rate, Snapshot};
use crate::heartbeat::{Heard, Place, Reader};
use crate::queue::{Access, Address, Admin, Counts};
use counted::Counted;
use reports::Reports;

/// The state of a queue and its hosts. `--json` and `/api/hosts` show these fields.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Overview {
    /// The queue.
    pub queue: QueueView,
    /// The time until the queue is expected to be empty, in seconds. `None` without an estimate.
    pub eta_seconds: Option<f64>,
    /// How fast all hosts together end tasks. Silent hosts don't count.
    pub rate: Rate,
    /// The hosts, sorted by id, with silent hosts first.
    pub hosts: Vec<HostRow>,
    /// Why tasks failed, by cause, from the error queue and the heartbeats. The most frequent cause
    /// comes first.
    pub failures: Vec<Failures>,
    /// What could not be read, as text.
    pub problems: Vec<String>,
}

/// The counts of a queue. A field is `None` if the queue can't count it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct QueueView {
    /// Its URL.
    pub url: String,
    /// Messages that can be leased now.
    pub waiting: Option<u64>,
    /// Messages that are leased.
    pub held: Option<u64>,
    /// Messages that wait for their next attempt.
    pub retrying: Option<u64>,
    /// Reports in the error queue.
    pub errors: Option<u64>,
    /// When the messages were counted, in seconds since 1970.
    pub time: f64,
}

/// A host.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HostRow {
    /// The age of its heartbeat.
    pub age_seconds: f64,
    /// Whether the host has missed several heartbeats: it was killed, or it can't write heartbeats.
    pub is_silent: bool,
    /// The content of its last heartbeat.
    pub snapshot: Snapshot,
}

/// Reads the state of a queue and its hosts.
pub struct Watcher {
    queue: Counted,
    reader: Reader,
    reports: Reports,
    /// The last heartbeats that could be read.
    heard: Vec<Heard>,
    /// When these heartbeats were read.
    heard_at: Option<Instant>,
}

/// The parts that a watcher reads.
pub struct Watched {
    /// The queue.
    pub queue: Box<dyn Admin>,
    /// Its error queue, which may not exist yet.
    pub errors: Address,
    /// The settings for access to the error queue.
    pub access: Access,
    /// The maximum number of reports to read.
    pub most_reports: u64,
    /// The place of the hosts' heartbeats.
    pub place: Place,
}

impl Watcher {
    /// A watcher of these parts.
    pub fn new(watched: Watched) -> Self {
        let Watched { queue, errors, access, most_reports, place } = watched;
        Self {
            queue: Counted::new(queue),
            reader: Reader::new(place),
            reports: Reports::new(errors, access, most_reports),
            heard: Vec::new(),
            heard_at: None,
        }
    }

    /// The URL of the queue.
    pub fn queue(&self) -> String {
        self.queue.queue().to_string()
    }

    /// The current state. Parts that can't be read now keep their last values, and
    /// [`Overview::problems`] names them.
    pub async fn look(&mut self) -> Overview {
        let mut problems = Vec::new();
        match self.reader.read().await {
            Ok(heard) => (self.heard, self.heard_at) = (heard, Some(Instant::now())),
            Err(error) => problems.push(format!("the heartbeats of hosts can't be read: {error}")),
        }
        // Heartbeats grow older while they can't be read.
        let since = self.heard_at.map_or(Duration::ZERO, |at| at.elapsed());
        let mut hosts = rows(&self.heard, since);
        hosts.sort_by(|a, b| {
            let id = |row: &HostRow| row.snapshot.host.id.clone();
            b.is_silent.cmp(&a.is_silent).then_with(|| id(a).cmp(&id(b)))
        });
        let counts = self.queue.counts().await.unwrap_or_else(|error| {
            problems.push(error.to_string());
            Counts::default()
        });
        let errors = self.reports.look(&mut problems).await;
        let rate = together(&hosts);
        Overview {
            queue: QueueView {
                url: self.queue(),
                waiting: counts.waiting(),
                held: counts.held(),
                retrying: counts.retrying,
                errors,
                time: SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .map_or(0.0, |time| time.as_secs_f64()),
            },
            eta_seconds: eta(&counts, rate),
            rate,
            failures: causes::of(&hosts, self.reports.failures()),
            hosts,
            problems,
        }
    }
}

/// The hosts of these heartbeats, which were read `since` ago. In containers, several hosts may
/// have the same id, because names and process numbers are equal. Such hosts get the names of their
/// heartbeats as ids.
fn rows(heard: &[Heard], since: Duration) -> Vec<HostRow> {
    let mut ids: HashMap<&str, u64> = HashMap::new();
    for heard in heard {
        *ids.entry(&heard.heartbeat.snapshot.host.id).or_default() += 1;
    }
    let row = |heard: &Heard| {
        let mut snapshot = heard.heartbeat.snapshot.clone();
        if ids.get(&*snapshot.host.id).is_some_and(|hosts| *hosts > 1) {
            snapshot.host.id.clone_from(&heard.name);
        }
        let age_seconds = (heard.age + since).as_secs_f64();
        HostRow { age_seconds, is_silent: heard.is_silent, snapshot }
    };
    heard.iter().map(row).collect()
}

/// The sum of the rates of all hosts that are not silent.
fn together(hosts: &[HostRow]) -> Rate {
    let rates = hosts.iter().filter(|host| !host.is_silent).map(|host| host.snapshot.rate);
    let sound = |n: f64| if n.is_finite() { n.max(0.0) } else { 0.0 };
    rates.fold(Rate::default(), |all, one| Rate {
        per_second: all.per_second + sound(one.per_second),
        over_seconds: all.over_seconds.max(sound(one.over_seconds)),
    })
}

/// The time until the queue is empty at this rate, in seconds. `None` also if all tasks have been
/// started, because the past rate says little about the last tasks.
fn eta(counts: &Counts, rate: Rate) -> Option<f64> {
    match (counts.enqueued?, counts.waiting()) {
        (0, _) => Some(0.0),
        (_, Some(0)) if counts.retrying.unwrap_or_default() == 0 => None,
        (left, _) if rate.per_second > 0.0 => Some(left as f64 / rate.per_second),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::activity::snapshot::About;
    use crate::bucket::DirBucket;
    use crate::heartbeat::Heartbeat;
    use crate::queue;

    fn host(per_second: f64, is_silent: bool) -> HostRow {
        let rate = Rate { per_second, over_seconds: 60.0 };
        let snapshot = Snapshot { rate, ..Snapshot::default() };
        HostRow { age_seconds: 1.0, is_silent, snapshot }
    }

    #[test]
    fn silent_hosts_end_no_tasks() {
        let rate = together(&[host(2.0, false), host(100.0, true), host(0.5, false)]);
        assert_eq!(rate, Rate { per_second: 2.5, over_seconds: 60.0 });
        assert_eq!(together(&[host(f64::NAN, false), host(-3.0, false)]).per_second, 0.0);
        let counts = |enqueued, leased| Counts { enqueued, leased, ..Counts::default() };
        let none = Rate::default();
        assert_eq!(eta(&counts(Some(100), Some(8)), rate), Some(40.0));
        assert_eq!(eta(&counts(Some(100), None), rate), Some(40.0));
        assert_eq!(eta(&counts(Some(0), Some(0)), none), Some(0.0));
        assert_eq!(eta(&counts(Some(3), Some(0)), none), None);
        assert_eq!(eta(&counts(Some(3), Some(3)), rate), None);
        let retried = Counts { retrying: Some(3), ..counts(Some(3), Some(3)) };
        assert_eq!(eta(&retried, rate), Some(1.2));
        assert_eq!(eta(&Counts::default(), rate), None);
    }

    fn heard(id: &str, own: &str) -> Heard {
        let host = About { id: id.into(), ..About::default() };
        Heard {
            name: format!("{id}.{own}"),
            age: Duration::from_secs(3),
            is_silent: false,
            heartbeat: Heartbeat {
                every_seconds: 30.0,
                snapshot: Snapshot { host, ..Snapshot::default() },
            },
        }
    }

    #[test]
    fn no_two_hosts_have_one_id() {
        let rows = rows(
            &[heard("worker.1", "ab"), heard("worker.1", "cd"), heard("n1.7", "ef")],
            Duration::from_secs(2),
        );
        let ids: Vec<&str> = rows.iter().map(|row| &*row.snapshot.host.id).collect();
        assert_eq!(ids, ["worker.1.ab", "worker.1.cd", "n1.7"]);
        assert_eq!(rows[0].age_seconds, 5.0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_can_not_be_read_is_named_and_the_rest_is_shown() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("queue");
        let address: Address = format!("fq://{}", dir.display()).parse().unwrap();
        let access = queue::Access::default();
        let queue = queue::open(&address, &access).await.unwrap();
        queue.send(&["a".into(), "b".into()]).await.into_iter().for_each(Result::unwrap);
        let bucket = Arc::new(DirBucket::create(&root.path().join("bucket")).unwrap());
        let mut watcher = Watcher::new(Watched {
            queue: queue::admin(&address, &access).await.unwrap(),
            errors: address.errors().unwrap(),
            access,
            most_reports: u64::MAX,
            place: Place::in_bucket(bucket, &address),
        });
        let seen = watcher.look().await;
        assert_eq!(
            (seen.queue.waiting, seen.queue.held, seen.queue.errors),
            (Some(2), Some(0), None)
        );
        assert_eq!((seen.hosts.len(), &*seen.problems), (0, &[][..]));
        watcher.heard = vec![heard("a.1", "1")];
        std::fs::remove_dir_all(root.path().join("bucket")).unwrap();
        let seen = watcher.look().await;
        assert_eq!((seen.queue.waiting, seen.hosts.len()), (Some(2), 1));
        assert!(seen.problems[0].contains("heartbeats of hosts can't be read"), "{seen:?}");
    }
}
