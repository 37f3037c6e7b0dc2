//! The rules that all engines share: the number of workers to request, how long to wait for them,
//! and what to do if too few start.

use std::time::Duration;

use tokio::time::Instant;

use super::{Counts, Engine, EngineError, FleetName, Spec, Status, Stop, Times};
use crate::queue::{Admin, QueueError};

/// The time that a host needs after its grace period, to release tasks and close its queues.
const TO_STOP: Duration = Duration::from_secs(15);
/// The shortest grace period.
const SHORTEST_GRACE: Duration = Duration::from_secs(3);
/// The time between two polls of an engine or a queue: the first one, and the longest.
const FIRST_POLL: Duration = Duration::from_millis(500);
const LONGEST_POLL: Duration = Duration::from_secs(10);
/// The number of consecutive polls in which a cloud queue must be empty. One is not enough because
/// the counts are approximate.
const EMPTY_POLLS: u32 = 3;

/// The number of workers to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// The minimum. If fewer start, all are stopped unless the caller keeps them.
    pub least: u32,
    /// The number of workers to request.
    pub most: u32,
}

/// How `up` ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Launched {
    /// All workers have started, or the command did not wait for them.
    All(Counts),
    /// Enough workers have started in time. The others may start later.
    Enough(Status),
    /// Too few workers have started in time.
    TooFew(Status),
}

/// An event to report while a command works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Fewer workers than requested can run at the same time.
    Scarce {
        /// The number of workers that can run.
        capacity: u32,
        /// The limit.
        limit: String,
    },
    /// The fleet already has workers.
    Exists(Counts),
    /// Workers were requested. The text describes the request.
    Asked(String),
    /// The counts have changed.
    Changed(Status),
}

/// The grace period of a host that an engine stops: `given`, or else `usual` within the engine's
/// limit. Returns this grace period, and the time between SIGTERM and SIGKILL to request from the
/// engine.
///
/// # Errors
/// If the engine gives a host less time than the requested grace period needs.
pub fn grace(
    given: Option<Duration>,
    usual: Duration,
    times: Times,
) -> Result<(Duration, Duration), EngineError> {
    let Some(longest) = times.stop else {
        let grace = given.unwrap_or(usual);
        return Ok((grace, grace + TO_STOP));
    };
    let fits = longest.saturating_sub(TO_STOP).max(SHORTEST_GRACE);
    match given {
        Some(grace) if grace > fits => Err(EngineError::Unfit {
            problem: format!(
                "a grace period of {} does not fit: this engine kills a worker at most {} after \
                 SIGTERM, and a host needs up to {} to release its tasks",
                humantime::format_duration(grace),
                humantime::format_duration(longest),
                humantime::format_duration(TO_STOP)
            ),
            cure: Some(format!("use --grace {}", humantime::format_duration(fits))),
        }),
        Some(grace) => Ok((grace, (grace + TO_STOP).min(longest))),
        None => Ok((usual.min(fits), (usual.min(fits) + TO_STOP).min(longest))),
    }
}

/// Starts the missing workers of a fleet, and waits up to `patience` until all of its workers have
/// started. A `patience` of zero does not wait. If too few start, stops all workers unless `keep`.
///
/// # Errors
/// If the engine can't run the minimum number of workers, if the fleet exists with other options,
/// or if the engine fails.
pub async fn up(
    engine: &dyn Engine,
    spec: &Spec,
    wanted: Wanted,
    patience: Duration,
    keep: bool,
    tell: &mut (dyn FnMut(Event) + Send),
) -> Result<Launched, EngineError> {
    if let Some(capacity) = engine.check(spec).await? {
        if capacity.workers < wanted.least {
            return Err(EngineError::Unfit {
                problem: format!(
                    "at most {} such workers can run at the same time, fewer than {}: {}",
                    capacity.workers, wanted.least, capacity.limit
                ),
                cure: Some("ask for fewer or smaller workers".to_owned()),
            });
        }
        if capacity.workers < wanted.most {
            tell(Event::Scarce { capacity: capacity.workers, limit: capacity.limit });
        }
    }
    let before = engine.status(&spec.fleet).await?.unwrap_or_default();
    let alive = before.counts.alive();
    if alive > 0 {
        if before.digest != spec.digest() {
            let name = &spec.fleet;
            return Err(EngineError::Unfit {
                problem: format!("fleet {name} has workers that were started with other options"),
                cure: Some(format!("stop them with `host fleet down {name}`, or use another name")),
            });
        }
        tell(Event::Exists(before.counts));
    }
    let missing = wanted.most.saturating_sub(alive);
    if missing > 0 {
        tell(Event::Asked(engine.start(spec, missing).await?));
    }
    if patience.is_zero() {
        let Counts { waiting, running, .. } = before.counts;
        let waiting = waiting + missing;
        return Ok(Launched::All(Counts { waiting, running, ..Counts::default() }));
    }
    // Workers that ended before this call do not count.
    let old = Counts { waiting: 0, running: 0, ..before.counts };
    let end = Instant::now() + patience;
    let mut polls = Polls::default();
    let mut last = None;
    loop {
        let now = since(engine.status(&spec.fleet).await?.unwrap_or_default(), old);
        let counts = now.counts;
        if last.replace(counts) != Some(counts) {
            tell(Event::Changed(now.clone()));
            polls = Polls::default();
        }
        if counts.started() >= wanted.most {
            return Ok(Launched::All(counts));
        }
        // No worker is left that could still start.
        let is_over = counts.waiting == 0 && counts.started() + counts.failed >= wanted.most;
        if is_over || Instant::now() >= end {
            if counts.started() >= wanted.least {
                return Ok(Launched::Enough(now));
            }
            if !keep {
                engine.stop(&spec.fleet, Stop::All).await?;
            }
            return Ok(Launched::TooFew(now));
        }
        polls.sleep_until(end).await;
    }
}

/// A status without the workers that ended before this call.
fn since(now: Status, old: Counts) -> Status {
    let counts = Counts {
        ended: now.counts.ended.saturating_sub(old.ended),
        failed: now.counts.failed.saturating_sub(old.failed),
        ..now.counts
    };
    Status { counts, ..now }
}

/// The state that `wait` waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// No worker waits to be started.
    Workers,
    /// No worker runs or waits.
    Idle,
    /// The queue is empty: no task waits or is leased.
    Done,
}

/// How `wait` ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Waited {
    /// The goal is reached.
    Reached(Status),
    /// The queue is empty, and its error queue holds this number of reports.
    Reports(u64),
    /// The queue still holds this number of tasks, but no worker is left.
    Abandoned(u64, Status),
    /// The time limit has passed.
    TimedOut(Status),
}

/// A fleet and its queues.
pub struct Watched<'a> {
    /// The engine.
    pub engine: &'a dyn Engine,
    /// The fleet.
    pub fleet: &'a FleetName,
    /// The task queue, and whether it is a cloud's queue, whose counts are approximate.
    pub queue: Option<(&'a dyn Admin, bool)>,
    /// The error queue.
    pub errors: Option<&'a dyn Admin>,
}

/// Why the state of a fleet could not be read.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A queue failed.
    #[error(transparent)]
    Queue(#[from] QueueError),
}

/// Waits until a fleet has reached a goal, up to `patience`. `None` sets no time limit.
///
/// # Errors
/// If the engine or a queue fails.
pub async fn wait(
    watched: &Watched<'_>,
    goal: Goal,
    patience: Option<Duration>,
    tell: &mut (dyn FnMut(Event) + Send),
) -> Result<Waited, WatchError> {
    let end = patience.map(|time| Instant::now() + time);
    let mut polls = Polls::default();
    let (mut last, mut empty) = (None, 0);
    loop {
        let status = watched.engine.status(watched.fleet).await?.unwrap_or_default();
        let counts = status.counts;
        if last.replace(counts) != Some(counts) {
            tell(Event::Changed(status.clone()));
            polls = Polls::default();
        }
        match goal {
            Goal::Workers if counts.waiting == 0 => return Ok(Waited::Reached(status)),
            Goal::Idle if counts.alive() == 0 => return Ok(Waited::Reached(status)),
            Goal::Workers | Goal::Idle => {}
            Goal::Done => {
                let left = watched.tasks().await?;
                empty = if left == Some(0) { empty + 1 } else { 0 };
                let needed = match watched.queue {
                    Some((_, true)) => EMPTY_POLLS,
                    _ => 1,
                };
                // If the queue can't count its messages, it is empty when its workers have ended.
                let is_done = empty >= needed || (left.is_none() && counts.alive() == 0);
                if is_done {
                    return Ok(match watched.reports().await? {
                        0 => Waited::Reached(status),
                        reports => Waited::Reports(reports),
                    });
                }
                if let Some(left @ 1..) = left
                    && counts.alive() == 0
                {
                    return Ok(Waited::Abandoned(left, status));
                }
            }
        }
        if end.is_some_and(|end| Instant::now() >= end) {
            return Ok(Waited::TimedOut(status));
        }
        polls.sleep_until(end.unwrap_or_else(|| Instant::now() + LONGEST_POLL)).await;
    }
}

impl Watched<'_> {
    /// The number of tasks in the queue, leased or not. `None` if the queue can't count them.
    async fn tasks(&self) -> Result<Option<u64>, QueueError> {
        match self.queue {
            Some((queue, _)) => Ok(queue.counts().await?.enqueued),
            None => Ok(None),
        }
    }

    /// The number of reports in the error queue.
    async fn reports(&self) -> Result<u64, QueueError> {
        match self.errors {
            Some(errors) => Ok(errors.counts().await?.enqueued.unwrap_or(0)),
            None => Ok(0),
        }
    }
}

/// The time until the next poll, which grows while nothing changes.
struct Polls(Duration);

impl Default for Polls {
    fn default() -> Self {
        Self(FIRST_POLL)
    }
}

impl Polls {
    async fn sleep_until(&mut self, end: Instant) {
        tokio::time::sleep_until(end.min(Instant::now() + self.0)).await;
        self.0 = (self.0 * 3 / 2).min(LONGEST_POLL);
    }
}

/// The number of workers for a number of tasks: each worker gets `tasks_per_slot` tasks for each of
/// its `slots`. At least 1.
pub fn workers_for(tasks: u64, slots: u64, tasks_per_slot: u64) -> u32 {
    let each = slots.max(1).saturating_mul(tasks_per_slot.max(1));
    u32::try_from(tasks.div_ceil(each)).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests;
