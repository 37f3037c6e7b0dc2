//! Receives messages.
//!
//! If a pull were cancelled, messages could still be leased to it and would be hidden until their
//! leases expire. A pull is therefore never cancelled. It is short and runs in a separate tokio
//! task. If its caller is dropped, its messages are released.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use gcloud_gax::grpc::{Code, Response, Status};
use gcloud_googleapis::pubsub::v1::{PullRequest, PullResponse, ReceivedMessage};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::client::{ANSWER, RequestKind, routed};
use super::envelope::{self, Envelope};
use super::leases::PubSubLease;
use super::{IDS, MAX_LEASE, Shared, status};
use crate::fault::{self, Step};
use crate::queue::{Message, QueueError};

/// The maximum wait of one pull. A host that stops waits until the pull ends.
const LONGEST: Duration = Duration::from_secs(5);
/// The minimum wait of a pull that waits.
const SHORTEST: Duration = Duration::from_secs(1);
/// If a caller waits less than this, the pulls do not wait.
const SHORT: Duration = Duration::from_secs(2);
/// The pause between pulls that do not wait.
const PAUSE: Duration = Duration::from_millis(200);
/// The maximum drift between the service's clock and this one during a pull.
const ABOUT: Duration = Duration::from_millis(200);
/// The maximum number of messages of one request.
const MOST: usize = 1000;

/// Messages on their way to the caller. They are released if this is dropped.
pub(super) struct PulledMessages {
    messages: Vec<Message>,
    shared: Arc<Shared>,
}

/// Leases up to `max` messages. Waits up to `wait` for the first.
pub(super) async fn lease(
    shared: &Arc<Shared>,
    max: usize,
    duration: Duration,
    wait: Duration,
) -> Result<PulledMessages, QueueError> {
    let (answer, found) = oneshot::channel();
    let listing = shared.clone();
    shared.under_way.spawn(async move {
        let mut answer = answer;
        let found = look(&listing, max, duration, wait, &mut answer).await;
        // If the caller was dropped, the messages are dropped here.
        let _ = answer.send(found);
    });
    found.await.unwrap_or_else(|_| Err(shared.client.invalid("the runtime is shutting down")))
}

type Answer = oneshot::Sender<Result<PulledMessages, QueueError>>;

async fn look(
    shared: &Arc<Shared>,
    max: usize,
    duration: Duration,
    wait: Duration,
    answer: &mut Answer,
) -> Result<PulledMessages, QueueError> {
    let until = Instant::now() + wait;
    loop {
        let rest = until.saturating_duration_since(Instant::now());
        let wait = (wait >= SHORT).then(|| rest.clamp(SHORTEST, LONGEST));
        let received = pull(shared, max, wait).await?;
        let were_any = !received.is_empty();
        let found = take(shared, received, duration).await?;
        if !found.messages.is_empty() || shared.closing.is_cancelled() {
            return Ok(found);
        }
        // No received message could be leased now, usually because they are delayed copies. There
        // may be other messages.
        if were_any {
            continue;
        }
        tokio::select! {
            () = tokio::time::sleep_until(until.min(Instant::now() + PAUSE)) => {}
            () = answer.closed() => {}
        }
        if Instant::now() >= until || answer.is_closed() {
            return Ok(found);
        }
    }
}

/// Sends one pull, which waits for a message or returns at once. The messages have the
/// subscription's own deadline, which starts when the service sends them.
pub(super) async fn pull(
    shared: &Shared,
    max: usize,
    wait: Option<Duration>,
) -> Result<Vec<ReceivedMessage>, QueueError> {
    let subscription = shared.subscription()?;
    #[expect(deprecated, reason = "there is no other way to learn that there is no message")]
    let request = PullRequest {
        subscription: subscription.to_owned(),
        return_immediately: wait.is_none(),
        max_messages: i32::try_from(max.min(MOST)).unwrap_or(i32::MAX),
    };
    let ask = || async {
        fault::shortage(Step::PubSubPull).map_err(status::starved)?;
        let mut request = routed("subscription", subscription, request.clone());
        let Some(wait) = wait else { return shared.client.subscriber().pull(request).await };
        request.set_timeout(wait);
        let asked = Instant::now();
        match shared.client.subscriber().pull(request).await {
            Err(status) if is_end(&status) && asked.elapsed() + ABOUT >= wait => {
                Ok(Response::new(PullResponse::default()))
            }
            answer => answer,
        }
    };
    let received = shared.client.tried(RequestKind::Receive, ANSWER, ask).await;
    let received = received.map_err(|e| shared.client.error("receiving messages", &e))?;
    if !received.received_messages.is_empty() {
        fault::point(Step::PubSubPulled);
    }
    Ok(received.received_messages)
}

/// Whether a pull ended because its time was over.
fn is_end(status: &Status) -> bool {
    matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled)
}

/// Leases the received messages. Postpones copies that are not due yet.
async fn take(
    shared: &Arc<Shared>,
    received: Vec<ReceivedMessage>,
    duration: Duration,
) -> Result<PulledMessages, QueueError> {
    let mut found = PulledMessages { messages: Vec::new(), shared: shared.clone() };
    if received.is_empty() {
        return Ok(found);
    }
    let (mut opened, mut replaced) = (Vec::new(), Vec::new());
    for (ack_id, envelope) in received.into_iter().map(envelope::open) {
        shared.look_at_clock(&envelope);
        if envelope.is_counted {
            shared.is_counted.store(true, Relaxed);
        }
        let known = shared.copies.received(&envelope.copy);
        match known.is_replaced {
            true => replaced.push((ack_id, envelope)),
            false => opened.push((ack_id, envelope.knowing(known.attempts, known.failures))),
        }
    }
    shared.end_replaced(replaced).await;
    let now = shared.client.clock.now();
    let (later, due): (Vec<_>, Vec<_>) =
        opened.into_iter().partition(|(_, envelope)| !envelope.rest(now).is_zero());
    for (ack_id, envelope) in later {
        let rest = envelope.rest(now).min(MAX_LEASE);
        if let Err(status) = shared.set_deadline(vec![ack_id], rest).await {
            // The message is delivered again too early or too late. If it is too early, it is
            // postponed again.
            tracing::debug!("{}", shared.client.error("postponing a message", &status));
        }
    }
    for due in split(due) {
        let until = Instant::now() + duration;
        let ids: Vec<String> = due.iter().map(|(ack_id, _)| ack_id.clone()).collect();
        let lost = match shared.set_deadline(ids, duration).await {
            Ok(()) => Vec::new(),
            Err(status) => failed(shared, &status)?,
        };
        let due = due.into_iter().filter(|(ack_id, _)| !lost.contains(ack_id));
        found.enter(due.collect(), until);
    }
    Ok(found)
}

/// The acknowledgement ids of messages whose lease has already expired, or the error. Such messages
/// are delivered again.
fn failed(shared: &Shared, status: &Status) -> Result<Vec<String>, QueueError> {
    match super::status::lost(status) {
        lost if lost.is_empty() => Err(shared.client.error("leasing messages", status)),
        lost => Ok(lost),
    }
}

/// Splits a list into the parts for one request each.
fn split<T>(mut all: Vec<T>) -> Vec<Vec<T>> {
    let mut parts = Vec::new();
    while all.len() > IDS {
        let rest = all.split_off(IDS);
        parts.push(std::mem::replace(&mut all, rest));
    }
    if !all.is_empty() {
        parts.push(all);
    }
    parts
}

impl PulledMessages {
    fn enter(&mut self, due: Vec<(String, Envelope)>, until: Instant) {
        let due: Vec<(String, Arc<Envelope>)> =
            due.into_iter().map(|(ack_id, envelope)| (ack_id, Arc::new(envelope))).collect();
        let held = due.iter().map(|(ack_id, envelope)| PubSubLease {
            ack_id: ack_id.clone(),
            until,
            envelope: envelope.clone(),
        });
        let receipts = self.shared.leases.enter(held.collect());
        let messages = due.iter().zip(receipts).map(|((_, envelope), receipt)| Message {
            id: envelope.id.clone(),
            body: envelope.body.clone(),
            unread: None,
            receipt,
            attempts: envelope.attempts,
            deaths: 0,
            unaccounted: 0,
            failures: envelope.failures.clone(),
        });
        self.messages.extend(messages);
    }

    /// Hands the messages over to the caller.
    pub(super) fn take(mut self) -> Vec<Message> {
        std::mem::take(&mut self.messages)
    }
}

impl Drop for PulledMessages {
    fn drop(&mut self) {
        if self.messages.is_empty() {
            return;
        }
        let table = &self.shared.leases;
        let held: Vec<PubSubLease> =
            self.messages.iter().filter_map(|m| table.get(&m.receipt)).collect();
        for message in &self.messages {
            table.end(&message.receipt);
        }
        // Without a runtime, the process is ending and the leases expire.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let shared = self.shared.clone();
            let ids = held.into_iter().map(|held| held.ack_id).collect();
            let giving_back = async move { shared.give_back(ids).await };
            self.shared.under_way.spawn_on(giving_back, &runtime);
        }
    }
}
