//! Leases made longer, and ended: the message deleted, or given back.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::time::Instant;

use super::attempts::Sent;
use super::failure::Failure;
use super::leases::{Held, Row};
use super::requests::{Change, Delete, Outgoing, seconds};
use super::{Inner, SOON};
use crate::queue::{QueueError, Receipt};

/// How long a delete waits for others.
const LINGER: Duration = Duration::from_millis(500);
/// The longest delay of a message that is sent.
const LONGEST_DELAY: Duration = Duration::from_secs(900);

impl Inner {
    /// Deletes the message, and then its body if that is elsewhere.
    pub(super) async fn delete(&self, row: Row) -> Result<(), Failure> {
        let left = row.until.saturating_duration_since(Instant::now());
        let linger = LINGER.min(left / 4);
        let Row { held, until } = row;
        self.deletes.call(Delete { held: held.clone(), until }, linger).await?;
        if let (Some(payloads), Some(path)) = (&self.payloads, &held.payload) {
            payloads.delete(path).await;
        }
        Ok(())
    }

    /// Whether what is to be remembered of a message can be: by sending it again.
    pub(super) fn remembers(&self) -> bool {
        let settings = &self.settings;
        !settings.is_fifo && settings.redrive.is_none() && !self.is_mute.load(Relaxed)
    }

    /// Ends a lease. What the message is to be remembered for is what it says at its next
    /// delivery, if the queue can remember that.
    pub(super) async fn give_back(
        &self,
        row: Row,
        after: Duration,
        attempts: u32,
        failures: &[String],
    ) -> Result<(), Failure> {
        let held = &row.held;
        let again = match self.remembers() {
            true => held.sent.remembering(&held.id, attempts, failures, self.settings.limit),
            false => None,
        };
        if let Some(message) = again {
            match self.send_again(&row, message, after).await {
                Err(Failure::Denied(text)) => {
                    self.is_mute.store(true, Relaxed);
                    tracing::warn!(
                        "{}: messages can't be sent to this queue ({text}): every receive of a \
                         message counts as an attempt from now on; allow sqs:SendMessage",
                        self.name
                    );
                }
                Err(Failure::Invalid(text)) => {
                    tracing::warn!(
                        "{}: message {} can't be sent again: {text}",
                        self.name,
                        held.id
                    );
                }
                result => return result,
            }
        }
        let left = self.rest_of(held);
        let visibility = seconds(after).min(i32::try_from(left.as_secs()).unwrap_or(i32::MAX));
        let Row { held, until } = row;
        self.changes.call(Change { held, until, visibility }, SOON).await
    }

    async fn send_again(&self, row: &Row, message: Sent, after: Duration) -> Result<(), Failure> {
        let again = Outgoing {
            message,
            delay: Some(seconds(after.min(LONGEST_DELAY))),
            deduplication: None,
            until: Some(row.until),
        };
        self.sends.call(again, SOON).await?;
        let Row { held, until } = row.clone();
        let id = held.id.clone();
        if let Err(failure) = self.deletes.call(Delete { held, until }, SOON).await {
            tracing::warn!(
                "{}: message {id} was given back, and its old copy is still there ({failure:?}): \
                 its task may run twice",
                self.name
            );
        }
        Ok(())
    }

    /// What is left of the time that SQS lets anybody hold the message.
    fn rest_of(&self, held: &Held) -> Duration {
        (held.received + self.longest_hold).saturating_duration_since(Instant::now())
    }

    pub(super) async fn extend(
        &self,
        receipt: &Receipt,
        hold: Duration,
    ) -> Result<Receipt, QueueError> {
        let Row { held, until } = self.row(receipt)?;
        // Whole seconds are what can be asked for, and one is what asking may take.
        let rest = self.rest_of(&held).as_secs().saturating_sub(1);
        let visibility = seconds(hold).min(i32::try_from(rest).unwrap_or(i32::MAX));
        if visibility < 1 {
            self.leases.remove(receipt);
            return Err(self.invalid(format!(
                "message {} was held for {}, the longest that SQS allows; make its task shorter, \
                 or use another kind of queue",
                held.id,
                humantime::format_duration(self.longest_hold)
            )));
        }
        let asked = Instant::now();
        let change = Change { held: held.clone(), until, visibility };
        let result = match self.changes.call(change, SOON).await {
            // It may have been over before, and SQS can't say.
            Ok(()) if Instant::now() >= until => Err(Failure::Lost),
            result => result,
        };
        if let Err(failure) = result {
            if failure == Failure::Lost {
                self.leases.remove(receipt);
            }
            return Err(failure.of_message(&self.name, "extending the lease of", &held.id));
        }
        self.leases.remove(receipt);
        let until = asked + Duration::from_secs(visibility.unsigned_abs().into());
        Ok(self.leases.add(held, until))
    }
}
