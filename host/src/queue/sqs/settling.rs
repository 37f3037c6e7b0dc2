//! SqsLeases made longer, and ended: the message deleted, or given back.

use std::time::Duration;

use tokio::time::Instant;

use super::attempts::Sent;
use super::failure::Failure;
use super::leases::{LeasedMessage, SqsLease};
use super::requests::{Change, Delete, Outgoing, seconds};
use super::{Inner, SHORT_LINGER};
use crate::queue::{QueueError, Receipt};

/// How long a delete waits for others.
const LINGER: Duration = Duration::from_millis(500);
/// The longest delay of a message that is sent.
const LONGEST_DELAY: Duration = Duration::from_secs(900);
/// What the service says of a lease that would be too long, all extensions together.
const HELD_TOO_LONG: &str = "Total VisibilityTimeout";

impl Inner {
    /// Deletes the message, and then its body if that is elsewhere.
    pub(super) async fn delete(&self, row: SqsLease) -> Result<(), Failure> {
        let left = row.until.saturating_duration_since(Instant::now());
        let linger = LINGER.min(left / 4);
        let SqsLease { held, until } = row;
        self.deletes.call(Delete { held: held.clone(), until }, linger).await?;
        self.copies.forget(&held.copy);
        if let (Some(large_bodies), Some(path)) = (&self.large_bodies, &held.payload) {
            large_bodies.delete(path).await;
        }
        Ok(())
    }

    /// Whether the queue can be told what became of a message: by sending it again.
    pub(super) fn remembers(&self) -> bool {
        !self.settings.is_fifo && !self.resend_denied.is_recent()
    }

    /// Ends a lease, after an execution that failed for this `reason` or without one that
    /// counts. The next delivery tells of it, if the queue can remember that.
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
                            "{}: messages can't be sent to this queue ({text}): how often a task \
                             failed is known only to the host that ran it, and a task that kills \
                             its host is tried without end",
                            self.name
                        );
                    }
                }
                Err(Failure::Invalid(text)) => {
                    tracing::warn!(
                        "{}: message {} can't be sent again: {text}",
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

    /// Deletes the copy in whose place another was sent. Should it be delivered to this process
    /// again, it is not handed out.
    async fn delete_old(&self, row: SqsLease) -> Result<(), Failure> {
        let SqsLease { held, until } = row;
        match self.deletes.call(Delete { held: held.clone(), until }, SHORT_LINGER).await {
            Ok(()) => {
                self.copies.forget(&held.copy);
                Ok(())
            }
            Err(Failure::Lost) => {
                tracing::warn!(
                    "{}: message {} was given back, and its lease was over before its old copy \
                     was deleted: its task may run twice",
                    self.name,
                    held.id
                );
                Ok(())
            }
            Err(failure) => Err(failure),
        }
    }

    /// What is left of the time that SQS lets anybody hold the message.
    fn rest_of(&self, held: &LeasedMessage) -> Duration {
        (held.received + self.longest_hold).saturating_duration_since(Instant::now())
    }

    pub(super) async fn extend(
        &self,
        receipt: &Receipt,
        hold: Duration,
    ) -> Result<Receipt, QueueError> {
        let SqsLease { held, until } = self.row(receipt)?;
        // Whole seconds are what can be asked for, and one is what asking may take.
        let rest = self.rest_of(&held).as_secs().saturating_sub(1);
        let visibility = seconds(hold).min(i32::try_from(rest).unwrap_or(i32::MAX));
        if visibility < 1 {
            self.leases.remove(receipt);
            return Err(self.held_too_long(&held));
        }
        let asked = Instant::now();
        let change = Change { held: held.clone(), until, visibility };
        let result = match self.changes.call(change, SHORT_LINGER).await {
            // It may have been over before, and SQS can't say.
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
                // Nothing is wrong with what was asked for, whatever the service says.
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
            "message {} was held for {}, the longest that SQS allows; make its task shorter, or \
             use another kind of queue",
            held.id,
            humantime::format_duration(self.longest_hold)
        ))
    }
}
