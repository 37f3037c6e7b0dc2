//! Lets an async task that makes many short file calls yield to other tasks of the runtime.

use std::time::{Duration, Instant};

/// The length of a turn. It is a time and not a number of calls, because one call on a network file
/// system may take a millisecond.
const TURN: Duration = Duration::from_millis(1);

/// The current turn of an async task.
#[derive(Debug)]
pub(crate) struct Turns {
    began: Instant,
}

impl Turns {
    /// Starts a turn.
    pub(crate) fn begin() -> Self {
        Self { began: Instant::now() }
    }

    /// Yields to the runtime's other tasks if the turn is over.
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
