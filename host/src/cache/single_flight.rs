//! Runs work once for all callers that ask for it at the same time.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;

/// The work in progress, by key.
#[derive(Debug)]
pub(super) struct SingleFlight<K, V>(Mutex<HashMap<K, Flight<V>>>);

/// The working caller holds the lock. The value is the outcome for the callers that wait.
type Flight<V> = Arc<tokio::sync::Mutex<Option<V>>>;

impl<K, V> Default for SingleFlight<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Hash + Eq + Clone, V: Clone> SingleFlight<K, V> {
    /// Runs `work`, or waits for the same work of an earlier caller. All callers that asked before
    /// its end get the same outcome, even a failure; later callers start new work. If the working
    /// caller is dropped, the next one does the work. The flag is true for the caller that did it.
    pub(super) async fn run<F: Future<Output = V>>(
        &self,
        key: K,
        work: impl FnOnce() -> F,
    ) -> (V, bool) {
        let joined = self.join(key);
        let Some(flight) = &joined.flight else { return (work().await, true) };
        let mut outcome = flight.lock().await;
        if let Some(outcome) = &*outcome {
            return (outcome.clone(), false);
        }
        let done = work().await;
        *outcome = Some(done.clone());
        joined.close();
        (done, true)
    }

    fn join(&self, key: K) -> Participant<'_, K, V> {
        let mut flights = self.0.lock();
        let flight = flights.entry(key.clone()).or_default().clone();
        Participant { flights: self, key, flight: Some(flight) }
    }
}

/// A caller that works or waits.
struct Participant<'a, K: Hash + Eq, V> {
    flights: &'a SingleFlight<K, V>,
    key: K,
    /// Set until the drop, which releases it under the lock.
    flight: Option<Flight<V>>,
}

impl<K: Hash + Eq, V> Participant<'_, K, V> {
    /// Prevents other callers from joining.
    fn close(&self) {
        let mut flights = self.flights.0.lock();
        if let (Some(ours), Some(open)) = (&self.flight, flights.get(&self.key))
            && Arc::ptr_eq(ours, open)
        {
            flights.remove(&self.key);
        }
    }
}

impl<K: Hash + Eq, V> Drop for Participant<'_, K, V> {
    fn drop(&mut self) {
        let mut flights = self.flights.0.lock();
        let Some(ours) = self.flight.take() else { return };
        // Only the map and this caller hold a reference: no other caller is left.
        if flights.get(&self.key).is_some_and(|open| Arc::ptr_eq(open, &ours))
            && Arc::strong_count(&ours) == 2
        {
            flights.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::FutureExt;
    use futures_util::future::join_all;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_hundred_who_ask_at_once_get_the_outcome_of_one() {
        let flights = SingleFlight::<u32, usize>::default();
        let done = AtomicUsize::new(0);
        let gate = tokio::sync::Semaphore::new(0);
        let ask = |_| {
            flights.run(1, || async {
                let _permit = gate.acquire().await.unwrap();
                done.fetch_add(1, Ordering::SeqCst)
            })
        };
        let all = join_all((0..100).map(ask));
        let (outcomes, ()) = futures_util::future::join(all, async { gate.add_permits(1) }).await;
        assert_eq!(done.load(Ordering::SeqCst), 1);
        assert_eq!(outcomes.iter().filter(|(_, led)| *led).count(), 1);
        assert!(flights.0.lock().is_empty());
        assert_eq!(flights.run(1, || async { 7 }).await, (7, true), "later ones start anew");
    }

    #[tokio::test]
    async fn the_next_takes_over_from_one_that_is_dropped() {
        let flights = SingleFlight::<u32, usize>::default();
        let mut first = Box::pin(flights.run(1, std::future::pending));
        assert!((&mut first).now_or_never().is_none());
        let mut second = Box::pin(flights.run(1, || async { 2 }));
        assert!((&mut second).now_or_never().is_none());
        drop(first);
        assert_eq!(second.await, (2, true));
        let mut third = Box::pin(flights.run(1, std::future::pending));
        assert!((&mut third).now_or_never().is_none());
        drop(third);
        assert!(flights.0.lock().is_empty());
    }
}
