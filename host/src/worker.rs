//! The loop of a host: take a permit, lease a message, start its task; then drain.

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Notify, OwnedSemaphorePermit, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use crate::hold::Holds;
use crate::identity;
use crate::lease::{Lease, Leases};
use crate::queue::Queue;
use crate::services::Services;
use crate::task;
use polls::{LONG_POLL, Poll, Polls};
use quiet::{Idle, Quiet};

mod admission;
mod polls;
mod quiet;

/// The shortest long poll, of a host that was told to stop and has little time.
const SHORTEST_LONG_POLL: Duration = Duration::from_secs(5);
/// How long a host that must stop at once tries to release its tasks.
const RELEASING: Duration = Duration::from_secs(10);
/// How long a stopping host waits for the answer to its last receive: one poll and its latency.
const LAST_POLL: Duration = Duration::from_secs(25);

/// The loop, and the tasks that the host holds.
pub struct Worker {
    services: Arc<Services>,
    holds: Arc<Holds>,
    /// Notified when the last task has ended.
    idle: Notify,
    /// The goal that the host has reached.
    goal: OnceLock<Goal>,
    /// The time until which running tasks may finish, if it replaces the grace period.
    until: watch::Sender<Option<Instant>>,
}

/// The goal that made a host end by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// The queue is empty.
    Empty,
    /// The host had no task for some time.
    Idle,
    /// A number of tasks ended.
    Tasks,
    /// A time has passed.
    Time,
}

/// Why a host stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// It reached its goal: an empty queue, a number of tasks, or a time.
    Finished,
    /// It was told to stop, and all running tasks finished.
    Drained,
    /// It was told to stop, and released tasks that were running.
    Killed,
}

impl Worker {
    /// A worker that runs tasks with `services`.
    pub fn new(services: Arc<Services>) -> Self {
        let config = &services.config;
        let holds = Holds::new(config.work.parallel, config.held_ahead(&*services.queue));
        Self {
            services,
            holds,
            idle: Notify::new(),
            goal: OnceLock::new(),
            until: watch::Sender::new(None),
        }
    }

    /// The goal that made the host end by itself, if it did.
    pub fn goal(&self) -> Option<Goal> {
        self.goal.get().copied()
    }

    /// Sets the time until which running tasks may finish after the host is told to stop, instead
    /// of the grace period. Can be called again.
    pub fn may_run_until(&self, time: Instant) {
        self.until.send_replace(Some(time));
    }

    /// Works until there is a reason to stop. After `drain` is cancelled, running tasks have the
    /// grace period to finish, and the other tasks are released. After `kill` is cancelled, all
    /// tasks are released. Leases are renewed on `renewals`, a runtime that tasks' file calls can't
    /// block.
    pub async fn run(
        self: Arc<Self>,
        drain: CancellationToken,
        kill: CancellationToken,
        renewals: &Handle,
    ) -> Stopped {
        let services = &self.services;
        let tasks = TaskTracker::new();
        let outages = services.outages.clone();
        let _probing =
            AbortOnDropHandle::new(tokio::spawn(async move { outages.keep_probing().await }));
        let (queue, lease) = (services.queue.clone(), services.config.work.lease);
        let leases = Leases::new(queue, lease, services.outages.clone(), renewals);
        let told = tokio::select! {
            goal = self.take_tasks(&leases, &tasks) => {
                let _ = self.goal.set(goal);
                false
            }
            never = self.holds.keep_pace() => match never {},
            () = drain.cancelled() => true,
            () = kill.cancelled() => true,
        };
        services.draining.cancel();
        tasks.close();
        let stopped = self.end(&tasks, told, &drain, &kill).await;
        self.close(&kill).await;
        stopped
    }

    /// Waits for the last answers of the queues, and until uploads are aborted.
    async fn close(&self, kill: &CancellationToken) {
        let Services { queue, bucket, .. } = &*self.services;
        let explain = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            tracing::info!(
                "waiting up to {} s for the answer to the last receive from {queue}, because a \
                 message in it would stay leased although no host runs it; send another signal to \
                 stop now",
                LAST_POLL.as_secs(),
            );
            std::future::pending::<Infallible>().await
        };
        tokio::select! {
            closed = tokio::time::timeout(LAST_POLL, self.services.close_queues()) => {
                if closed.is_err() {
                    tracing::warn!("{queue} did not answer in time; a message in its last answer \
                        can be received again when its lease ends");
                }
            }
            never = explain => match never {},
            () = kill.cancelled() => {}
        }
        if tokio::time::timeout(RELEASING, bucket.close()).await.is_err() {
            tracing::warn!("{bucket}: not all uploads could be aborted; their parts stay");
        }
    }

    /// Lets the current tasks finish, or releases them.
    async fn end(
        &self,
        tasks: &TaskTracker,
        told: bool,
        drain: &CancellationToken,
        kill: &CancellationToken,
    ) -> Stopped {
        if told {
            tokio::select! {
                () = tasks.wait() => {}
                () = self.time_is_over() => {
                    tracing::warn!("the grace period is over; running tasks are released");
                }
                () = kill.cancelled() => {}
            }
        } else {
            // The host may still be told to stop while the last tasks finish by themselves.
            tokio::select! {
                () = tasks.wait() => return Stopped::Finished,
                () = kill.cancelled() => {}
                () = async {
                    drain.cancelled().await;
                    self.time_is_over().await;
                } => {}
            }
        }
        if tasks.is_empty() {
            return Stopped::Drained;
        }
        self.services.killed.cancel();
        if tokio::time::timeout(RELEASING, tasks.wait()).await.is_err() {
            tracing::warn!("not all tasks could be released; they return when their leases end");
        }
        Stopped::Killed
    }

    /// Waits until the time for running tasks is over. The grace period starts now.
    async fn time_is_over(&self) {
        let grace = Instant::now() + self.services.config.stop.grace;
        let mut until = self.until.subscribe();
        loop {
            let end = until.borrow_and_update().unwrap_or(grace);
            tokio::select! {
                () = tokio::time::sleep_until(end) => return,
                // The sender lives as long as `self`.
                _ = until.changed() => {}
            }
        }
    }

    /// Leases messages and starts their tasks, until the host has reached its goal.
    async fn take_tasks(self: &Arc<Self>, leases: &Leases, tasks: &TaskTracker) -> Goal {
        let Services { config, queue, outages, .. } = &*self.services;
        let over = async {
            match config.stop.run_for {
                Some(time) => tokio::time::sleep(time).await,
                None => std::future::pending().await,
            }
        };
        let mut over = std::pin::pin!(over);
        // A poll that is active when the host is told to stop ends within the grace period.
        let longest = LONG_POLL.min(config.stop.grace.max(SHORTEST_LONG_POLL));
        let mut polls = Polls::new(config.stop.exit_when_empty, queue.batch() > 1, longest);
        let mut is_told_idle = false;
        // The maximum time for the next poll, so that an idle host leaves in time.
        let mut until_left = config.stop.exit_when_idle;
        let mut quiet = Quiet::default();
        let mut idle = Idle::new(Instant::now());
        loop {
            let next = async {
                self.services.wait_until_usable().await;
                let wanted = self.still_wanted(tasks);
                let mut permits = admission::admit(&self.holds, &self.services, wanted).await;
                let until_free = self.holds.until_free();
                let Poll { pause, wait } = match is_told_idle {
                    true => Poll::default(),
                    false => {
                        polls.next(Instant::now(), self.holds.last_freed(), until_free, until_left)
                    }
                };
                // Tokio can't sleep for less than a millisecond.
                if !pause.is_zero() {
                    tokio::time::sleep(pause).await;
                }
                let leased = leases.lease(permits.len(), wait).await;
                if let Ok(leased) = &leased {
                    permits.truncate(leased.len());
                    if leased.is_empty() && until_free.is_some() {
                        self.holds.found_none_ahead();
                    }
                }
                (permits, leased)
            };
            let (permits, leased) = tokio::select! {
                biased;
                next = next => next,
                // The last task has ended. The queue may be empty, if it also has no message to
                // lease now.
                () = self.idle.notified(), if config.stop.exit_when_empty => {
                    is_told_idle = true;
                    continue;
                }
                () = &mut over => return Goal::Time,
            };
            is_told_idle = false;
            match leased {
                Ok(leased) => {
                    outages.ends(queue);
                    let none = leased.is_empty();
                    polls.ended(Instant::now(), !none);
                    for (lease, permit) in leased.into_iter().zip(permits) {
                        self.begin(lease, permit, tasks);
                    }
                    let (now, is_idle) = (Instant::now(), none && tasks.is_empty());
                    let is_quiet = quiet.lasts(now, is_idle, leases.last_return());
                    // The messages of current tasks are still in the queue.
                    if config.stop.exit_when_empty && is_idle && is_empty(&**queue, is_quiet).await
                    {
                        return Goal::Empty;
                    }
                    if let Some(most) = config.stop.exit_when_idle {
                        let could_work = is_idle && self.services.problems().is_empty();
                        let busy = self.holds.last_freed().max(leases.last_return());
                        let left = most.saturating_sub(idle.lasts(now, could_work, busy));
                        until_left = Some(left);
                        let is_over = left.is_zero()
                            && (!identity::of_process().is_first()
                                || is_empty(&**queue, is_quiet).await);
                        if is_over {
                            return Goal::Idle;
                        }
                    }
                }
                Err(error) => {
                    drop(permits);
                    quiet = Quiet::default();
                    idle = Idle::new(Instant::now());
                    let wait = outages.begins(queue, &error);
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        () = &mut over => return Goal::Time,
                    }
                }
            }
            if self.has_done_enough(tasks).await {
                return Goal::Tasks;
            }
        }
    }

    fn begin(self: &Arc<Self>, lease: Lease, permit: OwnedSemaphorePermit, tasks: &TaskTracker) {
        let (worker, hold) = (self.clone(), self.holds.hold(permit));
        let others = tasks.clone();
        // Boxed, because this large future is moved several times.
        tasks.spawn(Box::pin(async move {
            task::run(&worker.services, lease, hold).await;
            if others.len() == 1 {
                worker.idle.notify_one();
            }
        }));
    }

    /// The number of tasks that may still start before `--max-tasks` is reached.
    fn still_wanted(&self, tasks: &TaskTracker) -> u64 {
        match self.services.config.stop.max_tasks {
            None => u64::MAX,
            Some(most) => most.saturating_sub(self.services.ended() + tasks.len() as u64),
        }
    }

    /// Whether `--max-tasks` tasks have ended. Waits while the current tasks may be the last ones.
    async fn has_done_enough(&self, tasks: &TaskTracker) -> bool {
        let Some(most) = self.services.config.stop.max_tasks else { return false };
        loop {
            if self.services.ended() >= most {
                return true;
            }
            if self.services.ended() + (tasks.len() as u64) < most {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Whether the queue has no messages, leased or not. `is_quiet` is the answer for a queue that
/// can't count its messages.
async fn is_empty(queue: &dyn Queue, is_quiet: bool) -> bool {
    match queue.counts().await {
        Ok(counts) => counts.enqueued.map_or(is_quiet, |enqueued| enqueued == 0),
        Err(error) => {
            tracing::warn!("{error}");
            false
        }
    }
}
