//! Leases messages of one queue, and sends them or the tasks that they report to another queue.
//!
//! A message is deleted from the source only after it arrived in the target. If the process is
//! killed in between, the message is in both queues.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::refusals::Refusals;
use super::send::{BATCH, Target, send_each};
use super::{MessageOrigin, Observer};
use crate::lease::{Lease, Leases, Settlement, Unsettled};
use crate::queue::{self, Access, Address, Queue, QueueError, Release};

/// How long a message is leased. The lease is renewed while this process lives.
const LEASE: Duration = Duration::from_secs(60);
/// The number of lanes that forward batches if both queues are directories: one for each of two
/// cores.
const LOCAL_LANES: usize = 2;
/// The number of lanes that forward batches if one of the queues is a service's.
const REMOTE_LANES: usize = 16;
/// How long a lease request to a service waits for messages.
const REMOTE_WAIT: Duration = Duration::from_secs(2);
/// The number of empty responses in a row after which a service's queue counts as empty.
const REMOTE_EMPTY: u32 = 2;
/// The maximum number of messages that are leased until the end because they stay in the source.
/// Services don't allow many more.
const MOST_HELD_BACK: usize = 100_000;

/// What to do with a message.
pub(super) enum Choice {
    /// Send this text, and delete the message. The message is counted under the name.
    Send(Bytes, String),
    /// Release the message as it is.
    Leave,
    /// Release the report of a task that is done.
    LeaveDone,
    /// Release the message, and report it as refused for this reason.
    Refuse(String),
}

/// Decides by the text of a message.
pub(super) type Choose = dyn Fn(&Bytes) -> Choice + Send + Sync;

/// Which messages are forwarded, from where and to where.
pub(super) struct Forward {
    pub(super) source: Arc<dyn Queue>,
    /// One of the two queues is a service's.
    pub(super) is_remote: bool,
    pub(super) target: Target,
    pub(super) choose: Box<Choose>,
    /// The maximum number of messages to send.
    pub(super) limit: u64,
    /// The maximum number of messages to look at.
    pub(super) looks: u64,
}

/// The result of forwarding.
#[derive(Debug, Default)]
pub struct Forwarded {
    /// Messages that are in the target now.
    pub sent: u64,
    /// Messages that were looked at and not chosen.
    pub left: u64,
    /// Reports of tasks that are done. They stay in the source.
    pub done: u64,
    /// Messages that could not be forwarded. They stay in the source, or are in both queues.
    pub refused: u64,
    /// The messages that were sent, by the names that they are counted under.
    pub names: BTreeMap<String, u64>,
    /// The transfer was told to stop.
    pub is_interrupted: bool,
    /// The rest of the messages was not looked at, because too many had to stay.
    pub is_cut_short: bool,
}

/// Why messages were not forwarded, or not all of them.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// A queue could not be opened. Nothing was forwarded.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// A queue failed during the transfer. All other messages are still in the source.
    #[error("{source}")]
    Stopped {
        /// The cause.
        source: QueueError,
        /// How many messages were forwarded before.
        sent: u64,
    },
}

/// Moves all messages that are not leased from the queue `from` to the queue `to`, until `stop` is
/// cancelled. Also returns how many messages are left in the source besides the refused ones, if
/// that is known.
///
/// # Errors
/// If one of the queues can't be used.
pub async fn move_all(
    from: &Address,
    to: &Address,
    access: &Access,
    observer: Arc<dyn Observer>,
    stop: &CancellationToken,
) -> Result<(Forwarded, Option<u64>), ForwardError> {
    // Only the target may be created.
    let source = queue::open(from, &Access { create: false, ..access.clone() }).await?;
    let target = Target::open(to, access, &*observer).await?;
    let total = source.counts().await?.enqueued;
    let forward = Forward {
        source: source.clone(),
        is_remote: from.is_remote() || to.is_remote(),
        target,
        choose: Box::new(|body| Choice::Send(body.clone(), String::new())),
        limit: u64::MAX,
        looks: u64::MAX,
    };
    let done = forward.run(observer, stop, total).await?;
    // The counts of a service lag behind.
    let left = match from.is_remote() {
        true => None,
        false => source.counts().await?.enqueued,
    };
    let left = left.map(|left| left.saturating_sub(done.refused));
    Ok((done, left))
}

/// The state that all lanes share.
struct Work {
    forward: Forward,
    leases: Leases,
    batch: usize,
    refusals: Refusals,
    progress: Mutex<ForwardProgress>,
}

struct ForwardProgress {
    /// The remaining number of messages to send.
    limit: u64,
    /// The remaining number of messages to look at.
    looks: u64,
    /// Messages that stay in the source. They are leased until the end so that no lane looks at
    /// them twice.
    held_back: Vec<Lease>,
    done: Forwarded,
    failed: Option<QueueError>,
}

impl Forward {
    /// Forwards until nothing is left, a limit is reached or `stop` is cancelled. `total` is the
    /// approximate number of messages to send.
    ///
    /// # Errors
    /// If one of the queues can't be used. The messages that were not sent are released.
    pub(super) async fn run(
        self,
        observer: Arc<dyn Observer>,
        stop: &CancellationToken,
        total: Option<u64>,
    ) -> Result<Forwarded, ForwardError> {
        observer.begins(total);
        let source_batch = match self.source.batch() {
            1 => BATCH,
            n => n,
        };
        let lanes = match (self.target.is_ordered, self.is_remote) {
            (true, _) => 1,
            (false, true) => REMOTE_LANES,
            (false, false) => LOCAL_LANES,
        };
        let work = Arc::new(Work {
            leases: Leases::new(self.source.clone(), LEASE, Arc::default(), &Handle::current()),
            batch: source_batch.min(self.target.batch),
            refusals: Refusals::new(observer, None),
            progress: Mutex::new(ForwardProgress {
                limit: self.limit,
                looks: self.looks,
                held_back: Vec::new(),
                done: Forwarded::default(),
                failed: None,
            }),
            forward: self,
        });
        let mut lanes: JoinSet<()> = (0..lanes).map(|_| work.clone().lane(stop.clone())).collect();
        while let Some(ended) = lanes.join_next().await {
            if let Err(stopped) = ended {
                work.progress.lock().failed.get_or_insert_with(|| QueueError::Unavailable {
                    queue: work.forward.source.to_string(),
                    doing: "forwarding messages".to_owned(),
                    source: Box::new(stopped),
                });
            }
        }
        work.progress.lock().done.is_interrupted = stop.is_cancelled();
        work.end().await
    }
}

impl Work {
    /// How many messages to lease next; zero when the work is done.
    fn next(&self, stop: &CancellationToken) -> usize {
        let progress = self.progress.lock();
        let is_over = progress.failed.is_some() || stop.is_cancelled() || progress.limit == 0;
        if is_over || progress.done.is_cut_short {
            return 0;
        }
        // At least 10, because some of the leased messages may have to stay.
        let most = progress.looks.min(progress.limit.max(10));
        usize::try_from(most).unwrap_or(usize::MAX).min(self.batch)
    }

    async fn lane(self: Arc<Self>, stop: CancellationToken) {
        let (wait, patience) = match self.forward.is_remote {
            true => (REMOTE_WAIT, REMOTE_EMPTY),
            false => (Duration::ZERO, 1),
        };
        let mut empty = 0;
        while empty < patience {
            let most = self.next(&stop);
            if most == 0 {
                return;
            }
            match self.leases.lease(most, wait).await {
                Ok(leased) if leased.is_empty() => empty += 1,
                Ok(leased) => {
                    empty = 0;
                    self.forward(leased).await;
                }
                Err(error) => {
                    self.progress.lock().failed.get_or_insert(error);
                }
            }
        }
    }

    async fn forward(&self, leased: Vec<Lease>) {
        let (bodies, sending) = self.sort(leased);
        if bodies.is_empty() {
            return;
        }
        let results = send_each(&*self.forward.target.queue, &bodies).await;
        let settling =
            results.into_iter().zip(sending).map(async |(sent, (lease, name))| match sent {
                Ok(()) => {
                    let id = lease.message().id.clone();
                    // The task was moved and is not done.
                    let settled = lease.settle(&Settlement::Reject).await;
                    self.count(name);
                    if let Err(Unsettled { error, .. }) = settled {
                        let problem = format!("is in both queues: {error}");
                        self.refuse(&id, &problem);
                    }
                }
                Err(error) => {
                    // If the target is down, the message is not the cause.
                    let is_down = !matches!(error, QueueError::Invalid { .. });
                    if !is_down {
                        self.refuse(&lease.message().id, &error);
                    }
                    let mut progress = self.progress.lock();
                    progress.limit = progress.limit.saturating_add(1);
                    progress.held_back.push(lease);
                    if is_down {
                        progress.failed.get_or_insert(error);
                    }
                }
            });
        join_all(settling).await;
    }

    /// The texts to send, with their leases and names. The other messages are held back.
    fn sort(&self, leased: Vec<Lease>) -> (Vec<Bytes>, Vec<(Lease, String)>) {
        let (mut bodies, mut sending) = (Vec::new(), Vec::new());
        {
            let mut progress = self.progress.lock();
            progress.looks = progress.looks.saturating_sub(leased.len() as u64);
        }
        for lease in leased {
            let choice = match &lease.message().unread {
                Some(problem) => Choice::Refuse(problem.clone()),
                None => (self.forward.choose)(&lease.message().body),
            };
            if let Choice::Refuse(problem) = &choice {
                self.refuse(&lease.message().id, problem);
            }
            let mut progress = self.progress.lock();
            match choice {
                Choice::Send(body, name) if progress.limit > 0 => {
                    progress.limit -= 1;
                    bodies.push(body);
                    sending.push((lease, name));
                }
                Choice::Send(..) => progress.held_back.push(lease),
                Choice::Leave => {
                    progress.done.left += 1;
                    progress.held_back.push(lease);
                }
                Choice::LeaveDone => {
                    progress.done.done += 1;
                    progress.held_back.push(lease);
                }
                Choice::Refuse(_) => progress.held_back.push(lease),
            }
            progress.done.is_cut_short |= progress.held_back.len() >= MOST_HELD_BACK;
        }
        (bodies, sending)
    }

    fn count(&self, name: String) {
        let mut progress = self.progress.lock();
        progress.done.sent += 1;
        *progress.done.names.entry(name).or_default() += 1;
        let sent = progress.done.sent;
        self.refusals.observer.progress(sent, sent);
    }

    fn refuse(&self, id: &str, problem: &dyn std::fmt::Display) {
        self.refusals.add(&MessageOrigin::message(id), problem, None);
    }

    /// Releases the messages that stay, and closes both queues.
    async fn end(&self) -> Result<Forwarded, ForwardError> {
        let held_back = std::mem::take(&mut self.progress.lock().held_back);
        let mut held_back = held_back.into_iter();
        loop {
            let some: Vec<Lease> = held_back.by_ref().take(BATCH).collect();
            if some.is_empty() {
                break;
            }
            let release = Settlement::Release(Duration::ZERO, Release::Uncounted);
            let released = some.into_iter().map(async |l: Lease| l.settle(&release).await);
            for Unsettled { error, .. } in
                join_all(released).await.into_iter().filter_map(Result::err)
            {
                tracing::warn!("{error}");
            }
        }
        self.forward.source.close().await;
        self.forward.target.queue.close().await;
        let mut progress = self.progress.lock();
        let mut done = std::mem::take(&mut progress.done);
        done.refused = self.refusals.count();
        match progress.failed.take() {
            None => Ok(done),
            Some(source) => Err(ForwardError::Stopped { source, sent: done.sent }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::refusing_queue::RefusingQueue;
    use super::super::tests::Unobserved;
    use super::*;

    async fn source(messages: impl IntoIterator<Item = String>) -> Arc<RefusingQueue> {
        let queue = Arc::new(RefusingQueue::default());
        let bodies: Vec<Bytes> = messages.into_iter().map(Bytes::from).collect();
        // The source accepts any message.
        for result in queue.put(&bodies).await {
            result.unwrap();
        }
        queue
    }

    async fn forward(
        source: &Arc<RefusingQueue>,
        limit: u64,
        choose: impl Fn(&Bytes) -> Choice + Send + Sync + 'static,
    ) -> (Arc<RefusingQueue>, Result<Forwarded, ForwardError>) {
        let queue = Arc::new(RefusingQueue::default());
        let target = Target { queue: queue.clone(), batch: 10, concurrent: 1, is_ordered: false };
        let forward = Forward {
            source: source.clone(),
            is_remote: false,
            target,
            choose: Box::new(choose),
            limit,
            looks: u64::MAX,
        };
        let stop = CancellationToken::new();
        (queue, forward.run(Arc::new(Unobserved), &stop, None).await)
    }

    fn all(body: &Bytes) -> Choice {
        Choice::Send(body.clone(), String::new())
    }

    fn numbers(n: usize) -> impl Iterator<Item = String> {
        (0..n).map(|i| i.to_string())
    }

    #[tokio::test]
    async fn what_the_target_refuses_stays_and_can_be_leased_at_once() {
        let messages = numbers(100).map(|i| if i == "42" { "too large".to_owned() } else { i });
        let source = source(messages).await;
        let (target, forwarded) = forward(&source, u64::MAX, all).await;
        let forwarded = forwarded.unwrap();
        assert_eq!((forwarded.sent, forwarded.refused), (99, 1));
        assert_eq!(source.bodies().await, ["too large"]);
        assert_eq!(target.bodies().await.len(), 99);
    }

    #[tokio::test]
    async fn a_message_that_is_refused_stays_wherever_it_stands() {
        for position in [0, 1, 9, 10, 24] {
            for (bad, is_refused) in
                [("too large", true), ("whole request", true), ("unreachable", false)]
            {
                let messages = (0..25).map(|i| match i == position {
                    true => bad.to_owned(),
                    false => i.to_string(),
                });
                let source = source(messages).await;
                let (target, forwarded) = forward(&source, u64::MAX, all).await;
                let case = format!("{bad} at {position}");
                if is_refused {
                    let forwarded = forwarded.unwrap();
                    assert_eq!((forwarded.sent, forwarded.refused), (24, 1), "{case}");
                    assert_eq!(source.bodies().await, [bad], "{case}");
                    assert_eq!(target.bodies().await.len(), 24, "{case}");
                } else {
                    // The message is still in the source, and no message is in both queues.
                    forwarded.unwrap_err();
                    let (left, moved) = (source.bodies().await, target.bodies().await);
                    assert!(left.iter().any(|body| body == bad), "{case}");
                    assert_eq!(left.len() + moved.len(), 25, "{case}");
                }
            }
        }
    }

    #[tokio::test]
    async fn a_target_that_is_down_loses_nothing() {
        let messages = (0..50).map(|i| format!("{i} unreachable"));
        let source = source(messages).await;
        let (target, forwarded) = forward(&source, u64::MAX, all).await;
        assert!(forwarded.unwrap_err().to_string().contains("connection refused"));
        assert_eq!(source.bodies().await.len(), 50);
        assert!(target.bodies().await.is_empty());
    }

    #[tokio::test]
    async fn what_is_not_chosen_is_given_back_and_a_limit_is_kept() {
        let source = source(numbers(100)).await;
        let even = |body: &Bytes| match body.last().map(|b| b % 2) {
            Some(0) => Choice::Send(body.clone(), "even".to_owned()),
            _ => Choice::Leave,
        };
        let (target, forwarded) = forward(&source, 20, even).await;
        let forwarded = forwarded.unwrap();
        assert_eq!(forwarded.sent, 20);
        assert_eq!(forwarded.names, BTreeMap::from([("even".to_owned(), 20)]));
        let moved = target.bodies().await;
        assert!(moved.len() == 20 && moved.iter().all(|body| body.parse::<u8>().unwrap() % 2 == 0));
        assert_eq!(source.bodies().await.len(), 80);
    }
}
