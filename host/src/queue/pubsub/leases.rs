//! The leases that this host holds, by its own clock.
//!
//! The service accepts an acknowledgement for a lease that has ended, and then delivers the
//! message again all the same; only subscriptions with exactly-once delivery refuse it. So
//! what is held, and until when, is known here: who comes too late is told.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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

/// All of them, by the number in their receipts.
#[derive(Debug, Default)]
pub(super) struct PubSubLeases(Mutex<LeaseMap>);

#[derive(Debug, Default)]
struct LeaseMap {
    next: u64,
    held: HashMap<u64, PubSubLease>,
}

impl PubSubLeases {
    fn leases(&self) -> MutexGuard<'_, LeaseMap> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters leases, and forgets those that nobody settled.
    pub(super) fn enter(&self, held: Vec<PubSubLease>) -> Vec<Receipt> {
        let mut leases = self.leases();
        let now = Instant::now();
        leases.held.retain(|_, held| held.until > now);
        held.into_iter().map(|held| leases.enter(held)).collect()
    }

    /// The lease of a receipt, if it has not ended.
    pub(super) fn get(&self, receipt: &Receipt) -> Option<PubSubLease> {
        let held = self.leases().held.get(&number(receipt)?).cloned();
        held.filter(|held| held.until > Instant::now())
    }

    /// Ends a lease.
    pub(super) fn end(&self, receipt: &Receipt) {
        if let Some(number) = number(receipt) {
            self.leases().held.remove(&number);
        }
    }

    /// Gives a lease another end and another receipt.
    pub(super) fn replace(&self, receipt: &Receipt, held: PubSubLease) -> Receipt {
        self.end(receipt);
        self.leases().enter(held)
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

/// The message that a receipt is for.
pub(super) fn id(receipt: &Receipt) -> &str {
    receipt.0.split_once(' ').map_or(&receipt.0, |(_, id)| id)
}

fn number(receipt: &Receipt) -> Option<u64> {
    receipt.0.split_once(' ')?.0.parse().ok()
}
