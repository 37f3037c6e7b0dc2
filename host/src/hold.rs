//! The tasks that a host holds, from their lease to the end of their guest: running tasks, and
//! tasks that wait for a slot.
//!
//! Each held task has a permit. There is one permit per slot, and one more for each task that is
//! expected to start within a few seconds; `pace.rs` makes that estimate. A host with short tasks
//! therefore fetches inputs while other tasks run. A host with long tasks leaves the tasks that it
//! cannot start soon to other hosts.
//!
//! Tasks may take longer than earlier ones. A task is released for other hosts if it has waited for
//! the time within which it should have started, and is not expected to start within the same time
//! from now. After such a release, and after the queue had no task to hold ahead, the host holds no
//! task ahead until one of its slots is free. Two hosts therefore never pass a task back and forth.
//!
//! A task that may kill its host runs alone. The others are released before it starts. Their
//! messages then do not wait until their leases expire, and no delivery of them has an unknown
//! outcome.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::pace::Pace;

/// Tasks that are expected to start within this time are held ahead. The recent average time to
/// fetch inputs is added.
const SOON: Duration = Duration::from_secs(5);
/// The maximum time added for fetching inputs.
const LONGEST_FETCH: Duration = Duration::from_secs(30);
/// The weight of the last fetch in the average is one divided by this.
const SMOOTHING: u32 = 8;
/// How often the host checks the waiting tasks, and its pace while tasks are short.
const LOOK: Duration = Duration::from_millis(200);
/// The maximum time between two checks while tasks are long and none waits.
const LONGEST_LOOK: Duration = Duration::from_secs(10);
/// While the number of permits is at its maximum, it is not computed again for this time.
const RECENT: Duration = Duration::from_millis(20);
/// The time between two checks is a task's usual time divided by this.
const PART: u32 = 50;

/// How many tasks a host holds in addition to one per slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeldAhead {
    /// Always this number, however long the tasks wait.
    Always(usize),
    /// The tasks that will start soon, but at most this number.
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
    /// Tasks that wait for their inputs or for a slot, in the order in which they were leased.
    waiting: BTreeMap<u64, Waiting>,
    /// When each running task got its slot.
    running: BTreeMap<u64, Instant>,
    /// The task that runs alone or waits to run alone.
    alone: Option<u64>,
    next: u64,
    pace: Pace,
    /// The recent average time to fetch a task's inputs.
    fetch: Duration,
    /// The number of permits, including `surplus`.
    permits: usize,
    /// The number of permits to remove when they are returned.
    surplus: usize,
    /// When the number of permits was last decided.
    adjusted: Option<Instant>,
    /// No tasks are held ahead until a slot is free.
    is_resting: bool,
    /// When a slot was last freed.
    freed: Option<Instant>,
}

/// A task that waits.
#[derive(Debug)]
struct Waiting {
    /// When it was leased.
    since: Instant,
    /// Notified when the task must be released. The task may have started in the meantime.
    released: Arc<Notify>,
}

/// A held task. Dropping the value ends the hold.
#[derive(Debug)]
pub struct Hold {
    holds: Arc<Holds>,
    number: u64,
    since: Instant,
    permit: Option<OwnedSemaphorePermit>,
    released: Arc<Notify>,
}

impl Holds {
    /// Creates the holds of a host with this number of slots.
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
                waiting: BTreeMap::new(),
                running: BTreeMap::new(),
                alone: None,
                next: 0,
                pace: Pace::default(),
                fetch: Duration::ZERO,
                permits,
                surplus: 0,
                adjusted: None,
                is_resting: false,
                freed: None,
            }),
            fewer: Notify::new(),
            first: Notify::new(),
        })
    }

    /// Waits until enough permits are free for a request for up to `batch` messages, and takes up
    /// to `most` permits. It waits for at most half of the permits for tasks held ahead, so that
    /// the host has tasks to run during the request.
    pub async fn admit(&self, batch: usize, most: usize) -> Vec<OwnedSemaphorePermit> {
        loop {
            let ahead = self.adjusted().permits().saturating_sub(self.slots);
            let least = batch.min(ahead / 2).min(most).max(1);
            let mut permits = Vec::with_capacity(most);
            let least = u32::try_from(least).unwrap_or(u32::MAX);
            let many = tokio::select! {
                many = self.permits.clone().acquire_many_owned(least) => many,
                () = self.fewer.notified() => continue,
            };
            // The semaphore is never closed.
            let Ok(mut many) = many else { continue };
            while let Some(permit) = many.split(1) {
                permits.push(permit);
            }
            while permits.len() < most
                && let Ok(permit) = self.permits.clone().try_acquire_owned()
            {
                permits.push(permit);
            }
            // The number of permits may have changed during the wait.
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
        let number = {
            let mut state = self.state.lock();
            state.next += 1;
            state.next
        };
        let (since, released) = (Instant::now(), Arc::new(Notify::new()));
        let hold = Hold { holds: self.clone(), number, since, permit: Some(permit), released };
        hold.waits();
        hold
    }

    /// If all slots are taken, so that a task leased now would be held ahead: the time until a slot
    /// is expected to be free.
    pub fn until_free(&self) -> Option<Duration> {
        let state = self.state.lock();
        let is_taken = state.waiting.len() >= self.free(&state);
        (is_taken && matches!(self.ahead, HeldAhead::Soon(_)))
            .then(|| state.pace.first_end(state.ages(Instant::now())))
    }

    /// Records that the queue had no task to hold ahead.
    pub fn found_none_ahead(&self) {
        self.state.lock().is_resting = true;
    }

    /// When a slot was last freed.
    pub fn last_freed(&self) -> Option<Instant> {
        self.state.lock().freed
    }

    /// Follows the pace of the tasks: changes the number of tasks held ahead, and releases tasks
    /// that would wait too long.
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

    /// One check of [`Holds::keep_pace`].
    fn look(&self, now: Instant) {
        let state = &mut *self.state.lock();
        self.release_late(state, now);
        self.adjust(state, now);
    }

    /// The time until the next check. `None` while no task is held.
    fn until_next_look(&self) -> Option<Duration> {
        let state = self.state.lock();
        if !state.waiting.is_empty() {
            return Some(LOOK);
        }
        if state.running.is_empty() {
            return None;
        }
        let now = Instant::now();
        let usual = state.pace.median().or_else(|| state.ages(now).max()).unwrap_or_default();
        Some((usual / PART).clamp(LOOK, LONGEST_LOOK))
    }

    /// Locks the state and brings the number of permits up to date.
    fn adjusted(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock();
        let (now, most) = (Instant::now(), self.most());
        // While tasks are short, this is called thousands of times without a change.
        let is_recent = state.adjusted.is_some_and(|at| now - at < RECENT);
        if !is_recent || state.permits() != most {
            self.adjust(&mut state, now);
        }
        state
    }

    /// The maximum number of permits.
    fn most(&self) -> usize {
        let (HeldAhead::Always(count) | HeldAhead::Soon(count)) = self.ahead;
        self.slots + count
    }

    /// Sets the number of permits to the number wanted now.
    fn adjust(&self, state: &mut State, now: Instant) {
        let (wanted, had) = (self.wanted(state, now), state.permits());
        state.adjusted = Some(now);
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
        if let HeldAhead::Always(_) = self.ahead {
            return self.most();
        }
        let running = state.running.len();
        if state.alone.is_some() {
            // No other task can start.
            return running + state.waiting.len();
        }
        if state.is_resting {
            return self.slots;
        }
        let starts = self.starts(state, now, self.most());
        (running + starts).clamp(self.slots, self.most())
    }

    /// The number of tasks that are expected to start soon.
    fn starts(&self, state: &State, now: Instant, enough: usize) -> usize {
        state.pace.starts_within(state.soon(), self.free(state), state.ages(now), enough)
    }

    fn free(&self, state: &State) -> usize {
        self.slots.saturating_sub(state.running.len())
    }

    /// Releases tasks that have waited long enough and are not expected to start soon, newest
    /// first.
    fn release_late(&self, state: &mut State, now: Instant) {
        if let HeldAhead::Always(_) = self.ahead {
            return;
        }
        let (waiting, alone) = (state.waiting.len(), state.alone);
        let (late, patience) = match alone {
            Some(_) => (waiting, Duration::ZERO),
            None => (waiting - self.starts(state, now, waiting), state.soon()),
        };
        let newest = state.waiting.iter().rev().take(late);
        let is_late = |held: &Waiting| now.saturating_duration_since(held.since) >= patience;
        let released: Vec<u64> = newest
            .filter(|(number, held)| is_late(held) && Some(**number) != alone)
            .map(|(number, _)| *number)
            .collect();
        for number in released {
            if let Some(held) = state.waiting.remove(&number) {
                held.released.notify_one();
                state.is_resting = true;
            }
        }
    }
}

impl State {
    /// The number of permits without those that are to be removed.
    fn permits(&self) -> usize {
        self.permits - self.surplus
    }

    fn take_away(&mut self, permit: OwnedSemaphorePermit) {
        permit.forget();
        self.surplus -= 1;
        self.permits -= 1;
    }

    /// How long each running task has run.
    fn ages(&self, now: Instant) -> impl Iterator<Item = Duration> {
        self.running.values().map(move |since| now.saturating_duration_since(*since))
    }

    /// Tasks that are expected to start within this time are held ahead.
    fn soon(&self) -> Duration {
        SOON + self.fetch.min(LONGEST_FETCH)
    }
}

impl Hold {
    /// Waits until the task must be released because it would wait too long.
    pub fn released(&self) -> impl Future<Output = ()> + use<> {
        let released = self.released.clone();
        async move { released.notified().await }
    }

    /// Records that the task's inputs have been fetched.
    pub fn has_inputs(&self) {
        let took = self.since.elapsed();
        let fetch = &mut self.holds.state.lock().fetch;
        *fetch = *fetch - *fetch / SMOOTHING + took / SMOOTHING;
    }

    /// The task cannot run for a while. Gives its permit to other tasks.
    pub fn leave(&mut self) {
        self.holds.state.lock().waiting.remove(&self.number);
        self.give_permit_back();
    }

    /// Waits for a permit if the task has none after [`Hold::leave`].
    pub async fn come_back(&mut self) {
        if self.permit.is_none() {
            // The semaphore is never closed.
            self.permit = self.holds.permits.clone().acquire_owned().await.ok();
            self.waits();
        }
    }

    /// The task may kill its host and must run alone. Unless the number of tasks held ahead is
    /// fixed, all other waiting tasks are released. If two tasks must run alone, the second is
    /// released as well.
    pub fn is_to_be_alone(&self) {
        let state = &mut *self.holds.state.lock();
        let now = Instant::now();
        state.alone.get_or_insert(self.number);
        self.holds.release_late(state, now);
        self.holds.adjust(state, now);
    }

    /// Records that the task waits for its inputs or for a slot.
    pub fn waits(&self) {
        let state = &mut *self.holds.state.lock();
        if state.waiting.is_empty() && state.running.is_empty() {
            self.holds.first.notify_one();
        }
        state.running.remove(&self.number);
        let waiting = Waiting { since: self.since, released: self.released.clone() };
        state.waiting.insert(self.number, waiting);
    }

    /// Records that the task has a slot.
    pub fn runs(&self) {
        self.runs_since(Instant::now());
    }

    fn runs_since(&self, now: Instant) {
        let state = &mut *self.holds.state.lock();
        state.waiting.remove(&self.number);
        state.running.insert(self.number, now);
    }

    /// Records that the task's slot is free.
    pub fn has_run(&self) {
        self.has_run_at(Instant::now());
    }

    fn has_run_at(&self, now: Instant) {
        let state = &mut *self.holds.state.lock();
        if let Some(since) = state.running.remove(&self.number) {
            state.pace.record(now.saturating_duration_since(since));
            self.frees_a_slot(state, now);
        }
    }

    fn frees_a_slot(&self, state: &mut State, now: Instant) {
        state.freed = Some(now);
        if std::mem::take(&mut state.is_resting) {
            self.holds.adjust(state, now);
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
        let now = Instant::now();
        state.waiting.remove(&self.number);
        if state.running.remove(&self.number).is_some() {
            self.frees_a_slot(state, now);
        }
        if state.alone == Some(self.number) {
            state.alone = None;
            self.holds.adjust(state, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const HOUR: Duration = Duration::from_secs(3600);

    /// Leases as many tasks as the host has permits for.
    fn lease(holds: &Arc<Holds>, now: Instant) -> Vec<Hold> {
        holds.look(now);
        let permits = std::iter::from_fn(|| holds.permits.clone().try_acquire_owned().ok());
        permits.map(|permit| holds.hold(permit)).collect()
    }

    fn begin(hold: &Hold, now: Instant) {
        hold.runs_since(now);
    }

    /// Runs a task from start to end.
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
