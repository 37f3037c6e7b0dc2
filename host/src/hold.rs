//! The tasks that a host holds, from their lease to the end of their guest: those that run, and
//! those that wait for a slot.
//!
//! A permit stands for each. There is one per slot, and one more for each task that will start within
//! seconds, as `pace.rs` counts them. So a host with short tasks fetches inputs while others run, and
//! a host with long tasks leaves what it can't start soon to other hosts.
//!
//! Tasks may take longer than those before. Then a task that has waited for as long as it was meant
//! to wait, and would wait for as long again, is released for other hosts. After that, and when the
//! queue had no task to hold ahead, the host takes none ahead until one of its slots is free. So two
//! hosts never pass a task to and fro.
//!
//! A task that may kill its host runs alone. The others are released before it starts, so that their
//! messages don't wait for the end of their leases, nor count a delivery without an end.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::pace::Pace;

/// Tasks that are expected to start within this time are held ahead, as long as their inputs arrive
/// at once. The time that inputs took to arrive lately is added.
const SOON: Duration = Duration::from_secs(5);
/// The most that is added.
const LONGEST_FETCH: Duration = Duration::from_secs(30);
/// The weight of the last fetch in the average is one divided by this.
const SMOOTHING: u32 = 8;
/// How often the host looks at the tasks that wait, and at its pace while tasks are short.
const LOOK: Duration = Duration::from_millis(200);
/// The same at most, while tasks are long and none waits.
const LONGEST_LOOK: Duration = Duration::from_secs(10);
/// The part of a task's usual time that may pass between two looks.
const PART: u32 = 50;

/// How many tasks a host holds beyond one per slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeldAhead {
    /// Always this many, however long they wait.
    Always(usize),
    /// Those that will start soon, and at most this many.
    Soon(usize),
}

/// The tasks that a host holds.
#[derive(Debug)]
pub struct Holds {
    permits: Arc<Semaphore>,
    slots: usize,
    ahead: HeldAhead,
    state: Mutex<State>,
    /// Notified when there are fewer permits than before.
    fewer: Notify,
    /// Notified when the first task is held.
    first: Notify,
}

#[derive(Debug)]
struct State {
    /// In the order in which they were leased.
    tasks: BTreeMap<u64, Held>,
    next: u64,
    pace: Pace,
    /// How long inputs took to arrive lately.
    fetch: Duration,
    /// All permits.
    permits: usize,
    /// Permits to take away when they are returned.
    surplus: usize,
    /// No tasks are held ahead until a slot is free.
    is_resting: bool,
    /// When a slot was last freed.
    freed: Option<Instant>,
}

/// What is known of a task.
#[derive(Debug)]
struct Held {
    since: Instant,
    stage: Stage,
    /// It runs alone.
    is_alone: bool,
    /// Notified when it has to be released.
    released: Arc<Notify>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It waits for its inputs or for a slot.
    Waits,
    /// It was told to go back to the queue, which it does unless it has just started.
    Told,
    /// It has had a slot since then.
    Runs(Instant),
    /// It needs no slot: its component compiles, or its guest has ended.
    Apart,
}

/// A task that is held, until this is dropped.
#[derive(Debug)]
pub struct Hold {
    holds: Arc<Holds>,
    number: u64,
    permit: Option<OwnedSemaphorePermit>,
    released: Arc<Notify>,
}

impl Holds {
    /// For a host with that many slots.
    pub fn new(slots: usize, ahead: HeldAhead) -> Arc<Self> {
        let permits = match ahead {
            HeldAhead::Always(count) => slots + count,
            HeldAhead::Soon(_) => slots,
        };
        Arc::new(Self {
            permits: Arc::new(Semaphore::new(permits)),
            slots,
            ahead,
            state: Mutex::new(State {
                tasks: BTreeMap::new(),
                next: 0,
                pace: Pace::default(),
                fetch: Duration::ZERO,
                permits,
                surplus: 0,
                is_resting: false,
                freed: None,
            }),
            fewer: Notify::new(),
            first: Notify::new(),
        })
    }

    /// Waits until enough permits are free to be worth a request for up to `batch` messages, and takes
    /// up to `most`. Half of the tasks that are held ahead are left to work on meanwhile.
    pub async fn admit(&self, batch: usize, most: usize) -> Vec<OwnedSemaphorePermit> {
        loop {
            let ahead = self.adjusted().permits().saturating_sub(self.slots);
            let least = batch.min(ahead / 2).min(most).max(1);
            let mut permits = Vec::with_capacity(most);
            let least = u32::try_from(least).unwrap_or(u32::MAX);
            tokio::select! {
                many = self.permits.clone().acquire_many_owned(least) => {
                    // The semaphore is never closed.
                    let Ok(mut many) = many else { continue };
                    while let Some(permit) = many.split(1) {
                        permits.push(permit);
                    }
                }
                () = self.fewer.notified() => continue,
            }
            while permits.len() < most
                && let Ok(permit) = self.permits.clone().try_acquire_owned()
            {
                permits.push(permit);
            }
            // Much may have happened during the wait.
            let mut state = self.adjusted();
            while state.surplus > 0
                && let Some(permit) = permits.pop()
            {
                state.take_away(permit);
            }
            if !permits.is_empty() {
                return permits;
            }
        }
    }

    /// Holds a task that was just leased.
    pub fn hold(self: &Arc<Self>, permit: OwnedSemaphorePermit) -> Hold {
        let released = Arc::new(Notify::new());
        let held = Held {
            since: Instant::now(),
            stage: Stage::Waits,
            is_alone: false,
            released: released.clone(),
        };
        let mut state = self.state.lock();
        let number = state.next;
        state.next += 1;
        if state.tasks.is_empty() {
            self.first.notify_one();
        }
        state.tasks.insert(number, held);
        drop(state);
        Hold { holds: self.clone(), number, permit: Some(permit), released }
    }

    /// When all slots are taken, so that a task leased now would be held ahead: the time after which
    /// a slot is expected to be free.
    pub fn until_free(&self) -> Option<Duration> {
        let state = self.state.lock();
        let is_taken = state.count(Stage::is_waiting) >= self.free(&state);
        (is_taken && matches!(self.ahead, HeldAhead::Soon(_)))
            .then(|| state.pace.first_end(state.ages(Instant::now())))
    }

    /// The queue had no task to hold ahead.
    pub fn found_none_ahead(&self) {
        self.state.lock().is_resting = true;
    }

    /// When a slot was last freed.
    pub fn last_freed(&self) -> Option<Instant> {
        self.state.lock().freed
    }

    /// Follows the pace of the tasks: changes how many are held ahead, and has tasks released that
    /// would wait too long.
    pub async fn keep_pace(&self) -> Infallible {
        if let HeldAhead::Always(_) = self.ahead {
            return std::future::pending().await;
        }
        loop {
            let interval = self.until_next_look();
            match interval {
                Some(interval) => tokio::time::sleep(interval).await,
                None => {
                    self.first.notified().await;
                    continue;
                }
            }
            self.look(Instant::now());
        }
    }

    /// Does what [`Holds::keep_pace`] does from time to time.
    fn look(&self, now: Instant) {
        let state = &mut *self.state.lock();
        self.release_late(state, now);
        self.adjust(state, now);
    }

    /// None while no task is held.
    fn until_next_look(&self) -> Option<Duration> {
        let state = self.state.lock();
        if state.tasks.is_empty() {
            return None;
        }
        if state.count(Stage::is_waiting) > 0 {
            return Some(LOOK);
        }
        let now = Instant::now();
        let usual = state.pace.median().or_else(|| state.ages(now).max()).unwrap_or_default();
        Some((usual / PART).clamp(LOOK, LONGEST_LOOK))
    }

    fn adjusted(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock();
        self.adjust(&mut state, Instant::now());
        state
    }

    /// Changes the number of permits to what it should be now.
    fn adjust(&self, state: &mut State, now: Instant) {
        let (wanted, had) = (self.wanted(state, now), state.permits());
        if wanted > had {
            let more = wanted - had;
            let kept = more.min(state.surplus);
            state.surplus -= kept;
            state.permits += more - kept;
            self.permits.add_permits(more - kept);
        } else {
            state.surplus += had - wanted;
        }
        if state.surplus > 0 {
            let gone = self.permits.forget_permits(state.surplus);
            state.surplus -= gone;
            state.permits -= gone;
        }
        if wanted < had {
            self.fewer.notify_one();
        }
    }

    /// How many permits there should be.
    fn wanted(&self, state: &State, now: Instant) -> usize {
        let most = match self.ahead {
            HeldAhead::Always(count) => return self.slots + count,
            HeldAhead::Soon(most) => most,
        };
        if state.is_one_alone() {
            // No other can start.
            return state.count(|stage| stage != Stage::Apart);
        }
        if state.is_resting {
            return self.slots;
        }
        let running = state.count(Stage::is_running);
        let starts = self.starts(state, now, self.slots + most);
        (running + starts).clamp(self.slots, self.slots + most)
    }

    /// How many tasks will start soon.
    fn starts(&self, state: &State, now: Instant, enough: usize) -> usize {
        state.pace.starts_within(state.soon(), self.free(state), state.ages(now), enough)
    }

    fn free(&self, state: &State) -> usize {
        self.slots.saturating_sub(state.count(Stage::is_running))
    }

    /// Has tasks released that have waited long enough and won't start soon, the newest first.
    fn release_late(&self, state: &mut State, now: Instant) {
        if let HeldAhead::Always(_) = self.ahead {
            return;
        }
        let waiting = state.count(Stage::is_waiting);
        let (late, patience) = match state.is_one_alone() {
            true => (waiting, Duration::ZERO),
            false => (waiting - self.starts(state, now, waiting), state.soon()),
        };
        let waiting = state.tasks.values_mut().rev().filter(|held| held.stage.is_waiting());
        let mut is_any = false;
        for held in waiting
            .take(late)
            .filter(|held| now.saturating_duration_since(held.since) >= patience && !held.is_alone)
        {
            held.stage = Stage::Told;
            held.released.notify_one();
            is_any = true;
        }
        state.is_resting |= is_any;
    }
}

impl State {
    /// The permits that are not to be taken away.
    fn permits(&self) -> usize {
        self.permits - self.surplus
    }

    fn take_away(&mut self, permit: OwnedSemaphorePermit) {
        permit.forget();
        self.surplus -= 1;
        self.permits -= 1;
    }

    fn count(&self, is: impl Fn(Stage) -> bool) -> usize {
        self.tasks.values().filter(|held| is(held.stage)).count()
    }

    /// For how long the tasks that run have run.
    fn ages(&self, now: Instant) -> impl Iterator<Item = Duration> {
        self.tasks.values().filter_map(move |held| match held.stage {
            Stage::Runs(since) => Some(now.saturating_duration_since(since)),
            _ => None,
        })
    }

    /// The time within which tasks have to start that are held ahead.
    fn soon(&self) -> Duration {
        SOON + self.fetch.min(LONGEST_FETCH)
    }

    fn is_one_alone(&self) -> bool {
        self.tasks.values().any(|held| held.is_alone)
    }
}

impl Stage {
    fn is_waiting(self) -> bool {
        self == Self::Waits
    }

    fn is_running(self) -> bool {
        matches!(self, Self::Runs(_))
    }
}

impl Hold {
    /// Waits until the task has to be released, because it would wait too long.
    pub fn released(&self) -> impl Future<Output = ()> + use<> {
        let released = self.released.clone();
        async move { released.notified().await }
    }

    /// The task's inputs are here.
    pub fn has_inputs(&self) {
        let state = &mut *self.holds.state.lock();
        if let Some(held) = state.tasks.get(&self.number) {
            let fetch = &mut state.fetch;
            *fetch = *fetch - *fetch / SMOOTHING + held.since.elapsed() / SMOOTHING;
        }
    }

    /// The task can't run for a while, and leaves its permit to another.
    pub fn leave(&mut self) {
        self.enter(Stage::Apart);
        self.give_permit_back();
    }

    /// Waits for a permit, if the task has left.
    pub async fn come_back(&mut self) {
        if self.permit.is_none() {
            // The semaphore is never closed.
            self.permit = self.holds.permits.clone().acquire_owned().await.ok();
            self.enter(Stage::Waits);
        }
    }

    /// The task may kill its host and is to run alone. Unless the number of tasks held ahead is
    /// fixed, no other may wait meanwhile.
    pub fn is_to_be_alone(&self) {
        let state = &mut *self.holds.state.lock();
        // Of two such tasks, the second is released like any other.
        if !state.is_one_alone()
            && let Some(held) = state.tasks.get_mut(&self.number)
        {
            held.is_alone = true;
        }
        let now = Instant::now();
        self.holds.release_late(state, now);
        self.holds.adjust(state, now);
    }

    /// The task waits for a slot again.
    pub fn waits(&self) {
        self.enter(Stage::Waits);
    }

    /// The task has a slot from now on.
    pub fn runs(&self) {
        self.enter(Stage::Runs(Instant::now()));
    }

    /// The task's slot is free.
    pub fn has_run(&self) {
        self.has_run_at(Instant::now());
    }

    fn has_run_at(&self, now: Instant) {
        let state = &mut *self.holds.state.lock();
        let Some(held) = state.tasks.get_mut(&self.number) else { return };
        if let Stage::Runs(since) = std::mem::replace(&mut held.stage, Stage::Apart) {
            state.pace.record(now.saturating_duration_since(since));
            state.freed = Some(now);
            if std::mem::take(&mut state.is_resting) {
                self.holds.adjust(state, now);
            }
        }
    }

    fn enter(&self, stage: Stage) {
        if let Some(held) = self.holds.state.lock().tasks.get_mut(&self.number) {
            held.stage = stage;
        }
    }

    fn give_permit_back(&mut self) {
        let Some(permit) = self.permit.take() else { return };
        let mut state = self.holds.state.lock();
        match state.surplus > 0 {
            true => state.take_away(permit),
            false => drop(permit),
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.give_permit_back();
        let state = &mut *self.holds.state.lock();
        let gone = state.tasks.remove(&self.number);
        let frees_slots = |held: Held| held.is_alone || held.stage.is_running();
        if gone.is_some_and(frees_slots) {
            state.is_resting = false;
            self.holds.adjust(state, Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const HOUR: Duration = Duration::from_secs(3600);

    /// Leases as many tasks as the host wants.
    fn lease(holds: &Arc<Holds>, now: Instant) -> Vec<Hold> {
        holds.look(now);
        let permits = std::iter::from_fn(|| holds.permits.clone().try_acquire_owned().ok());
        permits.map(|permit| holds.hold(permit)).collect()
    }

    fn begin(hold: &Hold, now: Instant) {
        hold.enter(Stage::Runs(now));
    }

    /// Runs a task from beginning to end.
    fn run(hold: Hold, now: Instant, took: Duration) {
        begin(&hold, now);
        hold.has_run_at(now + took);
    }

    fn is_released(hold: &Hold) -> bool {
        hold.released.notified().now_or_never().is_some()
    }

    fn permits(holds: &Holds, now: Instant) -> usize {
        holds.look(now);
        holds.permits.available_permits()
    }

    #[tokio::test]
    async fn one_task_per_slot_is_held_ahead_until_a_task_has_ended() {
        let now = Instant::now();
        let holds = Holds::new(2, HeldAhead::Soon(44));
        let mut tasks = lease(&holds, now);
        assert_eq!(tasks.len(), 4);
        run(tasks.remove(0), now, SECOND / 100);
        assert_eq!(permits(&holds, now) + tasks.len(), 46, "then as many as are short");
    }

    #[tokio::test]
    async fn what_would_wait_long_is_released_and_nothing_else_is_held_until_a_slot_is_free() {
        let now = Instant::now();
        let holds = Holds::new(2, HeldAhead::Soon(4));
        let tasks = lease(&holds, now);
        tasks[..2].iter().for_each(|task| begin(task, now));
        holds.look(now + 4 * SECOND);
        assert!(!tasks.iter().any(is_released));
        let later = now + 6 * SECOND;
        holds.look(later);
        let released: Vec<bool> = tasks.iter().map(is_released).collect();
        assert_eq!(released, [false, false, true, true]);
        let [first, second, third, fourth] = tasks.try_into().unwrap();
        drop((third, fourth));
        assert_eq!(permits(&holds, later), 0);
        first.has_run_at(later);
        drop(first);
        // The second is expected to end at once.
        assert_eq!(permits(&holds, later), 2);
        assert_eq!(permits(&holds, now + HOUR), 1, "it did not");
        drop(second);
        assert_eq!(permits(&holds, later), 2);
    }

    #[tokio::test]
    async fn a_task_is_taken_ahead_when_a_slot_is_about_to_be_free() {
        let now = Instant::now();
        let holds = Holds::new(1, HeldAhead::Soon(2));
        run(lease(&holds, now).remove(0), now, 6 * SECOND);
        let task = lease(&holds, now).remove(0);
        begin(&task, now);
        assert_eq!(permits(&holds, now), 0);
        assert_eq!(permits(&holds, now + 2 * SECOND), 1);
        let until_free = holds.until_free().unwrap();
        assert!(until_free <= 6 * SECOND && until_free > Duration::ZERO, "{until_free:?}");
    }

    #[tokio::test]
    async fn two_hosts_do_not_pass_a_task_to_and_fro() {
        let start = Instant::now();
        let hosts: [_; 2] = std::array::from_fn(|_| Holds::new(1, HeldAhead::Soon(2)));
        let running = hosts.each_ref().map(|holds| lease(holds, start).remove(0));
        running.iter().for_each(|task| begin(task, start));
        let mut held: [Option<Hold>; 2] = [None, None];
        let (mut is_in_queue, mut taken) = (true, 0);
        for second in 0..3600 {
            let now = start + second * SECOND;
            for (holds, held) in hosts.iter().zip(&mut held) {
                holds.look(now);
                if held.as_ref().is_some_and(is_released) {
                    (*held, is_in_queue) = (None, true);
                }
                if is_in_queue && let Some(hold) = lease(holds, now).pop() {
                    (*held, is_in_queue) = (Some(hold), false);
                    taken += 1;
                }
            }
        }
        assert!(is_in_queue && taken == 1, "taken {taken} times");
    }

    #[tokio::test]
    async fn a_host_asks_for_no_task_ahead_where_there_was_none() {
        let now = Instant::now();
        let holds = Holds::new(1, HeldAhead::Soon(2));
        let mut tasks = lease(&holds, now);
        tasks.pop();
        begin(&tasks[0], now);
        assert_eq!(permits(&holds, now), 1);
        holds.found_none_ahead();
        assert_eq!(permits(&holds, now), 0);
        run(tasks.remove(0), now, SECOND);
        assert!(permits(&holds, now) > 1);
    }

    #[tokio::test]
    async fn what_waits_beside_a_task_that_may_kill_the_host_is_released() {
        let now = Instant::now();
        let holds = Holds::new(2, HeldAhead::Soon(4));
        let tasks = lease(&holds, now);
        begin(&tasks[0], now);
        tasks[2].is_to_be_alone();
        let released: Vec<bool> = tasks.iter().map(is_released).collect();
        assert_eq!(released, [false, true, false, true]);
        let [running, second, alone, other] = tasks.try_into().unwrap();
        other.is_to_be_alone();
        drop((running, second, other));
        assert_eq!(permits(&holds, now), 0);
        begin(&alone, now);
        assert_eq!(permits(&holds, now), 0);
        run(alone, now, SECOND);
        assert!(permits(&holds, now) >= 2);
    }

    #[tokio::test]
    async fn a_number_that_was_asked_for_is_held_however_long_tasks_are() {
        let now = Instant::now();
        let holds = Holds::new(1, HeldAhead::Always(3));
        let tasks = lease(&holds, now);
        assert_eq!(tasks.len(), 4);
        begin(&tasks[0], now);
        tasks[1].is_to_be_alone();
        holds.look(now + HOUR);
        assert!(!tasks.iter().any(is_released));
        assert_eq!(holds.until_free(), None);
        run(tasks.into_iter().next().unwrap(), now, HOUR);
        assert_eq!(permits(&holds, now), 4);
    }

    #[tokio::test]
    async fn a_host_that_waits_for_a_whole_batch_goes_on_when_its_tasks_become_long() {
        let now = Instant::now();
        let holds = Holds::new(1, HeldAhead::Soon(42));
        run(lease(&holds, now).remove(0), now, SECOND / 1000);
        let mut tasks = lease(&holds, now);
        assert_eq!(tasks.len(), 43);
        begin(&tasks[0], now);
        let admitted = tokio::spawn({
            let holds = holds.clone();
            async move { holds.admit(10, 10).await.len() }
        });
        tokio::task::yield_now().await;
        holds.look(now + HOUR);
        tasks.retain(|task| !is_released(task));
        assert_eq!(tasks.len(), 1);
        tokio::task::yield_now().await;
        drop(tasks);
        assert_eq!(admitted.await.unwrap(), 10);
    }
}
