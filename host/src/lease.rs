//! A lease that is kept alive for as long as its task is held.
//!
//! [`Leases`] leases messages and renews what is held, from the moment of leasing on, in one
//! task of its own: a slow download or upload can't let a lease run out. When a lease is lost
//! nevertheless, its token is cancelled and nothing more is done under it. Leases that the
//! queue does not renew are an outage of the queue.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::outage::Outages;
use crate::queue::{Message, Queue, QueueError, Receipt, Release};
use crate::shortage;

/// A lease is extended when this part of its time is left.
const RENEW_AT: f64 = 0.5;
/// What the queue said of a lease is taken to hold for this long.
const RECENT: Duration = Duration::from_secs(1);
/// How many times a lease's holder is looked at in the time of one lease.
const LOOKS: u32 = 20;

/// Leases messages of one queue and keeps them alive.
pub struct Leases {
    shared: Arc<Shared>,
    _heartbeat: DropGuard,
}

struct Shared {
    queue: Arc<dyn Queue>,
    outages: Arc<Outages>,
    hold: Duration,
    held: Mutex<HashMap<u64, Arc<Held>>>,
    next: std::sync::atomic::AtomicU64,
    /// When the last of those that were given back can be leased again.
    returns: Mutex<Option<Instant>>,
}

/// What the heartbeat knows of one lease.
struct Held {
    id: String,
    /// None once the lease is settled or lost. Locked while the queue works on the lease, so
    /// that an extension and a settlement never use the same receipt at once.
    receipt: tokio::sync::Mutex<Option<Receipt>>,
    /// The receipt of a lease that was lost.
    stale: Mutex<Option<Receipt>>,
    term: Mutex<Term>,
    lost: CancellationToken,
}

/// What the queue said of a lease.
#[derive(Clone, Copy)]
struct Term {
    /// When it ends.
    until: Instant,
    /// The same by a clock that also runs while the machine is suspended.
    until_awake: Duration,
    /// When the queue said so.
    said: Instant,
}

impl Term {
    fn new(until: Instant, said: Instant) -> Self {
        Self { until, until_awake: awake() + until.saturating_duration_since(Instant::now()), said }
    }

    fn is_over(&self) -> bool {
        Instant::now() >= self.until || awake() >= self.until_awake
    }
}

/// The time since the machine started, suspended or not.
fn awake() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(
        u64::try_from(now.tv_sec).unwrap_or_default(),
        u32::try_from(now.tv_nsec).unwrap_or_default(),
    )
}

/// A message, ours until it is settled or lost. Dropping it unsettled lets it run out.
pub struct Lease {
    message: Message,
    number: u64,
    held: Arc<Held>,
    shared: Arc<Shared>,
    started: bool,
}

/// What to do with the message of a lease.
#[derive(Debug)]
pub enum Settlement<'a> {
    /// Delete it: its task is done.
    Ack,
    /// Delete it: its task was given up.
    GiveUp,
    /// Let it be leased again after this long.
    Release(Duration, Release<'a>),
}

impl Leases {
    /// Leases of `hold` each from `queue`, or as long as it can make them. They are renewed on
    /// `runtime`, which should be one that file calls of tasks can't block.
    pub fn new(
        queue: Arc<dyn Queue>,
        hold: Duration,
        outages: Arc<Outages>,
        runtime: &tokio::runtime::Handle,
    ) -> Self {
        let hold = hold.min(queue.longest_hold());
        let shared = Arc::new(Shared {
            queue,
            outages,
            hold,
            held: Mutex::default(),
            next: std::sync::atomic::AtomicU64::new(0),
            returns: Mutex::default(),
        });
        let stop = CancellationToken::new();
        runtime.spawn(heartbeat(shared.clone(), stop.clone()));
        Self { shared, _heartbeat: stop.drop_guard() }
    }

    /// Leases on the runtime of a test, with outages that nobody looks at.
    #[cfg(test)]
    pub(crate) fn alone(queue: Arc<dyn Queue>, hold: Duration) -> Self {
        Self::new(queue, hold, Arc::default(), &tokio::runtime::Handle::current())
    }

    /// Leases up to `max` messages, waiting up to `wait` for the first.
    ///
    /// # Errors
    /// When the queue can't be asked.
    pub async fn lease(&self, max: usize, wait: Duration) -> Result<Vec<Lease>, QueueError> {
        let shared = &self.shared;
        let messages = shared.queue.lease(max, shared.hold, wait).await?;
        // The queue counts from when it got the request, at the latest from now.
        let now = Instant::now();
        Ok(messages.into_iter().map(|message| shared.hold(message, now)).collect())
    }

    /// When the last of the messages that were given back here can be leased again.
    pub fn last_return(&self) -> Option<Instant> {
        *self.shared.returns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an outage of renewing a queue's leases is called.
pub fn renewing(queue: &dyn Queue) -> impl fmt::Display {
    fmt::from_fn(move |f| write!(f, "renewing leases of {queue}"))
}

/// A lease that could not be settled.
pub struct Unsettled {
    /// Why.
    pub error: QueueError,
    /// The lease, if it is still ours.
    pub lease: Option<Lease>,
}

impl Shared {
    async fn settle(
        &self,
        receipt: &Receipt,
        settlement: &Settlement<'_>,
    ) -> Result<(), QueueError> {
        match settlement {
            Settlement::Ack => self.queue.ack(receipt).await,
            Settlement::GiveUp => self.queue.give_up(receipt).await,
            Settlement::Release(after, why) => {
                self.returns_at(Instant::now() + *after);
                self.queue.release(receipt, *after, *why).await
            }
        }
    }

    fn hold(self: &Arc<Self>, message: Message, leased: Instant) -> Lease {
        let until = self.until(&message.receipt, leased);
        let held = Arc::new(Held {
            id: message.id.clone(),
            receipt: tokio::sync::Mutex::new(Some(message.receipt.clone())),
            stale: Mutex::default(),
            term: Mutex::new(Term::new(until, leased)),
            lost: CancellationToken::new(),
        });
        let number = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.all_held().insert(number, held.clone());
        Lease { message, number, held, shared: self.clone(), started: false }
    }

    /// When a lease ends that was asked for at this time.
    fn until(&self, receipt: &Receipt, asked: Instant) -> Instant {
        self.queue.until(receipt).unwrap_or(asked + self.hold)
    }

    fn returns_at(&self, time: Instant) {
        let mut returns = self.returns.lock().unwrap_or_else(PoisonError::into_inner);
        *returns = (*returns).max(Some(time));
    }

    fn all_held(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<Held>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Extends every lease in time. Ends with the last of the leases and their [`Leases`].
async fn heartbeat(shared: Arc<Shared>, stop: CancellationToken) {
    let look = shared.hold / LOOKS;
    let mut stopped = false;
    loop {
        // Leases under way outlive the drain that stops new ones.
        tokio::select! {
            () = tokio::time::sleep(look) => {}
            () = stop.cancelled(), if !stopped => stopped = true,
        }
        let now = Instant::now();
        let due: Vec<Arc<Held>> = {
            let held = shared.all_held();
            if stopped && held.is_empty() {
                return;
            }
            held.values()
                .filter(|h| h.until() - now.min(h.until()) < shared.hold.mul_f64(RENEW_AT))
                .cloned()
                .collect()
        };
        // Each by itself: one that is slow must not hold up the others.
        for held in due {
            let shared = shared.clone();
            tokio::spawn(async move {
                // Locked: it is being renewed or settled at this moment.
                if let Ok(receipt) = held.receipt.try_lock() {
                    renew(&shared, &held, receipt).await;
                }
            });
        }
    }
}

async fn renew(
    shared: &Shared,
    held: &Held,
    mut receipt: tokio::sync::MutexGuard<'_, Option<Receipt>>,
) {
    let Some(current) = receipt.as_ref() else { return };
    let asked = Instant::now();
    // An answer that comes after the lease ran out is of no use. A process that was stopped
    // beyond the end of a lease may still find that nobody else has taken the message.
    let was_over = held.term().is_over();
    let rest = held.until().saturating_duration_since(asked);
    let answer = tokio::time::timeout(rest, shared.queue.extend(current, shared.hold)).await;
    match answer {
        Ok(Ok(renewed)) => {
            let until = shared.until(&renewed, asked);
            *receipt = Some(renewed);
            *held.term.lock().unwrap_or_else(PoisonError::into_inner) = Term::new(until, asked);
            shared.outages.ends(&renewing(&*shared.queue));
        }
        Ok(Err(error @ (QueueError::LeaseLost { .. } | QueueError::Invalid { .. }))) => {
            tracing::warn!(message_id = held.id, "{error}; its task is cancelled");
            held.lose(&mut receipt);
        }
        Ok(Err(error)) => {
            // One message that another process has locked keeps no other lease from renewal.
            if shortage::is_locked(&error) {
                tracing::debug!(message_id = held.id, "{error}");
            } else {
                shared.outages.begins(&renewing(&*shared.queue), &error);
            }
            if held.term().is_over() {
                held.ran_out(&shared.queue, &mut receipt);
            }
        }
        // Of a try that began late, an earlier one has failed, and has said so if that was an
        // outage.
        Err(_) if was_over || rest < shared.hold.mul_f64(RENEW_AT / 2.0) => {
            held.ran_out(&shared.queue, &mut receipt);
        }
        Err(_) => {
            let late = format!("{}: renewing a lease took longer than the lease", shared.queue);
            shared.outages.begins(&renewing(&*shared.queue), &late);
            held.ran_out(&shared.queue, &mut receipt);
        }
    }
}

impl Held {
    fn term(&self) -> Term {
        *self.term.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn until(&self) -> Instant {
        self.term().until
    }

    fn ran_out(&self, queue: &Arc<dyn Queue>, receipt: &mut Option<Receipt>) {
        tracing::warn!(
            message_id = self.id,
            "{queue}: the lease ran out before it could be renewed; its task is cancelled"
        );
        self.lose(receipt);
    }

    fn lose(&self, receipt: &mut Option<Receipt>) {
        *self.stale.lock().unwrap_or_else(PoisonError::into_inner) = receipt.take();
        self.lost.cancel();
    }
}

impl Lease {
    /// The message.
    pub fn message(&self) -> &Message {
        &self.message
    }

    /// Which execution the next one is, from 1.
    pub fn attempt(&self) -> u32 {
        self.message.attempts.saturating_add(1)
    }

    /// Cancelled when the lease is lost.
    pub fn lost(&self) -> &CancellationToken {
        &self.held.lost
    }

    /// Asks the queue whether the lease is still ours, unless it said so a moment ago.
    ///
    /// # Errors
    /// When it is not.
    pub async fn confirm(&self) -> Result<(), QueueError> {
        let term = self.held.term();
        if term.said.elapsed() > RECENT || term.is_over() {
            self.renew().await;
        }
        if self.is_ours() { Ok(()) } else { Err(self.is_lost()) }
    }

    /// Renews the lease now, though it has most of its time: a try whether that works.
    pub async fn renew(&self) {
        // A renewal that is under way may never come back from a file system that hangs.
        if let Ok(receipt) = tokio::time::timeout(self.patience(), self.held.receipt.lock()).await {
            renew(&self.shared, &self.held, receipt).await;
        }
    }

    /// How long to wait for another call under this lease: until its end, and a moment.
    fn patience(&self) -> Duration {
        self.held.until().saturating_duration_since(Instant::now()) + RECENT
    }

    /// False once the lease is lost, or its time is over by this machine's clock. Asks nobody.
    pub fn is_ours(&self) -> bool {
        !self.held.lost.is_cancelled() && !self.held.term().is_over()
    }

    /// Records for a lost lease that the execution under it has ended here.
    pub async fn disown(&self) {
        let stale = self.held.stale.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let (true, Some(receipt)) = (self.started, stale)
            && let Err(error) = self.shared.queue.disown(&receipt).await
        {
            tracing::debug!("{error}");
        }
    }

    /// True once [`start`](Self::start) has been called.
    pub fn started(&self) -> bool {
        self.started
    }

    /// Records that an execution starts, which makes it count.
    ///
    /// # Errors
    /// When the lease is lost, or the queue can't be asked.
    pub async fn start(&mut self) -> Result<(), QueueError> {
        let receipt = self.held.receipt.lock().await;
        let receipt = receipt.as_ref().ok_or_else(|| self.is_lost())?;
        self.shared.queue.start(receipt).await?;
        self.started = true;
        Ok(())
    }

    async fn try_settle(&self, settlement: &Settlement<'_>) -> Result<(), QueueError> {
        let locked = tokio::time::timeout(self.patience(), self.held.receipt.lock()).await;
        let Ok(mut receipt) = locked else { return Err(self.is_lost()) };
        let Some(current) = receipt.as_ref() else { return Err(self.is_lost()) };
        let settled = self.shared.settle(current, settlement).await;
        match settled {
            Err(QueueError::Unavailable { .. }) => {}
            Err(QueueError::LeaseLost { .. }) => self.held.lose(&mut receipt),
            // The heartbeat is done with this lease.
            _ => *receipt = None,
        }
        settled
    }

    /// Ends the lease.
    ///
    /// # Errors
    /// When the lease is lost: the message is somebody else's and nothing was done. When the
    /// queue can't be asked, the lease comes back with the error: it is still renewed, and can
    /// be settled later.
    pub async fn settle(self, settlement: &Settlement<'_>) -> Result<(), Unsettled> {
        let settled = self.try_settle(settlement).await;
        if let Err(QueueError::LeaseLost { .. }) = settled {
            self.disown().await;
        }
        settled.map_err(|error| {
            let is_ours = matches!(error, QueueError::Unavailable { .. }) && self.is_ours();
            Unsettled { error, lease: is_ours.then_some(self) }
        })
    }

    fn is_lost(&self) -> QueueError {
        QueueError::LeaseLost { queue: self.shared.queue.to_string(), id: self.message.id.clone() }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.shared.all_held().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::queue::memory::MemoryQueue;

    const HOLD: Duration = Duration::from_secs(2);

    /// A queue with one message, and a lease on it.
    async fn leased() -> (Arc<MemoryQueue>, Leases, Lease) {
        let queue = Arc::new(MemoryQueue::new());
        queue.send(&[Bytes::from_static(b"{}")]).await.remove(0).unwrap();
        let leases = Leases::alone(queue.clone(), HOLD);
        let lease = leases.lease(1, Duration::ZERO).await.unwrap().remove(0);
        (queue, leases, lease)
    }

    async fn settle(lease: Lease, settlement: Settlement<'_>) -> Result<(), QueueError> {
        lease.settle(&settlement).await.map_err(|unsettled| unsettled.error)
    }

    async fn can_be_leased(queue: &MemoryQueue) -> bool {
        !queue.lease(1, HOLD, Duration::ZERO).await.unwrap().is_empty()
    }

    #[tokio::test]
    async fn a_lease_is_kept_for_as_long_as_it_is_held() {
        let (queue, _leases, lease) = leased().await;
        // Longer than the lease it began with.
        assert!(queue.lease(1, HOLD, HOLD * 2).await.unwrap().is_empty());
        assert!(!lease.lost().is_cancelled());
        settle(lease, Settlement::Ack).await.unwrap();
        assert_eq!(queue.counts().await.unwrap().enqueued, Some(0));
    }

    #[tokio::test]
    async fn a_lease_is_kept_after_no_more_are_taken() {
        let (queue, leases, lease) = leased().await;
        drop(leases);
        assert!(queue.lease(1, HOLD, HOLD * 2).await.unwrap().is_empty());
        settle(lease, Settlement::Ack).await.unwrap();
    }

    #[tokio::test]
    async fn a_lease_that_nobody_holds_runs_out() {
        let (queue, _leases, lease) = leased().await;
        drop(lease);
        assert_eq!(queue.lease(1, HOLD, HOLD * 10).await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_lease_that_was_taken_away_is_noticed_when_it_matters() {
        let (queue, _leases, lease) = leased().await;
        lease.confirm().await.unwrap();
        // Long before the heartbeat would.
        tokio::time::sleep(RECENT / 2).await;
        let receipt = lease.message().receipt.clone();
        queue.release(&receipt, Duration::ZERO, Release::Uncounted).await.unwrap();
        lease.held.term.lock().unwrap().said -= RECENT;
        assert!(matches!(lease.confirm().await, Err(QueueError::LeaseLost { .. })));
    }

    #[tokio::test]
    async fn a_lease_that_turns_out_to_be_lost_when_it_is_settled_leaves_no_death() {
        let (queue, _leases, mut lease) = leased().await;
        lease.start().await.unwrap();
        // It is not renewed, and somebody else takes the message.
        let busy = lease.held.receipt.lock().await;
        let theirs = queue.lease(1, HOLD, HOLD * 10).await.unwrap().remove(0);
        drop(busy);
        let release = Settlement::Release(Duration::ZERO, Release::Failed("x"));
        let settled = settle(lease, release).await;
        assert!(matches!(settled, Err(QueueError::LeaseLost { .. })), "{settled:?}");
        queue.release(&theirs.receipt, Duration::ZERO, Release::Uncounted).await.unwrap();
        let next = queue.lease(1, HOLD, Duration::ZERO).await.unwrap().remove(0);
        assert_eq!((next.attempts, next.deaths), (0, 0));
    }

    #[tokio::test]
    async fn it_is_known_when_what_was_given_back_returns() {
        let (_queue, leases, lease) = leased().await;
        assert_eq!(leases.last_return(), None);
        let now = Instant::now();
        settle(lease, Settlement::Release(HOLD, Release::Failed("x"))).await.unwrap();
        assert!(leases.last_return().unwrap() >= now + HOLD);
    }

    #[tokio::test]
    async fn a_lost_lease_cancels_its_task_and_settles_nothing() {
        let (queue, _leases, lease) = leased().await;
        // Somebody else ends the lease and takes the message.
        let receipt = lease.message().receipt.clone();
        queue.release(&receipt, Duration::ZERO, Release::Uncounted).await.unwrap();
        assert!(can_be_leased(&queue).await);
        lease.lost().cancelled().await;
        let settled = settle(lease, Settlement::Ack).await;
        assert!(matches!(settled, Err(QueueError::LeaseLost { .. })), "{settled:?}");
        assert_eq!(queue.counts().await.unwrap().enqueued, Some(1));
    }
}
