//! Notifications from the kernel about new messages.
//!
//! The kernel reports only changes made by this machine. On a network file system, the repeated
//! listings of `candidates.rs` find the other messages. A notification includes the name, so that a
//! waiting host does not need to list a queue of 100,000 leased messages to find the new one.

use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::io::Errno;

use crate::system::Watch;

/// After this number of leases without a wait, the watch ends, because its notifications are not
/// used.
const BUSY: u32 = 64;

/// The watch that all waiting calls share, if there is one.
#[derive(Debug)]
pub(super) struct WatchState {
    /// The path of `queue/`.
    path: PathBuf,
    current: Mutex<Current>,
}

#[derive(Debug, Default)]
struct Current {
    watch: Option<Arc<Watch>>,
    /// The number of leases since the last wait.
    leases: u32,
    has_warned: bool,
}

impl WatchState {
    pub(super) fn new(path: PathBuf) -> WatchState {
        WatchState { path, current: Mutex::default() }
    }

    /// Returns the watch, and whether it began only now. Returns `None` if the kernel has no
    /// watches or refuses one; then only the repeated listings find messages. `queue` is the URL.
    pub(super) fn get(&self, queue: &str) -> Option<(Arc<Watch>, bool)> {
        let mut current = self.current.lock();
        current.leases = 0;
        if let Some(watch) = &current.watch {
            return Some((watch.clone(), false));
        }
        match Watch::begin(&self.path) {
            Ok(watch) => {
                let watch = Arc::new(watch);
                current.watch = Some(watch.clone());
                Some((watch, true))
            }
            // This system does not support watches.
            Err(Errno::NOSYS) => None,
            Err(errno) => {
                if !current.has_warned {
                    current.has_warned = true;
                    tracing::warn!(
                        queue,
                        %errno,
                        "can't watch the queue for new messages, so it is listed every few \
                         seconds; fs.inotify.max_user_instances may be too low"
                    );
                }
                None
            }
        }
    }

    /// Counts a lease that did not wait, and ends the watch after many of them.
    pub(super) fn leased_without_wait(&self) {
        let mut current = self.current.lock();
        current.leases = current.leases.saturating_add(1);
        if current.leases >= BUSY {
            current.watch = None;
        }
    }
}
