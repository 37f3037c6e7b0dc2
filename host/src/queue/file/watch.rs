//! Notifications from the kernel (inotify) about new messages.
//!
//! The kernel reports only changes by this machine. On a network file system, the repeated
//! listings of `candidates.rs` find the other messages. A notification includes the name, so
//! that a waiting host need not list a queue of 100,000 leased messages to find the new one.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

use super::name::Name;

/// Events after which the directory must be listed.
const INCOMPLETE: ReadFlags = ReadFlags::QUEUE_OVERFLOW
    .union(ReadFlags::IGNORED)
    .union(ReadFlags::DELETE_SELF)
    .union(ReadFlags::MOVE_SELF);
/// After this many leases without a wait, the watch ends: nobody reads its notifications.
const BUSY: u32 = 64;

/// The watch that all waiting calls share, while there is one.
#[derive(Debug)]
pub(super) struct WatchState {
    /// The path of `queue/`.
    path: PathBuf,
    current: Mutex<Current>,
}

#[derive(Debug, Default)]
struct Current {
    watch: Option<Arc<Watch>>,
    /// Leases since the last wait.
    leases: u32,
    has_warned: bool,
}

impl WatchState {
    pub(super) fn new(path: PathBuf) -> WatchState {
        WatchState { path, current: Mutex::default() }
    }

    /// Returns the watch, and whether it began only now. Returns `None` if the kernel refuses
    /// one; then only the repeated listings find messages. `queue` is the URL.
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

/// A watch on `queue/`.
#[derive(Debug)]
pub(super) struct Watch(AsyncFd<OwnedFd>);

impl Watch {
    /// Begins to watch `queue/` at this path. Must be called in a Tokio runtime.
    pub(super) fn begin(queue: &Path) -> Result<Watch, Errno> {
        let fd = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let flags = WatchFlags::MOVED_TO
            | WatchFlags::CREATE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        inotify::add_watch(&fd, queue, flags)?;
        // SAFETY: an `OwnedFd` is the same open descriptor for as long as it lives, and `Watch`
        // never replaces it.
        let fd = unsafe { AsyncFd::register(fd) }.map_err(|_| Errno::IO)?;
        Ok(Watch(fd))
    }

    /// Waits until there are events to [`read`](Watch::read).
    pub(super) async fn changed(&self) {
        if self.0.readable().await.is_err() {
            // The runtime is shutting down; the caller's timer remains.
            std::future::pending::<()>().await;
        }
    }

    /// Reads the events, and calls `each` with the name of each new message. Returns `false` if
    /// events were lost or the directory was removed or moved.
    pub(super) fn read(&self, mut each: impl FnMut(Name)) -> bool {
        let mut complete = true;
        let mut buffer = [MaybeUninit::uninit(); 16 * 1024];
        let _ = self.0.try_io(tokio::io::Interest::READABLE, |fd| {
            let mut events = inotify::Reader::new(fd, &mut buffer);
            loop {
                match events.next() {
                    Ok(event) if event.events().intersects(INCOMPLETE) => complete = false,
                    Ok(event) if event.events().contains(ReadFlags::ISDIR) => {}
                    Ok(event) => {
                        let name = event.file_name().and_then(|name| name.to_str().ok());
                        if let Some(name) = name.and_then(Name::parse) {
                            each(name);
                        }
                    }
                    Err(Errno::INTR) => {}
                    // No more events; the error makes `changed` wait again.
                    Err(errno) => return Err::<(), _>(errno.into()),
                }
            }
        });
        complete
    }
}
