//! Syncs puts to the disk for many callers at once.
//!
//! One `syncfs` writes all unwritten data of its file system, so waiting callers share one call. A
//! caller that arrives during a sync waits for the next one, which covers all puts before its
//! start.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use parking_lot::Mutex;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;

use super::root::Root;
use crate::blocking::blocking;
use crate::system::sync_file_system;

/// Runs work in rounds. All waiting callers share a round.
#[derive(Debug, Default)]
struct Rounds {
    begun: AtomicU64,
    last: tokio::sync::Mutex<Last>,
}

#[derive(Debug, Default)]
struct Last {
    /// The last round that ended.
    ended: u64,
    /// The last round that failed.
    failed: Option<(u64, Errno)>,
}

impl Rounds {
    /// Waits for a round of `work` that begins after this call.
    async fn join(
        &self,
        work: impl FnOnce() -> Result<(), Errno> + Send + 'static,
    ) -> Result<(), Errno> {
        let begun = self.begun.load(SeqCst);
        // The lock is granted in the order of the calls.
        let mut last = self.last.lock().await;
        if last.ended <= begun {
            let round = self.begun.fetch_add(1, SeqCst) + 1;
            let done = blocking(work).await;
            last.ended = round;
            if let Err(error) = done {
                last.failed = Some((round, error));
            }
        }
        match last.failed {
            // The kernel reports an unwritten page only once. It may be this caller's page even if
            // the round before reported it.
            Some((round, error)) if round >= begun => Err(error),
            _ => Ok(()),
        }
    }
}

/// The puts of a bucket that are not yet synced.
#[derive(Debug, Default)]
pub(super) struct Unsynced {
    rounds: Rounds,
    /// By device.
    dirty: Arc<Mutex<HashMap<u64, Dirty>>>,
}

/// A file system that was written to.
#[derive(Debug)]
struct Dirty {
    dir: Arc<Holder>,
    puts: u64,
}

/// An open directory on a file system.
#[derive(Debug)]
pub(super) enum Holder {
    /// The bucket's directory.
    Root(Arc<Root>),
    /// A directory that a link in the bucket leads to.
    Linked(OwnedFd),
}

impl AsFd for Holder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Root(root) => root.as_fd(),
            Self::Linked(dir) => dir.as_fd(),
        }
    }
}

impl Unsynced {
    /// Records a put into the file system `device`. `dir` opens a directory on it.
    pub(super) fn add(
        &self,
        device: u64,
        dir: impl FnOnce() -> Result<Holder, Errno>,
    ) -> Result<(), Errno> {
        let mut all = self.dirty.lock();
        if let Some(dirty) = all.get_mut(&device) {
            dirty.puts += 1;
        } else {
            all.insert(device, Dirty { dir: Arc::new(dir()?), puts: 1 });
        }
        Ok(())
    }

    /// True when everything is on the disk.
    pub(super) fn is_empty(&self) -> bool {
        self.dirty.lock().is_empty()
    }

    /// The file systems that were written to.
    #[cfg(test)]
    pub(super) fn devices(&self) -> Vec<u64> {
        let mut devices: Vec<u64> = self.dirty.lock().keys().copied().collect();
        devices.sort_unstable();
        devices
    }

    /// Syncs all earlier puts.
    pub(super) async fn sync(&self) -> Result<(), Errno> {
        if self.is_empty() {
            return Ok(());
        }
        let dirty = self.dirty.clone();
        self.rounds.join(move || sync_all(&dirty)).await
    }
}

fn sync_all(dirty: &Mutex<HashMap<u64, Dirty>>) -> Result<(), Errno> {
    let look = |(device, dirty): (&u64, &Dirty)| (*device, dirty.dir.clone(), dirty.puts);
    let now: Vec<_> = dirty.lock().iter().map(look).collect();
    for (device, dir, puts) in now {
        sync_file_system(&*dir)?;
        let mut all = dirty.lock();
        // Later puts may have missed the sync.
        if all.get(&device).is_some_and(|dirty| dirty.puts == puts) {
            all.remove(&device);
        }
    }
    Ok(())
}

/// Syncs the file system of a directory for many callers at once. For the reports in a directory
/// queue.
#[derive(Debug)]
pub struct DirSync {
    path: PathBuf,
    rounds: Rounds,
}

impl DirSync {
    /// Syncs whichever file system `path` is on at the time.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), rounds: Rounds::default() }
    }

    /// Syncs all earlier writes.
    ///
    /// # Errors
    /// When the directory can't be opened or the disk fails. Earlier writes may be lost then.
    pub async fn sync(&self) -> io::Result<()> {
        let path = self.path.clone();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let sync = move || sync_file_system(openat(CWD, &path, flags, Mode::empty())?);
        Ok(self.rounds.join(sync).await?)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::sync::mpsc;

    use super::*;

    /// Polls a future once, so that it starts to wait.
    async fn begin<F: Future + Unpin>(future: &mut F) {
        assert!(futures_util::poll!(future).is_pending());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn those_who_come_while_a_round_runs_share_the_next() {
        let rounds = Arc::new(Rounds::default());
        let count = Arc::new(AtomicUsize::new(0));
        let (go_on, wait) = mpsc::channel::<()>();
        let counted = count.clone();
        let mut first = Box::pin(rounds.join(move || {
            let _ = wait.recv();
            counted.fetch_add(1, SeqCst);
            Ok(())
        }));
        begin(&mut first).await;
        let more = (0..50).map(|_| {
            let counted = count.clone();
            Box::pin(rounds.join(move || {
                counted.fetch_add(1, SeqCst);
                Ok(())
            }))
        });
        let mut more: Vec<_> = more.collect();
        for waiting in &mut more {
            begin(waiting).await;
        }
        go_on.send(()).unwrap();
        first.await.unwrap();
        for waiting in more {
            waiting.await.unwrap();
        }
        assert_eq!(count.load(SeqCst), 2);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_failure_is_told_to_all_who_may_have_lost_something() {
        let rounds = Arc::new(Rounds::default());
        rounds.join(|| Ok(())).await.unwrap();
        let (go_on, wait) = mpsc::channel::<()>();
        let mut failing = Box::pin(rounds.join(move || {
            let _ = wait.recv();
            Err(Errno::IO)
        }));
        begin(&mut failing).await;
        // These callers put something while the failing round ran.
        let mut meanwhile: Vec<_> = (0..3).map(|_| Box::pin(rounds.join(|| Ok(())))).collect();
        for waiting in &mut meanwhile {
            begin(waiting).await;
        }
        go_on.send(()).unwrap();
        assert_eq!(failing.await, Err(Errno::IO));
        for waiting in meanwhile {
            assert_eq!(waiting.await, Err(Errno::IO));
        }
        assert_eq!(rounds.join(|| Ok(())).await, Ok(()));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_round_whose_caller_went_away_is_not_taken_for_done() {
        let rounds = Arc::new(Rounds::default());
        let (_go_on, wait) = mpsc::channel::<()>();
        let mut given_up = Box::pin(rounds.join(move || {
            let _ = wait.recv();
            Ok(())
        }));
        begin(&mut given_up).await;
        drop(given_up);
        let ran = Arc::new(AtomicUsize::new(0));
        let run = ran.clone();
        let done = rounds.join(move || {
            run.fetch_add(1, SeqCst);
            Ok(())
        });
        done.await.unwrap();
        assert_eq!(ran.load(SeqCst), 1);
    }

    #[tokio::test]
    async fn a_directory_of_reports_is_synced_or_says_why_not() {
        let root = tempfile::tempdir().unwrap();
        DirSync::new(root.path()).sync().await.unwrap();
        let link = root.path().join("link");
        std::os::unix::fs::symlink(root.path(), &link).unwrap();
        DirSync::new(link).sync().await.unwrap();
        let missing = DirSync::new(root.path().join("missing")).sync().await.unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }
}
