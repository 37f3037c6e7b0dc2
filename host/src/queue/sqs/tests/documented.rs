//! Against the fake, which behaves as the service is documented to.

use std::time::Instant;

use super::*;
use crate::queue::sqs::fake::{self, Fake, What};

const NAME: &str = "tasks";
const ORDERED: &str = "tasks.fifo";

async fn open(fake: &Fake, name: &str, access: &Access) -> SqsQueue {
    SqsQueue::open_with(&Sqs::Url(fake::url(name)), access, instead(fake)).await.unwrap()
}

fn instead(fake: &Fake) -> Instead {
    use aws_sdk_sqs::config::IntoShared;
    let http = Some(fake.clone().into_shared());
    Instead { credentials: Some(credentials()), http, payloads: None }
}

async fn subject(fake: Fake, name: &str) -> Subject {
    let ours = Arc::new(open(&fake, name, &Access::default()).await);
    let theirs = Arc::new(open(&fake, name, &Access::default()).await);
    let limit = ours.inner.settings.limit;
    Subject::new(ours, theirs, ()).texts_only().limited_to(limit).polling()
}

mod standard {
    use super::*;

    suite!({
        let fake = Fake::default();
        fake.make(NAME, |_| {});
        subject(fake, NAME).await.counting_receives()
    });
}

mod fifo {
    use super::*;

    suite!({
        let fake = Fake::default();
        fake.make(ORDERED, |_| {});
        subject(fake, ORDERED).await.counting_receives_only()
    });
}

mod with_redrive {
    use super::*;

    suite!({
        let fake = Fake::default();
        fake.make("dead", |_| {});
        fake.make(NAME, |queue| queue.redrive = Some(("dead".to_owned(), 1000)));
        subject(fake, NAME).await.counting_receives_only()
    });
}

async fn queue(fake: &Fake) -> SqsQueue {
    open(fake, NAME, &Access::default()).await
}

async fn standard() -> (Fake, SqsQueue) {
    let fake = Fake::default();
    fake.make(NAME, |_| {});
    let queue = queue(&fake).await;
    (fake, queue)
}

async fn send(queue: &SqsQueue, bodies: &[&str]) {
    let bodies: Vec<Bytes> = bodies.iter().map(|body| body.to_string().into()).collect();
    for sent in queue.send(&bodies).await {
        sent.unwrap();
    }
}

async fn lease(queue: &SqsQueue, max: usize, hold: Duration) -> Vec<Message> {
    queue.lease(max, hold, NONE).await.unwrap()
}

async fn lease_one(queue: &SqsQueue, hold: Duration) -> Message {
    queue.lease(1, hold, PATIENCE).await.unwrap().remove(0)
}

fn numbers(count: usize) -> Vec<Bytes> {
    (0..count).map(|n| n.to_string().into()).collect()
}

fn made(queue: &SqsQueue) -> Requests {
    queue.requests().unwrap()
}

fn check_invalid<T: fmt::Debug>(result: Result<T, QueueError>, parts: &[&str]) {
    match result {
        Err(error @ QueueError::Invalid { .. }) => {
            for part in parts {
                assert!(error.to_string().contains(part), "{error}");
            }
        }
        other => panic!("{other:?}"),
    }
}

fn check_lost<T: fmt::Debug>(result: Result<T, QueueError>) {
    assert!(matches!(result, Err(QueueError::LeaseLost { .. })), "{result:?}");
}

fn check_unavailable<T: fmt::Debug>(result: Result<T, QueueError>, parts: &[&str]) {
    match result {
        Err(error @ QueueError::Unavailable { .. }) => {
            for part in parts {
                assert!(error.to_string().contains(part), "{error}");
            }
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_thousand_messages_take_a_quarter_of_a_request_each() {
    let (fake, queue) = standard().await;
    for sent in queue.send(&numbers(1000)).await {
        sent.unwrap();
    }
    assert_eq!(made(&queue).send, 100);
    let (queue, before) = (Arc::new(queue), fake.with(NAME, |q| q.bodies().len()));
    assert_eq!(before, 1000);
    // As a host does it: ten at a time, and each task settles its own.
    let mut tasks = tokio::task::JoinSet::new();
    loop {
        let found = lease(&queue, 10, LONG).await;
        if found.is_empty() {
            break;
        }
        for message in found {
            let queue = queue.clone();
            tasks.spawn(async move {
                let receipt = queue.extend(&message.receipt, LONG).await.unwrap();
                tokio::time::sleep(Duration::from_millis(fastrand::u64(..50))).await;
                queue.ack(&receipt).await.unwrap();
            });
        }
    }
    tasks.join_all().await;
    let requests = made(&queue);
    assert_eq!(fake.with(NAME, |q| q.bodies().len()), 0);
    let (taken, renewed) = (requests.receive + requests.delete, requests.extend);
    assert!(taken <= 250, "{requests:?}");
    assert!(renewed <= 250, "{requests:?}");
    assert_eq!(queue.inner.leases.len(), 0);
}

#[tokio::test]
async fn a_message_is_held_for_as_long_as_the_service_allows_and_then_lost_with_a_reason() {
    let most = Duration::from_secs(4);
    let fake = Fake::default();
    fake.make(NAME, |queue| queue.longest_hold = most);
    let queue = queue_with_longest_hold(&fake, most).await;
    send(&queue, &["1"]).await;
    let leased = Instant::now();
    let message = lease_one(&queue, Duration::from_secs(2)).await;
    // More than is left is cut to what is left, and not refused by the service.
    let receipt = queue.extend(&message.receipt, LONG).await.unwrap();
    let left =
        queue.until(&receipt).unwrap().saturating_duration_since(tokio::time::Instant::now());
    assert!(left <= most - leased.elapsed(), "{left:?}");
    assert!(left > Duration::from_secs(1), "{left:?}");
    let mut receipt = receipt;
    let refused = loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(leased.elapsed() < most);
        match queue.extend(&receipt, LONG).await {
            Ok(next) => receipt = next,
            refused => break refused,
        }
    };
    check_invalid(refused, &["was held for 4s", "shorter"]);
    check_lost(queue.ack(&receipt).await);
    assert_eq!(fake.with(NAME, |q| q.bodies().len()), 1);
}

#[tokio::test]
async fn a_task_is_cancelled_before_its_message_is_anybody_elses() {
    let most = Duration::from_secs(3);
    let fake = Fake::default();
    fake.make(NAME, |queue| queue.longest_hold = most);
    let queue = Arc::new(queue_with_longest_hold(&fake, most).await);
    send(&queue, &["1"]).await;
    let leases = crate::lease::Leases::alone(queue.clone(), Duration::from_secs(2));
    let leased = Instant::now();
    let lease = leases.lease(1, PATIENCE).await.unwrap().remove(0);
    tokio::time::timeout(most, lease.lost().cancelled()).await.expect("it is still ours");
    assert!(leased.elapsed() > Duration::from_secs(1), "{:?}", leased.elapsed());
    assert_eq!(fake.with(NAME, |q| q.in_flight()), 1);
}

async fn queue_with_longest_hold(fake: &Fake, most: Duration) -> SqsQueue {
    let opened = queue(fake).await;
    let Inner { name, service, settings, requests, .. } = &*opened.inner;
    let (name, service, settings) = (name.clone(), service.clone(), settings.clone());
    let access = Access::default();
    let mut inner = Inner::new(name, service, settings, requests.clone(), &access, None);
    inner.longest_hold = most;
    SqsQueue::of(inner)
}

#[tokio::test]
async fn a_receipt_whose_time_is_over_is_refused_without_asking() {
    let (fake, queue) = standard().await;
    send(&queue, &["1"]).await;
    let message = lease_one(&queue, SHORT).await;
    tokio::time::sleep(SHORT).await;
    let before = made(&queue);
    check_lost(queue.ack(&message.receipt).await);
    check_lost(queue.extend(&message.receipt, LONG).await);
    check_lost(queue.release(&message.receipt, NONE, Release::Uncounted).await);
    assert_eq!(made(&queue), before);
    assert_eq!(fake.with(NAME, |q| q.bodies().len()), 1);
}

#[tokio::test]
async fn a_lease_that_the_service_has_ended_is_lost() {
    let (fake, queue) = standard().await;
    send(&queue, &["1", "2"]).await;
    let messages = lease(&queue, 2, LONG).await;
    fake.with(NAME, |q| q.expire());
    check_lost(queue.extend(&messages[0].receipt, LONG).await);
    // The other is somebody else's by now.
    let other = self::queue(&fake).await;
    assert_eq!(lease(&other, 10, LONG).await.len(), 2);
    check_lost(queue.extend(&messages[1].receipt, LONG).await);
    assert_eq!(queue.inner.leases.len(), 0);
}

#[tokio::test]
async fn each_caller_gets_the_result_of_its_own_message() {
    let (fake, queue) = standard().await;
    send(&queue, &["1", "2", "3"]).await;
    let messages = lease(&queue, 3, LONG).await;
    let before = made(&queue);
    // One that the service failed at is tried again, for all that it matters; one that was
    // wrong is not.
    fake.fail("DeleteMessageBatch", 1, What::Entries(vec![0], "InternalError", false));
    fake.fail("DeleteMessageBatch", 1, What::Entries(vec![0], "ReceiptHandleIsInvalid", true));
    let acks = messages.iter().map(|message| queue.ack(&message.receipt));
    let results = join_all(acks).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 2, "{results:?}");
    check_lost(results.into_iter().find(|result| result.is_err()).unwrap());
    assert_eq!(made(&queue).delete - before.delete, 2);
    assert_eq!(fake.with(NAME, |q| q.bodies().len()), 1);
}

#[tokio::test]
async fn what_part_of_a_batch_failed_to_be_sent_is_sent_again_or_told() {
    let (fake, queue) = standard().await;
    fake.fail("SendMessageBatch", 1, What::Entries(vec![1, 3], "ServiceUnavailable", false));
    fake.fail("SendMessageBatch", 1, What::Entries(vec![1], "InvalidMessageContents", true));
    let results = queue.send(&numbers(10)).await;
    let failed: Vec<usize> = (0..10).filter(|n| results[*n].is_err()).collect();
    assert_eq!(failed, [3]);
    let mut bodies = fake.with(NAME, |q| q.bodies());
    bodies.sort();
    assert_eq!(bodies, ["0", "1", "2", "4", "5", "6", "7", "8", "9"]);
}

#[tokio::test]
async fn throttling_is_waited_out_and_told_if_it_lasts() {
    let (fake, queue) = standard().await;
    let throttled = What::Refuse(400, "RequestThrottled");
    fake.fail("SendMessageBatch", 2, throttled.clone());
    send(&queue, &["1"]).await;
    assert_eq!(made(&queue).send, 3);
    fake.fail("ReceiveMessage", 100, throttled);
    let started = Instant::now();
    check_unavailable(queue.lease(1, LONG, NONE).await, &["RequestThrottled"]);
    assert!(started.elapsed() < PATIENCE);
}

#[tokio::test]
async fn too_many_messages_in_flight_are_told() {
    let fake = Fake::default();
    fake.make(NAME, |queue| queue.most_in_flight = 3);
    let queue = queue(&fake).await;
    send(&queue, &["1", "2", "3", "4"]).await;
    assert_eq!(lease(&queue, 10, LONG).await.len(), 3);
    check_unavailable(queue.lease(1, LONG, NONE).await, &["120,000 messages are in flight"]);
}

#[tokio::test]
async fn a_body_larger_than_the_limit_of_one_request_is_sent_by_itself() {
    let (fake, queue) = standard().await;
    let bodies: Vec<Bytes> = (0..5).map(|n| vec![b'0' + n; 400_000].into()).collect();
    let results = queue.send(&bodies).await;
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    // Two fit into one request.
    assert_eq!(made(&queue).send, 3);
    assert_eq!(fake.with(NAME, |q| q.bodies().len()), 5);
}

#[tokio::test]
async fn a_batch_goes_on_for_the_others_when_one_of_its_callers_gives_up() {
    let (fake, queue) = standard().await;
    send(&queue, &["1", "2"]).await;
    let messages = lease(&queue, 2, LONG).await;
    let given_up = tokio::time::timeout(SOON, queue.ack(&messages[0].receipt));
    let (given_up, acked) = tokio::join!(given_up, queue.ack(&messages[1].receipt));
    assert!(given_up.is_err());
    acked.unwrap();
    assert_eq!(fake.with(NAME, |q| q.bodies().len()), 0);
}

#[tokio::test]
async fn a_release_that_nobody_waits_for_is_done_to_its_end() {
    let (fake, queue) = standard().await;
    send(&queue, &["1"]).await;
    let message = lease_one(&queue, LONG).await;
    let release = queue.release(&message.receipt, NONE, Release::Failed("why"));
    assert!(tokio::time::timeout(Duration::from_millis(1), release).await.is_err());
    queue.close().await;
    assert_eq!(fake.with(NAME, |q| (q.bodies().len(), q.in_flight())), (1, 0));
    assert_eq!(lease_one(&queue, LONG).await.failures, ["why"]);
}

#[tokio::test]
async fn what_nobody_takes_is_given_back_before_its_lease_is_half_over() {
    let (fake, queue) = standard().await;
    let poll = queue.lease(1, Duration::from_secs(4), PATIENCE);
    assert!(tokio::time::timeout(SOON, poll).await.is_err());
    send(&queue, &["1"]).await;
    let sent = Instant::now();
    let in_flight = || fake.with(NAME, |q| q.in_flight());
    while in_flight() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    while in_flight() > 0 {
        assert!(sent.elapsed() < Duration::from_secs(3), "it is still held");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(lease_one(&self::queue(&fake).await, LONG).await.attempts, 0);
}

#[tokio::test]
async fn more_than_one_answer_holds_is_leased_at_once_and_no_more_than_asked_for() {
    let (fake, queue) = standard().await;
    for sent in queue.send(&numbers(60)).await {
        sent.unwrap();
    }
    assert_eq!(lease(&queue, 35, LONG).await.len(), 35);
    assert_eq!(fake.with(NAME, |q| q.in_flight()), 35);
    assert_eq!(lease(&queue, 100, LONG).await.len(), 25);
}

#[tokio::test]
async fn the_order_within_a_group_is_kept() {
    let fake = Fake::default();
    fake.make(ORDERED, |_| {});
    let access = Access { group: Some("g".to_owned()), ..Access::default() };
    let queue = open(&fake, ORDERED, &access).await;
    for sent in queue.send(&numbers(25)).await {
        sent.unwrap();
    }
    let first = lease(&queue, 1, LONG).await.remove(0);
    assert_eq!(&*first.body, b"0");
    // The rest waits for it, wherever it is asked for.
    assert!(lease(&open(&fake, ORDERED, &access).await, 10, LONG).await.is_empty());
    queue.release(&first.receipt, NONE, Release::Failed("x")).await.unwrap();
    let mut seen = Vec::new();
    loop {
        let found = lease(&queue, 10, LONG).await;
        if found.is_empty() {
            break;
        }
        let acks = found.iter().map(|message| queue.ack(&message.receipt));
        assert!(join_all(acks).await.iter().all(Result::is_ok));
        seen.extend(found.into_iter().map(|message| message.body));
    }
    assert_eq!(seen, numbers(25));
}

#[tokio::test]
async fn without_a_group_nothing_waits_for_anything() {
    let fake = Fake::default();
    fake.make(ORDERED, |_| {});
    let queue = open(&fake, ORDERED, &Access::default()).await;
    // Equal bodies are not taken for copies of one message.
    send(&queue, &["1", "1", "1"]).await;
    assert_eq!(lease(&queue, 1, LONG).await.len(), 1);
    assert_eq!(lease(&queue, 10, LONG).await.len(), 2);
}

#[tokio::test]
async fn an_answer_that_got_lost_strands_nothing_on_a_fifo_queue() {
    let fake = Fake::default();
    fake.make(ORDERED, |_| {});
    let queue = open(&fake, ORDERED, &Access::default()).await;
    send(&queue, &["1", "2"]).await;
    fake.fail("ReceiveMessage", 1, What::LoseAnswer);
    assert_eq!(lease(&queue, 10, LONG).await.len(), 2);
    assert_eq!(made(&queue).receive, 2);
    fake.fail("SendMessageBatch", 1, What::LoseAnswer);
    send(&queue, &["3"]).await;
    assert_eq!(fake.with(ORDERED, |q| q.bodies().len()), 3);
}

#[tokio::test]
async fn a_message_that_was_received_too_often_is_where_the_policy_moves_it() {
    let fake = Fake::default();
    fake.make("dead", |_| {});
    fake.make(NAME, |queue| queue.redrive = Some(("dead".to_owned(), 2)));
    let queue = queue(&fake).await;
    send(&queue, &["1"]).await;
    for attempts in 0..2 {
        let message = lease_one(&queue, LONG).await;
        assert_eq!(message.attempts, attempts);
        queue.release(&message.receipt, NONE, Release::Failed("x")).await.unwrap();
    }
    assert!(lease(&queue, 1, LONG).await.is_empty());
    assert_eq!(fake.with("dead", |q| q.bodies()), ["1"]);

    let admin = Admin::of(queue);
    let facts = crate::queue::Admin::facts(&admin).await.unwrap();
    assert_eq!(facts.receive_limit, Some(2));
    assert_eq!(facts.dead_letter_queue.unwrap(), "arn:aws:sqs:eu-west-1:123456789012:dead");
    assert!(facts.notes.iter().any(|note| note.contains("every receive")), "{:?}", facts.notes);
    let looked: Vec<_> = crate::queue::Admin::messages(&admin).collect().await;
    check_invalid(looked.into_iter().next().unwrap(), &["redrive"]);
}

#[tokio::test]
async fn a_group_of_a_fair_queue_is_kept_when_a_message_is_given_back() {
    let fake = Fake::default();
    fake.make(NAME, |_| {});
    let access = Access { group: Some("tenant".to_owned()), ..Access::default() };
    let queue = open(&fake, NAME, &access).await;
    send(&queue, &["1"]).await;
    let message = lease_one(&queue, LONG).await;
    queue.release(&message.receipt, NONE, Release::Failed("x")).await.unwrap();
    assert_eq!(fake.with(NAME, |q| q.groups()), [Some("tenant".to_owned())]);
}

#[tokio::test]
async fn who_may_not_send_gives_back_all_the_same() {
    let (fake, queue) = standard().await;
    send(&queue, &["1"]).await;
    fake.fail("SendMessageBatch", 1, What::Refuse(400, "AccessDeniedException"));
    for attempts in 0..3 {
        let message = lease_one(&queue, LONG).await;
        assert_eq!(message.attempts, attempts);
        queue.release(&message.receipt, NONE, Release::Failed("x")).await.unwrap();
    }
    // It was tried once.
    assert_eq!(made(&queue).send, 2);
}

#[tokio::test]
async fn reasons_that_do_not_fit_are_left_out() {
    let fake = Fake::default();
    fake.make(NAME, |queue| queue.limit = 1024);
    let queue = queue(&fake).await;
    send(&queue, &[&"x".repeat(700)]).await;
    let message = lease_one(&queue, LONG).await;
    let why = "y".repeat(500);
    queue.release(&message.receipt, NONE, Release::Failed(&why)).await.unwrap();
    let message = lease_one(&queue, LONG).await;
    assert_eq!((message.attempts, message.failures.len()), (1, 0));
    // No room even for the number: the receives count.
    send(&queue, &[&"z".repeat(1024)]).await;
    let full = lease_one(&queue, LONG).await;
    queue.release(&full.receipt, NONE, Release::Failed("x")).await.unwrap();
    assert_eq!(lease_one(&queue, LONG).await.attempts, 1);
}

#[tokio::test]
async fn a_queue_is_made_when_that_is_asked_for_and_only_then() {
    let fake = Fake::default();
    let create = Access { create: true, ..Access::default() };
    for name in ["new", "new.fifo"] {
        for address in [
            Sqs::Url(fake::url(name)),
            Sqs::Arn {
                region: "eu-west-1".to_owned(),
                account: "123456789012".to_owned(),
                name: name.to_owned(),
            },
        ] {
            let missing = SqsQueue::open_with(&address, &Access::default(), instead(&fake)).await;
            check_invalid(missing, &[name, "eu-west-1", "--create-queues"]);
            assert!(!fake.exists(name));
            SqsQueue::open_with(&address, &create, instead(&fake)).await.unwrap();
            let retention = fake.with(name, |q| q.settings["MessageRetentionPeriod"].clone());
            assert_eq!(retention, "1209600");
            fake.remove(name);
        }
    }
    let by_name = Sqs::Name("new".to_owned());
    let access = Access { region: Some("eu-west-1".to_owned()), ..create };
    let queue = SqsQueue::open_with(&by_name, &access, instead(&fake)).await.unwrap();
    send(&queue, &["1"]).await;
    assert_eq!(queue.to_string(), "sqs://new");
    assert_eq!(fake.with("new", |q| q.bodies()), ["1"]);
}

#[tokio::test]
async fn all_is_removed_once_a_minute() {
    let (_fake, queue) = standard().await;
    let admin = Admin::of(queue);
    assert_eq!(crate::queue::Admin::purge(&admin).await.unwrap(), None);
    check_invalid(crate::queue::Admin::purge(&admin).await, &["60 seconds"]);
    check_invalid(crate::queue::Admin::rezero(&admin).await, &["no counters"]);
    check_invalid(crate::queue::Admin::release_all(&admin).await, &["leases of others"]);
}

#[tokio::test]
async fn who_stops_looking_gives_back_what_was_seen() {
    let (fake, queue) = standard().await;
    send(&queue, &["1", "2", "3"]).await;
    let admin = Admin::of(queue);
    {
        let mut messages = crate::queue::Admin::messages(&admin);
        messages.next().await.unwrap().unwrap();
        assert_eq!(fake.with(NAME, |q| q.in_flight()), 3);
    }
    admin.queue.close().await;
    assert_eq!(fake.with(NAME, |q| (q.bodies().len(), q.in_flight())), (3, 0));
}
