//! What every queue promises, as tests that each backend's tests call.
//!
//! A backend gives a fresh, empty queue as its users would open it, twice: as the two hosts
//! that are told apart below as `ours` and `theirs`.

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
    lacks: Lacks,
    _keep: Box<dyn Any + Send>,
}

/// What a service can't do, for which its users are told what to expect instead.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Lacks {
    /// Nothing can be noted on a message under lease: an execution that ended with its host
    /// is not counted.
    pub(crate) notes: bool,
    /// The service can't be told at once that nobody waits any more: what it sends then is
    /// given back, a moment later.
    pub(crate) recall: bool,
}

impl Subject {
    pub(crate) fn new(
        ours: Arc<dyn Queue>,
        theirs: Arc<dyn Queue>,
        keep: impl Any + Send,
    ) -> Subject {
        let _keep = Box::new(keep);
        Subject { ours, theirs, lacks: Lacks::default(), _keep }
    }

    pub(crate) fn lacking(self, lacks: Lacks) -> Subject {
        Subject { lacks, ..self }
    }
}

/// One test for each promise, of the queue that the block makes.
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
            what_is_released_comes_back_at_once
            what_is_released_with_a_delay_comes_back_after_it
            a_started_execution_counts_even_if_its_host_crashes
            what_was_not_the_tasks_fault_does_not_count
            why_executions_failed_is_told_at_the_next_delivery
            counts_are_of_all_and_of_those_that_wait
            as_many_are_leased_as_there_are_up_to_the_maximum
            a_wait_ends_when_a_message_comes
            a_wait_ends_without_one_when_it_is_over
            a_wait_that_is_given_up_strands_nothing
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
/// Longer than any wait here takes; what takes longer has failed.
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

async fn lease(queue: &Arc<dyn Queue>, hold: Duration, wait: Duration) -> Option<Message> {
    let mut found = queue.lease(1, hold, wait).await.unwrap();
    assert!(found.len() <= 1);
    found.pop()
}

/// Leases the one message that must be there.
async fn lease_one(queue: &Arc<dyn Queue>, hold: Duration) -> Message {
    lease(queue, hold, PATIENCE).await.expect("there is no message")
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
    let large = format!("{{\"text\": \"{}\"}}", "ü€𝄞\\n".repeat(100_000));
    let bodies = [
        r#"{"basic_info": {"id": 4, "name": "NO_OP"}, "payload_info": "text"}"#,
        "{ \"n\" : 123456789012345678901234567890.10, \"a\":{} }\n",
        r#"{"id": "x", "payload": [1]}"#,
        r#"{"payload": 1, "queueName": "q", "id": "y"}"#,
        "{}",
        "[1, 2]",
        "not JSON } at all",
        "",
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
                for message in found {
                    queue.ack(&message.receipt).await.unwrap();
                    bodies.push(String::from_utf8(message.body.to_vec()).unwrap());
                }
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
    // And nothing of that has harmed the lease that holds.
    let receipt = q.theirs.extend(&theirs.receipt, LONG).await.unwrap();
    q.theirs.ack(&receipt).await.unwrap();
}

pub(crate) async fn an_extended_lease_outlives_its_first_term(q: Subject) {
    send(&q.ours, &["1"]).await;
    let ours = lease_one(&q.ours, SHORT).await;
    let receipt = q.ours.extend(&ours.receipt, LONG).await.unwrap();
    assert!(lease(&q.theirs, LONG, 3 * SHORT).await.is_none());
    q.ours.ack(&receipt).await.unwrap();
}

pub(crate) async fn a_receipt_is_of_no_use_once_it_was_replaced(q: Subject) {
    send(&q.ours, &["1"]).await;
    let first = lease_one(&q.ours, SHORT).await;
    let second = q.ours.extend(&first.receipt, LONG).await.unwrap();
    check_lost(&q.ours, &first.receipt).await;
    // Again for the same time: a queue whose clock is coarse has nothing to change.
    let third = q.ours.extend(&second, LONG).await.unwrap();
    let fourth = q.ours.extend(&third, LONG).await.unwrap();
    q.ours.ack(&fourth).await.unwrap();
    check_lost(&q.ours, &fourth).await;
}

pub(crate) async fn what_is_done_never_comes_back(q: Subject) {
    send(&q.ours, &["1"]).await;
    let ours = lease_one(&q.ours, SHORT).await;
    q.ours.ack(&ours.receipt).await.unwrap();
    assert!(lease(&q.theirs, LONG, 3 * SHORT).await.is_none());
    check_lost(&q.ours, &ours.receipt).await;
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
    q.ours.release(&ours.receipt, SHORT, Release::Failed("x")).await.unwrap();
    assert!(lease(&q.theirs, LONG, NONE).await.is_none());
    lease_one(&q.theirs, LONG).await;
    assert!(released.elapsed() >= SHORT, "back after {:?}", released.elapsed());
}

pub(crate) async fn a_started_execution_counts_even_if_its_host_crashes(q: Subject) {
    send(&q.ours, &["1"]).await;
    let first = lease_one(&q.ours, SHORT).await;
    assert_eq!(first.attempts, 0);
    // One that was only leased, as ahead of its turn, was not started.
    let second = lease_one(&q.ours, SHORT).await;
    assert_eq!(second.attempts, 0);
    q.ours.start(&second.receipt).await.unwrap();
    let third = lease_one(&q.theirs, LONG).await;
    let counted = u32::from(!q.lacks.notes);
    assert_eq!(third.attempts, counted);
    q.theirs.start(&third.receipt).await.unwrap();
    q.theirs.release(&third.receipt, NONE, Release::Failed("x")).await.unwrap();
    assert_eq!(lease_one(&q.ours, LONG).await.attempts, counted + 1);
}

pub(crate) async fn what_was_not_the_tasks_fault_does_not_count(q: Subject) {
    send(&q.ours, &["1"]).await;
    let first = lease_one(&q.ours, LONG).await;
    q.ours.start(&first.receipt).await.unwrap();
    q.ours.release(&first.receipt, NONE, Release::Failed("x")).await.unwrap();

    let second = lease_one(&q.ours, SHORT).await;
    assert_eq!(second.attempts, 1);
    q.ours.start(&second.receipt).await.unwrap();
    let extended = q.ours.extend(&second.receipt, LONG).await.unwrap();
    q.ours.release(&extended, NONE, Release::Uncounted).await.unwrap();

    // Nor does it take back what was started before.
    let third = lease_one(&q.ours, SHORT).await;
    assert_eq!(third.attempts, 1);
    let extended = q.ours.extend(&third.receipt, LONG).await.unwrap();
    q.ours.release(&extended, NONE, Release::Uncounted).await.unwrap();
    assert_eq!(lease_one(&q.theirs, LONG).await.attempts, 1);
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
    assert_eq!(fourth.failures, ["line\n\"ü\"", "again"]);
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
    // Two wait, and two messages come at once: one for each.
    let ((), ours, theirs) = tokio::join!(
        async {
            // Both wait by now, or will find the messages when they begin.
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

pub(crate) async fn a_wait_that_is_given_up_strands_nothing(q: Subject) {
    for n in 0..20 {
        let wait = q.ours.lease(1, LONG, PATIENCE);
        let given_up = tokio::time::timeout(Duration::from_micros(n * 300), wait).await;
        assert!(given_up.is_err());
    }
    send(&q.ours, &["1"]).await;
    let soon = if q.lacks.recall { PATIENCE } else { NONE };
    assert!(lease(&q.theirs, LONG, soon).await.is_some());
}
