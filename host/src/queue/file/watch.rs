//! Being told by the kernel when a message comes.
//!
//! It tells only of what happens on this machine; on a network file system the polling in
//! `candidates.rs` finds the rest. It also tells the names, so that an idle host that is woken
//! does not have to list a queue of a hundred thousand leased messages to find the new one.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

use super::name::Name;

/// Events after which the directory has to be listed.
const NOT_WHOLE: ReadFlags = ReadFlags::QUEUE_OVERFLOW
    .union(ReadFlags::IGNORED)
    .union(ReadFlags::DELETE_SELF)
    .union(ReadFlags::MOVE_SELF);

/// A watch on `queue/`.
#[derive(Debug)]
pub(super) struct Watch(AsyncFd<OwnedFd>);

impl Watch {
    /// Begins to watch `queue/`, at this path. Needs a runtime.
    pub(super) fn begin(queue: &Path) -> Result<Watch, Errno> {
        let fd = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let flags = WatchFlags::MOVED_TO
            | WatchFlags::CREATE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        inotify::add_watch(&fd, queue, flags)?;
        // SAFETY: an `OwnedFd` is the same open descriptor for as long as it lives, and
        // `Watch` neither takes it out nor puts another in its place.
        let fd = unsafe { AsyncFd::register(fd) }.map_err(|_| Errno::IO)?;
        Ok(Watch(fd))
    }

    /// Waits until there is something to [`read`](Watch::read).
    pub(super) async fn changed(&self) {
        if self.0.readable().await.is_err() {
            // The runtime is going down; polling is left.
            std::future::pending::<()>().await;
        }
    }

    /// Reads what has happened: the names that have come. `false` if some were lost, or the
    /// directory itself went away.
    pub(super) fn read(&self, mut each: impl FnMut(Name)) -> bool {
        let mut whole = true;
        let mut buffer = [MaybeUninit::uninit(); 16 * 1024];
        let _ = self.0.try_io(tokio::io::Interest::READABLE, |fd| {
            let mut events = inotify::Reader::new(fd, &mut buffer);
            loop {
                match events.next() {
                    Ok(event) if event.events().intersects(NOT_WHOLE) => whole = false,
                    Ok(event) if event.events().contains(ReadFlags::ISDIR) => {}
                    Ok(event) => {
                        let name = event.file_name().and_then(|name| name.to_str().ok());
                        if let Some(name) = name.and_then(Name::parse) {
                            each(name);
                        }
                    }
                    Err(Errno::INTR) => {}
                    // No more for now: this is what makes `changed` wait again.
                    Err(errno) => return Err::<(), _>(errno.into()),
                }
            }
        });
        whole
    }
}
