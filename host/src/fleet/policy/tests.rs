//! Tests of the policy with an engine in memory, on a paused clock.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use bytesize::ByteSize;

use super::super::imitation::{Course, Imitation};
use super::super::{Capacity, Reason, Trouble};
use super::*;
use crate::queue::{self, Access};

const SOON: Course = course(Some(5), 3600, false);
const NEVER: Course = course(None, 0, false);

const fn course(starts: Option<u64>, runs: u64, fails: bool) -> Course {
    let starts = match starts {
        Some(starts) => Some(Duration::from_secs(starts)),
        None => None,
    };
    Course { starts, runs: Duration::from_secs(runs), fails }
}

fn spec() -> Spec {
    Spec {
        fleet: "night".parse().unwrap(),
        cpus: 1,
        memory: ByteSize::gib(2),
        image: "image".to_owned(),
        program: "/host".into(),
        walltime: None,
        relay: 1,
        stop_time: Duration::from_secs(30),
        directory: "/".into(),
        paths: BTreeSet::new(),
        environment: BTreeMap::new(),
        pass: BTreeSet::new(),
        options: BTreeMap::new(),
    }
}

const fn wanted(least: u32, most: u32) -> Wanted {
    Wanted { least, most }
}

/// Runs `up` with a patience of a minute. Returns its result and its events.
async fn up_with(
    engine: &Imitation,
    spec: &Spec,
    wanted: Wanted,
    keep: bool,
) -> (Result<Launched, EngineError>, Vec<Event>) {
    let mut events = Vec::new();
    let mut tell = |event| events.push(event);
    let launched = up(engine, spec, wanted, Duration::from_secs(60), keep, &mut tell).await;
    (launched, events)
}

#[tokio::test(start_paused = true)]
async fn all_workers_start() {
    let engine = Imitation::new(&[SOON]);
    let (launched, events) = up_with(&engine, &spec(), wanted(2, 3), false).await;
    assert_eq!(launched, Ok(Launched::All(Counts { running: 3, ..Counts::default() })));
    assert_eq!(events[0], Event::Asked("3 workers".to_owned()));
    let changes = events[1..].iter().filter(|event| matches!(event, Event::Changed(_)));
    assert_eq!(changes.count(), 2, "one for those that wait, one for those that run");
}

#[tokio::test(start_paused = true)]
async fn workers_that_find_no_work_and_end_have_started() {
    let engine = Imitation::new(&[course(Some(1), 1, false)]);
    let (launched, _) = up_with(&engine, &spec(), wanted(3, 3), false).await;
    assert!(matches!(launched, Ok(Launched::All(_))), "{launched:?}");
}

#[tokio::test(start_paused = true)]
async fn enough_workers_go_on_and_the_others_may_come_later() {
    let engine = Imitation::new(&[SOON, SOON, NEVER]);
    let (launched, _) = up_with(&engine, &spec(), wanted(2, 5), false).await;
    let Ok(Launched::Enough(status)) = launched else { panic!("{launched:?}") };
    assert_eq!((status.counts.running, status.counts.waiting), (2, 3));
    let reason = "no room".to_owned();
    assert_eq!(status.reasons, [Reason { state: Trouble::Waiting, workers: 3, reason }]);
    assert_eq!(engine.counts(), status.counts, "nothing was stopped");
}

#[tokio::test(start_paused = true)]
async fn too_few_workers_are_stopped_unless_they_are_to_be_kept() {
    for keep in [false, true] {
        let engine = Imitation::new(&[SOON, NEVER]);
        let (launched, _) = up_with(&engine, &spec(), wanted(2, 5), keep).await;
        assert!(matches!(launched, Ok(Launched::TooFew(_))), "{launched:?}");
        assert_eq!(engine.counts().alive(), if keep { 5 } else { 0 });
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_workers_that_have_all_failed() {
    let engine = Imitation::new(&[course(Some(1), 0, true)]);
    let start = Instant::now();
    let (launched, _) = up_with(&engine, &spec(), wanted(1, 3), false).await;
    assert!(matches!(launched, Ok(Launched::TooFew(_))), "{launched:?}");
    assert!(start.elapsed() < Duration::from_secs(30));
}

#[tokio::test(start_paused = true)]
async fn only_missing_workers_are_started_and_those_of_before_do_not_count() {
    let engine = Imitation::new(&[course(Some(1), 5, false), SOON]);
    let (launched, _) = up_with(&engine, &spec(), wanted(2, 2), false).await;
    assert!(matches!(launched, Ok(Launched::All(_))), "{launched:?}");
    tokio::time::sleep(Duration::from_secs(20)).await;
    // One worker has ended, one still runs.
    let (launched, events) = up_with(&engine, &spec(), wanted(3, 3), false).await;
    let want = Counts { running: 3, ..Counts::default() };
    assert_eq!(launched, Ok(Launched::All(want)));
    let before = Counts { running: 1, ended: 1, ..Counts::default() };
    assert_eq!(events[..2], [Event::Exists(before), Event::Asked("2 workers".to_owned())]);
}

#[tokio::test(start_paused = true)]
async fn workers_that_wait_already_count_when_up_does_not_wait() {
    let engine = Imitation::new(&[SOON]);
    for most in [2, 3] {
        let mut tell = |_| {};
        let launched =
            up(&engine, &spec(), wanted(1, most), Duration::ZERO, false, &mut tell).await;
        let want = Counts { waiting: most, ..Counts::default() };
        assert_eq!(launched, Ok(Launched::All(want)));
    }
}

#[tokio::test(start_paused = true)]
async fn workers_with_other_options_are_not_mixed() {
    let engine = Imitation::new(&[SOON]);
    let (launched, _) = up_with(&engine, &spec(), wanted(1, 1), false).await;
    assert!(launched.is_ok());
    let other = Spec { cpus: 2, ..spec() };
    let (launched, _) = up_with(&engine, &other, wanted(2, 2), false).await;
    let error = launched.expect_err("other options");
    assert!(error.to_string().contains("were started with other options"), "{error}");
    assert_eq!(engine.counts().alive(), 1);
    // Other options are accepted when no worker is left.
    engine.stop(&other.fleet, Stop::All).await.unwrap();
    let (launched, _) = up_with(&engine, &other, wanted(2, 2), false).await;
    assert!(launched.is_ok(), "{launched:?}");
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_is_too_small_is_found_out_before_anything_starts() {
    let mut engine = Imitation::new(&[SOON]);
    engine.capacity = Some(Capacity { workers: 3, limit: "12 vCPUs".to_owned() });
    let (launched, _) = up_with(&engine, &spec(), wanted(4, 9), false).await;
    let error = launched.expect_err("too few").to_string();
    assert!(error.contains("at most 3 such workers") && error.contains("12 vCPUs"), "{error}");
    assert_eq!(engine.counts(), Counts::default());
    let (launched, events) = up_with(&engine, &spec(), wanted(3, 4), false).await;
    assert!(launched.is_ok(), "{launched:?}");
    assert_eq!(events[0], Event::Scarce { capacity: 3, limit: "12 vCPUs".to_owned() });
}

#[tokio::test(start_paused = true)]
async fn no_workers_start_nothing() {
    let engine = Imitation::new(&[SOON]);
    let (launched, events) = up_with(&engine, &spec(), wanted(0, 0), false).await;
    assert_eq!(launched, Ok(Launched::All(Counts::default())));
    assert!(events.iter().all(|event| !matches!(event, Event::Asked(_))), "{events:?}");
}

#[test]
fn the_grace_period_fits_the_engine() {
    let secs = Duration::from_secs;
    let times = |stop: Option<u64>| Times { stop: stop.map(secs), start: secs(60) };
    let check = |given: Option<u64>, stop, want: (u64, u64)| {
        let got = grace(given.map(secs), secs(30), times(stop));
        assert_eq!(got, Ok((secs(want.0), secs(want.1))), "{given:?} {stop:?}");
    };
    check(None, None, (30, 45));
    check(Some(300), None, (300, 315));
    check(None, Some(30), (15, 30));
    check(None, Some(120), (30, 45));
    check(None, Some(10), (3, 10));
    check(Some(5), Some(30), (5, 20));
    let error = grace(Some(secs(60)), secs(30), times(Some(30))).expect_err("too long");
    assert_eq!(error.cure(), Some("use --grace 15s"));
}

#[test]
fn the_number_of_workers_follows_from_the_number_of_tasks() {
    for (tasks, slots, each, want) in
        [(0, 4, 10, 1), (1, 4, 10, 1), (40, 4, 10, 1), (41, 4, 10, 2), (1_000_000, 8, 10, 12_500)]
    {
        assert_eq!(workers_for(tasks, slots, each), want, "{tasks} {slots} {each}");
    }
    assert_eq!(workers_for(u64::MAX, 0, 0), u32::MAX);
}

/// A directory queue and its error queue.
struct Queues {
    _dir: tempfile::TempDir,
    tasks: queue::Address,
    errors: queue::Address,
}

impl Queues {
    async fn new(tasks: usize, reports: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let address = |name: &str| queue::Address::Directory(dir.path().join(name));
        let queues = Self { tasks: address("tasks"), errors: address("errors"), _dir: dir };
        for (address, count) in [(&queues.tasks, tasks), (&queues.errors, reports)] {
            let queue = queue::open(address, &Access::default()).await.unwrap();
            let bodies = vec![Bytes::from_static(b"{}"); count];
            assert!(queue.send(&bodies).await.iter().all(Result::is_ok));
        }
        queues
    }

    async fn wait(&self, engine: &Imitation, patience: u64) -> Waited {
        let access = Access::default();
        let tasks = queue::admin(&self.tasks, &access).await.unwrap();
        let errors = queue::admin(&self.errors, &access).await.unwrap();
        let fleet = spec().fleet;
        let watched = Watched {
            engine,
            fleet: &fleet,
            queue: Some((&*tasks, false)),
            errors: Some(&*errors),
        };
        let patience = Some(Duration::from_secs(patience));
        wait(&watched, Goal::Done, patience, &mut |_| {}).await.unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn done_means_that_the_queue_is_empty() {
    let engine = Imitation::new(&[SOON]);
    engine.start(&spec(), 2).await.unwrap();
    let waited = Queues::new(0, 0).await.wait(&engine, 60).await;
    assert!(matches!(waited, Waited::Reached(_)), "{waited:?}");
    assert_eq!(Queues::new(0, 2).await.wait(&engine, 60).await, Waited::Reports(2));
    let waited = Queues::new(1, 0).await.wait(&engine, 60).await;
    assert!(matches!(waited, Waited::TimedOut(_)), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn tasks_without_workers_are_abandoned() {
    let engine = Imitation::new(&[course(Some(1), 20, false)]);
    engine.start(&spec(), 2).await.unwrap();
    let waited = Queues::new(3, 0).await.wait(&engine, 60).await;
    let Waited::Abandoned(3, status) = waited else { panic!("{waited:?}") };
    assert_eq!(status.counts.ended, 2);
}

#[tokio::test(start_paused = true)]
async fn workers_and_idle_are_waited_for() {
    let engine = Imitation::new(&[SOON, course(Some(10), 30, false)]);
    engine.start(&spec(), 2).await.unwrap();
    let fleet = spec().fleet;
    let watched = Watched { engine: &engine, fleet: &fleet, queue: None, errors: None };
    let goal = |goal, patience: u64| {
        let watched = &watched;
        async move {
            let patience = Some(Duration::from_secs(patience));
            wait(watched, goal, patience, &mut |_| {}).await.unwrap()
        }
    };
    let waited = goal(Goal::Workers, 5).await;
    assert!(matches!(waited, Waited::TimedOut(_)), "{waited:?}");
    let waited = goal(Goal::Workers, 60).await;
    assert!(matches!(waited, Waited::Reached(_)), "{waited:?}");
    let waited = goal(Goal::Idle, 60).await;
    assert!(matches!(waited, Waited::TimedOut(_)), "{waited:?}");
    engine.stop(&fleet, Stop::All).await.unwrap();
    let waited = goal(Goal::Idle, 60).await;
    assert!(matches!(waited, Waited::Reached(_)), "{waited:?}");
}
