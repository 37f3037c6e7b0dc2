//! The leases that this process holds, by the receipts that it gave out for them.
//!
//! SQS takes a delete under a lease that is over for done without doing it. So our own clock
//! decides: a receipt whose time is over is of no use, and SQS is not asked.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::attempts::{History, Sent};
use crate::queue::Receipt;

/// How long a lease that ran out is kept in the table: whoever dropped it does not say so.
const KEPT: Duration = Duration::from_secs(60);

/// What is known of a message under lease.
#[derive(Debug, Clone)]
pub(super) struct LeasedMessage {
    /// The message's id, the same at every delivery.
    pub(super) id: String,
    /// What SQS calls this copy of it.
    pub(super) copy: String,
    /// What SQS knows this receive by.
    pub(super) handle: String,
    /// The message as it was sent, to send it again.
    pub(super) sent: Sent,
    /// When that was, since 1970.
    pub(super) sent_at: Option<Duration>,
    /// What is known of executions before this lease.
    pub(super) history: History,
    /// The earliest time at which it may have been received.
    pub(super) received: Instant,
    /// The object that holds its body, if SQS does not.
    pub(super) payload: Option<object_store::path::Path>,
}

#[derive(Debug, Clone)]
pub(super) struct SqsLease {
    pub(super) held: Arc<LeasedMessage>,
    /// When the lease ends, at the earliest.
    pub(super) until: Instant,
}

#[derive(Debug)]
pub(super) struct SqsLeases {
    state: Mutex<LeaseRows>,
}

#[derive(Debug)]
struct LeaseRows {
    rows: HashMap<u64, SqsLease>,
    next: u64,
    swept: Instant,
}

impl SqsLeases {
    pub(super) fn new() -> Self {
        let state = LeaseRows { rows: HashMap::new(), next: 1, swept: Instant::now() };
        Self { state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, LeaseRows> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new receipt for this lease.
    pub(super) fn add(&self, held: Arc<LeasedMessage>, until: Instant) -> Receipt {
        let mut state = self.state();
        let now = Instant::now();
        if now > state.swept + KEPT {
            state.swept = now;
            state.rows.retain(|_, row| row.until + KEPT > now);
        }
        let number = state.next;
        state.next += 1;
        let receipt = Receipt(format!("{number} {}", held.id));
        state.rows.insert(number, SqsLease { held, until });
        receipt
    }

    /// The lease, if its time is not over.
    pub(super) fn get(&self, receipt: &Receipt) -> Option<SqsLease> {
        let number = number(receipt)?;
        let mut state = self.state();
        let row = state.rows.get(&number)?.clone();
        if row.until > Instant::now() {
            return Some(row);
        }
        state.rows.remove(&number);
        None
    }

    pub(super) fn remove(&self, receipt: &Receipt) {
        if let Some(number) = number(receipt) {
            self.state().rows.remove(&number);
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.state().rows.len()
    }
}

fn number(receipt: &Receipt) -> Option<u64> {
    receipt.0.split(' ').next()?.parse().ok()
}

/// The message's id as its receipt says it.
pub(super) fn id(receipt: &Receipt) -> &str {
    receipt.0.split_once(' ').map_or("", |(_, id)| id)
}
