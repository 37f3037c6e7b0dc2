//! Counts the requests to a service, which cost money.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::Requests;

/// The kind of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RequestKind {
    Receive,
    Send,
    Delete,
    Extend,
    Other,
}

/// The number of requests so far, by kind.
#[derive(Debug, Default)]
pub(super) struct RequestCounter([AtomicU64; 5]);

impl RequestCounter {
    pub(super) fn count(&self, kind: RequestKind) {
        self.0[kind as usize].fetch_add(1, Relaxed);
    }

    pub(super) fn requests(&self) -> Requests {
        let of = |kind: RequestKind| self.0[kind as usize].load(Relaxed);
        Requests {
            receive: of(RequestKind::Receive),
            send: of(RequestKind::Send),
            delete: of(RequestKind::Delete),
            extend: of(RequestKind::Extend),
            other: of(RequestKind::Other),
        }
    }
}
