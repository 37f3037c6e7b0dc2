//! Counts a queue repeatedly, but limits the time for counting: counting a directory lists all its
//! files.

use std::time::{Duration, Instant};

use crate::queue::{Admin, Counts, QueueError};

/// The share of time for counting: at most one part in this many.
const SHARE: u32 = 20;

/// A queue and its last count.
pub(super) struct Counted {
    queue: Box<dyn Admin>,
    last: Option<Counting>,
}

/// A count.
struct Counting {
    counts: Counts,
    ended: Instant,
    took: Duration,
}

impl Counted {
    pub(super) fn new(queue: Box<dyn Admin>) -> Self {
        Self { queue, last: None }
    }

    pub(super) fn queue(&self) -> &dyn Admin {
        &*self.queue
    }

    /// The counts. Repeats the last counts if counting takes long.
    ///
    /// # Errors
    /// Errors of the queue.
    pub(super) async fn counts(&mut self) -> Result<Counts, QueueError> {
        if let Some(Counting { counts, ended, took }) = &self.last
            && ended.elapsed() < *took * SHARE
        {
            return Ok(*counts);
        }
        let began = Instant::now();
        let counts = self.queue.counts().await?;
        self.last = Some(Counting { counts, ended: Instant::now(), took: began.elapsed() });
        Ok(counts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::{self, Address};

    #[tokio::test]
    async fn a_queue_that_takes_long_to_count_is_counted_less_often() {
        let root = tempfile::tempdir().unwrap();
        let address: Address = format!("fq://{}", root.path().display()).parse().unwrap();
        let access = queue::Access::default();
        let queue = queue::open(&address, &access).await.unwrap();
        let mut counted = Counted::new(queue::admin(&address, &access).await.unwrap());
        assert_eq!(counted.counts().await.unwrap().enqueued, Some(0));
        queue.send(&["a".into()]).await.into_iter().for_each(Result::unwrap);
        counted.last.as_mut().unwrap().took = Duration::from_secs(3600);
        assert_eq!(counted.counts().await.unwrap().enqueued, Some(0));
        counted.last.as_mut().unwrap().took = Duration::ZERO;
        assert_eq!(counted.counts().await.unwrap().enqueued, Some(1));
    }
}
