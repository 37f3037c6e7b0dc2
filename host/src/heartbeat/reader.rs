//! Reads the heartbeats of a queue's hosts repeatedly, and detects silent hosts.
//!
//! The store dates a heartbeat, and the reader's clock may differ from the store's. Therefore the
//! reader uses the store's time if it can read that time, and limits the age by its own
//! observations: a heartbeat that did not change for a minute is at least a minute old, and a
//! version that did not exist a minute ago is younger.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

use futures_util::{StreamExt, TryStreamExt, stream};

use super::place::{JSON, Listed, Place, PlaceError};
use super::{Heartbeat, TOO_OLD};

/// The number of heartbeats to read concurrently.
const AT_ONCE: usize = 16;

/// Reads heartbeats.
#[derive(Debug)]
pub struct Reader {
    place: Place,
    known: HashMap<String, Known>,
    /// When the heartbeats were last listed.
    looked: Option<Instant>,
}

/// A version of a heartbeat.
#[derive(Debug)]
struct Known {
    modified: SystemTime,
    /// `None` if the object is not a heartbeat.
    heartbeat: Option<Heartbeat>,
    /// When this version was first seen.
    seen: Instant,
    /// The maximum age of this version at that time, if known.
    at_most: Option<Duration>,
}

/// A host, according to its heartbeat.
#[derive(Debug, Clone, PartialEq)]
pub struct Heard {
    /// A unique name: the id of the host with a suffix.
    pub name: String,
    /// The age of the heartbeat.
    pub age: Duration,
    /// Whether the host has missed several heartbeats: it was killed, or it can't write heartbeats.
    pub is_silent: bool,
    /// The heartbeat.
    pub heartbeat: Heartbeat,
}

impl Reader {
    /// A reader of the heartbeats in this place.
    pub fn new(place: Place) -> Self {
        Self { place, known: HashMap::new(), looked: None }
    }

    /// The heartbeats of all hosts, in no particular order. Fetches only the heartbeats that
    /// changed since the last call. Skips objects that are not heartbeats.
    ///
    /// # Errors
    /// Errors of the bucket or the queue's directory.
    pub async fn read(&mut self) -> Result<Vec<Heard>, PlaceError> {
        let (listed, now) = self.place.list().await?;
        let asked = Instant::now();
        let is_wanted =
            |one: &Listed| one.name.ends_with(JSON) && age_by_clock(now, one.modified) < TOO_OLD;
        let mut kept = HashMap::new();
        let mut changed = Vec::new();
        for one in listed.into_iter().filter(is_wanted) {
            match self.known.remove(&one.name) {
                Some(known) if known.modified == one.modified => {
                    kept.insert(one.name, known);
                }
                _ => changed.push(one),
            }
        }
        let at_most = self.looked.map(|looked| asked - looked);
        let place = &self.place;
        let reads = changed.into_iter().map(|Listed { name, modified }| async move {
            let bytes = place.read(&name).await?;
            let heartbeat = bytes.and_then(|bytes| Heartbeat::parse(&bytes));
            Ok::<_, PlaceError>((name, Known { modified, heartbeat, seen: asked, at_most }))
        });
        let read: Vec<_> = stream::iter(reads).buffer_unordered(AT_ONCE).try_collect().await?;
        kept.extend(read);
        self.known = kept;
        self.looked = Some(asked);
        let heard = |(name, known): (&String, &Known)| {
            let heartbeat = known.heartbeat.clone()?;
            let age = known.age(now, asked);
            let name = name.trim_end_matches(JSON).to_owned();
            Some(Heard { name, age, is_silent: age > heartbeat.silence(), heartbeat })
        };
        Ok(self.known.iter().filter_map(heard).collect())
    }
}

impl Known {
    /// The age of this version: the age by the clocks, limited by the reader's own observations.
    fn age(&self, now: SystemTime, asked: Instant) -> Duration {
        let watched = asked.saturating_duration_since(self.seen);
        let at_most = self.at_most.map_or(Duration::MAX, |most| most.saturating_add(watched));
        age_by_clock(now, self.modified).clamp(watched, at_most.max(watched))
    }
}

fn age_by_clock(now: SystemTime, modified: SystemTime) -> Duration {
    now.duration_since(modified).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::activity::snapshot::{About, Snapshot};
    use crate::bucket::{Bucket, DirBucket};

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn an_age_fits_to_what_was_seen_whatever_the_clocks_say() {
        let (start, epoch) = (Instant::now(), SystemTime::UNIX_EPOCH);
        // The age by the clocks, the time since the version was first seen, and its maximum age at
        // that time.
        let check = |by_clock: u64, watched: u64, at_most: Option<u64>, want: u64| {
            let modified = epoch + secs(1_000_000);
            let known =
                Known { modified, heartbeat: None, seen: start, at_most: at_most.map(secs) };
            let age = known.age(modified + secs(by_clock), start + secs(watched));
            assert_eq!(age, secs(want), "{by_clock} {watched} {at_most:?}");
        };
        check(10, 0, None, 10);
        // The reader's clock is behind the store's.
        check(0, 95, None, 95);
        // The reader's clock is ahead by an hour.
        check(3600, 0, Some(5), 5);
        check(3620, 20, Some(5), 25);
        check(22, 20, Some(5), 22);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn hosts_are_read_once_for_each_change_and_silent_when_they_stop() {
        let root = tempfile::tempdir().unwrap();
        let bucket: Arc<dyn Bucket> = Arc::new(DirBucket::create(root.path()).unwrap());
        let place = Place::in_bucket(bucket, &"sqs://q".parse().unwrap());
        let prefix = place.to_string();
        let dir = root.path().join("_hosts").join(prefix.rsplit_once("/_hosts/").unwrap().1);
        let write = async |id: &str, age: u64| {
            let host = About { id: id.to_owned(), ..About::default() };
            let snapshot = Snapshot { host, ..Snapshot::default() };
            let bytes = Heartbeat { every_seconds: 30.0, snapshot }.into_bytes();
            let name = format!("{id}.json");
            place.write(&name, bytes).await.unwrap();
            let file = std::fs::File::options().write(true).open(dir.join(name)).unwrap();
            file.set_modified(SystemTime::now() - secs(age)).unwrap();
        };
        for (id, age) in [("new", 0), ("slow", 80), ("silent", 3000), ("forgotten", 90_000)] {
            write(id, age).await;
        }
        place.write("odd.json", "{".into()).await.unwrap();
        place.write("late.json.tmp", "{}".into()).await.unwrap();
        let mut reader = Reader::new(place.clone());
        let mut heard = reader.read().await.unwrap();
        heard.sort_by_key(|heard| heard.age);
        let heard: Vec<_> =
            heard.iter().map(|h| (&*h.heartbeat.snapshot.host.id, h.is_silent)).collect();
        assert_eq!(heard, [("new", false), ("slow", false), ("silent", true)]);
        // Read again, after one host has ended and one has come back.
        place.remove("new.json").await.unwrap();
        write("silent", 0).await;
        let heard = reader.read().await.unwrap();
        let is_silent = |id: &str| {
            heard.iter().find(|h| h.heartbeat.snapshot.host.id == id).map(|h| h.is_silent)
        };
        assert_eq!(["new", "slow", "silent"].map(is_silent), [None, Some(false), Some(false)]);
    }
}
