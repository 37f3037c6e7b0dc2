//! What a host needs and can't reach at the moment: said once, waited out, and told to whoever
//! asks whether the host is ready.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The longest wait between two tries to reach a service that does not answer.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// The services that a host can't reach now, by what they are called.
#[derive(Debug, Default)]
pub struct Outages {
    out: Mutex<BTreeMap<String, Outage>>,
}

#[derive(Debug)]
struct Outage {
    since: Instant,
    failures: u32,
    problem: String,
}

impl Outage {
    /// Longer with each failure, and different for each host.
    fn wait(&self) -> Duration {
        let full = Duration::from_secs(1 << self.failures.min(6)).min(LONGEST_WAIT);
        full.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

impl Outages {
    /// A try to reach `service` has failed. Says so if it is the first. Returns how long to
    /// wait before the next.
    pub fn begins(&self, service: &dyn fmt::Display, problem: &dyn fmt::Display) -> Duration {
        let mut out = self.out();
        let outage = out.entry(service.to_string()).or_insert_with(|| {
            tracing::error!("{problem}; trying again until it works");
            Outage { since: Instant::now(), failures: 0, problem: String::new() }
        });
        outage.problem = problem.to_string();
        tracing::debug!(failures = outage.failures, "{problem}");
        let wait = outage.wait();
        outage.failures += 1;
        wait
    }

    /// How long to wait before `service` is tried again by the next who needs it.
    pub fn pause(&self, service: &dyn fmt::Display) -> Duration {
        self.out().get(&service.to_string()).map_or(Duration::ZERO, Outage::wait)
    }

    /// `service` has answered. Says so if it had not.
    pub fn ends(&self, service: &dyn fmt::Display) {
        let mut out = self.out();
        if out.is_empty() {
            return;
        }
        if let Some(outage) = out.remove(&service.to_string()) {
            let time = Duration::from_secs(outage.since.elapsed().as_secs());
            tracing::info!("{service} works again, after {}", humantime::format_duration(time));
        }
    }

    /// True while `service` can't be reached.
    pub fn is_out(&self, service: &dyn fmt::Display) -> bool {
        let out = self.out();
        !out.is_empty() && out.contains_key(&service.to_string())
    }

    /// What is wrong now; nothing if the host can work.
    pub fn problems(&self) -> Vec<String> {
        self.out().values().map(|outage| outage.problem.clone()).collect()
    }

    fn out(&self) -> MutexGuard<'_, BTreeMap<String, Outage>> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_until_the_service_answers() {
        let outages = Outages::default();
        assert!(!outages.is_out(&"s3://b"));
        let mut longest = Duration::ZERO;
        for n in 0..12 {
            let wait = outages.begins(&"s3://b", &format!("failure {n}"));
            let full = Duration::from_secs(1 << n.min(6)).min(LONGEST_WAIT);
            assert!(wait >= full / 2 && wait <= full, "{n}: {wait:?}");
            longest = longest.max(wait);
        }
        assert!(longest >= LONGEST_WAIT / 2);
        assert_eq!(outages.problems(), ["failure 11"]);
        outages.begins(&"sqs://q", &"no answer");
        outages.ends(&"s3://b");
        assert!(!outages.is_out(&"s3://b") && outages.is_out(&"sqs://q"));
        outages.ends(&"sqs://q");
        assert!(outages.problems().is_empty());
        assert!(outages.begins(&"s3://b", &"again") <= Duration::from_secs(1));
    }
}
