//! Calls that are made at about the same time go to the service in one request of up to ten.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::failure::{Failure, Refusal};

/// Entries in one request, at the most.
pub(super) const MAX_ENTRIES: usize = 10;
/// Requests of one kind that are under way at a time.
pub(super) const MAX_REQUESTS: usize = 16;
/// How often an entry is tried that the service failed to deal with.
const TRIES: u32 = 6;
/// The wait before the second try; it doubles with each.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);

/// A kind of request that has entries.
pub(super) trait BatchRequest: Send + Sync + 'static {
    type Item: Send + Sync + 'static;

    /// Bytes of the item that count towards the limit of a request.
    fn size(&self, _item: &Self::Item) -> usize {
        0
    }

    /// Bytes of all items of one request, at the most.
    fn most_bytes(&self) -> usize {
        usize::MAX
    }

    /// When the lease ends under which this is done: it is of no use later.
    fn until(&self, _item: &Self::Item) -> Option<Instant> {
        None
    }

    /// Makes one request. The answer has one entry for each item, in their order.
    fn request(
        &self,
        items: &[&Self::Item],
    ) -> impl Future<Output = Result<Vec<Result<(), Refusal>>, Failure>> + Send;
}

/// Brings the items of many callers together.
pub(super) struct Batcher<K: BatchRequest> {
    shared: Arc<Shared<K>>,
}

struct Shared<K: BatchRequest> {
    kind: K,
    pending: Mutex<Pending<K::Item>>,
    /// Told when something has come that has to go earlier than all others.
    hurry: Notify,
    requests: Semaphore,
    /// The requests under way.
    under_way: TaskTracker,
}

struct Pending<T> {
    items: Vec<Waiting<T>>,
    bytes: usize,
    has_timer: bool,
}

struct Waiting<T> {
    item: T,
    latest: Instant,
    answer: oneshot::Sender<Result<(), Failure>>,
}

impl<K: BatchRequest> Batcher<K> {
    pub(super) fn new(kind: K) -> Self {
        let pending = Mutex::new(Pending { items: Vec::new(), bytes: 0, has_timer: false });
        let shared = Shared {
            kind,
            pending,
            hurry: Notify::new(),
            requests: Semaphore::new(MAX_REQUESTS),
            under_way: TaskTracker::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Does this for one item, within `linger` if others don't fill the batch before. It is
    /// done even if the caller does not wait for the answer.
    pub(super) async fn call(&self, item: K::Item, linger: Duration) -> Result<(), Failure> {
        let (answer, answered) = oneshot::channel();
        self.shared.add(Waiting { item, latest: Instant::now() + linger, answer });
        answered.await.unwrap_or_else(|_| Err(Failure::Unavailable("the program ends".to_owned())))
    }

    /// Makes one request for these, which fit into one, and tries again what the service
    /// failed at.
    pub(super) async fn call_all(&self, items: Vec<K::Item>) -> Vec<Result<(), Failure>> {
        self.shared.deliver(&items).await
    }

    /// Makes requests for what waits for company, and waits until all have been answered.
    pub(super) async fn flush(&self) {
        let batch = self.shared.pending().take();
        self.shared.spawn(batch);
        self.shared.under_way.close();
        self.shared.under_way.wait().await;
        self.shared.under_way.reopen();
    }
}

impl<T> Pending<T> {
    fn take(&mut self) -> Vec<Waiting<T>> {
        self.bytes = 0;
        std::mem::take(&mut self.items)
    }

    fn earliest(&self) -> Option<Instant> {
        self.items.iter().map(|waiting| waiting.latest).min()
    }
}

impl<K: BatchRequest> Shared<K> {
    fn pending(&self) -> MutexGuard<'_, Pending<K::Item>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(self: &Arc<Self>, waiting: Waiting<K::Item>) {
        let mut pending = self.pending();
        let size = self.kind.size(&waiting.item);
        if pending.bytes.saturating_add(size) > self.kind.most_bytes() {
            self.spawn(pending.take());
        }
        let is_first = pending.earliest().is_none_or(|earliest| waiting.latest < earliest);
        pending.bytes += size;
        pending.items.push(waiting);
        if pending.items.len() >= MAX_ENTRIES {
            self.spawn(pending.take());
        } else if !pending.has_timer {
            pending.has_timer = true;
            tokio::spawn(self.clone().keep_time());
        } else if is_first {
            self.hurry.notify_one();
        }
    }

    /// Sends what has waited long enough; ends when nothing waits.
    async fn keep_time(self: Arc<Self>) {
        loop {
            let earliest = {
                let mut pending = self.pending();
                match pending.earliest() {
                    None => {
                        pending.has_timer = false;
                        return;
                    }
                    Some(earliest) if earliest <= Instant::now() => {
                        self.spawn(pending.take());
                        continue;
                    }
                    Some(earliest) => earliest,
                }
            };
            tokio::select! {
                () = tokio::time::sleep_until(earliest) => {}
                () = self.hurry.notified() => {}
            }
        }
    }

    fn spawn(self: &Arc<Self>, batch: Vec<Waiting<K::Item>>) {
        if batch.is_empty() {
            return;
        }
        let shared = self.clone();
        self.under_way.spawn(async move {
            let (mut items, mut answers) = (Vec::new(), Vec::new());
            for waiting in batch {
                items.push(waiting.item);
                answers.push(waiting.answer);
            }
            for (answer, result) in answers.into_iter().zip(shared.deliver(&items).await) {
                // Who does not wait any more does not want to know.
                let _ = answer.send(result);
            }
        });
    }

    async fn deliver(&self, items: &[K::Item]) -> Vec<Result<(), Failure>> {
        let mut results: Vec<Result<(), Failure>> = vec![Ok(()); items.len()];
        let mut open: Vec<usize> = (0..items.len()).collect();
        // Smaller after the service has said that the items are too large together.
        let mut most = MAX_ENTRIES;
        let mut tries = 0;
        loop {
            let mut again = Vec::new();
            for part in open.chunks(most) {
                self.attempt(items, part, &mut results, &mut again).await;
            }
            let too_long = |n: &usize| results[*n] == Err(Failure::TooLong);
            if most > 1 && again.iter().any(too_long) {
                most = most.div_ceil(2);
            } else {
                tries += 1;
            }
            if again.is_empty() || tries >= TRIES {
                return results;
            }
            if tries > 0 {
                let backoff = FIRST_BACKOFF * 2u32.pow(tries - 1);
                tokio::time::sleep(backoff.mul_f64(0.5 + fastrand::f64())).await;
            }
            open = again;
        }
    }

    /// Makes one request for the items with these numbers; says which to try again.
    async fn attempt(
        &self,
        items: &[K::Item],
        part: &[usize],
        results: &mut [Result<(), Failure>],
        again: &mut Vec<usize>,
    ) {
        // The semaphore is never closed.
        let permit = self.requests.acquire().await;
        let now = Instant::now();
        let is_over = |n: usize| self.kind.until(&items[n]).is_some_and(|until| until <= now);
        let (over, part): (Vec<usize>, Vec<usize>) = part.iter().partition(|n| is_over(**n));
        for n in over {
            results[n] = Err(Failure::Lost);
        }
        if part.is_empty() {
            return;
        }
        let asked: Vec<&K::Item> = part.iter().map(|n| &items[*n]).collect();
        let answer = self.kind.request(&asked).await;
        drop(permit);
        match answer {
            Ok(answers) => {
                for (n, answer) in part.into_iter().zip(answers) {
                    if answer.as_ref().is_err_and(|refusal| refusal.again) {
                        again.push(n);
                    }
                    results[n] = answer.map_err(|refusal| refusal.failure);
                }
            }
            // One may be at fault that the others have nothing to do with.
            Err(Failure::Invalid(_)) if part.len() > 1 => {
                for n in part {
                    Box::pin(self.attempt(items, &[n], results, again)).await;
                }
            }
            Err(failure) => {
                if failure == Failure::TooLong && part.len() > 1 {
                    again.extend(&part);
                }
                for n in part {
                    results[n] = Err(failure.clone());
                }
            }
        }
    }
}
