//! Writes the heartbeat of this host until the host ends.

use std::fmt;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::place::{JSON, Listed, Place};
use super::{Heartbeat, TOO_OLD};
use crate::activity::snapshot::Snapshot;

/// A longer write is reported in the log.
const LATE: Duration = Duration::from_secs(30);
/// The minimum time between two warnings.
const AGAIN: Duration = Duration::from_secs(3600);
/// How long a host that ends waits for the removal of its heartbeat.
const LAST: Duration = Duration::from_secs(3);
/// The time between the first and the second heartbeat. The first one is written before the host
/// has a task.
const SOON: Duration = Duration::from_secs(2);
/// The maximum number of bytes of a host's id in the name of its heartbeat.
const LONGEST_ID: usize = 200;

/// The heartbeat of this host.
#[derive(Debug)]
pub struct Heart {
    stop: CancellationToken,
    beating: JoinHandle<()>,
}

impl Heart {
    /// Writes the result of `snapshot` to `place`: at once, two seconds later, and then at
    /// intervals of `every`. Only one write runs at a time, so writes do not pile up if the place
    /// hangs.
    pub fn start(
        place: Place,
        every: Duration,
        snapshot: impl Fn() -> Snapshot + Send + 'static,
    ) -> Self {
        let stop = CancellationToken::new();
        let beating = tokio::spawn(beat(place, every, snapshot, stop.clone()));
        Self { stop, beating }
    }

    /// Removes the heartbeat, and waits a few seconds for the removal at most.
    pub async fn stop(self) {
        self.stop.cancel();
        if tokio::time::timeout(LAST, self.beating).await.is_err() {
            tracing::debug!("the heartbeat could not be removed in time");
        }
    }
}

async fn beat(
    place: Place,
    every: Duration,
    snapshot: impl Fn() -> Snapshot,
    stop: CancellationToken,
) {
    let mut told = Told::new(&place);
    let mut name = None;
    let mut is_written = false;
    let mut pause = every.min(SOON);
    while !stop.is_cancelled() {
        let due = tokio::time::Instant::now() + std::mem::replace(&mut pause, every);
        let snapshot = snapshot();
        let name: &String = name.get_or_insert_with(|| name_of(&snapshot.host.id));
        let bytes = Heartbeat { every_seconds: every.as_secs_f64(), snapshot }.into_bytes();
        let mut writing = std::pin::pin!(place.write(name, bytes));
        // A late write is not aborted: an aborted write could still take effect, and replace a
        // later heartbeat or follow the removal.
        let written = tokio::select! {
            written = &mut writing => written,
            () = tokio::time::sleep(LATE) => {
                told.has_failed(&format_args!("no answer within {} s", LATE.as_secs()));
                writing.await
            }
        };
        match written {
            Ok(()) => {
                told.has_worked();
                if !std::mem::replace(&mut is_written, true) {
                    remove_old(&place, name).await;
                }
            }
            Err(error) => told.has_failed(&error),
        }
        tokio::select! {
            () = tokio::time::sleep_until(due) => {}
            () = stop.cancelled() => {}
        }
    }
    if let Some(name) = name.filter(|_| is_written)
        && let Err(error) = place.remove(&name).await
    {
        tracing::warn!(
            "the heartbeat of this host could not be removed, so `host top` will show \
             it as silent: {error}"
        );
    }
}

/// The name of a heartbeat: the host's id in characters that a key allows, and a random suffix. The
/// suffix is needed because in containers several hosts may have the same id.
fn name_of(id: &str) -> String {
    let is_safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let id = id.chars().map(|c| if is_safe(c) { c } else { '-' });
    let id: String = id.take(LONGEST_ID).collect();
    let own = uuid::Uuid::new_v4().simple().to_string();
    format!("{id}.{}{JSON}", &own[..8])
}

/// Removes heartbeats of hosts that have been silent for very long. Their ages are measured against
/// this host's own heartbeat, because the same clock dates both.
async fn remove_old(place: &Place, own: &str) {
    let listed = match place.list().await {
        Ok((listed, _)) => listed,
        Err(error) => {
            tracing::debug!("old heartbeats can't be looked for: {error}");
            return;
        }
    };
    let Some(now) = listed.iter().find(|one| one.name == own).map(|one| one.modified) else {
        return;
    };
    let is_old = |one: &&Listed| now.duration_since(one.modified).is_ok_and(|age| age > TOO_OLD);
    for Listed { name, .. } in listed.iter().filter(is_old) {
        if let Err(error) = place.remove(name).await {
            tracing::debug!("an old heartbeat can't be removed: {error}");
            return;
        }
    }
}

/// Logs problems with heartbeats: a warning when writes start to fail, and at most one warning an
/// hour.
struct Told<'a> {
    place: &'a Place,
    warned: Option<Instant>,
    /// Writes fail, and the log says so.
    is_known: bool,
}

impl<'a> Told<'a> {
    fn new(place: &'a Place) -> Self {
        Self { place, warned: None, is_known: false }
    }

    fn has_failed(&mut self, problem: &dyn fmt::Display) {
        if self.warned.is_some_and(|at| at.elapsed() < AGAIN) {
            tracing::debug!("the heartbeat can't be written to {}: {problem}", self.place);
            return;
        }
        self.warned = Some(Instant::now());
        self.is_known = true;
        tracing::warn!(
            "heartbeats can't be written to {}, so `host top` does not show this host; tasks are not \
             affected, and --heartbeat 0 turns heartbeats off: {problem}",
            self.place
        );
    }

    fn has_worked(&mut self) {
        if std::mem::take(&mut self.is_known) {
            tracing::info!("heartbeats are written to {} again", self.place);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::SystemTime;

    use super::*;
    use crate::activity::snapshot::About;
    use crate::bucket::{Bucket, DirBucket};
    use crate::key::BucketKey;

    fn snapshot() -> Snapshot {
        Snapshot { host: About { id: "n 1/2.3".into(), ..About::default() }, ..Snapshot::default() }
    }

    fn place() -> (tempfile::TempDir, Arc<dyn Bucket>, Place) {
        let root = tempfile::tempdir().unwrap();
        let bucket: Arc<dyn Bucket> = Arc::new(DirBucket::create(root.path()).unwrap());
        let place = Place::in_bucket(bucket.clone(), &"sqs://q".parse().unwrap());
        (root, bucket, place)
    }

    async fn written(place: &Place) -> Listed {
        loop {
            if let [one] = &*place.list().await.unwrap().0 {
                return one.clone();
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_heartbeat_is_written_replaced_and_removed() {
        let (_root, _, place) = place();
        let heart = Heart::start(place.clone(), Duration::from_millis(5), snapshot);
        let first = written(&place).await;
        assert!(first.name.starts_with("n-1-2.3.") && first.name.ends_with(JSON), "{first:?}");
        let bytes = place.read(&first.name).await.unwrap().unwrap();
        assert_eq!(Heartbeat::parse(&bytes).unwrap().snapshot.host.id, "n 1/2.3");
        while written(&place).await.modified == first.modified {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        heart.stop().await;
        assert_eq!(place.list().await.unwrap().0, []);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_second_heartbeat_does_not_wait_for_its_time() {
        let (_root, _, place) = place();
        let heart = Heart::start(place.clone(), Duration::from_secs(3600), snapshot);
        let first = written(&place).await;
        while written(&place).await.modified == first.modified {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        heart.stop().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn only_very_old_heartbeats_of_others_are_removed() {
        let (root, _, place) = place();
        let hours = |hours: u64| SystemTime::now() - Duration::from_secs(hours * 3600);
        for (name, age) in [("old.json", 25), ("old.json.tmp", 100), ("young.json", 23)] {
            place.write(name, "{}".into()).await.unwrap();
            let prefix = place.to_string();
            let prefix = prefix.rsplit_once("/_hosts/").unwrap().1;
            let path = root.path().join("_hosts").join(prefix).join(name);
            let file = std::fs::File::options().write(true).open(path).unwrap();
            file.set_modified(hours(age)).unwrap();
        }
        let heart = Heart::start(place.clone(), Duration::from_secs(3600), snapshot);
        loop {
            let (listed, _) = place.list().await.unwrap();
            if listed.len() == 2 && listed.iter().any(|one| one.name == "young.json") {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        heart.stop().await;
        let left: Vec<_> = place.list().await.unwrap().0.into_iter().map(|one| one.name).collect();
        assert_eq!(left, ["young.json"]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_place_that_fails_ends_nothing_and_is_used_when_it_works() {
        let (root, bucket, place) = place();
        std::fs::write(root.path().join("_hosts"), "in the way").unwrap();
        let heart = Heart::start(place.clone(), Duration::from_millis(5), snapshot);
        tokio::time::sleep(Duration::from_millis(20)).await;
        bucket.remove_own(&BucketKey::new("_hosts").unwrap()).await.unwrap();
        written(&place).await;
        heart.stop().await;
        assert_eq!(place.list().await.unwrap().0, []);
    }
}
