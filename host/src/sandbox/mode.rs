//! Deterministic guests: everything that they observe apart from their inputs depends only on the
//! task.
//!
//! Random numbers come from a generator that is seeded with the task's content. The clocks start at
//! a fixed time, and only the guest's own calls move them: each reading by a step, each wait by its
//! length. Waits end without a delay. The engine makes all NaNs alike (`sandbox.rs`), and the files
//! get their times and inode numbers from here (`files/clock.rs`).

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use chacha20::ChaCha20Rng;
use chacha20::rand_core::SeedableRng;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use wasmtime::component::{HasData, Linker, Resource, ResourceTable};
use wasmtime_wasi::WasiCtxBuilder;
use wasmtime_wasi::clocks::{HostMonotonicClock, HostWallClock, WasiClocksCtxView};
use wasmtime_wasi::p2::bindings::clocks::monotonic_clock;
use wasmtime_wasi::p2::{DynPollable, Pollable, subscribe};

use super::State;
use crate::digest::Digest;
use crate::message::{self, Task};

/// The time at which a guest starts: 2000-01-01T00:00:00Z, as the time since 1970.
pub(super) const START: Duration = Duration::from_secs(946_684_800);
/// How far each reading moves the clocks. A guest that polls a clock until a second has passed
/// reads it a million times, which takes less than a second.
const STEP: Duration = Duration::from_micros(1);

/// Where guests get the time and random numbers from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// From the machine.
    #[default]
    Ordinary,
    /// From the task: all runs of a task observe the same.
    Deterministic,
}

/// The clocks and random numbers of one deterministic guest.
#[derive(Debug, Clone)]
pub(super) struct World {
    content: Digest,
    pub(super) clock: StepClock,
}

impl World {
    /// The state at the start of a guest with this task.
    pub(super) fn of(task: &Task) -> Self {
        Self { content: message::content(task), clock: StepClock::default() }
    }

    /// Replaces the machine's clocks and random numbers.
    pub(super) fn set(&self, wasi: &mut WasiCtxBuilder) {
        let mut seed = [0; 16];
        seed.copy_from_slice(&self.key("insecure-seed")[..16]);
        wasi.secure_random(ChaCha20Rng::from_seed(self.key("random")))
            .insecure_random(ChaCha20Rng::from_seed(self.key("insecure")))
            .insecure_random_seed(u128::from_le_bytes(seed))
            .wall_clock(self.clock.clone())
            .monotonic_clock(self.clock.clone());
    }

    /// A key for one purpose, derived from the task.
    pub(super) fn key(&self, purpose: &str) -> [u8; 32] {
        let mut hasher = Sha256::new();
        hasher.update(format!("task-host deterministic 1\n{purpose}\n"));
        hasher.update(self.content.0);
        hasher.finalize().into()
    }
}

/// A clock that moves each time it is read. Clones are handles on the same clock.
#[derive(Debug, Clone, Default)]
pub(super) struct StepClock(Arc<Mutex<Ticks>>);

#[derive(Debug, Default)]
struct Ticks {
    /// Nanoseconds since the start.
    now: u64,
    /// The times that waits end at, with the number of waits for each.
    awaited: BTreeMap<u64, usize>,
    /// How many times a wait has moved the clock.
    jumps: u64,
}

impl Ticks {
    fn step(&mut self) -> u64 {
        self.now = self.now.saturating_add(STEP.as_nanos() as u64);
        self.now
    }
}

impl StepClock {
    /// The time since 1970. Moves the clock.
    pub(super) fn time(&self) -> Duration {
        START + Duration::from_nanos(self.0.lock().step())
    }

    /// A timer that ends at this time, in nanoseconds since the start.
    fn timer(&self, at: u64) -> Timer {
        Timer { clock: self.clone(), at }
    }

    /// The time that is `nanoseconds` from now. Moves the clock.
    fn after(&self, nanoseconds: u64) -> u64 {
        self.0.lock().step().saturating_add(nanoseconds)
    }
}

impl HostWallClock for StepClock {
    fn resolution(&self) -> Duration {
        STEP
    }

    fn now(&self) -> Duration {
        self.time()
    }
}

impl HostMonotonicClock for StepClock {
    fn resolution(&self) -> u64 {
        STEP.as_nanos() as u64
    }

    fn now(&self) -> u64 {
        self.0.lock().step()
    }
}

/// The pollable that `wasi:clocks` returns for a wait.
struct Timer {
    clock: StepClock,
    at: u64,
}

#[async_trait::async_trait]
impl Pollable for Timer {
    async fn ready(&mut self) {
        Wait { timer: self, counted: None }.await;
    }
}

/// Ends at once if its time has come. Otherwise it is pending at the first poll, so that everything
/// else that the guest waits for in the same call is polled too. Then the earliest of these waits
/// moves the clock and ends.
struct Wait<'a> {
    timer: &'a Timer,
    /// The clock's `jumps` at the last poll. None until the wait is in the clock's `awaited`.
    counted: Option<u64>,
}

impl Future for Wait<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let timer = self.timer;
        let at = timer.at;
        let mut ticks = timer.clock.0.lock();
        match self.counted {
            // A guest that polls repeatedly instead of waiting makes progress too.
            None => {
                ticks.step();
            }
            // After a jump, the wait that moved the clock ends the guest's call.
            Some(jumps) if jumps == ticks.jumps => {
                let is_next = ticks.awaited.first_key_value().map(|(at, _)| *at) == Some(at);
                if is_next && ticks.now < at {
                    ticks.now = at;
                    ticks.jumps += 1;
                }
            }
            Some(_) => {}
        }
        if ticks.now >= at {
            return Poll::Ready(());
        }
        if self.counted.is_none() {
            *ticks.awaited.entry(at).or_default() += 1;
        }
        self.counted = Some(ticks.jumps);
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        if self.counted.is_none() {
            return;
        }
        let mut ticks = self.timer.clock.0.lock();
        if let Some(count) = ticks.awaited.get_mut(&self.timer.at) {
            *count -= 1;
            if *count == 0 {
                ticks.awaited.remove(&self.timer.at);
            }
        }
    }
}

/// The view of an instance's state that answers its calls of `wasi:clocks/monotonic-clock`.
pub(super) struct Clocks<'a> {
    wasi: WasiClocksCtxView<'a>,
    /// None if the guest sees the machine's clocks.
    steps: Option<&'a StepClock>,
}

/// Links `wasi:clocks/monotonic-clock`.
pub(super) fn add_to_linker(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    monotonic_clock::add_to_linker::<State, Clocks<'static>>(linker, |state| Clocks {
        wasi: WasiClocksCtxView { ctx: state.wasi.clocks(), table: &mut state.table },
        steps: state.steps.as_ref(),
    })
}

impl HasData for Clocks<'static> {
    type Data<'a> = Clocks<'a>;
}

impl monotonic_clock::Host for Clocks<'_> {
    fn now(&mut self) -> wasmtime::Result<u64> {
        self.wasi.now()
    }

    fn resolution(&mut self) -> wasmtime::Result<u64> {
        self.wasi.resolution()
    }

    fn subscribe_instant(&mut self, when: u64) -> wasmtime::Result<Resource<DynPollable>> {
        match self.steps {
            Some(steps) => start(self.wasi.table, steps.timer(when)),
            None => self.wasi.subscribe_instant(when),
        }
    }

    fn subscribe_duration(&mut self, duration: u64) -> wasmtime::Result<Resource<DynPollable>> {
        match self.steps {
            Some(steps) => start(self.wasi.table, steps.timer(steps.after(duration))),
            None => self.wasi.subscribe_duration(duration),
        }
    }
}

fn start(table: &mut ResourceTable, timer: Timer) -> wasmtime::Result<Resource<DynPollable>> {
    let timer = table.push(timer)?;
    subscribe(table, timer)
}

#[cfg(test)]
mod tests {
    use wasmtime_wasi_io::bindings::wasi::io::poll::{Host, HostPollable};

    use super::*;

    /// A timer for each of `ends`, in nanoseconds after the start.
    fn timers(ends: &[u64]) -> (StepClock, ResourceTable, Vec<Resource<DynPollable>>) {
        let (clock, mut table) = (StepClock::default(), ResourceTable::new());
        let started = ends.iter().map(|at| start(&mut table, clock.timer(*at)).unwrap());
        let started = started.collect();
        (clock, table, started)
    }

    const HOUR: u64 = 3_600_000_000_000;

    #[tokio::test]
    async fn the_earliest_of_several_waits_ends_first_and_moves_the_clock() {
        for order in [[3, 1, 2], [1, 2, 3], [2, 3, 1]] {
            let (clock, mut table, all) = timers(&order.map(|n| n * HOUR));
            for n in 1..=3 {
                // The timers that have not ended.
                let rest: Vec<usize> = (0..3).filter(|at| order[*at] >= n).collect();
                let asked = rest.iter().map(|at| Resource::new_borrow(all[*at].rep())).collect();
                let ready = table.poll(asked).await.unwrap();
                assert!(matches!(ready[..], [at] if order[rest[at as usize]] == n), "{ready:?}");
                assert_eq!(clock.0.lock().now / HOUR, n);
            }
            assert!(clock.0.lock().awaited.is_empty());
        }
    }

    #[tokio::test]
    async fn waits_for_the_same_time_end_together() {
        let (clock, mut table, all) = timers(&[2 * HOUR, HOUR, HOUR]);
        let asked = all.iter().map(|timer| Resource::new_borrow(timer.rep())).collect();
        assert_eq!(table.poll(asked).await.unwrap(), [1, 2]);
        assert_eq!(clock.0.lock().now, HOUR);
    }

    #[tokio::test]
    async fn waits_that_end_at_once_do_not_move_the_clock_further() {
        let (clock, mut table, all) = timers(&[0, HOUR, 0]);
        let asked = all.iter().map(|timer| Resource::new_borrow(timer.rep())).collect();
        assert_eq!(table.poll(asked).await.unwrap(), [0, 2]);
        assert!(clock.0.lock().now < HOUR);
    }

    #[tokio::test]
    async fn a_guest_that_asks_again_and_again_gets_there() {
        let (clock, mut table, all) = timers(&[10_000]);
        let mut asked = 1;
        while !table.ready(Resource::new_borrow(all[0].rep())).await.unwrap() {
            asked += 1;
        }
        assert_eq!((asked, clock.0.lock().now), (10, 10_000));
    }

    #[tokio::test]
    async fn the_longest_wait_ends() {
        let (clock, mut table, all) = timers(&[u64::MAX]);
        table.block(Resource::new_borrow(all[0].rep())).await.unwrap();
        assert_eq!(clock.after(HOUR), u64::MAX);
        assert!(clock.time() > START);
    }

    #[test]
    fn the_keys_of_tasks_and_purposes_differ() {
        let world = |text: &str| World::of(&message::decode(text.as_bytes()).unwrap());
        let task =
            |id| format!(r#"{{"basic_info": {{"name": "N", "base_directory": "d", "id": {id}}}}}"#);
        let (one, other) = (world(&task(1)), world(&task(2)));
        assert_eq!(one.key("random"), world(&task(1)).key("random"));
        assert_ne!(one.key("random"), other.key("random"));
        assert_ne!(one.key("random"), one.key("insecure"));
    }
}
