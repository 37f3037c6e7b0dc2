//! Turns of a task that makes many short file calls on a thread that others wait for.

use std::time::{Duration, Instant};

/// A turn ends after this time. How many calls that is depends on the disk: one of a network
/// file system may take a millisecond.
const TURN: Duration = Duration::from_millis(1);

/// When the turn of a task began.
#[derive(Debug)]
pub(crate) struct Turns {
    began: Instant,
}

impl Turns {
    /// A turn begins.
    pub(crate) fn begin() -> Self {
        Self { began: Instant::now() }
    }

    /// Lets the other tasks of the runtime have theirs, if this one's is over.
    pub(crate) async fn pass(&mut self) {
        if self.began.elapsed() >= TURN {
            tokio::task::yield_now().await;
            self.began = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::poll;

    use super::*;

    #[tokio::test]
    async fn others_have_their_turn_after_a_while() {
        let mut turns = Turns::begin();
        turns.began += TURN;
        assert!(poll!(std::pin::pin!(turns.pass())).is_ready());
        turns.began -= 3 * TURN;
        let mut passing = std::pin::pin!(turns.pass());
        assert!(poll!(passing.as_mut()).is_pending());
        passing.await;
    }
}
