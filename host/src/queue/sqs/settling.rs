//! Extends leases; deletes and releases messages.

use std::time::Duration;

use tokio::time::Instant;

use super::attempts::Sent;
use super::failure::Failure;
use super::leases::{LeasedMessage, SqsLease};
use super::pace::BATCH_WAIT;
use super::requests::{Change, Delete, Outgoing, seconds};
use super::{Inner, SHORT_LINGER};
use crate::queue::{QueueError, Receipt};

/// The maximum delay of a new message.
const LONGEST_DELAY: Duration = Duration::from_secs(900);
/// The maximum time that a renewal waits for others.
const RENEWAL_WAIT: Duration = Duration::from_secs(3);
/// The service's error if a lease would be too long, including all extensions.
const HELD_TOO_LONG: &str = "Total VisibilityTimeout";

impl Inner {
    /// Deletes the message, and then its body if that is in the bucket.
    pub(super) async fn delete(&self, row: SqsLease) -> Result<(), Failure> {
        let left = row.until.saturating_duration_since(Instant::now());
        let linger = BATCH_WAIT.min(left / 4);
        let SqsLease { held, until } = row;
        self.pace.record(Instant::now());
        let deleted = self.deletes.call(Delete { held: held.clone(), until }, linger);
        self.send_last_deletes();
        deleted.await?;
        self.copies.forget(&held.copy);
        if let (Some(large_bodies), Some(path)) = (&self.large_bodies, &held.payload) {
            large_bodies.delete(path).await;
        }
        Ok(())
    }

    /// Sends the waiting deletes if no leased message is left to join them.
    pub(super) fn send_last_deletes(&self) {
        if self.deletes.waiting() >= self.leases.len() {
            self.deletes.send_waiting();
        }
    }

    /// Whether this queue can record attempt counts, which requires sending the message again.
    pub(super) fn remembers(&self) -> bool {
        !self.settings.is_fifo && !self.resend_denied.is_recent()
    }

    /// Releases a message. A `reason` means that an execution failed. It is recorded for the next
    /// delivery if the queue can store it.
    pub(super) async fn give_back(
        &self,
        row: SqsLease,
        after: Duration,
        reason: Option<&str>,
    ) -> Result<(), Failure> {
        let held = &row.held;
        if self.copies.is_replaced(&held.copy) {
            return self.delete_old(row).await;
        }
        let history = match reason {
            Some(reason) => held.history.failed(reason),
            None => held.history.clone(),
        };
        let again = match self.remembers() {
            true => held.sent.remembering(&held.id, &history, self.settings.limit),
            false => None,
        };
        if let Some(message) = again {
            match self.send_again(&row, message, after).await {
                Ok(()) => return self.delete_old(row).await,
                Err(Failure::Denied(text)) => {
                    if self.resend_denied.record() {
                        tracing::warn!(
                            "{}: not allowed to send to this queue ({text}), so attempts are \
                             counted only by the host that ran them, and a task that kills its \
                             host is retried forever",
                            self.name
                        );
                    }
                }
                Err(Failure::Invalid(text)) => {
                    tracing::warn!(
                        "{}: message {} can't be sent again, so its attempts are counted only by \
                         this host: {text}",
                        self.name,
                        held.id
                    );
                }
                Err(failure) => return Err(failure),
            }
        }
        let left = self.rest_of(held);
        let visibility = seconds(after).min(i32::try_from(left.as_secs()).unwrap_or(i32::MAX));
        let SqsLease { held, until } = row;
        self.changes.call(Change { held: held.clone(), until, visibility }, SHORT_LINGER).await?;
        if let Some(reason) = reason {
            self.copies.failed(&held.copy, reason);
        }
        Ok(())
    }

    async fn send_again(
        &self,
        row: &SqsLease,
        message: Sent,
        after: Duration,
    ) -> Result<(), Failure> {
        let again = Outgoing {
            message,
            delay: Some(seconds(after.min(LONGEST_DELAY))),
            deduplication: None,
            until: Some(row.until),
        };
        self.sends.call(again, SHORT_LINGER).await?;
        self.resend_denied.clear();
        self.copies.replaced(&row.held.copy);
        Ok(())
    }

    /// Deletes a replaced copy. Until it is deleted, this process does not deliver it again.
    async fn delete_old(&self, row: SqsLease) -> Result<(), Failure> {
        let SqsLease { held, until } = row;
        match self.deletes.call(Delete { held: held.clone(), until }, SHORT_LINGER).await {
            Ok(()) => {
                self.copies.forget(&held.copy);
                Ok(())
            }
            Err(Failure::Lost) => {
                tracing::warn!(
                    "{}: message {} was released, but its lease expired before the old copy was \
                     deleted; its task may run twice",
                    self.name,
                    held.id
                );
                Ok(())
            }
            Err(failure) => Err(failure),
        }
    }

    /// How much longer SQS lets this process hold the message.
    fn rest_of(&self, held: &LeasedMessage) -> Duration {
        (held.received + self.max_lease).saturating_duration_since(Instant::now())
    }

    pub(super) async fn extend(
        &self,
        receipt: &Receipt,
        duration: Duration,
    ) -> Result<Receipt, QueueError> {
        let SqsLease { held, until } = self.row(receipt)?;
        // Lease durations are whole seconds, and the request may take one second.
        let rest = self.rest_of(&held).as_secs().saturating_sub(1);
        let visibility = seconds(duration).min(i32::try_from(rest).unwrap_or(i32::MAX));
        if visibility < 1 {
            self.leases.remove(receipt);
            return Err(self.held_too_long(&held));
        }
        let asked = Instant::now();
        let change = Change { held: held.clone(), until, visibility };
        let linger = renewal_wait(duration, until.saturating_duration_since(asked));
        let changed = self.changes.call(change, linger);
        // Send now if no other lease is left to join the batch.
        if self.changes.waiting() >= self.leases.len() {
            self.changes.send_waiting();
        }
        let result = match changed.await {
            // The lease may have expired before the request. SQS does not report that.
            Ok(()) if Instant::now() >= until => Err(Failure::Lost),
            result => result,
        };
        if let Err(failure) = result {
            let failure = match failure {
                Failure::Lost => {
                    self.leases.remove(receipt);
                    Failure::Lost
                }
                Failure::Invalid(text) if text.contains(HELD_TOO_LONG) => {
                    self.leases.remove(receipt);
                    return Err(self.held_too_long(&held));
                }
                // The request is valid, so the error may be temporary.
                Failure::Invalid(text) => Failure::Unavailable(text),
                failure => failure,
            };
            return Err(failure.of_message(&self.name, "extending the lease of", &held.id));
        }
        self.leases.remove(receipt);
        let until = asked + Duration::from_secs(visibility.unsigned_abs().into());
        Ok(self.leases.add(held, until))
    }

    fn held_too_long(&self, held: &LeasedMessage) -> QueueError {
        self.invalid(format!(
            "message {} was held for {}, the longest that SQS allows; use shorter tasks or \
             another kind of queue",
            held.id,
            humantime::format_duration(self.max_lease)
        ))
    }
}

/// How long the renewal of a lease waits for others to share its request. `left` is the rest of the
/// lease of this `duration`. A task whose guest ran for more than a moment renews its lease before
/// it publishes. The wait is therefore short relative to the time since the last renewal, and
/// relative to the rest of the lease.
fn renewal_wait(duration: Duration, left: Duration) -> Duration {
    let since = duration.saturating_sub(left);
    (since / 3).min(left / 20).clamp(SHORT_LINGER, RENEWAL_WAIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_renewal_waits_only_a_part_of_the_time_that_has_passed_or_is_left() {
        let check = |duration, left, wait| {
            let millis = Duration::from_millis;
            assert_eq!(renewal_wait(millis(duration), millis(left)), millis(wait), "{left}");
        };
        check(300_000, 300_000, 20);
        check(300_000, 299_400, 200);
        check(300_000, 290_000, 3_000);
        check(300_000, 150_000, 3_000);
        check(2_000, 1_000, 50);
        check(2_000, 100, 20);
    }
}
