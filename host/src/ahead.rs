//! Limits the bytes of inputs that are prefetched for tasks that do not run yet.

use bytesize::ByteSize;
use tokio::sync::{Semaphore, SemaphorePermit};

/// The limit of prefetched bytes.
#[derive(Debug)]
pub struct Ahead {
    kibibytes: Semaphore,
    most: u32,
}

impl Ahead {
    /// Limits prefetched inputs to `bytes` at a time. A task that needs more than the limit waits
    /// until no other task holds a permit, and then takes the whole limit.
    pub fn new(bytes: ByteSize) -> Self {
        let most = u32::try_from(bytes.as_u64() >> 10).unwrap_or(u32::MAX).max(1);
        let most = most.min(u32::try_from(Semaphore::MAX_PERMITS).unwrap_or(u32::MAX));
        Self { kibibytes: Semaphore::new(most as usize), most }
    }

    /// Waits until `bytes` more bytes may be fetched. They count until the permit is dropped.
    pub async fn take(&self, bytes: u64) -> SemaphorePermit<'_> {
        match self.kibibytes.acquire_many(self.permits(bytes)).await {
            Ok(permit) => permit,
            Err(_) => unreachable!("the semaphore is never closed"),
        }
    }

    /// As [`Ahead::take`], but returns `None` instead of waiting.
    pub fn try_take(&self, bytes: u64) -> Option<SemaphorePermit<'_>> {
        self.kibibytes.try_acquire_many(self.permits(bytes)).ok()
    }

    /// Replaces a permit that was taken before the size was known by one for at least `bytes`.
    pub async fn grown<'a>(
        &'a self,
        permit: SemaphorePermit<'a>,
        bytes: u64,
    ) -> SemaphorePermit<'a> {
        if permit.num_permits() >= self.permits(bytes) as usize {
            return permit;
        }
        // Dropped first: a task that waits for more while it holds a permit could wait for itself.
        drop(permit);
        self.take(bytes).await
    }

    fn permits(&self, bytes: u64) -> u32 {
        u32::try_from(bytes.div_ceil(1 << 10)).unwrap_or(u32::MAX).min(self.most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_that_became_more_are_charged_and_nobody_waits_for_itself() {
        let ahead = Ahead::new(ByteSize::kib(4));
        let permit = ahead.take(1024).await;
        let permit = ahead.grown(permit, 4096).await;
        assert!(ahead.try_take(1).is_none(), "all of it is charged");
        let permit = ahead.grown(permit, 10).await;
        assert_eq!(permit.num_permits(), 4, "and less is not");
    }
}
