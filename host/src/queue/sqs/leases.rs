//! The leases that this process holds, by receipt.
//!
//! SQS accepts a delete under an expired lease and silently ignores it. This process therefore
//! decides by its own clock: after the end of a lease its receipt is invalid, and no request is
//! sent.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::attempts::{History, Sent};
use crate::queue::Receipt;

/// How long an expired lease stays in the table. This is the only way in which dropped leases are
/// removed.
const KEPT: Duration = Duration::from_secs(60);

/// A message under lease.
#[derive(Debug, Clone)]
pub(super) struct LeasedMessage {
    /// The message's id, the same at every delivery.
    pub(super) id: String,
    /// SQS's id of this copy.
    pub(super) copy: String,
    /// SQS's receipt handle.
    pub(super) handle: String,
    /// The message as it was sent, for sending it again.
    pub(super) sent: Sent,
    /// When the copy was sent, as a time since 1970.
    pub(super) sent_at: Option<Duration>,
    /// The history of earlier executions.
    pub(super) history: History,
    /// The earliest time at which the lease may have started.
    pub(super) received: Instant,
    /// The object in the bucket that contains the body, if the message does not.
    pub(super) payload: Option<object_store::path::Path>,
}

#[derive(Debug, Clone)]
pub(super) struct SqsLease {
    pub(super) held: Arc<LeasedMessage>,
    /// The earliest end of the lease.
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

    /// Adds a lease, and returns its receipt.
    pub(super) fn add(&self, held: Arc<LeasedMessage>, until: Instant) -> Receipt {
        let mut state = self.state.lock();
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

    /// The lease, if it has not expired.
    pub(super) fn get(&self, receipt: &Receipt) -> Option<SqsLease> {
        let number = number(receipt)?;
        let mut state = self.state.lock();
        let row = state.rows.get(&number)?.clone();
        if row.until > Instant::now() {
            return Some(row);
        }
        state.rows.remove(&number);
        None
    }

    pub(super) fn remove(&self, receipt: &Receipt) {
        if let Some(number) = number(receipt) {
            self.state.lock().rows.remove(&number);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.state.lock().rows.len()
    }
}

fn number(receipt: &Receipt) -> Option<u64> {
    receipt.0.split(' ').next()?.parse().ok()
}

/// The message id in a receipt.
pub(super) fn id(receipt: &Receipt) -> &str {
    receipt.0.split_once(' ').map_or("", |(_, id)| id)
}
