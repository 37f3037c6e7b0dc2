//! The receipt of a lease.

use super::name::Name;
use crate::queue::Receipt;

/// The contents of a receipt.
#[derive(Debug, Clone)]
pub(super) struct LeaseReceipt {
    /// The name of the message's file. It proves the lease.
    pub(super) name: Name,
    /// The length of the movement file, in bytes, when the message was leased.
    pub(super) since: usize,
    /// Whether there may be failures of earlier leases.
    pub(super) redelivered: bool,
    /// Whether the message is too long, so that its body was not read.
    pub(super) is_unread: bool,
}

impl LeaseReceipt {
    pub(super) fn encode(&self) -> Receipt {
        let more = if self.redelivered { "+" } else { "" };
        let unread = if self.is_unread { "!" } else { "" };
        Receipt(format!("{} {}{more}{unread}", self.name.as_str(), self.since))
    }

    pub(super) fn decode(receipt: &Receipt) -> Option<LeaseReceipt> {
        let (name, rest) = receipt.0.split_once(' ')?;
        let (rest, is_unread) = match rest.strip_suffix('!') {
            Some(rest) => (rest, true),
            None => (rest, false),
        };
        let since = rest.strip_suffix('+');
        Some(LeaseReceipt {
            name: Name::parse(name)?,
            since: since.unwrap_or(rest).parse().ok()?,
            redelivered: since.is_some(),
            is_unread,
        })
    }
}
