//! Batches: puts the operations of many tasks into one request of up to ten entries.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::failure::{Failure, Refusal};

/// The maximum number of entries of one request.
pub(super) const MAX_ENTRIES: usize = 10;
/// The maximum number of concurrent requests of one kind.
pub(super) const MAX_REQUESTS: usize = 16;
/// The delays between attempts at an entry that the service failed to process.
const RETRIES: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(100))
    .with_max_times(5)
    .with_jitter();

/// A request with several entries.
pub(super) trait BatchRequest: Send + Sync + 'static {
    type Item: Send + Sync + 'static;

    /// The number of bytes of the item that count towards a request's limit.
    fn size(&self, _item: &Self::Item) -> usize {
        0
    }

    /// The maximum number of bytes of all items of a request.
    fn most_bytes(&self) -> usize {
        usize::MAX
    }

    /// When the lease of the item's message ends. After that the item is useless.
    fn until(&self, _item: &Self::Item) -> Option<Instant> {
        None
    }

    /// Sends one request. Returns one result for each item, in the same order.
    fn request(
        &self,
        items: &[&Self::Item],
    ) -> impl Future<Output = Result<Vec<Result<(), Refusal>>, Failure>> + Send;
}

/// Collects the items of many callers into requests.
pub(super) struct Batcher<K: BatchRequest> {
    shared: Arc<Shared<K>>,
}

struct Shared<K: BatchRequest> {
    kind: K,
    pending: Mutex<Pending<K::Item>>,
    /// Notified when an item arrives that is due earlier than all others.
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

    /// Adds an item to the batch. The batch is sent when it is full or after `linger`, even if the
    /// returned future is dropped.
    pub(super) fn call(
        &self,
        item: K::Item,
        linger: Duration,
    ) -> impl Future<Output = Result<(), Failure>> + use<K> {
        let (answer, answered) = oneshot::channel();
        self.shared.add(Waiting { item, latest: Instant::now() + linger, answer });
        async {
            let stopped = || Err(Failure::Unavailable("the program is ending".to_owned()));
            answered.await.unwrap_or_else(|_| stopped())
        }
    }

    /// The number of items that wait for the batch to fill.
    pub(super) fn waiting(&self) -> usize {
        self.shared.pending.lock().items.len()
    }

    /// Sends the incomplete batch.
    pub(super) fn send_waiting(&self) {
        let batch = self.shared.pending.lock().take();
        self.shared.spawn(batch);
    }

    /// Sends one request for these items, and retries those that the service failed to process.
    pub(super) async fn call_all(&self, items: Vec<K::Item>) -> Vec<Result<(), Failure>> {
        self.shared.deliver(&items).await
    }

    /// Sends the incomplete batch, and waits until all requests are answered.
    pub(super) async fn flush(&self) {
        self.send_waiting();
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
    fn add(self: &Arc<Self>, waiting: Waiting<K::Item>) {
        let mut pending = self.pending.lock();
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

    /// Sends batches when they are due. Ends when no item is waiting.
    async fn keep_time(self: Arc<Self>) {
        loop {
            let earliest = {
                let mut pending = self.pending.lock();
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
                // The caller may have been dropped.
                let _ = answer.send(result);
            }
        });
    }

    async fn deliver(&self, items: &[K::Item]) -> Vec<Result<(), Failure>> {
        let mut results: Vec<Result<(), Failure>> = vec![Ok(()); items.len()];
        let mut open: Vec<usize> = (0..items.len()).collect();
        // Halved if the service reports that the items are too large together.
        let mut most = MAX_ENTRIES;
        let mut delays = RETRIES.build();
        loop {
            let mut again = Vec::new();
            for part in open.chunks(most) {
                self.attempt(items, part, &mut results, &mut again).await;
            }
            if again.is_empty() {
                return results;
            }
            let too_long = |n: &usize| results[*n] == Err(Failure::TooLong);
            if most > 1 && again.iter().any(too_long) {
                most = most.div_ceil(2);
            } else {
                let Some(delay) = delays.next() else { return results };
                tokio::time::sleep(delay).await;
            }
            open = again;
        }
    }

    /// Sends one request for the items with these indexes. Adds the items to retry to `again`.
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
            // A single item may have caused the error.
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
