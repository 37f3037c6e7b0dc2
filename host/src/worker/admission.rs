//! Decides how many messages a host requests at once.

use tokio::sync::OwnedSemaphorePermit;

use crate::hold::Holds;
use crate::services::Services;

/// The maximum number of messages in one lease call: the limit of one SQS request.
const MAX_BATCH: usize = 10;

/// Waits until enough permits are free for a request, and takes up to one batch, but at most
/// `wanted`.
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
