//! The leases that this host holds, by its own clock.
//!
//! Pub/Sub accepts an acknowledgement under an expired lease, but delivers the message again. Only
//! subscriptions with exactly-once delivery reject the acknowledgement. This process therefore
//! decides by its own clock whether a lease has expired.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::envelope::Envelope;
use crate::queue::Receipt;

/// A lease.
#[derive(Debug, Clone)]
pub(super) struct PubSubLease {
    pub(super) ack_id: String,
    pub(super) until: Instant,
    pub(super) envelope: Arc<Envelope>,
}

/// All leases, by the number in their receipt.
#[derive(Debug, Default)]
pub(super) struct PubSubLeases(Mutex<LeaseMap>);

#[derive(Debug, Default)]
struct LeaseMap {
    next: u64,
    held: HashMap<u64, PubSubLease>,
}

impl PubSubLeases {
    /// Adds leases, and removes expired ones.
    pub(super) fn enter(&self, held: Vec<PubSubLease>) -> Vec<Receipt> {
        let mut leases = self.0.lock();
        let now = Instant::now();
        leases.held.retain(|_, held| held.until > now);
        held.into_iter().map(|held| leases.enter(held)).collect()
    }

    /// The lease of a receipt, if it has not expired.
    pub(super) fn get(&self, receipt: &Receipt) -> Option<PubSubLease> {
        let held = self.0.lock().held.get(&number(receipt)?).cloned();
        held.filter(|held| held.until > Instant::now())
    }

    /// Removes a lease.
    pub(super) fn end(&self, receipt: &Receipt) {
        if let Some(number) = number(receipt) {
            self.0.lock().held.remove(&number);
        }
    }

    /// Replaces a lease, and returns its new receipt.
    pub(super) fn replace(&self, receipt: &Receipt, held: PubSubLease) -> Receipt {
        self.end(receipt);
        self.0.lock().enter(held)
    }
}

impl LeaseMap {
    fn enter(&mut self, held: PubSubLease) -> Receipt {
        self.next += 1;
        let receipt = Receipt(format!("{} {}", self.next, held.envelope.id));
        self.held.insert(self.next, held);
        receipt
    }
}

/// The message id in a receipt.
pub(super) fn id(receipt: &Receipt) -> &str {
    receipt.0.split_once(' ').map_or(&receipt.0, |(_, id)| id)
}

fn number(receipt: &Receipt) -> Option<u64> {
    receipt.0.split_once(' ')?.0.parse().ok()
}
