//! Sends many messages to a queue: several batches at once, in bounded memory.
//!
//! A message that the queue refuses is reported, and the others are sent. A queue that can't be
//! used ends the transfer. This module sends each message once. The client of a cloud queue repeats
//! a request whose response was lost, so the queue may have the messages of that request twice.

use std::sync::Arc;

use bytes::Bytes;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::check::Check;
use super::refusals::Refusals;
use super::{MessageOrigin, Observer, Rejects, RejectsError};
use crate::queue::{self, Access, Address, Queue, QueueError};

/// The number of messages in a batch if a request takes any number.
pub(super) const BATCH: usize = 256;
/// The maximum number of bytes in a batch, unless a single message is larger.
const BATCH_BYTES: usize = 1 << 20;
/// How many batches are sent to a service at once.
const CONCURRENT_BATCHES: usize = 32;
/// How many bytes are sent at once, unless a single batch is larger.
const CONCURRENT_BYTES: usize = 32 << 20;
/// How many batches are checked at once.
const CONCURRENT_CHECKS: usize = 4;

/// The settings of a bulk send.
pub struct BulkSend {
    /// The queue. `None` to do everything except sending.
    to: Option<(Address, Access)>,
    /// Finds the tasks that are done, which are not sent.
    checker: Option<Arc<dyn Check>>,
    pub(super) refusals: Arc<Refusals>,
    /// Ends the transfer early.
    pub(super) stop: CancellationToken,
}

/// The result of a bulk send.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// Messages that are in the queue now; in a dry run, that would be.
    pub sent: u64,
    /// Messages that were not sent because their tasks are done.
    pub skipped: u64,
    /// Messages that are not tasks, or that the queue refused.
    pub refused: u64,
    /// Messages in the file of rejects.
    pub kept: u64,
}

/// Why a bulk send ended early.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The queue could not be opened. Nothing was sent.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The queue failed after some messages were sent. The others can be sent again.
    #[error("{source}")]
    Stopped {
        /// The cause.
        source: QueueError,
        /// The result before the failure.
        done: Box<Sent>,
        /// The first message that was not sent.
        first_unsent: Option<MessageOrigin>,
        /// All messages that were read and not sent are in the file of rejects.
        is_rest_kept: bool,
    },
    /// Some messages to send could not be read. The messages that were read are sent.
    #[error("{source}")]
    Input {
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
        /// The result before the failure; `None` if nothing was begun.
        done: Option<Sent>,
    },
    /// The transfer was told to stop. All messages up to `last` are sent, and none after it.
    #[error("the transfer was told to stop")]
    Interrupted {
        /// The result before the stop.
        done: Sent,
        /// The last message that was sent, refused by the queue, or left out; `None` if there is
        /// none.
        last: Option<MessageOrigin>,
    },
    /// Rejected messages could not be kept.
    #[error(transparent)]
    Rejects(#[from] RejectsError),
}

impl BulkSend {
    /// Sends to `queue`, which is created as [`queue::open`] says. Messages that are not
    /// sent are kept in `rejects`. A dry run opens no queue.
    pub fn new(
        queue: Address,
        access: Access,
        is_dry_run: bool,
        rejects: Option<Rejects>,
        observer: Arc<dyn Observer>,
    ) -> Self {
        let to = (!is_dry_run).then_some((queue, access));
        let refusals = Arc::new(Refusals::new(observer, rejects));
        Self { to, checker: None, refusals, stop: CancellationToken::new() }
    }

    /// Checks tasks and sends nothing: `sent` counts the tasks that are not done.
    pub fn only_check(checker: Arc<dyn Check>, observer: Arc<dyn Observer>) -> Self {
        let refusals = Arc::new(Refusals::new(observer, None));
        Self { to: None, checker: Some(checker), refusals, stop: CancellationToken::new() }
    }

    /// Ends early when `stop` is cancelled, after the messages that are being sent.
    #[must_use]
    pub fn until(self, stop: CancellationToken) -> Self {
        Self { stop, ..self }
    }

    /// Leaves out tasks that are done.
    #[must_use]
    pub fn without_done(self, checker: Arc<dyn Check>) -> Self {
        Self { checker: Some(checker), ..self }
    }

    /// Sends one message.
    ///
    /// # Errors
    /// If the queue can't be used, or the transfer is stopped before it is open.
    pub async fn one(self, body: Bytes, origin: MessageOrigin) -> Result<Sent, SendError> {
        let mut sender = self.start(None).await?;
        sender.push(body, origin).await;
        sender.finish().await
    }

    /// Opens the queue. `total` is the position of the sender at its end.
    pub(super) async fn start(&self, total: Option<u64>) -> Result<Sender, SendError> {
        let target = match &self.to {
            None => None,
            Some((queue, access)) => tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(self.interrupted()),
                opened = Target::open(queue, access, &*self.refusals.observer) => Some(opened?),
            },
        };
        Ok(Sender::new(target, self.checker.clone(), self.refusals.clone(), total))
    }

    /// Ends a transfer for which no sender was started.
    pub(super) fn finish(&self) -> Result<Sent, SendError> {
        let (refused, kept) = (self.refusals.count(), self.refusals.finish()?);
        Ok(Sent { sent: 0, skipped: 0, refused, kept })
    }

    /// The end of a transfer that was stopped before a sender was started.
    pub(super) fn interrupted(&self) -> SendError {
        self.finish().map_or_else(|error| error, |done| SendError::Interrupted { done, last: None })
    }
}

/// Messages that are sent together, each with its origin.
#[derive(Debug, Default)]
pub(super) struct Batch {
    messages: Vec<(Bytes, MessageOrigin)>,
    bytes: usize,
    /// The number of batches before this one.
    number: u64,
}

impl Batch {
    pub(super) fn add(&mut self, body: Bytes, origin: MessageOrigin) {
        self.bytes += body.len();
        self.messages.push((body, origin));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Leaves out the messages whose tasks are done, and counts them.
    async fn only_undone(self, checker: &dyn Check) -> Result<(Self, u64), (Self, QueueError)> {
        let bodies = self.bodies();
        let undone = match checker.to_send(&bodies).await {
            Ok(undone) => undone,
            Err(error) => return Err((self, error)),
        };
        let Self { messages, bytes, number } = self;
        let all = messages.len();
        let kept = messages.into_iter().zip(undone).filter(|(_, undone)| *undone);
        let messages: Vec<_> = kept.map(|(message, _)| message).collect();
        let skipped = (all - messages.len()) as u64;
        // `bytes` does not change, because the sender has counted it.
        Ok((Self { messages, bytes, number }, skipped))
    }

    /// Sends the messages to a queue. `is_untried`: the queue has taken no message yet.
    async fn send(self, target: &Target, is_untried: bool) -> Answer {
        let results = match self.messages.is_empty() {
            true => Vec::new(),
            false => send_each(&*target.queue, &self.bodies()).await,
        };
        // A queue that was deleted refuses everything, and its messages can't be counted either.
        let has_failed = !results.is_empty() && results.iter().all(Result::is_err);
        let broken = match is_untried && has_failed {
            true => target.queue.counts().await.err(),
            false => None,
        };
        Answer { batch: self, skipped: 0, results, broken }
    }

    fn bodies(&self) -> Vec<Bytes> {
        self.messages.iter().map(|(body, _)| body.clone()).collect()
    }

    /// True when the batch should be sent, if batches have `size` messages.
    pub(super) fn is_full(&self, size: usize) -> bool {
        self.messages.len() >= size || self.bytes >= BATCH_BYTES
    }
}

/// A queue that messages are sent to, and how to use it best.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) queue: Arc<dyn Queue>,
    /// The number of messages in a batch.
    pub(super) batch: usize,
    /// How many batches are sent at once: one if messages have to stay in order, or if concurrent
    /// batches would only wait for each other.
    pub(super) concurrent: usize,
    /// Messages have to stay in order.
    pub(super) is_ordered: bool,
}

impl Target {
    /// Opens a queue. A directory is created if there is none, and the observer is told.
    pub(super) async fn open(
        address: &Address,
        access: &Access,
        observer: &dyn Observer,
    ) -> Result<Self, QueueError> {
        let is_new = address.directory().is_some_and(|dir| !dir.exists());
        let queue = queue::open(address, access).await?;
        if is_new {
            observer.created(address);
        }
        let batch = match queue.batch() {
            1 => BATCH,
            n => n,
        };
        let is_ordered = address.keeps_order(access.group.as_deref());
        let concurrent = if address.is_remote() && !is_ordered { CONCURRENT_BATCHES } else { 1 };
        Ok(Self { queue, batch, concurrent, is_ordered })
    }
}

/// Sends messages. If the service refuses a request as a whole, the request is sent again in halves
/// until the message that causes this is found. The result has one entry for each body, in order.
pub(super) async fn send_each(queue: &dyn Queue, bodies: &[Bytes]) -> Vec<Result<(), QueueError>> {
    let results = queue.send(bodies).await;
    if bodies.len() < 2 || !are_refused_alike(&results) {
        return results;
    }
    // A refused request put nothing into the queue, so nothing is sent twice.
    let (first, second) = bodies.split_at(bodies.len() / 2);
    let mut results = Box::pin(send_each(queue, first)).await;
    results.extend(Box::pin(send_each(queue, second)).await);
    results
}

/// True if all messages are refused for the same reason.
fn are_refused_alike(results: &[Result<(), QueueError>]) -> bool {
    let reason = |result: &Result<(), QueueError>| match result {
        Err(QueueError::Invalid { problem, .. }) => Some(problem.clone()),
        _ => None,
    };
    let first = results.first().and_then(reason);
    first.is_some() && results.iter().all(|result| reason(result) == first)
}

/// Sends messages to a queue in batches.
pub(super) struct Sender {
    /// `None` in a dry run.
    target: Option<Target>,
    checker: Option<Arc<dyn Check>>,
    next: Batch,
    sending: JoinSet<Answer>,
    bytes: usize,
    sent: u64,
    skipped: u64,
    refusals: Arc<Refusals>,
    /// Why nothing more is sent.
    broken: Option<QueueError>,
    batches: u64,
    /// The first message that was not sent because of `broken`, after the number of its batch.
    first_unsent: Option<(u64, MessageOrigin)>,
    /// The last message of the last batch.
    last: Option<MessageOrigin>,
}

/// The result of sending a batch.
struct Answer {
    batch: Batch,
    /// Messages of the batch that were left out.
    skipped: u64,
    results: Vec<Result<(), QueueError>>,
    /// Why the queue takes no message at all.
    broken: Option<QueueError>,
}

impl Answer {
    /// The result for a batch of which nothing was sent.
    fn broken(batch: Batch, error: QueueError) -> Self {
        Self { batch, skipped: 0, results: Vec::new(), broken: Some(error) }
    }
}

impl Sender {
    pub(super) fn new(
        target: Option<Target>,
        checker: Option<Arc<dyn Check>>,
        refusals: Arc<Refusals>,
        total: Option<u64>,
    ) -> Self {
        refusals.observer.begins(total);
        Self {
            target,
            checker,
            next: Batch::default(),
            sending: JoinSet::new(),
            bytes: 0,
            sent: 0,
            skipped: 0,
            refusals,
            broken: None,
            batches: 0,
            first_unsent: None,
            last: None,
        }
    }

    /// The number of messages in a batch.
    pub(super) fn batch(&self) -> usize {
        self.target.as_ref().map_or(BATCH, |target| target.batch)
    }

    /// Adds a message to the next batch, and sends the batch when it is full. False if further
    /// messages could neither be sent nor kept.
    pub(super) async fn push(&mut self, body: Bytes, origin: MessageOrigin) -> bool {
        self.next.add(body, origin);
        if !self.next.is_full(self.batch()) {
            return true;
        }
        let batch = std::mem::take(&mut self.next);
        self.send(batch, self.sent).await
    }

    /// Sends a batch when few enough others are being sent. `position` is for the observer. False
    /// if further messages could neither be sent nor kept.
    pub(super) async fn send(&mut self, mut batch: Batch, position: u64) -> bool {
        batch.number = self.batches;
        self.batches += 1;
        if let Some((_, origin)) = batch.messages.last() {
            self.last = Some(origin.clone());
        }
        let most = self.target.as_ref().map_or(CONCURRENT_CHECKS, |target| target.concurrent);
        let is_full = |sender: &Self| {
            let bytes = sender.bytes + batch.bytes;
            sender.sending.len() >= most || (bytes > CONCURRENT_BYTES && !sender.sending.is_empty())
        };
        while is_full(self) {
            self.answer().await;
        }
        if self.broken.is_some() {
            return self.keep(&batch, 0..batch.messages.len());
        }
        self.bytes += batch.bytes;
        match (self.checker.clone(), self.target.clone()) {
            (None, None) => {
                let results = batch.messages.iter().map(|_| Ok(())).collect();
                self.take(Answer { batch, skipped: 0, results, broken: None });
            }
            (checker, target) => {
                let is_untried = self.sent == 0;
                self.sending.spawn(async move {
                    let (batch, skipped) = match &checker {
                        Some(checker) => match batch.only_undone(&**checker).await {
                            Ok(undone) => undone,
                            Err((batch, error)) => return Answer::broken(batch, error),
                        },
                        None => (batch, 0),
                    };
                    let answer = match target {
                        Some(target) => batch.send(&target, is_untried).await,
                        None => {
                            let results = batch.messages.iter().map(|_| Ok(())).collect();
                            Answer { batch, skipped: 0, results, broken: None }
                        }
                    };
                    Answer { skipped, ..answer }
                });
            }
        }
        self.refusals.observer.progress(self.sent + self.skipped, position);
        true
    }

    /// Waits for the result of a batch.
    async fn answer(&mut self) {
        match self.sending.join_next().await {
            Some(Ok(answer)) => self.take(answer),
            Some(Err(stopped)) => {
                self.broken.get_or_insert_with(|| QueueError::Unavailable {
                    queue: self.target.as_ref().map_or(String::new(), |t| t.queue.to_string()),
                    doing: "sending messages".to_owned(),
                    source: Box::new(stopped),
                });
            }
            None => {}
        }
    }

    fn take(&mut self, answer: Answer) {
        let Answer { batch, skipped, results, broken } = answer;
        self.bytes -= batch.bytes;
        self.skipped += skipped;
        if let Some(error) = broken {
            self.keep(&batch, 0..batch.messages.len());
            self.broken.get_or_insert(error);
            return;
        }
        for (n, result) in results.into_iter().enumerate() {
            match result {
                Ok(()) => {
                    let first = batch.messages.get(n).filter(|_| self.sent == 0);
                    if let (Some((body, _)), None) = (first, &self.target) {
                        self.refusals.observer.would_send(body);
                    }
                    self.sent += 1;
                }
                // The message is the cause, and not the queue.
                Err(error @ QueueError::Invalid { .. }) => {
                    if let Some((body, origin)) = batch.messages.get(n) {
                        self.refusals.add(origin, &error, Some(body));
                    }
                }
                Err(error) => {
                    self.keep(&batch, n..n + 1);
                    self.broken.get_or_insert(error);
                }
            }
        }
    }

    /// Keeps messages of a batch that are not sent because the queue fails. False if there is no
    /// file for them.
    fn keep(&mut self, batch: &Batch, which: std::ops::Range<usize>) -> bool {
        let mut all_kept = true;
        for (body, origin) in batch.messages.get(which).unwrap_or_default() {
            all_kept &= self.refusals.keep(body);
            if self.first_unsent.as_ref().is_none_or(|(number, _)| batch.number < *number) {
                self.first_unsent = Some((batch.number, origin.clone()));
            }
        }
        all_kept
    }

    /// Sends the last batch, and waits for all results.
    pub(super) async fn finish(self) -> Result<Sent, SendError> {
        self.end().await.map(|(done, _)| done)
    }

    /// As [`Sender::finish`], for a transfer that was told to stop.
    pub(super) async fn interrupted(self) -> SendError {
        match self.end().await {
            Ok((done, last)) => SendError::Interrupted { done, last },
            // The messages that were not read yet are not kept.
            Err(SendError::Stopped { source, done, first_unsent, .. }) => {
                SendError::Stopped { source, done, first_unsent, is_rest_kept: false }
            }
            Err(error) => error,
        }
    }

    /// As [`Sender::finish`]. Also returns the last message that was handed to the queue.
    async fn end(mut self) -> Result<(Sent, Option<MessageOrigin>), SendError> {
        let rest = std::mem::take(&mut self.next);
        if !rest.is_empty() {
            self.send(rest, self.sent).await;
        }
        while !self.sending.is_empty() {
            self.answer().await;
        }
        if let Some(target) = &self.target {
            target.queue.close().await;
        }
        let is_rest_kept = self.refusals.keeps();
        let kept = self.refusals.finish()?;
        let (sent, skipped, refused) = (self.sent, self.skipped, self.refusals.count());
        let done = Sent { sent, skipped, refused, kept };
        match self.broken {
            None => Ok((done, self.last)),
            Some(source) => {
                let first_unsent = self.first_unsent.map(|(_, origin)| origin);
                let done = Box::new(done);
                Err(SendError::Stopped { source, done, first_unsent, is_rest_kept })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::Ordering::SeqCst;

    use super::super::refusing_queue::RefusingQueue;
    use super::super::tests::Unobserved;
    use super::*;

    /// Sends these messages in batches of 10.
    async fn send(
        messages: impl IntoIterator<Item = String>,
        concurrent: usize,
        rejects: Option<&Path>,
    ) -> (Arc<RefusingQueue>, Result<Sent, SendError>) {
        let queue = Arc::new(RefusingQueue::default());
        let is_ordered = concurrent == 1;
        let target = Target { queue: queue.clone(), batch: 10, concurrent, is_ordered };
        let rejects = rejects.map(|path| Rejects::create(path).unwrap());
        let refusals = Arc::new(Refusals::new(Arc::new(Unobserved), rejects));
        let mut sender = Sender::new(Some(target), None, refusals, None);
        for (i, message) in messages.into_iter().enumerate() {
            if !sender.push(message.into(), MessageOrigin::Line("f".into(), i as u64 + 1)).await {
                break;
            }
        }
        (queue, sender.finish().await)
    }

    fn counts(sent: Result<Sent, SendError>) -> (u64, u64) {
        let Sent { sent, refused, .. } = sent.unwrap();
        (sent, refused)
    }

    fn numbers(n: usize) -> impl Iterator<Item = String> {
        (0..n).map(|i| i.to_string())
    }

    #[tokio::test]
    async fn all_are_sent_once_by_many_requests_at_a_time() {
        let (queue, sent) = send(numbers(995), 8, None).await;
        assert_eq!(counts(sent), (995, 0));
        let mut bodies = queue.bodies().await;
        bodies.sort_by_key(|body| body.parse::<usize>().unwrap());
        assert!(bodies.into_iter().eq(numbers(995)));
        assert_eq!(queue.most.load(SeqCst), 8);
    }

    #[tokio::test]
    async fn where_order_counts_the_next_batch_waits_for_the_last() {
        let (queue, sent) = send(numbers(95), 1, None).await;
        assert_eq!(counts(sent), (95, 0));
        assert!(queue.bodies().await.into_iter().eq(numbers(95)));
        assert_eq!(queue.most.load(SeqCst), 1);
    }

    #[tokio::test]
    async fn what_the_queue_refuses_is_kept_to_be_sent_again() {
        let dir = tempfile::tempdir().unwrap();
        let rejects = dir.path().join("rejects");
        let messages =
            || numbers(100).map(|i| if i.ends_with('7') { format!("{i} too large") } else { i });
        let (queue, sent) = send(messages(), 4, Some(&rejects)).await;
        assert_eq!(sent.unwrap(), Sent { sent: 90, skipped: 0, refused: 10, kept: 10 });
        assert_eq!(queue.bodies().await.len(), 90);
        let kept = std::fs::read_to_string(&rejects).unwrap();
        let mut kept: Vec<&str> = kept.lines().collect();
        kept.sort_unstable();
        let mut want: Vec<String> = messages().filter(|m| m.ends_with("too large")).collect();
        want.sort_unstable();
        assert!(kept.iter().eq(want.iter()), "{kept:?}");
    }

    #[tokio::test]
    async fn a_file_for_rejects_is_gone_if_there_are_none_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let rejects = dir.path().join("rejects");
        send(numbers(3), 1, Some(&rejects)).await.1.unwrap();
        assert!(!rejects.exists());
        std::fs::write(&rejects, "mine").unwrap();
        assert!(matches!(Rejects::create(&rejects), Err(RejectsError::Exists(_))));
        assert_eq!(std::fs::read_to_string(&rejects).unwrap(), "mine");
    }

    #[tokio::test]
    async fn a_queue_that_is_down_ends_it_and_the_rest_is_kept() {
        let broken = |i: String| {
            if (30..60).contains(&i.parse::<usize>().unwrap()) {
                format!("{i} unreachable")
            } else {
                i
            }
        };
        let (queue, sent) = send(numbers(100).map(broken), 1, None).await;
        let error = sent.unwrap_err().to_string();
        assert!(error.contains("connection refused"), "{error}");
        assert_eq!(queue.bodies().await.len(), 30, "nothing is sent after that");

        let dir = tempfile::tempdir().unwrap();
        let rejects = dir.path().join("rejects");
        let (queue, sent) = send(numbers(100).map(broken), 1, Some(&rejects)).await;
        sent.unwrap_err();
        let kept = std::fs::read_to_string(&rejects).unwrap();
        let sent = queue.bodies().await;
        assert!(
            sent.into_iter().chain(kept.lines().map(str::to_owned)).eq(numbers(100).map(broken))
        );
    }

    #[tokio::test]
    async fn a_queue_that_is_gone_is_at_fault_and_not_the_tasks() {
        let (_, sent) = send((0..30).map(|i| format!("{i} gone")), 1, None).await;
        assert!(sent.unwrap_err().to_string().contains("there is no such queue any more"));
    }

    #[tokio::test]
    async fn a_message_that_is_refused_is_refused_wherever_it_stands() {
        // A batch has 10 messages. The refused ones are alone, first, last, in the middle, in a
        // batch of their own, or a whole batch.
        let bad: [&[usize]; 8] = [
            &[0],
            &[9],
            &[10],
            &[24],
            &[30],
            &[0, 30],
            &[0, 9, 10, 11],
            &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
        ];
        for bad in bad {
            for how in ["too large", "whole request"] {
                for concurrent in [1, 4] {
                    let dir = tempfile::tempdir().unwrap();
                    let rejects = dir.path().join("rejects");
                    let text = |n: usize| match bad.contains(&n) {
                        true => format!("{n} {how}"),
                        false => n.to_string(),
                    };
                    let (queue, sent) = send((0..31).map(text), concurrent, Some(&rejects)).await;
                    let want = ((31 - bad.len()) as u64, bad.len() as u64);
                    assert_eq!(counts(sent), want, "{bad:?} {how}");
                    let mut kept: Vec<String> = std::fs::read_to_string(&rejects)
                        .unwrap()
                        .lines()
                        .map(str::to_owned)
                        .collect();
                    kept.sort_by_key(|line| {
                        line.split(' ').next().unwrap().parse::<usize>().unwrap()
                    });
                    assert!(kept.into_iter().eq(bad.iter().map(|&n| text(n))), "{bad:?} {how}");
                    let mut there = queue.bodies().await;
                    there.sort_by_key(|body| body.parse::<usize>().unwrap());
                    let good = (0..31).filter(|n| !bad.contains(n)).map(text);
                    assert!(there.into_iter().eq(good), "{bad:?} {how}");
                }
            }
        }
    }

    #[tokio::test]
    async fn a_message_alone_is_refused_as_among_others() {
        assert_eq!(counts(send(["too large".to_owned()], 1, None).await.1), (0, 1));
    }

    #[tokio::test]
    async fn a_queue_that_can_not_be_reached_for_one_message_ends_it_wherever_that_stands() {
        for position in [0, 9, 10, 24, 30] {
            let dir = tempfile::tempdir().unwrap();
            let rejects = dir.path().join("rejects");
            let text = |n: usize| match n == position {
                true => format!("{n} unreachable"),
                false => n.to_string(),
            };
            let (queue, sent) = send((0..31).map(text), 1, Some(&rejects)).await;
            let Err(SendError::Stopped { first_unsent, is_rest_kept, .. }) = sent else {
                panic!("{sent:?}");
            };
            let line = MessageOrigin::Line("f".into(), position as u64 + 1);
            assert_eq!((first_unsent, is_rest_kept), (Some(line), true));
            // Each message is either in the queue or in the file.
            let mut all = queue.bodies().await;
            let kept = std::fs::read_to_string(&rejects).unwrap();
            all.extend(kept.lines().map(str::to_owned));
            all.sort_by_key(|body| body.split(' ').next().unwrap().parse::<usize>().unwrap());
            assert!(all.into_iter().eq((0..31).map(text)), "position {position}");
        }
    }
}
