//! A queue of SQS as its operator sees it.
//!
//! SQS shows a message to nobody but those who lease it. So looking into a queue leases all
//! messages that nobody holds, keeps those leases while somebody looks, and gives the messages
//! back at the end as a host does that stops: that is no attempt.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use futures_util::stream::{self, BoxStream, StreamExt};
use tokio::task::JoinHandle;

use super::failure::Failure;
use super::settings::Settings;
use super::{Inner, LONGEST_HOLD, SqsQueue};
use crate::queue::address::Sqs;
use crate::queue::{self, Access, Counts, Facts, Listed, Message, QueueError, Receipt};

/// How long a message that is looked at stays away if the one who looks is killed.
const HOLD: Duration = Duration::from_secs(300);
/// How often these leases are renewed.
const RENEW: Duration = Duration::from_secs(120);
/// How long a poll waits: SQS does not look everywhere for one that doesn't.
const WAIT: Duration = Duration::from_secs(1);
/// Messages asked for at once.
const AT_ONCE: usize = 50;
/// Polls in a row that bring nothing before the queue is taken to hold no more.
const EMPTY: u32 = 2;

/// A queue of SQS as its operator sees it.
#[derive(Debug)]
pub struct Admin {
    pub(super) queue: SqsQueue,
}

impl Admin {
    /// Opens the queue, which must be there.
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
                "its messages can't be looked at: on a FIFO queue, and on one with a redrive \
                 policy, that changes how often each was received, and might move them to the \
                 dead-letter queue",
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
            "SQS can't end the leases of others; what a host holds that is gone comes back when \
             its lease ends",
        ))
    }

    async fn rezero(&self) -> Result<(), QueueError> {
        Err(self.cannot("SQS has no counters of messages sent and done"))
    }

    async fn purge(&self) -> Result<Option<u64>, QueueError> {
        let inner = &self.queue.inner;
        match inner.service.purge().await {
            Ok(()) => Ok(None),
            Err(Failure::Invalid(text)) if text.starts_with("PurgeQueueInProgress") => Err(self
                .cannot("SQS removes all messages once in 60 seconds only; try again in a minute")),
            Err(failure) => Err(failure.of_queue(&inner.name, "removing the messages")),
        }
    }

    async fn close(&self) {
        self.queue.inner.close().await;
    }

    async fn facts(&self) -> Result<Facts, QueueError> {
        let inner = &self.queue.inner;
        let settings = Settings::read(&inner.service).await;
        let settings =
            settings.map_err(|failure| failure.of_queue(&inner.name, "reading its settings"))?;
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
            "how often a task failed, and why, is known only to the host that ran it, for as long \
             as that host runs"
                .to_owned(),
        );
    }
    match &settings.redrive {
        Some(redrive) => notes.push(format!(
            "a message that was received {} times is moved to {} by SQS, with no report on the \
             error queue; {}",
            redrive.receives,
            redrive.to,
            match settings.is_fifo {
                true => "every receive counts, also one by a host that only had to stop",
                false => "a receive counts after which the host was killed or lost",
            }
        )),
        None if settings.is_fifo => notes.push(
            "there is no redrive policy, so a task that kills its host is tried without end"
                .to_owned(),
        ),
        None => {}
    }
    if let Some(delay) = settings.delay.filter(|delay| !delay.is_zero()) {
        notes.push(format!("messages are first given out {} after they are sent", seconds(delay)));
    }
    if settings.is_fifo {
        notes.push(
            "of each message group one batch at a time is given out: what is sent with one group \
             runs nearly one after the other"
                .to_owned(),
        );
    }
    if settings.wait.is_some_and(|wait| wait.is_zero()) {
        notes.push(
            "other programs that receive without saying for how long to wait don't wait at all, \
             which costs requests (ReceiveMessageWaitTimeSeconds is 0); a host always waits"
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
        longest_hold: Some(LONGEST_HOLD),
        is_ordered: settings.is_fifo,
        notes,
    }
}

/// Somebody looks into the queue.
struct Listing {
    inner: Arc<Inner>,
    /// The leases of all that was seen.
    held: Arc<Mutex<Vec<Receipt>>>,
    found: VecDeque<Listed>,
    empty: u32,
    /// Keeps the leases. None once they are given back.
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
        self.held.lock().unwrap_or_else(PoisonError::into_inner).push(receipt);
    }

    /// Gives back all that is held, even if nobody waits for it. None: that was done.
    fn give_back(&mut self) -> Option<impl Future<Output = ()> + use<>> {
        let renewing = self.renewing.take()?;
        renewing.abort();
        let (inner, held) = (self.inner.clone(), self.held.clone());
        let work = self.inner.work.spawn(async move {
            // Until then a receipt may be replaced by another.
            let _ = renewing.await;
            let held = std::mem::take(&mut *held.lock().unwrap_or_else(PoisonError::into_inner));
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
        // As far as the program goes on; else they come back when their leases end.
        drop(self.give_back());
    }
}

async fn renew(inner: Arc<Inner>, held: Arc<Mutex<Vec<Receipt>>>) {
    loop {
        tokio::time::sleep(RENEW).await;
        let due = held.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let renewals = due.iter().map(|receipt| inner.extend(receipt, HOLD));
        let renewed = join_all(renewals).await;
        let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
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
