//! Leases, renewed while their tasks are held.
//!
//! [`Leases`] leases messages and renews all held leases in a separate tokio task, so that a slow
//! download or upload cannot cause a lease to expire. If a lease is lost anyway, its token is
//! cancelled and no further operation is done under it. A failure of the queue to renew leases is
//! an outage.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::fault::{self, Step};
use crate::outage::Outages;
use crate::queue::{Message, Queue, QueueError, Receipt, Release};
use crate::shortage;
use crate::system::suspended;

/// A lease is renewed when this fraction of its duration is left.
const RENEW_AT: f64 = 0.5;
/// If one request can renew several leases and one of them is due, all leases with less than this
/// fraction left are renewed with it. After a while, all leases of a host with long tasks are due
/// at the same time.
const RENEW_WITH: f64 = 0.8;
/// How long the queue's last answer about a lease counts as current.
const RECENT: Duration = Duration::from_secs(1);
/// How many times per lease duration each lease is checked.
const CHECKS: u32 = 20;

/// Leases messages of one queue and renews the leases.
pub struct Leases {
    shared: Arc<Shared>,
    _heartbeat: DropGuard,
}

struct Shared {
    queue: Arc<dyn Queue>,
    outages: Arc<Outages>,
    /// How long a lease lasts without renewal.
    duration: Duration,
    leases: Mutex<HashMap<u64, Arc<LeaseState>>>,
    next: AtomicU64,
    /// The latest time at which a released message becomes visible again.
    returns: Mutex<Option<Instant>>,
}

/// The state of one lease, shared with the task that renews it.
struct LeaseState {
    id: String,
    /// `None` once the lease is settled or lost. Locked during each call to the queue, so that a
    /// renewal and a settlement never use the same receipt at the same time.
    receipt: tokio::sync::Mutex<Option<Receipt>>,
    /// The receipt of a lost lease.
    stale: Mutex<Option<Receipt>>,
    term: Mutex<Term>,
    lost: CancellationToken,
}

/// When a lease ends.
#[derive(Clone, Copy)]
struct Term {
    /// By a clock that does not advance while the machine is suspended.
    until: Instant,
    /// The total time that the machine had been suspended when `until` was set.
    suspended: Duration,
    /// When the queue confirmed it.
    confirmed: Instant,
}

impl Term {
    fn new(until: Instant, confirmed: Instant) -> Self {
        Self { until, suspended: suspended(), confirmed }
    }

    fn is_over(&self) -> bool {
        Instant::now() + suspended().saturating_sub(self.suspended) >= self.until
    }
}

/// A leased message. A lease that is dropped without a settlement is not renewed and expires.
pub struct Lease {
    message: Message,
    number: u64,
    state: Arc<LeaseState>,
    shared: Arc<Shared>,
    started: bool,
}

/// What to do with the message of a lease.
#[derive(Debug)]
pub enum Settlement<'a> {
    /// Delete it: the task is done.
    Ack,
    /// Delete it: the task is rejected.
    Reject,
    /// Make it visible again after this long.
    Release(Duration, Release<'a>),
}

impl Leases {
    /// Leases messages of `queue` for `duration`, or for the queue's maximum if that is shorter.
    /// Leases are renewed on `runtime`, which tasks' file operations must not block.
    pub fn new(
        queue: Arc<dyn Queue>,
        duration: Duration,
        outages: Arc<Outages>,
        runtime: &tokio::runtime::Handle,
    ) -> Self {
        let duration = duration.min(queue.max_lease());
        let shared = Arc::new(Shared {
            queue,
            outages,
            duration,
            leases: Mutex::default(),
            next: AtomicU64::new(0),
            returns: Mutex::default(),
        });
        let stop = CancellationToken::new();
        runtime.spawn(heartbeat(shared.clone(), stop.clone()));
        Self { shared, _heartbeat: stop.drop_guard() }
    }

    /// Leases on the runtime of a test.
    #[cfg(test)]
    pub(crate) fn alone(queue: Arc<dyn Queue>, duration: Duration) -> Self {
        Self::new(queue, duration, Arc::default(), &tokio::runtime::Handle::current())
    }

    /// Leases up to `max` messages. Waits up to `wait` for the first.
    ///
    /// # Errors
    /// When the queue does not answer.
    pub async fn lease(&self, max: usize, wait: Duration) -> Result<Vec<Lease>, QueueError> {
        let shared = &self.shared;
        let messages = shared.queue.lease(max, shared.duration, wait).await?;
        // The queue counts from when it handled the request, which is no later than now.
        let now = Instant::now();
        Ok(messages.into_iter().map(|message| shared.add(message, now)).collect())
    }

    /// The latest time at which a message that this host released becomes visible again.
    pub fn last_return(&self) -> Option<Instant> {
        *self.shared.returns.lock()
    }
}

/// The name of the outage in which leases cannot be renewed.
pub fn renewing(queue: &dyn Queue) -> impl fmt::Display {
    fmt::from_fn(move |f| write!(f, "renewing leases of {queue}"))
}

/// The result of a failed settlement.
pub struct Unsettled {
    /// Why the settlement failed.
    pub error: QueueError,
    /// The lease, if the host still holds it.
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
            Settlement::Reject => self.queue.give_up(receipt).await,
            Settlement::Release(after, why) => {
                self.returns_at(Instant::now() + *after);
                self.queue.release(receipt, *after, *why).await
            }
        }
    }

    fn add(self: &Arc<Self>, message: Message, leased: Instant) -> Lease {
        let until = self.until(&message.receipt, leased);
        let state = Arc::new(LeaseState {
            id: message.id.clone(),
            receipt: tokio::sync::Mutex::new(Some(message.receipt.clone())),
            stale: Mutex::default(),
            term: Mutex::new(Term::new(until, leased)),
            lost: CancellationToken::new(),
        });
        let number = self.next.fetch_add(1, Relaxed);
        self.leases.lock().insert(number, state.clone());
        Lease { message, number, state, shared: self.clone(), started: false }
    }

    /// The end of a lease that was requested at `asked`.
    fn until(&self, receipt: &Receipt, asked: Instant) -> Instant {
        self.queue.until(receipt).unwrap_or(asked + self.duration)
    }

    fn returns_at(&self, time: Instant) {
        let mut returns = self.returns.lock();
        *returns = (*returns).max(Some(time));
    }
}

/// Renews every lease in time. Ends when [`Leases`] is dropped and no lease is left.
async fn heartbeat(shared: Arc<Shared>, stop: CancellationToken) {
    let interval = shared.duration / CHECKS;
    let mut stopped = false;
    loop {
        // Running tasks keep their leases after the host stops leasing.
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            () = stop.cancelled(), if !stopped => stopped = true,
        }
        let now = Instant::now();
        let due: Vec<Arc<LeaseState>> = {
            let leases = shared.leases.lock();
            if stopped && leases.is_empty() {
                return;
            }
            due(leases.values(), now, shared.duration, shared.queue.batch() > 1)
        };
        // Renew each lease concurrently: a slow call must not delay the others.
        for state in due {
            let shared = shared.clone();
            tokio::spawn(async move {
                // If the receipt is locked, the lease is being renewed or settled.
                if let Ok(receipt) = state.receipt.try_lock() {
                    renew(&shared, &state, receipt).await;
                }
            });
        }
    }
}

/// Returns the leases of this `duration` to renew now. `is_shared` says that one request can renew
/// several leases.
fn due<'a>(
    leases: impl Iterator<Item = &'a Arc<LeaseState>> + Clone,
    now: Instant,
    duration: Duration,
    is_shared: bool,
) -> Vec<Arc<LeaseState>> {
    let left = |state: &LeaseState| state.until().saturating_duration_since(now);
    let is_due = |state: &&Arc<LeaseState>| left(state) < duration.mul_f64(RENEW_AT);
    let limit = match is_shared && leases.clone().any(|state| is_due(&state)) {
        true => RENEW_WITH,
        false => RENEW_AT,
    };
    leases.filter(|state| left(state) < duration.mul_f64(limit)).cloned().collect()
}

async fn renew(
    shared: &Shared,
    state: &LeaseState,
    mut receipt: tokio::sync::MutexGuard<'_, Option<Receipt>>,
) {
    let Some(current) = receipt.as_ref() else { return };
    let asked = Instant::now();
    // A response after the end of the lease is useless. But a process that was suspended beyond the
    // end of the lease may still hold the message if no other host has leased it.
    let was_over = state.term().is_over();
    let rest = state.until().saturating_duration_since(asked);
    let answer = tokio::time::timeout(rest, shared.queue.extend(current, shared.duration)).await;
    match answer {
        Ok(Ok(renewed)) => {
            let until = shared.until(&renewed, asked);
            *receipt = Some(renewed);
            *state.term.lock() = Term::new(until, asked);
            fault::point(Step::Renewed);
            shared.outages.ends(&renewing(&*shared.queue));
        }
        Ok(Err(error @ (QueueError::LeaseLost { .. } | QueueError::Invalid { .. }))) => {
            tracing::warn!(message_id = state.id, "{error}; its task is cancelled");
            state.lose(&mut receipt);
        }
        Ok(Err(error)) => {
            // Another process has locked this message. Other leases may be renewable.
            if shortage::is_locked(&error) {
                tracing::debug!(message_id = state.id, "{error}");
            } else {
                shared.outages.begins(&renewing(&*shared.queue), &error);
            }
            if state.term().is_over() {
                state.end(&shared.queue, &mut receipt);
            }
        }
        // If this renewal began late, an earlier one has failed and has reported any outage.
        Err(_) if was_over || rest < shared.duration.mul_f64(RENEW_AT / 2.0) => {
            state.end(&shared.queue, &mut receipt);
        }
        Err(_) => {
            let late =
                format!("{}: renewing a lease took longer than the lease lasts", shared.queue);
            shared.outages.begins(&renewing(&*shared.queue), &late);
            state.end(&shared.queue, &mut receipt);
        }
    }
}

impl LeaseState {
    fn term(&self) -> Term {
        *self.term.lock()
    }

    fn until(&self) -> Instant {
        self.term().until
    }

    fn end(&self, queue: &Arc<dyn Queue>, receipt: &mut Option<Receipt>) {
        tracing::warn!(
            message_id = self.id,
            "{queue}: the lease ended before it could be renewed; its task is cancelled"
        );
        self.lose(receipt);
    }

    fn lose(&self, receipt: &mut Option<Receipt>) {
        *self.stale.lock() = receipt.take();
        self.lost.cancel();
    }
}

impl Lease {
    /// The message.
    pub fn message(&self) -> &Message {
        &self.message
    }

    /// The number of the next attempt, from 1.
    pub fn attempt(&self) -> u32 {
        self.message.attempts.saturating_add(1)
    }

    /// Cancelled when the lease is lost.
    pub fn lost(&self) -> &CancellationToken {
        &self.state.lost
    }

    /// Checks with the queue that the host still holds the lease, unless the queue has just
    /// confirmed it.
    ///
    /// # Errors
    /// When the lease is lost.
    pub async fn confirm(&self) -> Result<(), QueueError> {
        let term = self.state.term();
        if term.confirmed.elapsed() > RECENT || term.is_over() {
            self.renew().await;
        }
        if self.is_ours() { Ok(()) } else { Err(self.is_lost()) }
    }

    /// Renews the lease now, before it is due, to see whether renewing works.
    pub async fn renew(&self) {
        // A renewal under way may hang in the file system forever.
        if let Ok(receipt) = tokio::time::timeout(self.patience(), self.state.receipt.lock()).await
        {
            renew(&self.shared, &self.state, receipt).await;
        }
    }

    /// How long to wait for another operation under this lease: until shortly after the lease ends.
    fn patience(&self) -> Duration {
        self.state.until().saturating_duration_since(Instant::now()) + RECENT
    }

    /// False once the lease is lost or has ended by this machine's clock. Does not send a request.
    pub fn is_ours(&self) -> bool {
        !self.state.lost.is_cancelled() && !self.state.term().is_over()
    }

    /// Records in the queue that the execution under a lost lease has ended.
    pub async fn disown(&self) {
        let stale = self.state.stale.lock().take();
        if let (true, Some(receipt)) = (self.started, stale)
            && let Err(error) = self.shared.queue.disown(&receipt).await
        {
            tracing::debug!("{error}");
        }
    }

    /// Records in the queue that the execution recorded by [`start`](Self::start) did not begin.
    ///
    /// # Errors
    /// When the lease is lost, or the queue does not answer.
    pub async fn take_back(&mut self) -> Result<(), QueueError> {
        let receipt = self.state.receipt.lock().await;
        let receipt = receipt.as_ref().ok_or_else(|| self.is_lost())?;
        self.shared.queue.disown(receipt).await?;
        self.started = false;
        Ok(())
    }

    /// True after a successful [`start`](Self::start), unless [`take_back`](Self::take_back) undid
    /// it.
    pub fn started(&self) -> bool {
        self.started
    }

    /// Records in the queue that an execution starts.
    ///
    /// # Errors
    /// When the lease is lost, or the queue does not answer.
    pub async fn start(&mut self) -> Result<(), QueueError> {
        let receipt = self.state.receipt.lock().await;
        let receipt = receipt.as_ref().ok_or_else(|| self.is_lost())?;
        self.shared.queue.start(receipt).await?;
        self.started = true;
        Ok(())
    }

    async fn try_settle(&self, settlement: &Settlement<'_>) -> Result<(), QueueError> {
        let locked = tokio::time::timeout(self.patience(), self.state.receipt.lock()).await;
        let Ok(mut receipt) = locked else { return Err(self.is_lost()) };
        let Some(current) = receipt.as_ref() else { return Err(self.is_lost()) };
        let settled = self.shared.settle(current, settlement).await;
        match settled {
            Err(QueueError::Unavailable { .. }) => {}
            Err(QueueError::LeaseLost { .. }) => self.state.lose(&mut receipt),
            // A settled lease is not renewed.
            _ => *receipt = None,
        }
        settled
    }

    /// Ends the lease.
    ///
    /// # Errors
    /// When the lease is lost: the operation had no effect. When the queue does not answer: the
    /// error contains the lease, which is still renewed and can be settled later.
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
        self.shared.leases.lock().remove(&self.number);
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

    #[test]
    fn leases_that_share_a_request_are_renewed_with_one_that_is_due() {
        let now = Instant::now();
        let lease = |left: u64| {
            let term = Term::new(now + Duration::from_secs(left), now);
            Arc::new(LeaseState {
                id: left.to_string(),
                receipt: tokio::sync::Mutex::default(),
                stale: Mutex::default(),
                term: Mutex::new(term),
                lost: CancellationToken::new(),
            })
        };
        let check = |left: &[u64], is_shared, renewed: &[&str]| {
            let leases: Vec<_> = left.iter().copied().map(lease).collect();
            let due = due(leases.iter(), now, Duration::from_secs(100), is_shared);
            assert_eq!(due.iter().map(|lease| &*lease.id).collect::<Vec<_>>(), renewed);
        };
        check(&[100, 81, 79, 49], true, &["79", "49"]);
        check(&[100, 81, 79, 49], false, &["49"]);
        check(&[100, 81, 79, 51], true, &[]);
    }

    #[tokio::test]
    async fn a_lease_is_kept_for_as_long_as_it_is_held() {
        let (queue, _leases, lease) = leased().await;
        // Wait longer than the first term of the lease.
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
        // Long before the renewal is due.
        tokio::time::sleep(RECENT / 2).await;
        let receipt = lease.message().receipt.clone();
        queue.release(&receipt, Duration::ZERO, Release::Uncounted).await.unwrap();
        lease.state.term.lock().confirmed -= RECENT;
        assert!(matches!(lease.confirm().await, Err(QueueError::LeaseLost { .. })));
    }

    #[tokio::test]
    async fn a_lease_that_turns_out_to_be_lost_when_it_is_settled_leaves_no_death() {
        let (queue, _leases, mut lease) = leased().await;
        lease.start().await.unwrap();
        // The lease is not renewed, and another host takes the message.
        let busy = lease.state.receipt.lock().await;
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
    async fn the_return_of_a_released_message_is_known() {
        let (_queue, leases, lease) = leased().await;
        assert_eq!(leases.last_return(), None);
        let now = Instant::now();
        settle(lease, Settlement::Release(HOLD, Release::Failed("x"))).await.unwrap();
        assert!(leases.last_return().unwrap() >= now + HOLD);
    }

    #[tokio::test]
    async fn a_lost_lease_cancels_its_task_and_settles_nothing() {
        let (queue, _leases, lease) = leased().await;
        // Another host ends the lease and takes the message.
        let receipt = lease.message().receipt.clone();
        queue.release(&receipt, Duration::ZERO, Release::Uncounted).await.unwrap();
        assert!(can_be_leased(&queue).await);
        lease.lost().cancelled().await;
        let settled = settle(lease, Settlement::Ack).await;
        assert!(matches!(settled, Err(QueueError::LeaseLost { .. })), "{settled:?}");
        assert_eq!(queue.counts().await.unwrap().enqueued, Some(1));
    }
}
