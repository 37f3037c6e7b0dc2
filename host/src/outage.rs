//! Outages: services and operations that do not work now. The host logs each outage once, waits
//! until it ends, and shows it in `/readyz`.
//!
//! An outage is named after a service (`s3://data`) or an operation (`writing to s3://data`,
//! `storing inputs in the cache /var/cache`). It begins with a failure and ends when the same
//! operation succeeds. If the host can try the operation by itself, the outage has a probe.
//! Otherwise, the next task that needs the operation tries it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// The maximum wait between two tries of a failing operation. A host notices the end of an outage
/// within this time.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// How often the host looks for new probes while no outage has one.
const LOOK: Duration = Duration::from_millis(200);

/// An outage that begins again within this time counts as the same outage: for example, an almost
/// full disk accepts one file but not the next.
const SAME: Duration = Duration::from_secs(60);

/// Tries the operation that failed.
pub type Probe = Arc<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// The outages of a host, by name.
#[derive(Debug)]
pub struct Outages {
    out: Mutex<BTreeMap<String, Outage>>,
    /// The number of outages.
    count: watch::Sender<usize>,
    ended: Notify,
    /// Outages that have ended, by name.
    over: Mutex<BTreeMap<String, Over>>,
    /// The number of outages that have begun.
    begun: AtomicU64,
}

impl Default for Outages {
    fn default() -> Self {
        let count = watch::Sender::new(0);
        Self {
            out: Mutex::default(),
            count,
            ended: Notify::default(),
            over: Mutex::default(),
            begun: AtomicU64::new(0),
        }
    }
}

/// An outage that has ended.
#[derive(Debug, Clone, Copy)]
struct Over {
    since: Instant,
    at: Instant,
    tries: u32,
}

struct Outage {
    since: Instant,
    /// The number of tries. Failures between two tries don't count.
    tries: u32,
    next_try: Instant,
    problem: String,
    probe: Option<Probe>,
}

impl fmt::Debug for Outage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outage")
            .field("tries", &self.tries)
            .field("problem", &self.problem)
            .finish()
    }
}

impl Outage {
    /// Sets the time of the next try. The wait doubles with each try, and varies between hosts.
    fn step(&mut self, now: Instant) {
        let full = Duration::from_millis(500 << self.tries.min(6)).min(LONGEST_WAIT);
        self.next_try = now + full.mul_f64(0.5 + fastrand::f64() / 2.0);
        self.tries += 1;
    }
}

impl Outages {
    /// Reports the failure of an operation that can't be probed. Logs the first failure. Returns
    /// the wait before the next try. Concurrent failures count as one try.
    pub fn begins(&self, service: &dyn fmt::Display, problem: &dyn fmt::Display) -> Duration {
        self.begin(service, problem, None)
    }

    /// Like [`Outages::begins`], for an operation that `probe` can try.
    pub fn begins_until(
        &self,
        service: &dyn fmt::Display,
        problem: &dyn fmt::Display,
        probe: Probe,
    ) -> Duration {
        self.begin(service, problem, Some(probe))
    }

    fn begin(
        &self,
        service: &dyn fmt::Display,
        problem: &dyn fmt::Display,
        probe: Option<Probe>,
    ) -> Duration {
        self.begin_at(Instant::now(), service, problem, probe)
    }

    fn begin_at(
        &self,
        now: Instant,
        service: &dyn fmt::Display,
        problem: &dyn fmt::Display,
        probe: Option<Probe>,
    ) -> Duration {
        let mut out = self.out.lock();
        let service = service.to_string();
        let outage = out.entry(service.clone()).or_insert_with(|| {
            let over = self.over.lock().get(&service).copied();
            let (since, tries) = match over.filter(|over| now < over.at + SAME) {
                Some(over) => {
                    tracing::warn!("{problem}; it worked only briefly");
                    (over.since, over.tries)
                }
                None => {
                    self.begun.fetch_add(1, Relaxed);
                    tracing::error!("{problem}; trying again until it works");
                    (now, 0)
                }
            };
            Outage { since, tries, next_try: now, problem: String::new(), probe: None }
        });
        outage.problem = problem.to_string();
        outage.probe = probe.or(outage.probe.take());
        tracing::debug!(tries = outage.tries, "{problem}");
        if now >= outage.next_try {
            outage.step(now);
        }
        let wait = outage.next_try.saturating_duration_since(now);
        let count = out.len();
        drop(out);
        self.count.send_replace(count);
        wait
    }

    /// Reports that `service` works. Logs the end of its outage, if it had one.
    pub fn ends(&self, service: &dyn fmt::Display) {
        let mut out = self.out.lock();
        if out.is_empty() {
            return;
        }
        let service = service.to_string();
        if let Some(outage) = out.remove(&service) {
            let count = out.len();
            drop(out);
            let (since, tries) = (outage.since, outage.tries);
            self.over.lock().insert(service.clone(), Over { since, at: Instant::now(), tries });
            self.count.send_replace(count);
            let time = Duration::from_secs(outage.since.elapsed().as_secs());
            tracing::info!("{service} works again, after {}", humantime::format_duration(time));
            self.ended.notify_waiters();
        }
    }

    /// Reports that `service` worked once. Ignored while the outage has a probe.
    pub fn ends_unless_probed(&self, service: &dyn fmt::Display) {
        if self.any() && !self.is_probed(&service.to_string()) {
            self.ends(service);
        }
    }

    /// Whether an outage of `service` explains the failure of an operation that began at `since`:
    /// the outage is being probed, or it ended after `since`.
    pub fn covers(&self, service: &dyn fmt::Display, since: Instant) -> bool {
        let service = service.to_string();
        self.is_probed(&service)
            || self.over.lock().get(&service).is_some_and(|over| over.at >= since)
    }

    fn is_probed(&self, service: &str) -> bool {
        self.out.lock().get(service).is_some_and(|outage| outage.probe.is_some())
    }

    /// Whether `service` has an outage.
    pub fn is_out(&self, service: &dyn fmt::Display) -> bool {
        let out = self.out.lock();
        !out.is_empty() && out.contains_key(&service.to_string())
    }

    /// Whether there is any outage.
    pub fn any(&self) -> bool {
        *self.count.borrow() > 0
    }

    /// The current number of outages.
    pub fn count(&self) -> usize {
        *self.count.borrow()
    }

    /// The number of outages that have begun since the host started.
    pub fn begun_count(&self) -> u64 {
        self.begun.load(Relaxed)
    }

    /// Waits until there is an outage.
    pub async fn begun(&self) {
        // The sender lives as long as `self`.
        let _ = self.count.subscribe().wait_for(|count| *count > 0).await;
    }

    /// The wait until operations that can't be probed may be tried again.
    pub fn pause_of_unprobed(&self) -> Duration {
        let out = self.out.lock();
        let unprobed = out.values().filter(|outage| outage.probe.is_none());
        let next_try = unprobed.map(|outage| outage.next_try).max();
        next_try.map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()))
    }

    /// Waits for `time`, or until any outage ends.
    pub async fn pause_for(&self, time: Duration) {
        let ended = self.ended.notified();
        tokio::select! {
            () = tokio::time::sleep(time) => {}
            () = ended => {}
        }
    }

    /// Runs the probes of all outages. Never returns.
    pub async fn keep_probing(&self) {
        loop {
            self.begun().await;
            self.probe().await;
            // The remaining outages have no probes.
            self.pause_for(LOOK).await;
        }
    }

    /// Whether any outage is being probed.
    pub fn is_probing(&self) -> bool {
        self.out.lock().values().any(|outage| outage.probe.is_some())
    }

    /// Runs each probe at its time, until all of them succeed.
    async fn probe(&self) {
        while let Some((service, at, probe)) = self.next_probe() {
            tokio::time::sleep_until(at).await;
            match probe().await {
                Ok(()) => self.ends(&service),
                Err(problem) => drop(self.begins(&service, &problem)),
            }
        }
    }

    fn next_probe(&self) -> Option<(String, Instant, Probe)> {
        let out = self.out.lock();
        let probed = out.iter().filter_map(|(service, outage)| {
            Some((service.clone(), outage.next_try, outage.probe.clone()?))
        });
        probed.min_by_key(|(_, at, _)| *at)
    }

    /// The problem of each outage, as text.
    pub fn problems(&self) -> Vec<String> {
        self.out.lock().values().map(|outage| outage.problem.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

    use super::*;

    #[test]
    fn waits_grow_with_each_try_and_not_with_each_failure() {
        let outages = Outages::default();
        assert!(!outages.is_out(&"s3://b"));
        let mut longest = Duration::ZERO;
        let mut now = Instant::now();
        for n in 0..12 {
            let fails = || outages.begin_at(now, &"s3://b", &format!("failure {n}"), None);
            let wait = fails();
            let full = Duration::from_millis(500 << n.min(6)).min(LONGEST_WAIT);
            assert!(wait >= full / 2 && wait <= full, "{n}: {wait:?}");
            for _ in 0..10 {
                assert_eq!(fails(), wait);
            }
            longest = longest.max(wait);
            now += wait;
        }
        assert!(longest >= LONGEST_WAIT / 2);
        assert_eq!(outages.problems(), ["failure 11"]);
        assert_eq!((outages.count(), outages.begun_count()), (1, 1));
        outages.begins(&"sqs://q", &"no answer");
        outages.ends(&"s3://b");
        assert!(!outages.is_out(&"s3://b") && outages.is_out(&"sqs://q"));
        outages.ends(&"sqs://q");
        assert!(outages.problems().is_empty());
        // The service worked only briefly, so the wait continues to grow.
        assert!(outages.begins(&"s3://b", &"again") >= LONGEST_WAIT / 2);
        outages.ends(&"s3://b");
        let later = Instant::now() + SAME;
        let wait = outages.begin_at(later, &"s3://b", &"again", None);
        assert!(wait <= Duration::from_secs(1), "{wait:?}");
    }

    #[tokio::test]
    async fn what_failed_is_probed_until_it_works() {
        let outages = Outages::default();
        let tries = Arc::new(AtomicU32::new(0));
        let count = tries.clone();
        let probe: Probe = Arc::new(move || {
            let works = count.fetch_add(1, SeqCst) == 1;
            Box::pin(async move { if works { Ok(()) } else { Err("still full".to_owned()) } })
        });
        outages.begins_until(&"the disk", &"full", probe);
        // This outage has no probe.
        outages.begins(&"the queue", &"away");
        outages.probe().await;
        assert_eq!(tries.load(SeqCst), 2);
        assert!(!outages.is_out(&"the disk"));
        assert_eq!(outages.problems(), ["away"]);
    }
}
