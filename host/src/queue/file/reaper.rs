//! Removes the files of messages that are done, without holding up whoever did them where
//! that takes long.
//!
//! Removing a file mostly takes microseconds. But an ext4 without a journal, mounted with
//! `discard`, waits until the disk has freed the blocks: milliseconds for each file that had
//! been written to it. The disk does many at once as fast as one, so then threads take over.
//! A message is done when it is out of `queue/`; should the process be killed before its
//! files are gone, the next one removes them.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::scratch::Scratch;

/// Removing the two files of a message should take no longer.
const SLOW: Duration = Duration::from_micros(200);
/// So many slow ones in a row are no accident.
const IN_A_ROW: u32 = 4;
const THREADS: usize = 8;
/// Messages that wait for a thread, at the most: the next process should not have much to
/// tidy up.
const WAITING: usize = 64;

/// Discards messages, here or on its threads. Dropping it finishes what is under way.
#[derive(Debug, Default)]
pub(super) struct Reaper {
    /// How many were slow since the last one that was not.
    slow: Arc<AtomicU32>,
    threads: Mutex<Option<Threads>>,
}

#[derive(Debug)]
struct Threads {
    work: SyncSender<Work>,
    running: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Work {
    scratch: Arc<Scratch>,
    id: String,
}

impl Reaper {
    /// [`Scratch::discard`], now or soon.
    pub(super) fn discard(&self, scratch: Arc<Scratch>, id: &str) -> Result<(), Errno> {
        let mut work = Work { scratch, id: id.to_owned() };
        if self.slow.load(Ordering::Relaxed) >= IN_A_ROW {
            match self.hand_over(work) {
                Ok(()) => return Ok(()),
                // All threads have their hands full; it must not become ever more.
                Err(back) => work = back,
            }
        }
        work.timed(&self.slow)
    }

    fn hand_over(&self, work: Work) -> Result<(), Work> {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        let threads = threads.get_or_insert_with(|| Threads::start(&self.slow));
        match threads.work.try_send(work) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(work) | TrySendError::Disconnected(work)) => Err(work),
        }
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        let threads = self.threads.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(Threads { work, running }) = threads.take() {
            drop(work);
            for thread in running {
                let _ = thread.join();
            }
        }
    }
}

impl Threads {
    fn start(slow: &Arc<AtomicU32>) -> Threads {
        let (work, queued) = sync_channel(WAITING);
        let queued = Arc::new(Mutex::new(queued));
        let start = |n| {
            let (queued, slow) = (queued.clone(), slow.clone());
            let thread = std::thread::Builder::new().name(format!("queue-reaper-{n}"));
            // With none at all, whoever is done does it.
            thread.spawn(move || reap(&queued, &slow)).ok()
        };
        Threads { work, running: (0..THREADS).filter_map(start).collect() }
    }
}

fn reap(queued: &Mutex<Receiver<Work>>, slow: &AtomicU32) {
    loop {
        let next = queued.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(work) = next else { return };
        if let Err(errno) = work.timed(slow) {
            // Its entry is there, and goes with the directory.
            tracing::debug!(id = work.id, %errno, "can't remove what is left of a message");
        }
    }
}

impl Work {
    fn timed(&self, slow: &AtomicU32) -> Result<(), Errno> {
        let start = Instant::now();
        self.scratch.discard(&self.id)?;
        if start.elapsed() < SLOW {
            slow.store(0, Ordering::Relaxed);
        } else {
            slow.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::FileQueue;
    use super::*;
    use crate::queue::Queue;

    #[tokio::test]
    async fn nothing_is_left_of_messages_that_are_removed_slowly() {
        const MESSAGES: usize = 20 * WAITING;
        let dir = tempfile::tempdir().unwrap();
        let queue = FileQueue::open("fq://test", dir.path()).unwrap();
        queue.send(&vec![Bytes::from_static(b"{}"); MESSAGES]).await;
        let hold = Duration::from_secs(300);
        let mut done = 0;
        while done < MESSAGES {
            for message in queue.lease(100, hold, Duration::ZERO).await.unwrap() {
                queue.reaper.slow.store(IN_A_ROW, Ordering::Relaxed);
                queue.ack(&message.receipt).await.unwrap();
                done += 1;
            }
        }
        assert!(queue.reaper.threads.lock().unwrap().is_some(), "no thread was started");
        let counts = queue.counts().await.unwrap();
        assert_eq!((counts.enqueued, counts.completed), (Some(0), Some(MESSAGES as u64)));
        drop(queue);
        let count = |part: &str| std::fs::read_dir(dir.path().join(part)).unwrap().count();
        assert_eq!((count("queue"), count("movement")), (0, 0));
        // The parent's lock.
        assert_eq!(count("host/tmp"), 1);
    }
}
