//! Puts messages into a queue: batches, many of them under way at once, in bounded memory.
//!
//! A message that the queue refuses is reported, and the others are sent, wherever in a batch it
//! stands. A queue that can't be used ends the work. Nothing is sent a second time: the first
//! answer may have been lost after the message had arrived.

use std::sync::Arc;

use bytes::Bytes;
use task_host::queue::{self, Address, AddressError, Queue, QueueError};
use tokio::task::JoinSet;

use super::console::Console;
use super::exit_code::Advice;
use super::output;
use super::progress_line::ProgressLine;
use super::refusals::{Place, Refusals};

/// Messages that are sent in one go where a request takes any number.
const BATCH: usize = 256;
/// Bytes of messages that are sent in one go, unless one alone has more.
const BATCH_BYTES: usize = 1 << 20;
/// Batches that are under way at a time to a queue that is a network away.
const UNDER_WAY: usize = 32;
/// Bytes that are under way at a time, unless one batch alone has more.
const BYTES_UNDER_WAY: usize = 32 << 20;

/// Messages that are sent in one go, each with where it stood.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    messages: Vec<(Bytes, Place)>,
    bytes: usize,
    /// How many batches there were before it.
    number: u64,
}

impl Batch {
    pub(crate) fn add(&mut self, body: Bytes, place: Place) {
        self.bytes += body.len();
        self.messages.push((body, place));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// True when it should be sent, where a batch has so many messages.
    pub(crate) fn is_full(&self, size: usize) -> bool {
        self.messages.len() >= size || self.bytes >= BATCH_BYTES
    }
}

/// A queue that messages go to, and how it is best used.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) queue: Arc<dyn Queue>,
    /// Messages of one batch.
    pub(crate) batch: usize,
    /// Batches that may be under way at once: one where messages have to stay in order, or
    /// where more would be in each other's way.
    pub(crate) under_way: usize,
    /// Messages have to stay in order.
    pub(crate) is_ordered: bool,
}

impl Target {
    /// Opens a queue. A directory queue is made if there is none, which is said.
    pub(crate) async fn open(
        screen: &Console,
        url: &str,
        access: &queue::Access,
    ) -> anyhow::Result<Self> {
        let address: Address = url.parse()?;
        let is_new = address.directory().is_some_and(|dir| !dir.exists());
        let queue = queue::open(&address, access).await?;
        if is_new {
            screen.tell(format_args!("created {url}"));
        }
        let batch = match queue.batch() {
            1 => BATCH,
            n => n,
        };
        let is_ordered = is_ordered(url, access)?;
        let under_way = if is_remote(url)? && !is_ordered { UNDER_WAY } else { 1 };
        Ok(Self { queue, batch, under_way, is_ordered })
    }
}

/// True for a queue that is a network away.
pub(crate) fn is_remote(url: &str) -> Result<bool, AddressError> {
    Ok(url.parse::<Address>()?.is_remote())
}

/// True for a queue that keeps the order in which messages are sent.
pub(crate) fn is_ordered(url: &str, access: &queue::Access) -> Result<bool, AddressError> {
    Ok(url.parse::<Address>()?.keeps_order(access.group.as_deref()))
}

/// Sends messages, and asks about each by itself where a service refuses a request as a whole.
/// The answer has one entry for each body, in their order.
pub(crate) async fn send_each(queue: &dyn Queue, bodies: &[Bytes]) -> Vec<Result<(), QueueError>> {
    let results = queue.send(bodies).await;
    if bodies.len() < 2 || !are_refused_alike(&results) {
        return results;
    }
    // What was refused is not in the queue, so it is not sent twice.
    let (first, second) = bodies.split_at(bodies.len() / 2);
    let mut results = Box::pin(send_each(queue, first)).await;
    results.extend(Box::pin(send_each(queue, second)).await);
    results
}

/// True when all messages are refused for one reason.
fn are_refused_alike(results: &[Result<(), QueueError>]) -> bool {
    let reason = |result: &Result<(), QueueError>| match result {
        Err(QueueError::Invalid { problem, .. }) => Some(problem.clone()),
        _ => None,
    };
    let first = results.first().and_then(reason);
    first.is_some() && results.iter().all(|result| reason(result) == first)
}

/// Sends messages to a queue.
pub(crate) struct Sender {
    /// None when nothing is really to be sent.
    target: Option<Target>,
    next: Batch,
    sending: JoinSet<Answer>,
    bytes: usize,
    sent: u64,
    refusals: Arc<Refusals>,
    meter: ProgressLine,
    /// Why no more is sent.
    broken: Option<QueueError>,
    batches: u64,
    /// The first message that was not sent because of that, and its batch.
    stopped: Option<(u64, Place)>,
}

/// What became of a batch.
struct Answer {
    batch: Batch,
    results: Vec<Result<(), QueueError>>,
    /// The queue takes no message, whatever it is.
    broken: Option<QueueError>,
}

impl Sender {
    pub(crate) fn new(
        target: Option<Target>,
        refusals: Arc<Refusals>,
        meter: ProgressLine,
    ) -> Self {
        Self {
            target,
            next: Batch::default(),
            sending: JoinSet::new(),
            bytes: 0,
            sent: 0,
            refusals,
            meter,
            broken: None,
            batches: 0,
            stopped: None,
        }
    }

    /// Messages of one batch.
    pub(crate) fn batch(&self) -> usize {
        self.target.as_ref().map_or(BATCH, |target| target.batch)
    }

    /// Sends a message, with the next ones. False when there is no use in further ones.
    pub(crate) async fn push(&mut self, body: Bytes, place: Place) -> bool {
        self.next.add(body, place);
        if !self.next.is_full(self.batch()) {
            return true;
        }
        let batch = std::mem::take(&mut self.next);
        self.send(batch, self.sent).await
    }

    /// Sends a batch when there is room for it among those under way; `position` is how far
    /// the work then is. False when there is no use in further ones: the queue can't be used,
    /// and there is no file to keep them in.
    pub(crate) async fn send(&mut self, mut batch: Batch, position: u64) -> bool {
        batch.number = self.batches;
        self.batches += 1;
        let most = self.target.as_ref().map_or(1, |target| target.under_way);
        let is_full = |sender: &Self| {
            let bytes = sender.bytes + batch.bytes;
            sender.sending.len() >= most || (bytes > BYTES_UNDER_WAY && !sender.sending.is_empty())
        };
        while is_full(self) {
            self.answer().await;
        }
        if self.broken.is_some() {
            return self.keep(&batch, 0..batch.messages.len());
        }
        self.bytes += batch.bytes;
        match self.target.clone() {
            Some(target) => {
                let is_untried = self.sent == 0;
                self.sending.spawn(async move {
                    let bodies: Vec<Bytes> =
                        batch.messages.iter().map(|(body, _)| body.clone()).collect();
                    let results = send_each(&*target.queue, &bodies).await;
                    // A queue that was deleted refuses everything, and can't be counted either.
                    let broken = match is_untried && results.iter().all(Result::is_err) {
                        true => target.queue.counts().await.err(),
                        false => None,
                    };
                    Answer { batch, results, broken }
                });
            }
            None => {
                let results = batch.messages.iter().map(|_| Ok(())).collect();
                self.take(Answer { batch, results, broken: None });
            }
        }
        self.meter.at(self.sent, position);
        true
    }

    /// Waits for the next batch that is under way.
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
        let Answer { batch, results, broken } = answer;
        self.bytes -= batch.bytes;
        if let Some(error) = broken {
            self.keep(&batch, 0..batch.messages.len());
            self.broken.get_or_insert(error);
            return;
        }
        for (n, result) in results.into_iter().enumerate() {
            match result {
                Ok(()) => self.sent += 1,
                // It is the message that can't be sent.
                Err(error @ QueueError::Invalid { .. }) => {
                    if let Some((body, place)) = batch.messages.get(n) {
                        self.refusals.add(place, &error, Some(body));
                    }
                }
                Err(error) => {
                    self.keep(&batch, n..n + 1);
                    self.broken.get_or_insert(error);
                }
            }
        }
    }

    /// Keeps messages of a batch that are not sent for no fault of theirs. False if there is no
    /// file to keep them in.
    fn keep(&mut self, batch: &Batch, which: std::ops::Range<usize>) -> bool {
        let mut all_kept = true;
        for (body, place) in batch.messages.get(which).unwrap_or_default() {
            all_kept &= self.refusals.keep(body);
            if self.stopped.as_ref().is_none_or(|(number, _)| batch.number < *number) {
                self.stopped = Some((batch.number, place.clone()));
            }
        }
        all_kept
    }

    /// Sends what is left, and waits for what is under way. Returns how many were sent, and
    /// how many were refused, by whomever.
    ///
    /// # Errors
    /// When the queue could not be used.
    pub(crate) async fn finish(mut self, noun: &str) -> anyhow::Result<(u64, u64)> {
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
        drop(self.meter);
        let keeps = self.refusals.keeps();
        let refused = self.refusals.finish()?;
        match self.broken {
            None => Ok((self.sent, refused)),
            Some(error) => {
                let sent = output::count(self.sent, noun);
                let first = match &self.stopped {
                    Some((_, place)) => format!("the first that is not: {place}"),
                    None => "none is missing".to_owned(),
                };
                let others = match keeps {
                    true => "the others are in the file of --rejects",
                    false => "from there on some may be missing",
                };
                Err(Advice::failed(error.to_string())
                    .hint(format!(
                        "{sent} sent before that are in the queue; {first}; {others}. One whose \
                         answer got lost may be in the queue all the same"
                    ))
                    .into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::Ordering::SeqCst;

    use super::super::picky::Picky;
    use super::*;

    /// Sends these messages, one batch for each `batch` of them.
    async fn send(
        messages: impl IntoIterator<Item = String>,
        under_way: usize,
        rejects: Option<&Path>,
    ) -> (Arc<Picky>, anyhow::Result<(u64, u64)>) {
        let queue = Arc::new(Picky::default());
        let is_ordered = under_way == 1;
        let target = Target { queue: queue.clone(), batch: 10, under_way, is_ordered };
        let screen = Console::hidden();
        let refusals = Arc::new(Refusals::new(&screen, rejects).unwrap());
        let mut sender =
            Sender::new(Some(target), refusals, ProgressLine::new(&screen, "tasks", "sent", None));
        for (i, message) in messages.into_iter().enumerate() {
            if !sender.push(message.into(), Place::Line("f".into(), i as u64 + 1)).await {
                break;
            }
        }
        (queue, sender.finish("task").await)
    }

    fn numbers(n: usize) -> impl Iterator<Item = String> {
        (0..n).map(|i| i.to_string())
    }

    #[tokio::test]
    async fn all_are_sent_once_by_many_requests_at_a_time() {
        let (queue, sent) = send(numbers(995), 8, None).await;
        assert_eq!(sent.unwrap(), (995, 0));
        let mut bodies = queue.bodies().await;
        bodies.sort_by_key(|body| body.parse::<usize>().unwrap());
        assert!(bodies.into_iter().eq(numbers(995)));
        assert_eq!(queue.most.load(SeqCst), 8);
    }

    #[tokio::test]
    async fn where_order_counts_the_next_batch_waits_for_the_last() {
        let (queue, sent) = send(numbers(95), 1, None).await;
        assert_eq!(sent.unwrap(), (95, 0));
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
        assert_eq!(sent.unwrap(), (90, 10));
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
        assert!(Refusals::new(&Console::hidden(), Some(&rejects)).is_err());
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
        let error = format!("{:#}", sent.unwrap_err());
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
        // 10 to a batch: alone, first, last, in the middle, in a batch of its own, all of one.
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
                for under_way in [1, 4] {
                    let dir = tempfile::tempdir().unwrap();
                    let rejects = dir.path().join("rejects");
                    let text = |n: usize| match bad.contains(&n) {
                        true => format!("{n} {how}"),
                        false => n.to_string(),
                    };
                    let (queue, sent) = send((0..31).map(text), under_way, Some(&rejects)).await;
                    let counts = ((31 - bad.len()) as u64, bad.len() as u64);
                    assert_eq!(sent.unwrap(), counts, "{bad:?} {how}");
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
        assert_eq!(send(["too large".to_owned()], 1, None).await.1.unwrap(), (0, 1));
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
            let error = sent.unwrap_err();
            let hint = error.downcast_ref::<Advice>().unwrap().told_hint();
            assert!(hint.contains(&format!("f, line {}", position + 1)), "{hint}");
            // Each is in one place, and in no other.
            let mut all = queue.bodies().await;
            let kept = std::fs::read_to_string(&rejects).unwrap();
            all.extend(kept.lines().map(str::to_owned));
            all.sort_by_key(|body| body.split(' ').next().unwrap().parse::<usize>().unwrap());
            assert!(all.into_iter().eq((0..31).map(text)), "position {position}");
        }
    }
}
