//! Leases messages with long polls of up to ten messages. `pace.rs` decides when a poll asks for
//! more messages than the host wants.

use std::sync::{Arc, Weak};
use std::time::Duration;

use aws_sdk_sqs::types;
use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::attempts::{History, Received};
use super::batch::MAX_ENTRIES;
use super::failure::Failure;
use super::large_bodies::{BodyLocation, FetchedBody, LargeBodies};
use super::leases::{LeasedMessage, SqsLease};
use super::polls::{PollResult, Polls, Ticket, Unclaimed};
use super::requests::Delete;
use super::{Inner, SHORT_LINGER};
use crate::queue::copies::CopyRecord;
use crate::queue::{Counts, Message, QueueError};

/// The maximum duration of a poll.
const LONGEST_POLL: Duration = Duration::from_secs(20);
/// The maximum wait of a call.
const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
/// The maximum assumed delay of a response. A lease starts when SQS sends the response, which is
/// some time before the response arrives.
const ON_ITS_WAY: Duration = Duration::from_secs(2);
/// The maximum time between two checks for the response to a poll.
const LOOK: Duration = Duration::from_secs(1);
/// The delay of the next delivery of a message whose body cannot be fetched.
const NO_BODY: Duration = Duration::from_secs(30);
/// How long a message may wait for the host to take it. A receive request asks for more than the
/// host wants only while tasks are short. The host then takes the messages within half of this
/// time, unless its tasks become longer.
const KEPT: Duration = Duration::from_secs(10);
/// The time between two checks for too many messages in flight.
const FULL_EVERY: Duration = Duration::from_secs(900);
/// The number of messages in flight that is close to SQS's limit.
const NEARLY_FULL: u64 = 119_000;

/// When the number of messages in flight was last checked.
#[derive(Debug, Default)]
pub(super) struct SaidFull(Mutex<Option<Instant>>);

impl Inner {
    pub(super) async fn lease(
        self: &Arc<Self>,
        max: usize,
        duration: Duration,
        wait: Duration,
    ) -> Result<Vec<Message>, QueueError> {
        let until = Instant::now() + wait.min(FAR);
        loop {
            if max == 0 {
                return Ok(Vec::new());
            }
            let kept = self.polls.take(max);
            if !kept.is_empty() {
                return Ok(kept.into_iter().map(|fresh| self.hand_out(fresh)).collect());
            }
            let left = until.saturating_duration_since(Instant::now());
            if !left.is_zero() && self.polls.has_given_up() {
                // An earlier poll whose caller was dropped is still waiting for messages.
                tokio::select! {
                    () = self.polls.given_up(true) => continue,
                    () = tokio::time::sleep(left) => continue,
                }
            }
            let found = self.poll(max, duration, left.min(LONGEST_POLL)).await?;
            if !found.is_empty() {
                return Ok(found);
            }
            if left >= LONGEST_POLL {
                self.look_whether_full().await;
            }
            if Instant::now() >= until {
                return Ok(found);
            }
        }
    }

    /// Sends one poll, and more at the same time if `max` exceeds one response.
    async fn poll(
        self: &Arc<Self>,
        max: usize,
        duration: Duration,
        wait: Duration,
    ) -> Result<Vec<Message>, QueueError> {
        let failed = |failure: Failure| failure.of_queue(&self.name, "receiving messages");
        let is_filled = self.pace.is_fast(duration, Instant::now()) && !self.charges_for_holding();
        let asked = if is_filled { MAX_ENTRIES } else { max.min(MAX_ENTRIES) };
        let first = self.begin_poll(asked, duration, wait).brought().await.map_err(failed)?;
        // After a full response, there may be more messages.
        let rest = if first.len() < MAX_ENTRIES { 0 } else { max.saturating_sub(first.len()) };
        // Keep the messages for the next caller, in case this one is dropped.
        self.polls.keep(first);
        let more = (0..rest.div_ceil(MAX_ENTRIES)).map(|n| {
            let max = (rest - n * MAX_ENTRIES).min(MAX_ENTRIES);
            let poll = self.begin_poll(max, duration, Duration::ZERO);
            async move {
                match poll.brought().await {
                    Ok(more) => self.polls.keep(more),
                    Err(failure) => tracing::debug!("{}: {failure:?}", self.name),
                }
            }
        });
        join_all(more).await;
        Ok(self.polls.take(max).into_iter().map(|fresh| self.hand_out(fresh)).collect())
    }

    /// Starts a poll in a separate tokio task.
    fn begin_poll(self: &Arc<Self>, max: usize, duration: Duration, wait: Duration) -> Ticket<'_> {
        let ticket = self.polls.begin();
        let (inner, number) = (self.clone(), ticket.number());
        tokio::spawn(async move {
            let brought = inner.receive(max, duration, wait).await;
            inner.polls.end(number, brought);
        });
        ticket
    }

    async fn receive(
        self: &Arc<Self>,
        max: usize,
        duration: Duration,
        wait: Duration,
    ) -> PollResult {
        let asked = Instant::now();
        let visibility = duration.clamp(Duration::from_secs(1), self.max_lease);
        let is_fifo = self.settings.is_fifo;
        let answer = self.service.receive(max, visibility, wait, is_fifo);
        let (messages, absent) = watched(answer, LOOK.min(duration / 40)).await;
        let messages = messages?;
        let margin = ON_ITS_WAY.min(duration / 10);
        let received = asked.max(absent.checked_sub(margin).unwrap_or(asked));
        let until = received + duration.min(visibility);
        if until <= Instant::now() {
            let count = messages.len();
            tracing::debug!("{}: the leases of {count} messages ended on their way", self.name);
            return Ok(Vec::new());
        }
        let fresh =
            join_all(messages.into_iter().map(|message| self.open(message, received, until)));
        Ok(fresh.await.into_iter().flatten().collect())
    }

    /// Decodes a message, and fetches its body if it is in the bucket. `None` if the body cannot be
    /// fetched now, or if another copy has replaced the message.
    async fn open(
        self: &Arc<Self>,
        message: types::Message,
        received: Instant,
        until: Instant,
    ) -> Option<Unclaimed> {
        let received_message = Received::of(message);
        let known = self.copies.received(&received_message.copy);
        let is_replaced = known.is_replaced;
        let history = self.history(&received_message, known);
        let Received { id, copy, handle, sent, sent_at, .. } = received_message;
        let mut body = sent.body.clone();
        let payload = None;
        let mut held =
            LeasedMessage { id, copy, handle, sent, sent_at, history, received, payload };
        if is_replaced {
            self.delete_replaced(held, until);
            return None;
        }
        let mut unread = None;
        match LargeBodies::locate(self.large_bodies.as_ref(), &held.sent) {
            BodyLocation::Inline => {}
            BodyLocation::Refused(why) => unread = Some(why),
            BodyLocation::Stored(path) => match self.fetch(&path).await {
                Ok(FetchedBody::Body(found)) => {
                    body = found;
                    held.payload = Some(path);
                }
                Ok(FetchedBody::Refused(why)) => unread = Some(why),
                Err(failure) => {
                    let error = failure.of_message(&self.name, "fetching the body of", &held.id);
                    tracing::warn!("{error}; the message is released");
                    let row = SqsLease { held: Arc::new(held), until };
                    // If the release fails, the message is delivered again when its lease expires.
                    let _ = self.give_back(row, NO_BODY, None).await;
                    return None;
                }
            },
        }
        let stale = received + KEPT.min((until - received) / 2);
        if let Some(why) = &unread {
            tracing::warn!("{}: the body of message {} can't be read: {why}", self.name, held.id);
        }
        Some(Unclaimed { held, body, unread, until, stale })
    }

    /// The history of earlier executions. Earlier receives by this process have known outcomes,
    /// because this process is still alive.
    fn history(&self, received: &Received, known: CopyRecord) -> History {
        let recorded = &received.history;
        let since = received.receives.saturating_sub(1).saturating_sub(known.receives);
        // If messages cannot be sent again, releases count as receives too.
        let is_told = self.remembers();
        History {
            attempts: recorded.attempts.saturating_add(known.attempts),
            failures: recorded.failures.iter().cloned().chain(known.failures).collect(),
            unaccounted: if is_told { recorded.unaccounted.saturating_add(since) } else { 0 },
        }
    }

    /// Deletes a copy that could not be deleted when another copy replaced it.
    fn delete_replaced(self: &Arc<Self>, held: LeasedMessage, until: Instant) {
        let inner = self.clone();
        self.work.spawn(async move {
            let (copy, held) = (held.copy.clone(), Arc::new(held));
            match inner.deletes.call(Delete { held, until }, SHORT_LINGER).await {
                Ok(()) => inner.copies.forget(&copy),
                Err(failure) => {
                    tracing::debug!("{}: could not delete a replaced copy: {failure:?}", inner.name)
                }
            }
        });
    }

    async fn fetch(&self, path: &object_store::path::Path) -> Result<FetchedBody, Failure> {
        match &self.large_bodies {
            Some(large_bodies) => large_bodies.get(path).await,
            None => Ok(FetchedBody::Refused("--message-bucket is not set".to_owned())),
        }
    }

    fn hand_out(&self, fresh: Unclaimed) -> Message {
        let Unclaimed { held, body, unread, until, .. } = fresh;
        let held = Arc::new(held);
        Message {
            id: held.id.clone(),
            body,
            unread,
            attempts: held.history.attempts,
            deaths: 0,
            unaccounted: held.history.unaccounted,
            failures: held.history.failures.clone(),
            receipt: self.leases.add(held, until),
        }
    }

    /// Releases messages that no caller took, and waits until they are released.
    pub(super) async fn give_back_fresh(&self, fresh: Vec<Unclaimed>) {
        let row = |Unclaimed { held, until, .. }| SqsLease { held: Arc::new(held), until };
        self.give_back_all(fresh.into_iter().map(row).collect()).await;
    }

    /// Releases messages that were not run.
    pub(super) async fn give_back_all(&self, rows: Vec<SqsLease>) {
        let back = rows.into_iter().map(|row| async move {
            let held = row.held.clone();
            if let Err(failure) = self.give_back(row, Duration::ZERO, None).await {
                let error = failure.of_message(&self.name, "releasing", &held.id);
                tracing::warn!("{error}; the message comes back when its lease expires");
            }
        });
        join_all(back).await;
    }

    /// Warns if SQS delivers nothing because too many messages are in flight. Long polls do not
    /// report this.
    async fn look_whether_full(&self) {
        {
            let mut last = self.said_full.0.lock();
            if last.is_some_and(|last| last.elapsed() < FULL_EVERY) {
                return;
            }
            *last = Some(Instant::now());
        }
        let Ok(counts) = self.counts().await else { return };
        if let Some(waiting) = held_up(counts) {
            tracing::warn!(
                "{}: SQS delivers no message although {waiting} are waiting, because nearly \
                 120,000 messages are in flight, which is its limit; run fewer hosts or lower \
                 --prefetch",
                self.name,
            );
        }
    }
}

/// Waits for a response. Also returns a time at which the response had not yet arrived. This time
/// is at most two `interval`s ago, or before this process was stopped. Responses arrive while a
/// process is stopped, and their leases are already running.
async fn watched<T>(answer: impl Future<Output = T>, interval: Duration) -> (T, Instant) {
    let mut answer = std::pin::pin!(answer);
    // The last check may have been made after a stop, before the response was read.
    let (mut before, mut last) = (Instant::now(), Instant::now());
    loop {
        tokio::select! {
            biased;
            answer = &mut answer => return (answer, before),
            () = tokio::time::sleep(interval) => (before, last) = (last, Instant::now()),
        }
    }
}

/// The number of messages that are not delivered because too many are in flight, if that is the
/// case.
fn held_up(counts: Counts) -> Option<u64> {
    let (all, leased) = (counts.enqueued?, counts.leased?);
    (leased >= NEARLY_FULL && all > leased).then(|| all - leased)
}

/// Releases messages that no caller took in time. Ends with the queue.
pub(super) async fn watch_kept(polls: Arc<Polls>, queue: Weak<Inner>, stop: CancellationToken) {
    let watch = async {
        loop {
            let stale = polls.first_stale().await;
            tokio::time::sleep_until(stale).await;
            let Some(queue) = queue.upgrade() else { return };
            queue.give_back_fresh(polls.take_stale(Instant::now())).await;
        }
    };
    tokio::select! {
        () = watch => {}
        () = stop.cancelled() => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_that_comes_while_the_process_is_stopped_is_as_old_as_the_stop() {
        let (send, answer) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let stopped = Instant::now();
            std::thread::sleep(Duration::from_millis(300));
            let _ = send.send(stopped);
        });
        let asked = Instant::now();
        let (stopped, absent) = watched(answer, Duration::from_millis(10)).await;
        assert!(absent > asked && absent <= stopped.unwrap(), "{absent:?}");
    }

    #[test]
    fn messages_wait_for_others_when_as_many_are_in_flight_as_may_be() {
        let check = |enqueued, leased, waiting: Option<u64>| {
            let counts = Counts { enqueued, leased, ..Counts::default() };
            assert_eq!(held_up(counts), waiting, "{counts:?}");
        };
        check(Some(200_000), Some(119_990), Some(80_010));
        check(Some(200_000), Some(100_000), None);
        check(Some(120_000), Some(120_000), None);
        check(None, None, None);
    }
}
