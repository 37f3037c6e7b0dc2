//! The one table that says what the end of an attempt leads to.
//!
//! No other place retries, rejects or gives up.

use std::time::Duration;

use crate::catalog::CatalogError;
use crate::prefetch::PrefetchError;
use crate::publish::PublishError;
use crate::queue::{Message, QueueError};
use crate::sandbox::{self, RunError};
use crate::task::Failure;

/// What is done with a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The outputs are in the bucket: report it if that is wanted, and delete the message.
    Done,
    /// Give the message back; it can be leased again after this long.
    Retry {
        /// How long nobody gets it.
        after: Duration,
        /// False when the attempt was not the task's fault and is not held against it.
        counts: bool,
    },
    /// Put a report on the error queue, then delete the message.
    Reject,
    /// Leave the message alone: it is somebody else's.
    Abandon,
}

/// How often and how fast a task is tried again.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Attempts after which a task goes to the error queue.
    pub max_attempts: u32,
    /// Executions whose host was killed or lost, after which a task goes to the error queue.
    /// More than attempts: most hosts die for reasons of their own.
    pub max_deaths: u32,
    /// The wait before the second attempt. Doubles with each further one.
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

/// How often a task was executed without an end that anybody recorded, after which it may be
/// what kills its hosts: from then on it is executed alone, so that no other task dies with it.
const SUSPECT_AFTER: u32 = 2;

/// Deliveries of which nobody told how they ended, where a queue knows no more. Far more than
/// deaths: each may have been a message that was only held while its host was killed.
const MAX_UNACCOUNTED: u32 = 20;

/// Whether a task may be executed again after what its message tells of earlier deliveries.
/// `limits_deliveries`: the queue itself moves away a message that was delivered too often.
///
/// # Errors
/// What ended the task, if it may not.
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

/// Whether a task is executed while no other is.
pub fn is_suspect(message: &Message) -> bool {
    message.deaths.saturating_add(message.unaccounted) >= SUSPECT_AFTER
}

/// What is done with a message whose report or deletion the queue did not take while its lease
/// lasted: it comes back.
pub fn unsettled() -> Verdict {
    Verdict::Retry { after: Duration::ZERO, counts: false }
}

/// How long a message stays away whose component has been compiling for a time: about as long
/// again, but where the queue itself moves away a message that was delivered too often, so long
/// that few deliveries are used up.
pub fn until_compiled(since: Duration, limits_deliveries: bool) -> Duration {
    let full = match limits_deliveries {
        false => since.clamp(Duration::from_secs(2), Duration::from_secs(30)),
        true => (since * 2).clamp(Duration::from_secs(30), Duration::from_secs(600)),
    };
    vary(full)
}

/// What a failure says about a further try.
enum Further {
    /// It may help.
    May,
    /// It can't.
    Never,
    /// It may, and this attempt was not the task's fault.
    MayFree,
    /// It is for somebody else to decide.
    NotOurs,
}

/// Decides. `attempt` is the number of the attempt that failed, from 1.
pub fn judge(failure: &Failure, attempt: u32, policy: &Policy) -> Verdict {
    match further(failure) {
        Further::Never => Verdict::Reject,
        Further::NotOurs => Verdict::Abandon,
        Further::May if attempt >= policy.max_attempts => Verdict::Reject,
        Further::May => Verdict::Retry { after: backoff(attempt, policy), counts: true },
        // A host that is stopping gives its tasks back for others to take at once; one that
        // can't work must not spin on the same message.
        Further::MayFree => {
            let after = match failure {
                Failure::Draining | Failure::Run(RunError::Cancelled) => Duration::ZERO,
                Failure::NotYet { after, .. } => *after,
                _ => backoff(1, policy),
            };
            Verdict::Retry { after, counts: false }
        }
    }
}

fn further(failure: &Failure) -> Further {
    use Further::{May, MayFree, Never, NotOurs};
    match failure {
        Failure::Draining | Failure::Outage(_) | Failure::Homeless => MayFree,
        Failure::LeaseLost => NotOurs,
        Failure::Decode(_) | Failure::Deaths { .. } | Failure::Unaccounted { .. } => Never,

        // An input may still be on its way to the bucket.
        Failure::Prefetch(PrefetchError::NotFound { .. }) => May,
        Failure::Prefetch(PrefetchError::Invalid { .. }) => Never,
        // Not an outage: that was looked into before.
        Failure::Prefetch(PrefetchError::Unavailable { .. }) => May,

        // So may a component.
        Failure::Catalog(CatalogError::NotFound { .. }) => May,
        Failure::Catalog(CatalogError::NotAGuest { problem, .. })
            if sandbox::is_too_large(problem) =>
        {
            Never
        }
        // A corrected component may be pushed under the same name.
        Failure::Catalog(CatalogError::NotAGuest { .. }) => May,
        Failure::Catalog(CatalogError::Unavailable { .. }) => May,
        Failure::Catalog(CatalogError::NotYet { .. }) | Failure::NotYet { .. } => MayFree,

        Failure::Workspace(_) => MayFree,

        Failure::Start(QueueError::LeaseLost { .. }) => NotOurs,
        Failure::Start(_) => MayFree,

        Failure::Run(error) => match error {
            RunError::Retry { .. } | RunError::Trap { .. } | RunError::Broke => May,
            // More than the disk can hold.
            RunError::Shortage { .. } => May,
            RunError::Reject { .. } | RunError::Unsuccessful => Never,
            // Time depends on the machine and its load; all else does not.
            RunError::Limit { limit: sandbox::Limit::Time(_), .. } => May,
            RunError::Limit { .. } => Never,
            RunError::Cancelled | RunError::Host(_) => MayFree,
        },

        Failure::Missing(_) => Never,
        Failure::Publish(PublishError::Invalid { .. }) => Never,
        Failure::Publish(PublishError::Unavailable { .. }) => May,
        Failure::Publish(PublishError::LeaseOver { .. }) => NotOurs,
    }
}

/// Doubles from attempt to attempt, and varies, so that tasks that failed together do not
/// come back together.
fn backoff(attempt: u32, policy: &Policy) -> Duration {
    let doublings = attempt.saturating_sub(1).min(30);
    let full = policy.first_retry.saturating_mul(1 << doublings).min(policy.longest_retry);
    vary(full).min(policy.longest_retry)
}

/// A quarter more or less.
fn vary(time: Duration) -> Duration {
    time.mul_f64(fastrand::f64() * 0.5 + 0.75)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{BucketKey, TaskName};
    use crate::message;
    use crate::sandbox::{Limit, Phase};

    /// In a word: what the first and the last attempt that fails so leads to.
    fn check(failure: &Failure, first: &str, last: &str) {
        let policy = Policy::default();
        for (attempt, want) in [(1, first), (policy.max_attempts, last)] {
            let got = match judge(failure, attempt, &policy) {
                Verdict::Done => "done",
                Verdict::Retry { counts: true, .. } => "retry",
                Verdict::Retry { counts: false, after: Duration::ZERO } => "give back",
                Verdict::Retry { counts: false, .. } => "give back for later",
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
            ran(RunError::Limit { phase, limit: Limit::Time(Duration::from_secs(1)) }),
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
            ran(RunError::Limit { phase, limit: Limit::OutputFiles(1) }),
            ran(RunError::Limit { phase, limit: Limit::OpenFiles(1) }),
            ran(RunError::Limit { phase, limit: Limit::Handles }),
            ran(RunError::Limit { phase, limit: Limit::Parts }),
            Failure::Catalog(CatalogError::NotAGuest {
                place: "b".into(),
                problem: "it does not fit in pooling allocator requirements".into(),
            }),
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
        check(&Failure::Draining, "give back", "give back");
        check(&ran(RunError::Cancelled), "give back", "give back");
        let host = ran(RunError::Host("no memory".into()));
        check(&host, "give back for later", "give back for later");
        let outage = Failure::Outage("the bucket does not answer".into());
        check(&outage, "give back for later", "give back for later");
        check(&Failure::Homeless, "give back for later", "give back for later");
        let since = Duration::from_secs(1);
        let source = CatalogError::NotYet { place: "c".into(), why: "it compiles".into(), since };
        let not_yet = Failure::NotYet { source, after: Duration::from_secs(2) };
        check(&not_yet, "give back for later", "give back for later");
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
            // As long as compiling may take by default.
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
