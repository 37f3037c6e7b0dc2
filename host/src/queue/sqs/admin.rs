//! Inspects and repairs an SQS queue.
//!
//! A message must be leased to be listed. A listing therefore leases all messages that no worker
//! holds, and keeps the leases until its end. Then it releases the messages, which does not count
//! as an attempt.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use futures_util::stream::{self, BoxStream, StreamExt};
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use super::failure::Failure;
use super::settings::Settings;
use super::{Inner, MAX_LEASE, SqsQueue};
use crate::queue::address::Sqs;
use crate::queue::{self, Access, Counts, Facts, Listed, Message, QueueError, Receipt};

/// The lease duration of a listing. If the listing is killed, messages are hidden for this long.
const HOLD: Duration = Duration::from_secs(300);
/// How often the leases of a listing are renewed.
const RENEW: Duration = Duration::from_secs(120);
/// How long a receive request waits. Without a wait, SQS searches only some of its servers.
const WAIT: Duration = Duration::from_secs(1);
/// The number of messages that are requested at a time.
const AT_ONCE: usize = 50;
/// The number of consecutive empty receives after which the queue is considered empty.
const EMPTY: u32 = 2;

/// An SQS queue for operators.
#[derive(Debug)]
pub struct Admin {
    pub(super) queue: SqsQueue,
}

impl Admin {
    /// Opens an existing queue.
    ///
    /// # Errors
    /// Those of [`SqsQueue::open`].
    pub async fn open(address: &Sqs, access: &Access) -> Result<Self, QueueError> {
        let access = Access { create: false, ..access.clone() };
        SqsQueue::open(address, &access).await.map(Self::of)
    }

    pub(super) fn of(queue: SqsQueue) -> Self {
        Self { queue }
    }

    fn cannot(&self, problem: &str) -> QueueError {
        self.queue.inner.invalid(problem.to_owned())
    }
}

#[async_trait]
impl queue::Admin for Admin {
    async fn counts(&self) -> Result<Counts, QueueError> {
        self.queue.inner.counts().await
    }

    fn messages(&self) -> BoxStream<'_, Result<Listed, QueueError>> {
        let inner = &self.queue.inner;
        if !inner.remembers() || inner.settings.redrive.is_some() {
            let error = self.cannot(
                "can't list messages of a FIFO queue or of a queue with a redrive policy: a \
                 listing receives each message, which could move it to the dead-letter queue",
            );
            return stream::iter([Err(error)]).boxed();
        }
        stream::unfold(Listing::new(inner), |mut listing| async move {
            let next = listing.next().await?;
            Some((next, listing))
        })
        .boxed()
    }

    async fn release_all(&self) -> Result<u64, QueueError> {
        Err(self.cannot(
            "SQS can't end the leases of other processes; the messages of a host that is gone \
             come back when their leases expire",
        ))
    }

    async fn rezero(&self) -> Result<(), QueueError> {
        Err(self.cannot("SQS has no counters of sent and completed messages"))
    }

    async fn purge(&self) -> Result<Option<u64>, QueueError> {
        let inner = &self.queue.inner;
        match inner.service.purge().await {
            Ok(()) => Ok(None),
            Err(Failure::Invalid(text)) if text.starts_with("PurgeQueueInProgress") => {
                Err(self.cannot("SQS allows one purge in 60 seconds; try again in a minute"))
            }
            Err(failure) => Err(failure.of_queue(&inner.name, "deleting the messages")),
        }
    }

    async fn close(&self) {
        self.queue.inner.close().await;
    }

    async fn facts(&self) -> Result<Facts, QueueError> {
        let inner = &self.queue.inner;
        let settings = Settings::read(&inner.service).await;
        let settings = settings.map_err(|failure| {
            failure.of_queue(&inner.name, "reading the settings of the queue")
        })?;
        let mut facts = facts(&settings);
        facts.notes.extend(inner.requests.clock.complaint());
        Ok(facts)
    }
}

fn facts(settings: &Settings) -> Facts {
    let seconds = |time: Duration| humantime::format_duration(time).to_string();
    let mut notes = Vec::new();
    if settings.is_fifo {
        notes.push(
            "attempts are counted only by the host that ran them, while that host runs".to_owned(),
        );
    }
    match &settings.redrive {
        Some(redrive) => notes.push(format!(
            "SQS moves a message to {1} after {0} receives, without a report to the error queue; \
             {2}",
            redrive.receives,
            redrive.to,
            match settings.is_fifo {
                true => "every receive counts, including one after which the message is released",
                false => "only receives after which the host was killed or lost count",
            }
        )),
        None if settings.is_fifo => notes.push(
            "there is no redrive policy, so a task that kills its host is retried forever"
                .to_owned(),
        ),
        None => {}
    }
    if let Some(delay) = settings.delay.filter(|delay| !delay.is_zero()) {
        notes.push(format!("messages can be leased {} after they are sent", seconds(delay)));
    }
    if settings.is_fifo {
        notes.push(
            "SQS delivers one batch of each message group at a time, so messages of one group run \
             almost one after the other"
                .to_owned(),
        );
    }
    if settings.wait.is_some_and(|wait| wait.is_zero()) {
        notes.push(
            "ReceiveMessageWaitTimeSeconds is 0, so other programs that receive without a wait \
             time make many requests; a host always waits"
                .to_owned(),
        );
    }
    Facts {
        visibility: settings.visibility,
        receive_limit: settings.redrive.as_ref().map(|redrive| redrive.receives),
        every_delivery_counts: settings.is_fifo,
        dead_letter_queue: settings.redrive.as_ref().map(|redrive| redrive.to.clone()),
        retention: settings.retention,
        longest_message: Some(settings.limit as u64),
        max_lease: Some(MAX_LEASE),
        is_ordered: settings.is_fifo,
        notes,
    }
}

/// A listing of the messages.
struct Listing {
    inner: Arc<Inner>,
    /// The leases of the messages listed so far.
    held: Arc<Mutex<Vec<Receipt>>>,
    found: VecDeque<Listed>,
    empty: u32,
    /// Renews the leases. `None` after they are released.
    renewing: Option<JoinHandle<()>>,
}

impl Listing {
    fn new(inner: &Arc<Inner>) -> Self {
        let held = Arc::default();
        let renewing = Some(tokio::spawn(renew(inner.clone(), Arc::clone(&held))));
        Self { inner: inner.clone(), held, found: VecDeque::new(), empty: 0, renewing }
    }

    async fn next(&mut self) -> Option<Result<Listed, QueueError>> {
        loop {
            if let Some(found) = self.found.pop_front() {
                return Some(Ok(found));
            }
            if self.empty >= EMPTY {
                self.give_back()?.await;
                return None;
            }
            match self.inner.lease(AT_ONCE, HOLD, WAIT).await {
                Ok(messages) => {
                    self.empty = if messages.is_empty() { self.empty + 1 } else { 0 };
                    for message in messages {
                        self.see(message);
                    }
                }
                Err(error) => {
                    self.empty = EMPTY;
                    return Some(Err(error));
                }
            }
        }
    }

    fn see(&mut self, message: Message) {
        let row = self.inner.leases.get(&message.receipt);
        let sent = row.and_then(|row| row.held.sent_at);
        let Message { id, body, unread, receipt, .. } = message;
        self.found.push_back(Listed { id, due: None, sent, body, unread });
        self.held.lock().push(receipt);
    }

    /// Releases the leases, even if the returned future is dropped. `None` if they were released
    /// before.
    fn give_back(&mut self) -> Option<impl Future<Output = ()> + use<>> {
        let renewing = self.renewing.take()?;
        renewing.abort();
        let (inner, held) = (self.inner.clone(), self.held.clone());
        let work = self.inner.work.spawn(async move {
            // The renewal may replace receipts until it has stopped.
            let _ = renewing.await;
            let held = std::mem::take(&mut *held.lock());
            let rows = held.into_iter().filter_map(|receipt| {
                let row = inner.leases.get(&receipt)?;
                inner.leases.remove(&receipt);
                Some(row)
            });
            inner.give_back_all(rows.collect()).await;
        });
        Some(async move { drop(work.await) })
    }
}

impl Drop for Listing {
    fn drop(&mut self) {
        // If the program ends before the messages are released, the leases expire.
        drop(self.give_back());
    }
}

async fn renew(inner: Arc<Inner>, held: Arc<Mutex<Vec<Receipt>>>) {
    loop {
        tokio::time::sleep(RENEW).await;
        let due = held.lock().clone();
        let renewals = due.iter().map(|receipt| inner.extend(receipt, HOLD));
        let renewed = join_all(renewals).await;
        let mut held = held.lock();
        for (old, new) in due.iter().zip(renewed) {
            match (held.iter_mut().find(|receipt| *receipt == old), new) {
                (Some(place), Ok(new)) => *place = new,
                (Some(_), Err(error)) => tracing::debug!("{error}"),
                (None, _) => {}
            }
        }
    }
}

impl fmt::Display for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.queue.fmt(f)
    }
}
