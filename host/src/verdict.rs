//! Decides what follows the end of an attempt.
//!
//! No other code decides to retry, reject or abandon a task.

use std::time::Duration;

use crate::catalog::CatalogError;
use crate::failure::Failure;
use crate::prefetch::PrefetchError;
use crate::publish::PublishError;
use crate::queue::{Message, QueueError};
use crate::sandbox::{self, RunError};

/// What to do with a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The outputs are in the bucket: send the report if there is a done queue, then delete the
    /// message.
    Done,
    /// The attempt failed and counts: release the message.
    Retry {
        /// How long the message stays invisible.
        after: Duration,
    },
    /// The attempt ended for a reason outside of the task and does not count: release the message.
    Return {
        /// How long the message stays invisible.
        after: Duration,
    },
    /// Send a report to the error queue, then delete the message.
    Reject,
    /// Do nothing with the message: another host has leased it.
    Abandon,
}

impl Verdict {
    /// Whether the task runs again because this attempt failed.
    pub fn is_retry(&self) -> bool {
        matches!(self, Self::Retry { .. })
    }

    /// Whether the attempt counts: the task succeeded or failed.
    pub fn is_of_the_task(&self) -> bool {
        matches!(self, Self::Done | Self::Retry { .. } | Self::Reject)
    }
}

/// How often and how fast a task is retried.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// The number of failed attempts after which a task is rejected.
    pub max_attempts: u32,
    /// The number of deaths after which a task is rejected. It is higher than `max_attempts`,
    /// because the task is seldom the reason why a host is killed.
    pub max_deaths: u32,
    /// The wait before the second attempt. It doubles with each further attempt.
    pub first_retry: Duration,
    /// The longest wait between two attempts.
    pub longest_retry: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            max_attempts: 5,
            max_deaths: 10,
            first_retry: Duration::from_secs(1),
            longest_retry: Duration::from_secs(300),
        }
    }
}

/// The number of executions without a recorded end after which the task may be the reason why its
/// hosts were killed. It then runs alone, so that no other task is killed with it.
const SUSPECT_AFTER: u32 = 2;

/// The limit on deliveries without a recorded end, for a queue that can't record starts. It is far
/// higher than the limit on deaths, because the killed host may only have held the message.
const MAX_UNACCOUNTED: u32 = 20;

/// Checks that a task may run again, given the earlier deliveries of its message. If
/// `limits_deliveries` is true, the queue itself removes a message that was delivered too often.
///
/// # Errors
/// The failure that ends the task.
pub fn may_start(
    message: &Message,
    policy: &Policy,
    limits_deliveries: bool,
) -> Result<(), Failure> {
    let Message { deaths, unaccounted, .. } = *message;
    if deaths >= policy.max_deaths {
        return Err(Failure::Deaths { deaths });
    }
    if unaccounted >= MAX_UNACCOUNTED && !limits_deliveries {
        return Err(Failure::Unaccounted { deliveries: unaccounted });
    }
    Ok(())
}

/// Whether a task must run alone.
pub fn is_suspect(message: &Message) -> bool {
    message.deaths.saturating_add(message.unaccounted) >= SUSPECT_AFTER
}

/// The verdict on a message whose report could not be sent while the lease lasted: release the
/// message.
pub fn unsettled() -> Verdict {
    Verdict::Return { after: Duration::ZERO }
}

/// How long a message stays invisible when its component has been compiling for `since`: about the
/// same time. Longer if the queue itself limits deliveries, because each release uses one up.
pub fn until_compiled(since: Duration, limits_deliveries: bool) -> Duration {
    let full = match limits_deliveries {
        false => since.clamp(Duration::from_secs(2), Duration::from_secs(30)),
        true => (since * 2).clamp(Duration::from_secs(30), Duration::from_secs(600)),
    };
    vary(full)
}

/// The verdict on a failed attempt. `attempt` is its number, from 1.
pub fn judge(failure: &Failure, attempt: u32, policy: &Policy) -> Verdict {
    let reject = Verdict::Reject;
    let abandon = Verdict::Abandon;
    let retry = match attempt >= policy.max_attempts {
        true => Verdict::Reject,
        false => Verdict::Retry { after: backoff(attempt, policy) },
    };
    // If this host stops or its slots stay busy, another host can take the task at once. In an
    // outage, this host must not lease the same message again and again.
    let at_once = Verdict::Return { after: Duration::ZERO };
    let later = Verdict::Return { after: backoff(1, policy) };
    match failure {
        Failure::Draining | Failure::SlotsBusy => at_once,
        Failure::Outage(_) | Failure::Homeless => later,
        Failure::LeaseLost => abandon,
        Failure::Decode(_) | Failure::Deaths { .. } | Failure::Unaccounted { .. } => reject,

        // The input may still be on its way to the bucket.
        Failure::Prefetch(PrefetchError::NotFound { .. }) => retry,
        Failure::Prefetch(PrefetchError::Invalid { .. }) => reject,
        // The diagnosis has already turned outages into `Failure::Outage`.
        Failure::Prefetch(
            PrefetchError::Unavailable { .. }
            | PrefetchError::Changed { .. }
            | PrefetchError::Replaced { .. },
        ) => retry,

        // The component may still be on its way to the bucket.
        Failure::Catalog(CatalogError::NotFound { .. }) => retry,
        Failure::Catalog(CatalogError::NotAGuest { problem, .. })
            if sandbox::is_too_large(problem) =>
        {
            reject
        }
        // A corrected component may be uploaded under the same name.
        Failure::Catalog(CatalogError::NotAGuest { .. }) => retry,
        Failure::Catalog(CatalogError::Unavailable { .. }) => retry,
        Failure::Catalog(CatalogError::NotListed { .. }) => reject,
        // The problem is the component, not the task, and the component may be replaced.
        Failure::Catalog(CatalogError::NotYet { .. } | CatalogError::NotTrusted { .. }) => later,
        Failure::NotYet { after, .. } => Verdict::Return { after: *after },

        Failure::Start(QueueError::LeaseLost { .. }) => abandon,
        Failure::Start(_) => later,

        Failure::Run(error) => match error {
            RunError::Retry { .. } | RunError::Trap { .. } | RunError::Broke => retry,
            // Not an outage: the task may need more than the disk can hold.
            RunError::Shortage { .. } => retry,
            RunError::Reject { .. } | RunError::Unsuccessful => reject,
            // The elapsed time depends on the machine's load, and another host may have more
            // memory. A task would exceed any other limit in each attempt, including the limit on
            // processor time.
            RunError::Limit {
                limit:
                    sandbox::Limit::Time(_) | sandbox::Limit::PlanTime(_) | sandbox::Limit::AllMemory(_),
                ..
            } => retry,
            RunError::Limit { .. } => reject,
            RunError::Cancelled => at_once,
            RunError::Host(_) | RunError::Crowded { .. } => later,
        },

        // Another attempt would ask for the same inputs, or list the same outputs.
        Failure::Plan(_) => reject,
        Failure::Missing(_) => reject,
        Failure::Publish(PublishError::Invalid { .. }) => reject,
        Failure::Publish(PublishError::Unavailable { .. }) => retry,
        Failure::Publish(PublishError::LeaseOver { .. }) => abandon,
    }
}

/// The wait after a failed attempt. It doubles with each attempt, and varies so that tasks that
/// failed together are not retried together.
fn backoff(attempt: u32, policy: &Policy) -> Duration {
    let doublings = attempt.saturating_sub(1).min(30);
    let full = policy.first_retry.saturating_mul(1 << doublings).min(policy.longest_retry);
    vary(full).min(policy.longest_retry)
}

/// Varies a time by up to a quarter, so that waits spread out.
fn vary(time: Duration) -> Duration {
    time.mul_f64(fastrand::f64() * 0.5 + 0.75)
}

#[cfg(test)]
mod tests {
    use bytesize::ByteSize;

    use super::*;
    use crate::key::{BucketKey, TaskName};
    use crate::message;
    use crate::sandbox::{Limit, Phase};

    /// Checks the verdicts on a first and on a last attempt that end with `failure`.
    fn check(failure: &Failure, first: &str, last: &str) {
        let policy = Policy::default();
        for (attempt, want) in [(1, first), (policy.max_attempts, last)] {
            let got = match judge(failure, attempt, &policy) {
                Verdict::Done => "done",
                Verdict::Retry { .. } => "retry",
                Verdict::Return { after: Duration::ZERO } => "return",
                Verdict::Return { .. } => "return later",
                Verdict::Reject => "reject",
                Verdict::Abandon => "abandon",
            };
            assert_eq!(got, want, "attempt {attempt} that ended with: {failure}");
        }
    }

    fn ran(error: RunError) -> Failure {
        Failure::Run(error)
    }

    #[test]
    fn what_may_pass_is_tried_again_until_the_attempts_are_used_up() {
        let (phase, key) = (Phase::Execute, BucketKey::new("a").unwrap());
        let retried = [
            ran(RunError::Retry { phase, reason: "busy".into() }),
            ran(RunError::Trap { phase, what: "a panic".into() }),
            ran(RunError::Limit { phase, limit: Limit::Time(Duration::from_secs(1)), table: None }),
            ran(RunError::Limit {
                phase,
                limit: Limit::AllMemory(ByteSize::mib(100)),
                table: None,
            }),
            Failure::Prefetch(PrefetchError::NotFound {
                input: key.clone(),
                bucket: "b".into(),
                key,
            }),
            Failure::Catalog(CatalogError::NotFound {
                name: TaskName::new("A").unwrap(),
                place: "b".into(),
            }),
            Failure::Publish(PublishError::Unavailable {
                output: "o".into(),
                source: "the disk".into(),
            }),
        ];
        for failure in retried {
            check(&failure, "retry", "reject");
        }
    }

    #[test]
    fn what_no_try_can_change_is_rejected_at_once() {
        let phase = Phase::Prepare;
        let rejected = [
            Failure::Decode(message::decode(b"{}").unwrap_err()),
            ran(RunError::Reject { phase, reason: "no image".into() }),
            ran(RunError::Unsuccessful),
            Failure::Deaths { deaths: 10 },
            Failure::Unaccounted { deliveries: 20 },
            ran(RunError::Limit { phase, limit: Limit::OutputFiles(1), table: None }),
            ran(RunError::Limit { phase, limit: Limit::OpenFiles(1), table: None }),
            ran(RunError::Limit {
                phase,
                limit: Limit::CpuTime(Duration::from_secs(1)),
                table: None,
            }),
            ran(RunError::Limit { phase, limit: Limit::Handles, table: None }),
            ran(RunError::Limit { phase, limit: Limit::Parts, table: None }),
            Failure::Catalog(CatalogError::NotAGuest {
                place: "b".into(),
                problem: "it does not fit in pooling allocator requirements".into(),
            }),
            Failure::Catalog(CatalogError::NotListed { name: TaskName::new("A").unwrap() }),
            Failure::Missing("a".into()),
            Failure::Publish(PublishError::Invalid {
                output: "o".into(),
                problem: "a link".into(),
            }),
        ];
        for failure in rejected {
            check(&failure, "reject", "reject");
        }
    }

    #[test]
    fn what_is_not_the_tasks_fault_is_never_held_against_it() {
        check(&Failure::Draining, "return", "return");
        check(&Failure::SlotsBusy, "return", "return");
        check(&ran(RunError::Cancelled), "return", "return");
        let host = ran(RunError::Host("no memory".into()));
        let crowded = ran(RunError::Crowded { memory: ByteSize::gib(1) });
        check(&host, "return later", "return later");
        check(&crowded, "return later", "return later");
        let outage = Failure::Outage("the bucket does not answer".into());
        check(&outage, "return later", "return later");
        check(&Failure::Homeless, "return later", "return later");
        let since = Duration::from_secs(1);
        let source = CatalogError::NotYet { place: "c".into(), why: "it compiles".into(), since };
        let not_yet = Failure::NotYet { source, after: Duration::from_secs(2) };
        check(&not_yet, "return later", "return later");
        let (place, problem) = ("c".into(), "it has no signature".into());
        let untrusted = CatalogError::NotTrusted { place, problem, since };
        check(&Failure::Catalog(untrusted), "return later", "return later");
        check(&Failure::LeaseLost, "abandon", "abandon");
        let late = PublishError::LeaseOver { output: "o".into() };
        check(&Failure::Publish(late), "abandon", "abandon");
    }

    #[test]
    fn a_slow_component_uses_up_few_deliveries() {
        let deliveries = |seconds: u64, limits_deliveries| {
            let (mut passed, mut deliveries) = (Duration::from_secs(1), 1);
            while passed < Duration::from_secs(seconds) {
                let after = until_compiled(passed, limits_deliveries);
                assert!(
                    after >= Duration::from_secs(1)
                        && after <= passed * 3 + Duration::from_secs(40)
                );
                passed += after;
                deliveries += 1;
            }
            deliveries
        };
        for _ in 0..100 {
            // The longest time that compiling may take by default is 1200 s.
            assert!(deliveries(1200, true) <= 7);
            assert!(deliveries(20, true) <= 2);
            assert!(deliveries(20, false) <= 7 && deliveries(1200, false) >= 30);
        }
    }

    #[test]
    fn waits_grow_and_have_an_end() {
        let policy = Policy::default();
        let mut shortest = Duration::ZERO;
        for attempt in 1..=40 {
            let wait = backoff(attempt, &policy);
            assert!(wait >= shortest && wait <= policy.longest_retry, "{attempt}: {wait:?}");
            let full = policy.first_retry * 2_u32.saturating_pow(attempt - 1);
            shortest = (full.min(policy.longest_retry)).mul_f64(0.75);
        }
    }
}
