//! How many messages a host asks for at once.

use tokio::sync::OwnedSemaphorePermit;

use crate::hold::Holds;
use crate::services::Services;

/// Messages that one lease call asks for at most: what one SQS request brings.
const MAX_BATCH: usize = 10;

/// Waits until enough permits are free to be worth a request, and takes up to one batch. At most
/// `wanted` permits.
pub(super) async fn admit(
    holds: &Holds,
    services: &Services,
    wanted: u64,
) -> Vec<OwnedSemaphorePermit> {
    // During an outage that can't be probed, one task at a time tries the operation.
    let at_once = if services.outages.any() { 1 } else { MAX_BATCH };
    let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
    holds.admit(services.queue.batch(), wanted.min(at_once).max(1)).await
}
