//! The memory that all guests of a host share.
//!
//! Each guest has a limit of its own. The sum of these limits may exceed the memory of the machine
//! or container, because most tasks use less than their limit. So the memory of all guests is
//! counted in one place. If there is not enough left for a guest that grows, the guest waits until
//! another one ends. Otherwise, the kernel could kill the host with all of its tasks.

use std::sync::Arc;

use bytesize::ByteSize;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// The count of the memory that all guests hold.
pub(super) struct Room {
    size: u64,
    held: Mutex<Held>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct Held {
    bytes: u64,
    /// The number of guests that hold memory.
    holders: usize,
    /// The number of these guests that wait for more.
    waiting: usize,
}

/// The memory that one guest holds. It is freed on drop.
pub(super) struct Share {
    room: Arc<Room>,
    bytes: u64,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The guest has all memory that it asked for, and never waited.
    Running,
    /// The guest holds memory and waits for more.
    Waiting,
    /// The guest has waited, or waits and holds no memory.
    Waited,
}

/// Why a guest can't have more memory.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// The guest would not fit even if no other guest ran.
    TooLarge(ByteSize),
    /// All guests that hold memory wait for more.
    Crowded(ByteSize),
}

impl Room {
    pub(super) fn new(size: ByteSize) -> Arc<Self> {
        Arc::new(Self { size: size.as_u64(), held: Mutex::default(), freed: Notify::new() })
    }

    /// The memory that all guests hold now.
    pub(super) fn held(&self) -> ByteSize {
        ByteSize(self.held.lock().bytes)
    }

    /// The most memory that all guests may hold together.
    pub(super) fn size(&self) -> ByteSize {
        ByteSize(self.size)
    }
}

impl Share {
    pub(super) fn of(room: Arc<Room>) -> Self {
        Self { room, bytes: 0, state: State::Running }
    }

    /// The memory for all guests together.
    pub(super) fn all(&self) -> ByteSize {
        self.room.size()
    }

    /// Whether the guest has ever waited for memory.
    pub(super) fn has_waited(&self) -> bool {
        self.state != State::Running
    }

    /// Takes `more` bytes. Waits while other guests hold them.
    ///
    /// # Errors
    /// If waiting can't help.
    pub(super) async fn grow(&mut self, more: u64) -> Result<(), Refused> {
        let room = self.room.clone();
        if self.bytes.saturating_add(more) > room.size {
            return Err(Refused::TooLarge(self.all()));
        }
        loop {
            let mut freed = std::pin::pin!(room.freed.notified());
            // Memory that is freed between the check and the wait must not be missed.
            freed.as_mut().enable();
            if self.take(more)? {
                return Ok(());
            }
            freed.await;
        }
    }

    /// Takes `more` bytes if they are free. False if the guest should wait for them.
    fn take(&mut self, more: u64) -> Result<bool, Refused> {
        let room = &*self.room;
        let mut held = room.held.lock();
        let is_holder = self.bytes > 0;
        if self.state == State::Waiting {
            held.waiting -= 1;
            self.state = State::Waited;
        }
        // Guests that hold memory and wait for more go before guests that hold none.
        if held.bytes + more <= room.size && (is_holder || held.waiting == 0) {
            held.bytes += more;
            held.holders += usize::from(!is_holder && more > 0);
            self.bytes += more;
            return Ok(true);
        }
        // If all holders wait, none of them ever gets more.
        if is_holder && held.waiting + 1 == held.holders {
            self.state = State::Waited;
            return Err(Refused::Crowded(ByteSize(room.size)));
        }
        if is_holder {
            held.waiting += 1;
            self.state = State::Waiting;
        } else {
            self.state = State::Waited;
        }
        Ok(false)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut held = self.room.held.lock();
        held.waiting -= usize::from(self.state == State::Waiting);
        held.holders -= usize::from(self.bytes > 0);
        held.bytes -= self.bytes;
        drop(held);
        self.room.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const CROWDED: Result<(), Refused> = Err(Refused::Crowded(ByteSize(100)));

    fn room() -> impl Fn() -> Share {
        let room = Room::new(ByteSize(100));
        move || Share::of(room.clone())
    }

    /// The result, if there is one without waiting.
    fn now(share: &mut Share, more: u64) -> Option<Result<(), Refused>> {
        share.grow(more).now_or_never()
    }

    #[test]
    fn a_guest_can_have_what_there_is_and_no_more() {
        let share = room();
        let mut a = share();
        assert_eq!(now(&mut a, 60), Some(Ok(())));
        assert_eq!(now(&mut a, 40), Some(Ok(())));
        assert_eq!(now(&mut a, 1), Some(Err(Refused::TooLarge(ByteSize(100)))));
        assert!(!a.has_waited());
        drop(a);
        assert_eq!(now(&mut share(), 101), Some(Err(Refused::TooLarge(ByteSize(100)))));
        assert_eq!(now(&mut share(), 100), Some(Ok(())));
    }

    #[tokio::test]
    async fn a_guest_waits_until_another_one_ends() {
        let share = room();
        let (mut a, mut b) = (share(), share());
        assert_eq!(now(&mut a, 60), Some(Ok(())));
        assert_eq!(now(&mut b, 30), Some(Ok(())));
        let mut growing = Box::pin(async {
            let grown = b.grow(50).await;
            (grown, b)
        });
        assert!((&mut growing).now_or_never().is_none());
        // The other guest goes on, and may take what is left.
        assert_eq!(now(&mut a, 10), Some(Ok(())));
        drop(a);
        let (grown, b) = growing.await;
        assert_eq!(grown, Ok(()));
        assert!(b.has_waited());
        drop(b);
        assert_eq!(now(&mut share(), 100), Some(Ok(())));
    }

    #[tokio::test]
    async fn the_last_guest_that_would_wait_gives_up_and_the_others_go_on() {
        let share = room();
        let (mut a, mut b, mut c) = (share(), share(), share());
        for share in [&mut a, &mut b, &mut c] {
            assert_eq!(now(share, 30), Some(Ok(())));
        }
        let mut a_grows = Box::pin(async { (a.grow(30).await, a) });
        let mut b_grows = Box::pin(async { (b.grow(50).await, b) });
        assert!((&mut a_grows).now_or_never().is_none());
        assert!((&mut b_grows).now_or_never().is_none());
        assert_eq!(now(&mut c, 30), Some(CROWDED));
        // The others wait until its memory is free.
        assert!((&mut a_grows).now_or_never().is_none());
        drop(c);
        let (grown, a) = a_grows.await;
        assert_eq!(grown, Ok(()));
        assert!((&mut b_grows).now_or_never().is_none());
        drop(a);
        assert_eq!(b_grows.await.0, Ok(()));
    }

    #[tokio::test]
    async fn when_the_last_running_guest_ends_one_that_waits_gives_up() {
        let share = room();
        let (mut a, mut b, mut c) = (share(), share(), share());
        assert_eq!(now(&mut a, 45), Some(Ok(())));
        assert_eq!(now(&mut b, 45), Some(Ok(())));
        assert_eq!(now(&mut c, 10), Some(Ok(())));
        let mut a_grows = Box::pin(async { (a.grow(50).await, a) });
        let mut b_grows = Box::pin(async { (b.grow(50).await, b) });
        assert!((&mut a_grows).now_or_never().is_none());
        assert!((&mut b_grows).now_or_never().is_none());
        drop(c);
        let (grown, a) = a_grows.await;
        assert_eq!(grown, CROWDED);
        drop(a);
        assert_eq!(b_grows.await.0, Ok(()));
    }

    #[tokio::test]
    async fn new_guests_do_not_pass_one_that_waits() {
        let share = room();
        let (mut a, mut b, mut new) = (share(), share(), share());
        assert_eq!(now(&mut a, 50), Some(Ok(())));
        assert_eq!(now(&mut b, 20), Some(Ok(())));
        let mut b_grows = Box::pin(async { (b.grow(50).await, b) });
        assert!((&mut b_grows).now_or_never().is_none());
        let mut begins = Box::pin(async { (new.grow(10).await, new) });
        assert!((&mut begins).now_or_never().is_none());
        drop(a);
        let (grown, b) = b_grows.await;
        assert_eq!(grown, Ok(()));
        drop(b);
        assert_eq!(begins.await.0, Ok(()));
    }

    #[test]
    fn a_guest_that_is_ended_while_it_waits_leaves_nothing() {
        let share = room();
        let (mut a, mut b) = (share(), share());
        assert_eq!(now(&mut a, 60), Some(Ok(())));
        assert_eq!(now(&mut b, 30), Some(Ok(())));
        assert_eq!(now(&mut b, 60), None);
        assert!(b.has_waited());
        drop(b);
        assert_eq!(now(&mut a, 40), Some(Ok(())));
        drop(a);
        assert_eq!(now(&mut share(), 100), Some(Ok(())));
    }
}
