//! Takes messages from one queue and puts them, or what they report on, into another.
//!
//! A message is in the target before it leaves the source: a kill in between leaves it in
//! both. Several batches are under way at once.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use task_host::lease::{Lease, Leases, Settlement, Unsettled};
use task_host::queue::{Queue, QueueError, Release};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use super::console::Console;
use super::exit_code::Advice;
use super::output;
use super::progress_line::ProgressLine;
use super::refusals::{Place, Refusals};
use super::sender::{Target, send_each};

/// How long a message is held at a time; renewed while this command lives.
const HOLD: Duration = Duration::from_secs(60);
/// Messages that are leased in one go where a request brings any number.
const BATCH: usize = 256;
/// Batches under way between two directories: one for each of two processors.
const LOCAL_LANES: usize = 2;
/// Batches under way when one of the two queues is a network away.
const REMOTE_LANES: usize = 16;
/// How long a queue that is a network away may take to bring what it has.
const REMOTE_WAIT: Duration = Duration::from_secs(2);
/// Empty answers in a row after which it is taken to be empty.
const REMOTE_EMPTY: u32 = 2;
/// Messages that are held because they are to stay, at the most: services let nobody hold
/// many more.
const KEPT: usize = 100_000;

/// What is done with a message.
pub(crate) enum Choice {
    /// Send this text, and delete the message. The name is what it is counted under.
    Send(Bytes, String),
    /// Give it back as it was.
    Leave,
    /// Give it back, and say why.
    Refuse(String),
}

/// Decides by a message's text.
pub(crate) type Choose = dyn Fn(&Bytes) -> Choice + Send + Sync;

/// From where, to where, and what.
pub(crate) struct Carrier {
    pub(crate) source: Arc<dyn Queue>,
    /// The source, or what is done there, is a network away.
    pub(crate) is_remote: bool,
    pub(crate) target: Target,
    pub(crate) choose: Box<Choose>,
    /// Messages that are sent, at the most.
    pub(crate) limit: u64,
    /// Messages that are looked at, at the most.
    pub(crate) looks: u64,
    /// What is done, for people: `moved`.
    pub(crate) verb: &'static str,
}

/// What was done.
#[derive(Debug, Default)]
pub(crate) struct Carried {
    /// Messages that are in the target now and were not before.
    pub(crate) sent: u64,
    /// Messages that were looked at and are to stay.
    pub(crate) left: u64,
    /// Messages that could not be moved: they are where they were, or in both queues.
    pub(crate) refused: u64,
    /// What was sent, by the names they are counted under.
    pub(crate) names: BTreeMap<String, u64>,
    /// A person stopped it.
    pub(crate) is_interrupted: bool,
    /// So many were to stay that the rest was not looked at.
    pub(crate) is_cut_short: bool,
}

/// What all lanes share.
struct Work {
    carrier: Carrier,
    leases: Leases,
    batch: usize,
    refusals: Refusals,
    state: Mutex<State>,
}

struct State {
    /// Of the limit and of the looks, what is left.
    limit: u64,
    looks: u64,
    /// Messages that stay, held until the end so that they are not looked at twice.
    kept: Vec<Lease>,
    done: Carried,
    failed: Option<QueueError>,
    meter: ProgressLine,
}

impl Carrier {
    /// Does it. `whole` is about how many there are to do, if that is known.
    ///
    /// # Errors
    /// When one of the queues can't be used. What was sent is said; the rest is given back.
    pub(crate) async fn run(self, screen: &Console, whole: Option<u64>) -> anyhow::Result<Carried> {
        let source_batch = match self.source.batch() {
            1 => BATCH,
            n => n,
        };
        let lanes = match (self.target.is_ordered, self.is_remote) {
            (true, _) => 1,
            (false, true) => REMOTE_LANES,
            (false, false) => LOCAL_LANES,
        };
        let work = Arc::new(Work {
            leases: Leases::new(self.source.clone(), HOLD, Arc::default(), &Handle::current()),
            batch: source_batch.min(self.target.batch),
            refusals: Refusals::new(screen, None)?,
            state: Mutex::new(State {
                limit: self.limit,
                looks: self.looks,
                kept: Vec::new(),
                done: Carried::default(),
                failed: None,
                meter: ProgressLine::new(screen, "messages", self.verb, whole),
            }),
            carrier: self,
        });
        let mut running = JoinSet::new();
        for _ in 0..lanes {
            running.spawn(work.clone().lane());
        }
        let interrupted = tokio::signal::ctrl_c();
        tokio::pin!(interrupted);
        let mut is_told = false;
        loop {
            tokio::select! {
                lane = running.join_next() => match lane {
                    Some(ended) => ended?,
                    None => break,
                },
                told = &mut interrupted, if !is_told => {
                    is_told = true;
                    if told.is_ok() {
                        work.interrupt(screen);
                    }
                }
            }
        }
        work.end().await
    }
}

impl Work {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A person does not want to wait: what is under way is finished, the rest is left.
    fn interrupt(&self, screen: &Console) {
        self.state().done.is_interrupted = true;
        screen.tell("stopping: what is under way is finished first; a second Ctrl-C exits at once");
        tokio::spawn(async {
            if tokio::signal::ctrl_c().await.is_ok() {
                // What is held comes back to its queue when its leases run out.
                std::process::exit(130);
            }
        });
    }

    /// How many messages to lease next; zero when enough is done.
    fn next(&self) -> usize {
        let state = self.state();
        let is_over = state.failed.is_some() || state.done.is_interrupted || state.limit == 0;
        if is_over || state.done.is_cut_short {
            return 0;
        }
        // Some of those that are leased may have to stay.
        let most = state.looks.min(state.limit.max(10));
        usize::try_from(most).unwrap_or(usize::MAX).min(self.batch)
    }

    async fn lane(self: Arc<Self>) {
        let (wait, patience) = match self.carrier.is_remote {
            true => (REMOTE_WAIT, REMOTE_EMPTY),
            false => (Duration::ZERO, 1),
        };
        let mut empty = 0;
        while empty < patience {
            let most = self.next();
            if most == 0 {
                return;
            }
            match self.leases.lease(most, wait).await {
                Ok(leased) if leased.is_empty() => empty += 1,
                Ok(leased) => {
                    empty = 0;
                    self.carry(leased).await;
                }
                Err(error) => {
                    self.state().failed.get_or_insert(error);
                }
            }
        }
    }

    async fn carry(&self, leased: Vec<Lease>) {
        let (bodies, sending) = self.sort(leased);
        if bodies.is_empty() {
            return;
        }
        let results = send_each(&*self.carrier.target.queue, &bodies).await;
        let settling =
            results.into_iter().zip(sending).map(async |(sent, (lease, name))| match sent {
                Ok(()) => {
                    let id = lease.message().id.clone();
                    // Moved, and not done.
                    let settled = lease.settle(&Settlement::Reject).await;
                    self.state().sent(name);
                    if let Err(Unsettled { error, .. }) = settled {
                        let problem = format!("is in both queues: {error}");
                        self.refuse(&id, &problem);
                    }
                }
                Err(error) => {
                    // The target may work again later, and the message is not at fault.
                    let is_down = !matches!(error, QueueError::Invalid { .. });
                    if !is_down {
                        self.refuse(&lease.message().id, &error);
                    }
                    let mut state = self.state();
                    state.limit = state.limit.saturating_add(1);
                    state.kept.push(lease);
                    if is_down {
                        state.failed.get_or_insert(error);
                    }
                }
            });
        join_all(settling).await;
    }

    /// What to send, and for which leases; the others are kept.
    fn sort(&self, leased: Vec<Lease>) -> (Vec<Bytes>, Vec<(Lease, String)>) {
        let (mut bodies, mut sending) = (Vec::new(), Vec::new());
        {
            let mut state = self.state();
            state.looks = state.looks.saturating_sub(leased.len() as u64);
        }
        for lease in leased {
            let choice = match &lease.message().unread {
                Some(problem) => Choice::Refuse(problem.clone()),
                None => (self.carrier.choose)(&lease.message().body),
            };
            if let Choice::Refuse(problem) = &choice {
                self.refuse(&lease.message().id, problem);
            }
            let mut state = self.state();
            match choice {
                Choice::Send(body, name) if state.limit > 0 => {
                    state.limit -= 1;
                    bodies.push(body);
                    sending.push((lease, name));
                }
                Choice::Send(..) => state.kept.push(lease),
                Choice::Leave => {
                    state.done.left += 1;
                    state.kept.push(lease);
                }
                Choice::Refuse(_) => state.kept.push(lease),
            }
            state.done.is_cut_short |= state.kept.len() >= KEPT;
        }
        (bodies, sending)
    }

    fn refuse(&self, id: &str, problem: &dyn fmt::Display) {
        self.refusals.add(&Place::Named(format!("message {id}")), problem, None);
    }

    /// Gives back what was only looked at, and says what was done.
    async fn end(&self) -> anyhow::Result<Carried> {
        let kept = std::mem::take(&mut self.state().kept);
        let mut kept = kept.into_iter();
        loop {
            let some: Vec<Lease> = kept.by_ref().take(BATCH).collect();
            if some.is_empty() {
                break;
            }
            let release = Settlement::Release(Duration::ZERO, Release::Uncounted);
            let released = some.into_iter().map(async |l: Lease| l.settle(&release).await);
            for Unsettled { error, .. } in
                join_all(released).await.into_iter().filter_map(Result::err)
            {
                tracing::warn!("{error}");
            }
        }
        self.carrier.source.close().await;
        self.carrier.target.queue.close().await;
        let refused = self.refusals.finish()?;
        let (mut done, failed) = {
            let mut state = self.state();
            state.meter.end();
            (std::mem::take(&mut state.done), state.failed.take())
        };
        done.refused = refused;
        match failed {
            None => Ok(done),
            Some(error) => {
                let moved = output::count(done.sent, "message");
                Err(Advice::failed(error.to_string())
                    .hint(format!("{moved} {} before that", self.carrier.verb))
                    .into())
            }
        }
    }
}

impl State {
    fn sent(&mut self, name: String) {
        self.done.sent += 1;
        *self.done.names.entry(name).or_default() += 1;
        self.meter.at(self.done.sent, self.done.sent);
    }
}

#[cfg(test)]
mod tests {
    use super::super::picky::Picky;
    use super::*;

    async fn source(messages: impl IntoIterator<Item = String>) -> Arc<Picky> {
        let queue = Arc::new(Picky::default());
        let bodies: Vec<Bytes> = messages.into_iter().map(Bytes::from).collect();
        // As they are: the source takes any message.
        for result in queue.put(&bodies).await {
            result.unwrap();
        }
        queue
    }

    async fn carry(
        source: &Arc<Picky>,
        limit: u64,
        choose: impl Fn(&Bytes) -> Choice + Send + Sync + 'static,
    ) -> (Arc<Picky>, anyhow::Result<Carried>) {
        let queue = Arc::new(Picky::default());
        let target = Target { queue: queue.clone(), batch: 10, under_way: 1, is_ordered: false };
        let carrier = Carrier {
            source: source.clone(),
            is_remote: false,
            target,
            choose: Box::new(choose),
            limit,
            looks: u64::MAX,
            verb: "moved",
        };
        (queue, carrier.run(&Console::hidden(), None).await)
    }

    fn all(body: &Bytes) -> Choice {
        Choice::Send(body.clone(), String::new())
    }

    fn numbers(n: usize) -> impl Iterator<Item = String> {
        (0..n).map(|i| i.to_string())
    }

    #[tokio::test]
    async fn what_the_target_refuses_stays_and_can_be_leased_at_once() {
        let messages = numbers(100).map(|i| if i == "42" { "too large".to_owned() } else { i });
        let source = source(messages).await;
        let (target, carried) = carry(&source, u64::MAX, all).await;
        let carried = carried.unwrap();
        assert_eq!((carried.sent, carried.refused), (99, 1));
        assert_eq!(source.bodies().await, ["too large"]);
        assert_eq!(target.bodies().await.len(), 99);
    }

    #[tokio::test]
    async fn a_message_that_is_refused_stays_wherever_it_stands() {
        for position in [0, 1, 9, 10, 24] {
            for (bad, is_refused) in
                [("too large", true), ("whole request", true), ("unreachable", false)]
            {
                let messages = (0..25).map(|i| match i == position {
                    true => bad.to_owned(),
                    false => i.to_string(),
                });
                let source = source(messages).await;
                let (target, carried) = carry(&source, u64::MAX, all).await;
                let case = format!("{bad} at {position}");
                if is_refused {
                    let carried = carried.unwrap();
                    assert_eq!((carried.sent, carried.refused), (24, 1), "{case}");
                    assert_eq!(source.bodies().await, [bad], "{case}");
                    assert_eq!(target.bodies().await.len(), 24, "{case}");
                } else {
                    // What the target could not take is where it was, and nothing is in both.
                    carried.unwrap_err();
                    let (left, moved) = (source.bodies().await, target.bodies().await);
                    assert!(left.iter().any(|body| body == bad), "{case}");
                    assert_eq!(left.len() + moved.len(), 25, "{case}");
                }
            }
        }
    }

    #[tokio::test]
    async fn a_target_that_is_down_loses_nothing() {
        let messages = (0..50).map(|i| format!("{i} unreachable"));
        let source = source(messages).await;
        let (target, carried) = carry(&source, u64::MAX, all).await;
        assert!(carried.unwrap_err().to_string().contains("connection refused"));
        assert_eq!(source.bodies().await.len(), 50);
        assert!(target.bodies().await.is_empty());
    }

    #[tokio::test]
    async fn what_is_not_chosen_is_given_back_and_a_limit_is_kept() {
        let source = source(numbers(100)).await;
        let even = |body: &Bytes| match body.last().map(|b| b % 2) {
            Some(0) => Choice::Send(body.clone(), "even".to_owned()),
            _ => Choice::Leave,
        };
        let (target, carried) = carry(&source, 20, even).await;
        let carried = carried.unwrap();
        assert_eq!(carried.sent, 20);
        assert_eq!(carried.names, BTreeMap::from([("even".to_owned(), 20)]));
        let moved = target.bodies().await;
        assert!(moved.len() == 20 && moved.iter().all(|body| body.parse::<u8>().unwrap() % 2 == 0));
        assert_eq!(source.bodies().await.len(), 80);
    }
}
