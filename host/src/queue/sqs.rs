//! SQS: `sqs://NAME`, a queue URL, or an ARN.
//!
//! ```text
//! client.rs     region, endpoint, credentials; requests counted
//! settings.rs   how the queue is set up, or made
//! polls.rs      polls outlive their callers: nothing that they bring is stranded
//! leases.rs     receipts, and when they are of no use any more
//! attempts.rs   what is remembered of a task's attempts, and where
//! pointer.rs    bodies that are too large
//! batch.rs      calls of many tasks in one request of ten; requests.rs: those requests
//! failure.rs    what an error of the service means
//! admin.rs      what people do to a queue
//! ```
//!
//! What SQS can't do: it delivers a message twice now and then; it counts receives and not
//! attempts, so that on a FIFO queue and on one with a redrive policy, where a message can't
//! be sent again, every receive counts; its counts are approximate; it holds a message for
//! one host for 12 hours in all.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_sqs::types::QueueAttributeName as Name;
use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use self::attempts::Sent;
use self::batch::{Batcher, MOST, REQUESTS};
use self::client::Tally;
use self::failure::Failure;
use self::leases::{Held, Leases, Row};
use self::pointer::Payloads;
use self::polls::Polls;
use self::requests::{Change, Changes, Delete, Deletes, Outgoing, Sends, Service, seconds};
use self::settings::Settings;
use super::{Access, Counts, Message, Queue, QueueError, Receipt, Release, Requests};

pub use admin::Admin;

mod admin;
mod attempts;
mod batch;
mod client;
mod failure;
mod leases;
mod opening;
mod pointer;
mod polls;
mod python;
mod receive;
mod requests;
mod settings;

#[cfg(test)]
mod tests;

/// How long a delete waits for others.
const LINGER: Duration = Duration::from_millis(500);
/// How long anything else does.
const SOON: Duration = Duration::from_millis(20);
/// What SQS allows a message to be held for, from its receive on, however often its lease
/// is extended.
const LONGEST_HOLD: Duration = Duration::from_secs(12 * 3600);
/// The longest delay of a message that is sent.
const LONGEST_DELAY: Duration = Duration::from_secs(900);

/// A queue of SQS.
pub struct SqsQueue {
    inner: Arc<Inner>,
    _watch: DropGuard,
}

struct Inner {
    /// What the user called it.
    name: String,
    service: Service,
    settings: Settings,
    requests: Arc<Tally>,
    group: Option<String>,
    payloads: Option<Payloads>,
    polls: Arc<Polls>,
    leases: Leases,
    deletes: Batcher<Deletes>,
    changes: Batcher<Changes>,
    sends: Batcher<Sends>,
    /// Works of several steps that have to come to their end.
    work: TaskTracker,
    /// Messages can't be sent again: we are not allowed to send to this queue.
    is_mute: AtomicBool,
    longest_hold: Duration,
    said_full: receive::SaidFull,
}

impl Inner {
    fn new(
        name: String,
        service: Service,
        settings: Settings,
        requests: Arc<Tally>,
        access: &Access,
        payloads: Option<Payloads>,
    ) -> Self {
        let sends = Sends { service: service.clone(), limit: settings.limit };
        Self {
            name,
            requests,
            group: access.group.clone(),
            payloads,
            polls: Arc::default(),
            leases: Leases::new(),
            deletes: Batcher::new(Deletes(service.clone())),
            changes: Batcher::new(Changes(service.clone())),
            sends: Batcher::new(sends),
            work: TaskTracker::new(),
            is_mute: AtomicBool::new(false),
            longest_hold: LONGEST_HOLD,
            said_full: receive::SaidFull::default(),
            service,
            settings,
        }
    }

    fn row(&self, receipt: &Receipt) -> Result<Row, QueueError> {
        self.leases.get(receipt).ok_or_else(|| self.lost(leases::id(receipt)))
    }

    fn lost(&self, id: &str) -> QueueError {
        Failure::Lost.of_message(&self.name, "", id)
    }

    fn invalid(&self, problem: String) -> QueueError {
        QueueError::Invalid { queue: self.name.clone(), problem }
    }

    /// Deletes the message, and then its body if that is elsewhere.
    async fn delete(&self, row: Row) -> Result<(), Failure> {
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
    fn remembers(&self) -> bool {
        let settings = &self.settings;
        !settings.is_fifo && settings.redrive.is_none() && !self.is_mute.load(Relaxed)
    }

    /// Ends a lease. What the message is to be remembered for is what it says at its next
    /// delivery, if the queue can remember that.
    async fn give_back(
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

    async fn extend(&self, receipt: &Receipt, hold: Duration) -> Result<Receipt, QueueError> {
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

    /// Makes a body into a message, or says why SQS can't carry it.
    async fn outgoing(&self, body: &Bytes) -> Result<Outgoing, QueueError> {
        check_text(body).map_err(|problem| self.invalid(problem))?;
        let mut message = Sent { body: body.clone(), ..Sent::default() };
        let limit = self.settings.limit;
        if message.size() > limit {
            let Some(payloads) = &self.payloads else {
                return Err(self.invalid(format!(
                    "a message of {} bytes is too large: the queue takes {limit}; name a bucket \
                     for large bodies, or put what is large into an input",
                    message.size()
                )));
            };
            payloads
                .put(&mut message)
                .await
                .map_err(|failure| failure.of_queue(&self.name, "storing a large body"))?;
        }
        let unique = || uuid::Uuid::new_v4().to_string();
        let is_fifo = self.settings.is_fifo;
        // Without a group each message is one of its own: nothing waits for anything.
        message.group = self.group.clone().or_else(|| is_fifo.then(unique));
        let deduplication = is_fifo.then(unique);
        Ok(Outgoing { message, delay: None, deduplication, until: None })
    }

    /// Sends these, which fit into one request unless they are large.
    async fn send_some(&self, bodies: &[Bytes]) -> Vec<Result<(), QueueError>> {
        let made = join_all(bodies.iter().map(|body| self.outgoing(body))).await;
        let (mut ready, mut results) = (Vec::new(), Vec::new());
        for made in made {
            results.push(made.map(|outgoing| ready.push(outgoing)));
        }
        // A full batch need not wait for others.
        let sent = if ready.len() >= MOST {
            self.sends.call_all(ready).await
        } else {
            join_all(ready.into_iter().map(|outgoing| self.sends.call(outgoing, SOON))).await
        };
        let mut sent = sent.into_iter();
        for result in &mut results {
            if result.is_ok()
                && let Some(Err(failure)) = sent.next()
            {
                *result = Err(failure.of_queue(&self.name, "sending a message"));
            }
        }
        results
    }

    /// The bodies of each request that is worth one.
    fn parts<'a>(&self, bodies: &'a [Bytes]) -> Vec<&'a [Bytes]> {
        let most = self.settings.limit;
        let (mut parts, mut start, mut size) = (Vec::new(), 0, 0);
        for (n, body) in bodies.iter().enumerate() {
            // A pointer is small.
            let bytes = if body.len() > most { 1024 } else { body.len() };
            if n - start >= MOST || (n > start && size + bytes > most) {
                parts.push(&bodies[start..n]);
                (start, size) = (n, 0);
            }
            size += bytes;
        }
        if start < bodies.len() {
            parts.push(&bodies[start..]);
        }
        parts
    }

    async fn close(&self) {
        self.polls.given_up(false).await;
        let kept = self.polls.take(usize::MAX);
        self.give_back_fresh(kept).await;
        // What waits for company lets the works go on that wait for it.
        let flush = async {
            loop {
                tokio::join!(self.deletes.flush(), self.changes.flush(), self.sends.flush());
                tokio::time::sleep(SOON).await;
            }
        };
        self.work.close();
        tokio::select! {
            () = self.work.wait() => {}
            () = flush => {}
        }
        self.work.reopen();
        tokio::join!(self.deletes.flush(), self.changes.flush(), self.sends.flush());
    }

    async fn counts(&self) -> Result<Counts, QueueError> {
        let names = [
            Name::ApproximateNumberOfMessages,
            Name::ApproximateNumberOfMessagesNotVisible,
            Name::ApproximateNumberOfMessagesDelayed,
        ];
        let found = self.service.attributes(&names).await;
        let found =
            found.map_err(|failure| failure.of_queue(&self.name, "counting the messages"))?;
        let [visible, leased, delayed] =
            names.map(|name| found.get(&name).and_then(|text| text.parse::<u64>().ok()));
        let sum = |a: Option<u64>, b: Option<u64>| Some(a? + b?);
        let leased = sum(leased, delayed);
        Ok(Counts { enqueued: sum(visible, leased), leased, inserted: None, completed: None })
    }
}

/// SQS carries text of the characters that XML 1.0 allows, and never none at all.
fn check_text(body: &[u8]) -> Result<(), String> {
    if body.is_empty() {
        return Err("SQS can't carry an empty message".to_owned());
    }
    let text = std::str::from_utf8(body)
        .map_err(|error| format!("SQS can't carry a message that is not UTF-8 text: {error}"))?;
    let is_barred = |c: char| match c {
        '\t' | '\n' | '\r' => false,
        '\u{fffe}' | '\u{ffff}' => true,
        c => c < ' ',
    };
    match text.char_indices().find(|(_, c)| is_barred(*c)) {
        None => Ok(()),
        Some((at, c)) => Err(format!(
            "SQS can't carry the character U+{:04X}, which is at byte {at}; JSON can write it \
             as \\u{:04x}",
            c as u32, c as u32
        )),
    }
}

#[async_trait]
impl Queue for SqsQueue {
    async fn lease(
        &self,
        max: usize,
        hold: Duration,
        wait: Duration,
    ) -> Result<Vec<Message>, QueueError> {
        self.inner.lease(max, hold, wait).await
    }

    /// There is nothing to record: SQS has counted the receive.
    async fn start(&self, receipt: &Receipt) -> Result<(), QueueError> {
        self.inner.row(receipt).map(drop)
    }

    async fn extend(&self, receipt: &Receipt, hold: Duration) -> Result<Receipt, QueueError> {
        self.inner.extend(receipt, hold).await
    }

    async fn ack(&self, receipt: &Receipt) -> Result<(), QueueError> {
        let row = self.inner.row(receipt)?;
        let inner = self.inner.clone();
        let result = self.see_through(async move { inner.delete(row).await }).await;
        self.settled(receipt, result, "deleting")
    }

    async fn release(
        &self,
        receipt: &Receipt,
        after: Duration,
        why: Release<'_>,
    ) -> Result<(), QueueError> {
        let row = self.inner.row(receipt)?;
        let inner = self.inner.clone();
        let mut attempts = row.held.attempts;
        let mut failures = row.held.failures.clone();
        if let Release::Failed(reason) = why {
            attempts = attempts.saturating_add(1);
            failures.push(reason.to_owned());
        }
        let result = self
            .see_through(async move { inner.give_back(row, after, attempts, &failures).await })
            .await;
        self.settled(receipt, result, "releasing")
    }

    async fn send(&self, bodies: &[Bytes]) -> Vec<Result<(), QueueError>> {
        let inner = &self.inner;
        // One after the other where their order is to be kept.
        let is_ordered = inner.settings.is_fifo && inner.group.is_some();
        let requests = if is_ordered { 1 } else { REQUESTS };
        let parts = inner.parts(bodies).into_iter();
        let sent = parts.map(|part| inner.send_some(part)).collect::<Vec<_>>();
        stream::iter(sent).buffered(requests).concat().await
    }

    async fn counts(&self) -> Result<Counts, QueueError> {
        self.inner.counts().await
    }

    fn batch(&self) -> usize {
        MOST
    }

    fn until(&self, receipt: &Receipt) -> Option<Instant> {
        self.inner.leases.get(receipt).map(|row| row.until)
    }

    async fn close(&self) {
        self.inner.close().await;
    }

    fn requests(&self) -> Option<Requests> {
        Some(self.inner.requests.requests())
    }
}

impl SqsQueue {
    /// Has to be called within a runtime.
    fn of(inner: Inner) -> Self {
        let inner = Arc::new(inner);
        let stop = CancellationToken::new();
        let watch = receive::watch_kept(inner.polls.clone(), Arc::downgrade(&inner), stop.clone());
        tokio::spawn(watch);
        Self { inner, _watch: stop.drop_guard() }
    }

    /// Does something of which no step may be left out, even if its caller goes away.
    async fn see_through(
        &self,
        work: impl Future<Output = Result<(), Failure>> + Send + 'static,
    ) -> Result<(), Failure> {
        let ended = self.inner.work.spawn(work).await;
        ended.unwrap_or_else(|error| Err(Failure::Unavailable(error.to_string())))
    }

    /// What a settlement came to.
    fn settled(
        &self,
        receipt: &Receipt,
        result: Result<(), Failure>,
        doing: &str,
    ) -> Result<(), QueueError> {
        if matches!(result, Ok(()) | Err(Failure::Lost)) {
            self.inner.leases.remove(receipt);
        }
        let id = leases::id(receipt);
        result.map_err(|failure| failure.of_message(&self.inner.name, doing, id))
    }
}

impl fmt::Display for SqsQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.inner.name)
    }
}

impl fmt::Debug for SqsQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SqsQueue").field(&self.inner.name).finish()
    }
}
