//! A queue in memory, for tests and for tasks that are in no other queue.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Counts, Message, Queue, QueueError, Receipt, Release};

/// A queue that lasts as long as its process.
#[derive(Debug, Default)]
pub struct MemoryQueue {
    /// The maximum size of a message in bytes, if there is a limit.
    longest: Option<usize>,
    state: Mutex<MemoryState>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct MemoryState {
    /// The messages, in the order in which they were sent.
    messages: BTreeMap<u64, Entry>,
    sent: u64,
    leases: u64,
    completed: u64,
}

#[derive(Debug)]
struct Entry {
    body: Bytes,
    /// `None` if it can be leased now.
    due: Option<Instant>,
    /// The number of the last lease, which is also in its receipt.
    lease: u64,
    /// The numbers of executions that started and did not end, by the number of their lease.
    open: BTreeMap<u64, u32>,
    failures: Vec<String>,
}

impl MemoryQueue {
    /// Creates an empty queue.
    pub fn new() -> MemoryQueue {
        MemoryQueue::default()
    }

    /// Creates an empty queue that rejects messages with more than `longest` bytes.
    pub fn taking(longest: usize) -> MemoryQueue {
        MemoryQueue { longest: Some(longest), ..MemoryQueue::default() }
    }

    /// The number of the message and of the lease in a receipt.
    fn read(&self, receipt: &Receipt) -> Result<(u64, u64), QueueError> {
        let numbers = receipt.0.split_once(' ');
        let numbers = numbers.and_then(|(id, lease)| Some((id.parse().ok()?, lease.parse().ok()?)));
        numbers.ok_or_else(|| QueueError::Invalid {
            queue: self.to_string(),
            problem: "the receipt belongs to another queue".to_owned(),
        })
    }

    /// Changes the message of a receipt.
    fn with<T>(
        &self,
        receipt: &Receipt,
        change: impl FnOnce(&mut MemoryState, u64) -> T,
    ) -> Result<T, QueueError> {
        let (id, lease) = self.read(receipt)?;
        let mut state = self.state.lock();
        match state.messages.get(&id) {
            Some(entry) if entry.lease == lease => Ok(change(&mut state, id)),
            _ => Err(QueueError::LeaseLost { queue: self.to_string(), id: id.to_string() }),
        }
    }

    /// Leases the messages that are due. Also returns the time at which the next message will be
    /// due.
    fn take(&self, max: usize, duration: Duration) -> (Vec<Message>, Option<Instant>) {
        let now = Instant::now();
        let state = &mut *self.state.lock();
        let mut found = Vec::new();
        let mut next = None;
        for (id, entry) in &mut state.messages {
            if found.len() >= max {
                // Another caller may take the next one.
                self.changed.notify_one();
                break;
            }
            match entry.due {
                Some(due) if due > now => {
                    next = Some(next.map_or(due, |next: Instant| next.min(due)));
                }
                _ => {
                    state.leases += 1;
                    entry.lease = state.leases;
                    entry.due = Some(after(now, duration));
                    found.push(Message {
                        id: id.to_string(),
                        body: entry.body.clone(),
                        unread: None,
                        receipt: Receipt(format!("{id} {}", entry.lease)),
                        attempts: u32::try_from(entry.failures.len()).unwrap_or(u32::MAX),
                        deaths: entry.open.values().sum(),
                        unaccounted: 0,
                        failures: entry.failures.clone(),
                    });
                }
            }
        }
        (found, next)
    }
}

#[async_trait]
impl Queue for MemoryQueue {
    async fn lease(
        &self,
        max: usize,
        duration: Duration,
        wait: Duration,
    ) -> Result<Vec<Message>, QueueError> {
        let until = after(Instant::now(), wait);
        loop {
            let (found, next) = self.take(max, duration);
            if !found.is_empty() || max == 0 || Instant::now() >= until {
                return Ok(found);
            }
            let wake = next.map_or(until, |next| next.min(until));
            tokio::select! {
                () = self.changed.notified() => {}
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    async fn start(&self, receipt: &Receipt) -> Result<(), QueueError> {
        self.with(receipt, |state, id| {
            if let Some(entry) = state.messages.get_mut(&id) {
                *entry.open.entry(entry.lease).or_default() += 1;
            }
        })
    }

    async fn extend(&self, receipt: &Receipt, duration: Duration) -> Result<Receipt, QueueError> {
        self.with(receipt, |state, id| {
            state.leases += 1;
            let lease = state.leases;
            if let Some(entry) = state.messages.get_mut(&id) {
                if let Some(open) = entry.open.remove(&entry.lease) {
                    entry.open.insert(lease, open);
                }
                entry.lease = lease;
                entry.due = Some(after(Instant::now(), duration));
            }
            Receipt(format!("{id} {lease}"))
        })
    }

    async fn ack(&self, receipt: &Receipt) -> Result<(), QueueError> {
        self.with(receipt, |state, id| {
            state.messages.remove(&id);
            state.completed += 1;
        })
    }

    async fn give_up(&self, receipt: &Receipt) -> Result<(), QueueError> {
        self.with(receipt, |state, id| {
            state.messages.remove(&id);
        })
    }

    async fn disown(&self, receipt: &Receipt) -> Result<(), QueueError> {
        let (id, lease) = self.read(receipt)?;
        if let Some(entry) = self.state.lock().messages.get_mut(&id) {
            entry.open.remove(&lease);
        }
        Ok(())
    }

    async fn release(
        &self,
        receipt: &Receipt,
        delay: Duration,
        why: Release<'_>,
    ) -> Result<(), QueueError> {
        self.with(receipt, |state, id| {
            if let Some(entry) = state.messages.get_mut(&id) {
                entry.open.remove(&entry.lease);
                if let Release::Failed(reason) = why {
                    entry.failures.push(reason.to_owned());
                }
                // No lease has this number, so the receipt becomes invalid.
                entry.lease = 0;
                entry.due = (!delay.is_zero()).then(|| after(Instant::now(), delay));
            }
        })?;
        self.changed.notify_one();
        Ok(())
    }

    async fn send(&self, bodies: &[Bytes]) -> Vec<Result<(), QueueError>> {
        let send = |body: &Bytes| {
            if let Some(longest) = self.longest.filter(|longest| body.len() > *longest) {
                let problem = format!(
                    "a message of {} bytes is too large: the limit is {longest}",
                    body.len()
                );
                return Err(QueueError::Invalid { queue: self.to_string(), problem });
            }
            let mut state = self.state.lock();
            state.sent += 1;
            let id = state.sent;
            state.messages.insert(
                id,
                Entry {
                    body: body.clone(),
                    due: None,
                    lease: 0,
                    open: BTreeMap::new(),
                    failures: Vec::new(),
                },
            );
            Ok(())
        };
        let results = bodies.iter().map(send).collect();
        self.changed.notify_one();
        results
    }

    async fn counts(&self) -> Result<Counts, QueueError> {
        let state = self.state.lock();
        let now = Instant::now();
        let leased = |entry: &&Entry| entry.due.is_some_and(|due| due > now);
        let is_free = |entry: &&Entry| entry.lease == 0;
        Ok(Counts {
            enqueued: Some(state.messages.len() as u64),
            leased: Some(state.messages.values().filter(leased).count() as u64),
            retrying: Some(state.messages.values().filter(leased).filter(is_free).count() as u64),
            inserted: Some(state.sent),
            completed: Some(state.completed),
        })
    }
}

impl fmt::Display for MemoryQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("memory://")
    }
}

/// The time after a delay. The delay is limited to thirty years, to prevent an overflow.
fn after(now: Instant, delay: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
    now + delay.min(FAR)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::queue::conformance::{Subject, suite};

    suite!({
        let queue = Arc::new(MemoryQueue::new());
        Subject::new(queue.clone(), queue, ())
    });
}
