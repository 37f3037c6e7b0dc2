//! The state that a host shows, and the two loops that update it.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime};

use super::Services;
use crate::activity::snapshot::{
    About, CacheUse, HostView, LONGEST_TEXT, Memory, Name, Setting, Snapshot, State, Totals,
};
use crate::activity::{SlowRule, unix};
use crate::identity;
use crate::report::HOST_INFO;
use crate::words;

/// The interval for updates of the rate, the minutes and slow tasks.
const TICK: Duration = Duration::from_secs(1);
/// The minimum time between two counts of the queue. Counting takes at most a fiftieth of the time.
const COUNT: Duration = Duration::from_secs(3);
/// The minimum time if each count is a paid request.
const PAID_COUNT: Duration = Duration::from_secs(60);
/// The maximum number of outages in a snapshot.
const MOST_OUTAGES: usize = 20;

impl Services {
    /// The current state of the host.
    pub fn snapshot(&self) -> Snapshot {
        let activity = &self.activity;
        let in_flight = self.stats.in_flight.load(Relaxed);
        let (guests, limit) = self.sandbox.memory();
        let outages = self.failing().into_iter().take(MOST_OUTAGES);
        Snapshot {
            host: self.about(),
            time: unix(SystemTime::now()),
            state: match in_flight {
                _ if self.draining.is_cancelled() => State::Stopping,
                0 => State::Idle,
                _ => State::Working,
            },
            running: activity.running(),
            held: in_flight.saturating_sub(activity.running_count()),
            totals: Totals::of(&self.stats),
            rate: activity.rate(),
            queue: activity.queue(),
            eta_seconds: activity.eta(&self.stats).map(|time| time.as_secs_f64()),
            names: activity.names().iter().map(Name::from).collect(),
            failures: activity.failures(),
            outages: outages.map(|text| words::cut(&text, LONGEST_TEXT).into_owned()).collect(),
            memory: Memory { guests: guests.as_u64(), limit: limit.map(|limit| limit.as_u64()) },
            cache: CacheUse {
                bytes: self.inputs.cache.stored_bytes(),
                limit: self.inputs.cache.max_bytes(),
            },
        }
    }

    fn about(&self) -> About {
        let (hostname, pid) = (HOST_INFO.hostname(), std::process::id());
        About {
            id: format!("{hostname}.{pid}"),
            hostname: hostname.to_owned(),
            pid,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: unix(self.activity.started()),
            worker: identity::of_process().clone(),
            queue: self.queue.to_string(),
            bucket: self.bucket.to_string(),
            slots: self.config.work.parallel as u64,
        }
    }

    /// The current state of the host, the last hour, and the settings.
    pub fn view(&self, settings: &[Setting]) -> HostView {
        HostView {
            now: self.snapshot(),
            minutes: self.activity.minutes(&self.stats),
            settings: settings.to_vec(),
        }
    }

    /// Measures the rate, ends minutes and warns of slow tasks, every second. Never returns.
    pub async fn keep_ticking(&self, rule: SlowRule) {
        loop {
            tokio::time::sleep(TICK).await;
            self.activity.tick(&self.stats, rule);
        }
    }

    /// Counts the queue repeatedly, at a rate that keeps the cost low. Never returns.
    pub async fn keep_counting(&self) {
        let often = if self.queue.requests().is_some() { PAID_COUNT } else { COUNT };
        loop {
            let start = Instant::now();
            // Errors are ignored: leasing reports the same errors.
            if let Ok(counts) = self.queue.counts().await {
                self.activity.counted(&counts, &self.stats);
            }
            tokio::time::sleep(often.max(start.elapsed() * 50)).await;
        }
    }
}
