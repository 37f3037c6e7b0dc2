//! The guarantees of every queue, as tests that each backend runs.
//!
//! A backend opens a new, empty queue twice, as two hosts would: `ours` and `theirs`.

use std::any::Any;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{Message, Queue, QueueError, Receipt, Release};

/// The queue under test.
pub(crate) struct Subject {
    ours: Arc<dyn Queue>,
    theirs: Arc<dyn Queue>,
    memory: Memory,
    texts_only: bool,
    limit: Option<usize>,
    polls: bool,
    _keep: Box<dyn Any + Send>,
}

/// What a queue can record about the executions of earlier leases.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Memory {
    /// Starts and failures.
    Starts,
    /// Only failures. An execution whose host died is not recorded.
    Failures,
    /// Only failures of the same host, while it runs.
    OwnFailures,
}

impl Subject {
    pub(crate) fn new(
        ours: Arc<dyn Queue>,
        theirs: Arc<dyn Queue>,
        keep: impl Any + Send,
    ) -> Subject {
        let _keep = Box::new(keep);
        let (memory, texts_only, limit, polls) = (Memory::Starts, false, None, false);
        Subject { ours, theirs, memory, texts_only, limit, polls, _keep }
    }

    /// The queue stores failures, but not starts.
    pub(crate) fn counting_failures(mut self) -> Subject {
        self.memory = Memory::Failures;
        self
    }

    /// Each host knows only its own failures.
    pub(crate) fn counting_own_failures(mut self) -> Subject {
        self.memory = Memory::OwnFailures;
        self
    }

    /// The number of another host's failures that a host learns of.
    fn told(&self, failed: u32) -> u32 {
        if self.memory == Memory::OwnFailures { 0 } else { failed }
    }

    /// Checks the number of deaths of a message, and that no execution failed. Checks nothing if
    /// the queue does not record starts.
    #[track_caller]
    fn has_deaths(&self, message: &Message, deaths: u32) {
        if self.memory == Memory::Starts {
            assert_eq!((message.attempts, message.deaths), (0, deaths));
        }
    }

    /// Bodies must be text of at least one character, without control characters.
    pub(crate) fn texts_only(mut self) -> Subject {
        self.texts_only = true;
        self
    }

    /// Larger bodies are refused.
    pub(crate) fn limited_to(mut self, bytes: usize) -> Subject {
        self.limit = Some(bytes);
        self
    }

    /// Messages of an abandoned wait are delivered to the next caller of the same host, or released
    /// when the host closes the queue.
    pub(crate) fn polling(mut self) -> Subject {
        self.polls = true;
        self
    }
}

/// One test for each guarantee, with the queue that the block creates.
macro_rules! suite {
    ($make:block) => {
        $crate::queue::conformance::suite!(@ $make
            a_body_is_delivered_byte_for_byte
            a_leased_message_is_given_to_nobody_else
            no_message_is_given_to_two_of_many
            an_expired_lease_is_given_out_again_and_lost_to_its_holder
            an_extended_lease_outlives_its_first_term
            a_receipt_is_of_no_use_once_it_was_replaced
            what_is_done_never_comes_back
            what_is_given_up_never_comes_back_and_is_not_completed
            what_is_released_comes_back_at_once
            what_is_released_with_a_delay_comes_back_after_it
            a_started_execution_counts_even_if_its_host_crashes
            an_execution_that_was_disowned_is_not_a_death
            an_execution_that_had_not_begun_can_start_again
            what_was_not_the_tasks_fault_does_not_count
            why_executions_failed_is_told_at_the_next_delivery
            counts_are_of_all_and_of_those_that_wait
            as_many_are_leased_as_there_are_up_to_the_maximum
            a_wait_ends_when_a_message_comes
            a_wait_ends_without_one_when_it_is_over
            a_wait_that_is_given_up_strands_nothing
            what_a_wait_brings_after_it_was_given_up_is_given_back_at_the_close
            what_waits_to_be_settled_is_settled_at_the_close
            a_poison_message_tells_how_often_it_was_tried
            a_body_that_is_too_large_is_refused_and_the_others_are_sent
            what_the_queue_cannot_carry_is_refused
        );
    };
    (@ $make:block $($promise:ident)*) => {
        $(#[tokio::test]
        async fn $promise() {
            $crate::queue::conformance::$promise($make).await;
        })*
    };
}
pub(crate) use suite;

const LONG: Duration = Duration::from_secs(300);
const SHORT: Duration = Duration::from_secs(1);
/// Long enough for the next call to happen in time on a busy machine, and short enough to wait
/// until it is over.
const MEDIUM: Duration = Duration::from_secs(4);
/// Longer than any wait in these tests. A wait that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(30);
const NONE: Duration = Duration::ZERO;

async fn send(queue: &Arc<dyn Queue>, bodies: &[&str]) {
    let bodies: Vec<Bytes> = bodies.iter().map(|b| b.to_string().into()).collect();
    let results = queue.send(&bodies).await;
    assert_eq!(results.len(), bodies.len());
    for result in results {
        result.unwrap();
    }
}

async fn lease(queue: &Arc<dyn Queue>, duration: Duration, wait: Duration) -> Option<Message> {
    let mut found = queue.lease(1, duration, wait).await.unwrap();
    assert!(found.len() <= 1);
    found.pop()
}

/// Leases the only message, which must exist.
async fn lease_one(queue: &Arc<dyn Queue>, duration: Duration) -> Message {
    lease(queue, duration, PATIENCE).await.expect("there is no message")
}

async fn check_lost(queue: &Arc<dyn Queue>, receipt: &Receipt) {
    fn lost<T: std::fmt::Debug>(what: &str, result: Result<T, QueueError>) {
        assert!(matches!(result, Err(QueueError::LeaseLost { .. })), "{what}: {result:?}");
    }
    lost("start", queue.start(receipt).await);
    lost("extend", queue.extend(receipt, LONG).await);
    lost("release", queue.release(receipt, NONE, Release::Uncounted).await);
    lost("failed", queue.release(receipt, NONE, Release::Failed("late")).await);
    lost("ack", queue.ack(receipt).await);
}

pub(crate) async fn a_body_is_delivered_byte_for_byte(q: Subject) {
    let room = q.limit.map_or(1_100_000, |limit| limit - 100);
    let large = format!("{{\"text\": \"{}\"}}", "ü€𝄞\\n".repeat(room / 11));
    let empty = if q.texts_only { " " } else { "" };
    let bodies = [
        r#"{"basic_info": {"id": 4, "name": "NO_OP"}, "payload_info": "text"}"#,
        "{ \"n\" : 123456789012345678901234567890.10, \"a\":{} }\n",
        r#"{"id": "x", "payload": [1]}"#,
        r#"{"payload": 1, "queueName": "q", "id": "y"}"#,
        "{}",
        "[1, 2]",
        "not JSON } at all",
        empty,
        &large,
    ];
    send(&q.ours, &bodies).await;
    let mut found = BTreeSet::new();
    for _ in &bodies {
        let message = lease_one(&q.theirs, LONG).await;
        found.insert(String::from_utf8(message.body.to_vec()).unwrap());
    }
    assert!(found == bodies.iter().map(|b| b.to_string()).collect());
}

pub(crate) async fn a_leased_message_is_given_to_nobody_else(q: Subject) {
    send(&q.ours, &["1"]).await;
    lease_one(&q.ours, LONG).await;
    assert!(lease(&q.ours, LONG, NONE).await.is_none());
    assert!(lease(&q.theirs, LONG, NONE).await.is_none());
}

pub(crate) async fn no_message_is_given_to_two_of_many(q: Subject) {
    const MESSAGES: usize = 400;
    let bodies: Vec<String> = (0..MESSAGES).map(|n| n.to_string()).collect();
    send(&q.ours, &bodies.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let mut hosts = tokio::task::JoinSet::new();
    for n in 0..8 {
        let queue = if n % 2 == 0 { q.ours.clone() } else { q.theirs.clone() };
        hosts.spawn(async move {
            let mut bodies = Vec::new();
            loop {
                let found = queue.lease(3, LONG, NONE).await.unwrap();
                if found.is_empty() {
                    return bodies;
                }
                // Each message is acknowledged by its own call, as the tasks of a host do.
                let acks = found.iter().map(|message| queue.ack(&message.receipt));
                for acked in futures_util::future::join_all(acks).await {
                    acked.unwrap();
                }
                let texts = found.iter().map(|m| String::from_utf8(m.body.to_vec()).unwrap());
                bodies.extend(texts);
            }
        });
    }
    let mut done: Vec<String> = hosts.join_all().await.into_iter().flatten().collect();
    assert_eq!(done.len(), MESSAGES);
    done.sort();
    done.dedup();
    assert_eq!(done.len(), MESSAGES);
}

pub(crate) async fn an_expired_lease_is_given_out_again_and_lost_to_its_holder(q: Subject) {
    send(&q.ours, &["1"]).await;
    let leased = Instant::now();
    let ours = lease_one(&q.ours, SHORT).await;
    let theirs = lease_one(&q.theirs, LONG).await;
    assert!(leased.elapsed() >= SHORT, "given out again after {:?}", leased.elapsed());
    assert_eq!((&theirs.id, &theirs.body), (&ours.id, &ours.body));
    check_lost(&q.ours, &ours.receipt).await;
    // The lost lease's operations have not affected the new lease.
    let receipt = q.theirs.extend(&theirs.receipt, LONG).await.unwrap();
    q.theirs.ack(&receipt).await.unwrap();
}

pub(crate) async fn an_extended_lease_outlives_its_first_term(q: Subject) {
    send(&q.ours, &["1"]).await;
    let ours = lease_one(&q.ours, MEDIUM).await;
    let receipt = q.ours.extend(&ours.receipt, LONG).await.unwrap();
    assert!(lease(&q.theirs, LONG, MEDIUM + SHORT).await.is_none());
    q.ours.ack(&receipt).await.unwrap();
}

pub(crate) async fn a_receipt_is_of_no_use_once_it_was_replaced(q: Subject) {
    send(&q.ours, &["1"]).await;
    let first = lease_one(&q.ours, MEDIUM).await;
    let second = q.ours.extend(&first.receipt, LONG).await.unwrap();
    check_lost(&q.ours, &first.receipt).await;
    // Extend again for the same duration: if the queue's clock is coarse, the end does not change.
    let third = q.ours.extend(&second, LONG).await.unwrap();
    let fourth = q.ours.extend(&third, LONG).await.unwrap();
    q.ours.ack(&fourth).await.unwrap();
    check_lost(&q.ours, &fourth).await;
}

pub(crate) async fn what_is_done_never_comes_back(q: Subject) {
    send(&q.ours, &["1"]).await;
    let ours = lease_one(&q.ours, MEDIUM).await;
    q.ours.ack(&ours.receipt).await.unwrap();
    assert!(lease(&q.theirs, LONG, MEDIUM + SHORT).await.is_none());
    check_lost(&q.ours, &ours.receipt).await;
}

pub(crate) async fn what_is_given_up_never_comes_back_and_is_not_completed(q: Subject) {
    send(&q.ours, &["1", "2"]).await;
    let given_up = lease_one(&q.ours, LONG).await;
    let done = lease_one(&q.theirs, LONG).await;
    q.ours.give_up(&given_up.receipt).await.unwrap();
    q.theirs.ack(&done.receipt).await.unwrap();
    assert!(lease(&q.theirs, LONG, NONE).await.is_none());
    check_lost(&q.ours, &given_up.receipt).await;
    let counts = q.ours.counts().await.unwrap();
    assert!(counts.enqueued.is_none_or(|n| n == 0), "{counts:?}");
    assert!(counts.completed.is_none_or(|n| n == 1), "{counts:?}");
}

pub(crate) async fn what_is_released_comes_back_at_once(q: Subject) {
    send(&q.ours, &["1"]).await;
    let ours = lease_one(&q.ours, LONG).await;
    q.ours.release(&ours.receipt, NONE, Release::Uncounted).await.unwrap();
    assert_eq!(lease(&q.theirs, LONG, NONE).await.unwrap().id, ours.id);
    check_lost(&q.ours, &ours.receipt).await;
}

pub(crate) async fn what_is_released_with_a_delay_comes_back_after_it(q: Subject) {
    send(&q.ours, &["1"]).await;
    let ours = lease_one(&q.ours, LONG).await;
    let released = Instant::now();
    q.ours.release(&ours.receipt, MEDIUM, Release::Failed("x")).await.unwrap();
    assert!(lease(&q.theirs, LONG, NONE).await.is_none());
    lease_one(&q.theirs, LONG).await;
    assert!(released.elapsed() >= MEDIUM, "back after {:?}", released.elapsed());
}

pub(crate) async fn a_started_execution_counts_even_if_its_host_crashes(q: Subject) {
    let started = u32::from(q.memory == Memory::Starts);
    send(&q.ours, &["1"]).await;
    let first = lease_one(&q.ours, SHORT).await;
    let tried = |message: &Message| (message.attempts, message.deaths);
    assert_eq!(tried(&first), (0, 0));
    // A message that was only leased, for example ahead of time, has no started execution.
    let second = lease_one(&q.ours, MEDIUM).await;
    assert_eq!(tried(&second), (0, 0));
    q.ours.start(&second.receipt).await.unwrap();
    let third = lease_one(&q.theirs, LONG).await;
    assert_eq!(tried(&third), (0, started));
    q.theirs.start(&third.receipt).await.unwrap();
    q.theirs.release(&third.receipt, NONE, Release::Failed("x")).await.unwrap();
    let fourth = lease_one(&q.ours, LONG).await;
    assert_eq!(tried(&fourth), (q.told(1), started));
}

pub(crate) async fn an_execution_that_had_not_begun_can_start_again(q: Subject) {
    send(&q.ours, &["1"]).await;
    let first = lease_one(&q.ours, LONG).await;
    q.ours.start(&first.receipt).await.unwrap();
    q.ours.disown(&first.receipt).await.unwrap();
    q.ours.extend(&first.receipt, SHORT).await.unwrap();
    let second = lease_one(&q.theirs, LONG).await;
    q.has_deaths(&second, 0);
    q.theirs.start(&second.receipt).await.unwrap();
    q.theirs.disown(&second.receipt).await.unwrap();
    q.theirs.start(&second.receipt).await.unwrap();
    q.theirs.extend(&second.receipt, SHORT).await.unwrap();
    let third = lease_one(&q.ours, LONG).await;
    q.has_deaths(&third, 1);
    q.ours.ack(&third.receipt).await.unwrap();
}

pub(crate) async fn an_execution_that_was_disowned_is_not_a_death(q: Subject) {
    send(&q.ours, &["1"]).await;
    let first = lease_one(&q.ours, LONG).await;
    q.ours.start(&first.receipt).await.unwrap();
    let first = q.ours.extend(&first.receipt, SHORT).await.unwrap();
    let second = lease_one(&q.theirs, LONG).await;
    q.has_deaths(&second, 1);
    // A host may start its execution before the other host records that its own has ended.
    q.theirs.start(&second.receipt).await.unwrap();
    let extended = q.theirs.extend(&second.receipt, SHORT).await.unwrap();
    for _ in 0..2 {
        q.ours.disown(&first).await.unwrap();
    }
    let third = lease_one(&q.ours, LONG).await;
    q.has_deaths(&third, 1);
    q.ours.start(&third.receipt).await.unwrap();
    q.theirs.disown(&extended).await.unwrap();
    q.ours.release(&third.receipt, NONE, Release::Uncounted).await.unwrap();
    let fourth = lease_one(&q.theirs, LONG).await;
    q.has_deaths(&fourth, 0);
    // A finished message has no records.
    q.theirs.ack(&fourth.receipt).await.unwrap();
    q.ours.disown(&first).await.unwrap();
    assert!(lease(&q.ours, LONG, NONE).await.is_none());
}

pub(crate) async fn what_was_not_the_tasks_fault_does_not_count(q: Subject) {
    send(&q.ours, &["1"]).await;
    let first = lease_one(&q.ours, LONG).await;
    q.ours.start(&first.receipt).await.unwrap();
    q.ours.release(&first.receipt, NONE, Release::Failed("x")).await.unwrap();

    let second = lease_one(&q.ours, LONG).await;
    assert_eq!(second.attempts, 1);
    q.ours.start(&second.receipt).await.unwrap();
    let extended = q.ours.extend(&second.receipt, LONG).await.unwrap();
    q.ours.release(&extended, NONE, Release::Uncounted).await.unwrap();

    // The release does not take back earlier executions either.
    let third = lease_one(&q.ours, LONG).await;
    assert_eq!(third.attempts, 1);
    let extended = q.ours.extend(&third.receipt, LONG).await.unwrap();
    q.ours.release(&extended, NONE, Release::Uncounted).await.unwrap();
    let fourth = lease_one(&q.theirs, LONG).await;
    assert_eq!((fourth.attempts, fourth.deaths), (q.told(1), 0));
}

pub(crate) async fn why_executions_failed_is_told_at_the_next_delivery(q: Subject) {
    send(&q.ours, &["1"]).await;
    let first = lease_one(&q.ours, LONG).await;
    assert!(first.failures.is_empty());
    q.ours.start(&first.receipt).await.unwrap();
    q.ours.release(&first.receipt, NONE, Release::Failed("line\n\"ü\"")).await.unwrap();
    let second = lease_one(&q.theirs, LONG).await;
    q.theirs.release(&second.receipt, NONE, Release::Uncounted).await.unwrap();
    let third = lease_one(&q.theirs, LONG).await;
    q.theirs.release(&third.receipt, NONE, Release::Failed("again")).await.unwrap();
    let fourth = lease_one(&q.ours, LONG).await;
    assert_eq!(fourth.id, first.id);
    let all = ["line\n\"ü\"", "again"];
    assert_eq!(fourth.failures, all[..1 + q.told(1) as usize]);
}

pub(crate) async fn a_poison_message_tells_how_often_it_was_tried(q: Subject) {
    send(&q.ours, &["poison"]).await;
    for attempts in 0..6 {
        let queue = if attempts % 2 == 0 { &q.ours } else { &q.theirs };
        let message = lease_one(queue, LONG).await;
        // The hosts take turns, so each sees half of the failures.
        let known = if q.told(1) == 1 { attempts } else { attempts / 2 };
        assert_eq!((message.attempts, &*message.body), (known, &b"poison"[..]));
        queue.start(&message.receipt).await.unwrap();
        let why = format!("attempt {attempts}");
        queue.release(&message.receipt, NONE, Release::Failed(&why)).await.unwrap();
    }
    let last = lease_one(&q.ours, LONG).await;
    let why = format!("attempt {}", 4 + q.told(1));
    assert_eq!(last.failures.last().unwrap(), &why);
    q.ours.ack(&last.receipt).await.unwrap();
    assert!(lease(&q.theirs, LONG, NONE).await.is_none());
}

pub(crate) async fn a_body_that_is_too_large_is_refused_and_the_others_are_sent(q: Subject) {
    let large = "x".repeat(q.limit.map_or(2_000_000, |limit| limit + 1));
    let bodies: Vec<Bytes> = vec!["1".into(), large.clone().into(), "2".into()];
    let results = q.ours.send(&bodies).await;
    assert!(matches!(results[..], [Ok(()), _, Ok(())]), "{results:?}");
    let mut expected = BTreeSet::from(["1".to_owned(), "2".to_owned()]);
    match (q.limit, &results[1]) {
        (Some(limit), Err(error @ QueueError::Invalid { .. })) => {
            let error = error.to_string();
            assert!(error.contains(&limit.to_string()), "{error}");
            assert!(error.contains(&large.len().to_string()), "{error}");
        }
        (None, Ok(())) => assert!(expected.insert(large)),
        (_, result) => panic!("{result:?}"),
    }
    while let Some(body) = expected.first().cloned() {
        let message = lease_one(&q.theirs, LONG).await;
        let found = String::from_utf8(message.body.to_vec()).unwrap();
        assert!(expected.remove(&found), "not {body:.9}: {found:.9}");
    }
    assert!(lease(&q.theirs, LONG, NONE).await.is_none());
}

pub(crate) async fn what_the_queue_cannot_carry_is_refused(q: Subject) {
    let bodies: Vec<Bytes> = vec!["".into(), "a\u{1}".into(), "b\u{ffff}".into(), "ü\t\r\n".into()];
    let results = q.ours.send(&bodies).await;
    assert!(results[3].is_ok(), "{results:?}");
    let mut left = 1;
    for result in &results[..3] {
        if q.texts_only {
            assert!(matches!(result, Err(QueueError::Invalid { .. })), "{result:?}");
        } else {
            assert!(result.is_ok(), "{result:?}");
            left += 1;
        }
    }
    for _ in 0..left {
        let body = lease_one(&q.theirs, LONG).await.body;
        assert!(bodies.contains(&body), "{body:?}");
    }
    assert!(lease(&q.theirs, LONG, NONE).await.is_none());
}

pub(crate) async fn counts_are_of_all_and_of_those_that_wait(q: Subject) {
    async fn check(queue: &Arc<dyn Queue>, expected: [u64; 4]) {
        let counts = queue.counts().await.unwrap();
        let counted = [counts.enqueued, counts.leased, counts.inserted, counts.completed];
        for (counted, expected) in counted.into_iter().zip(expected) {
            assert!(counted.is_none_or(|n| n == expected), "{counts:?} is not {expected:?}");
        }
    }
    check(&q.ours, [0, 0, 0, 0]).await;
    send(&q.ours, &["1", "2", "3"]).await;
    check(&q.theirs, [3, 0, 3, 0]).await;
    let first = lease_one(&q.ours, LONG).await;
    let second = lease_one(&q.theirs, LONG).await;
    check(&q.ours, [3, 2, 3, 0]).await;
    q.ours.ack(&first.receipt).await.unwrap();
    q.theirs.release(&second.receipt, NONE, Release::Uncounted).await.unwrap();
    check(&q.theirs, [2, 0, 3, 1]).await;
}

pub(crate) async fn as_many_are_leased_as_there_are_up_to_the_maximum(q: Subject) {
    send(&q.ours, &["1", "2", "3", "4", "5"]).await;
    let mut count = Vec::new();
    for max in [0, 2, 10, 10] {
        count.push(q.theirs.lease(max, LONG, NONE).await.unwrap().len());
    }
    assert_eq!(count, [0, 2, 3, 0]);
}

pub(crate) async fn a_wait_ends_when_a_message_comes(q: Subject) {
    let started = Instant::now();
    // Two callers wait, and two messages arrive together: one for each caller.
    let ((), ours, theirs) = tokio::join!(
        async {
            // Both callers wait by now, or will find the messages when they start.
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            send(&q.ours, &["1", "2"]).await;
        },
        lease(&q.ours, LONG, PATIENCE),
        lease(&q.theirs, LONG, PATIENCE),
    );
    assert_ne!(ours.unwrap().id, theirs.unwrap().id);
    assert!(started.elapsed() < PATIENCE / 2);
}

pub(crate) async fn a_wait_ends_without_one_when_it_is_over(q: Subject) {
    send(&q.ours, &["1"]).await;
    lease_one(&q.theirs, LONG).await;
    let started = Instant::now();
    assert!(lease(&q.ours, LONG, SHORT / 4).await.is_none());
    let waited = started.elapsed();
    assert!(waited >= SHORT / 4 && waited < PATIENCE / 2, "{waited:?}");
}

/// Waits for a message and gives up, after different times.
async fn give_up_waiting(queue: &Arc<dyn Queue>) {
    for n in 0..20 {
        let wait = queue.lease(1, LONG, PATIENCE);
        let given_up = tokio::time::timeout(Duration::from_micros(n * 300), wait).await;
        assert!(given_up.is_err());
    }
}

pub(crate) async fn a_wait_that_is_given_up_strands_nothing(q: Subject) {
    give_up_waiting(&q.ours).await;
    send(&q.ours, &["1"]).await;
    if q.polls {
        let message = lease_one(&q.ours, LONG).await;
        q.ours.ack(&message.receipt).await.unwrap();
    } else {
        assert!(lease(&q.theirs, LONG, NONE).await.is_some());
    }
}

pub(crate) async fn what_a_wait_brings_after_it_was_given_up_is_given_back_at_the_close(
    q: Subject,
) {
    give_up_waiting(&q.ours).await;
    send(&q.theirs, &["1", "2"]).await;
    q.ours.close().await;
    for _ in 0..2 {
        let message = lease(&q.theirs, LONG, NONE).await.expect("a message is stranded");
        assert_eq!(message.attempts, 0);
    }
}

pub(crate) async fn what_waits_to_be_settled_is_settled_at_the_close(q: Subject) {
    send(&q.ours, &["1", "2", "3"]).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(lease_one(&q.ours, LONG).await);
    }
    let [first, second, third] = &held[..] else { panic!() };
    let (acked, released, extended, ()) = tokio::join!(
        q.ours.ack(&first.receipt),
        q.ours.release(&second.receipt, NONE, Release::Uncounted),
        q.ours.extend(&third.receipt, LONG),
        q.ours.close(),
    );
    acked.unwrap();
    released.unwrap();
    extended.unwrap();
    assert_eq!(lease(&q.theirs, LONG, NONE).await.unwrap().id, second.id);
    assert!(lease(&q.theirs, LONG, NONE).await.is_none());
}
