//! Tests against the fake, which behaves as the service's documentation says.

use super::fake::{self, Fake, What};
use super::*;
use crate::queue::sqs::leases::LeasedMessage;

const NAME: &str = "tasks";
const ORDERED: &str = "tasks.fifo";

async fn open(fake: &Fake, name: &str, access: &Access) -> SqsQueue {
    SqsQueue::open_with(&Sqs::Url(fake::url(name)), access, overrides(fake)).await.unwrap()
}

fn overrides(fake: &Fake) -> TestOverrides {
    use aws_sdk_sqs::config::IntoShared;
    let http = Some(fake.clone().into_shared());
    TestOverrides { credentials: Some(credentials()), http, large_bodies: None }
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
        subject(fake, NAME).await.counting_failures()
    });
}

mod fifo {
    use super::*;

    suite!({
        let fake = Fake::default();
        fake.make(ORDERED, |_| {});
        subject(fake, ORDERED).await.counting_own_failures()
    });
}

mod with_redrive {
    use super::*;

    suite!({
        let fake = Fake::default();
        fake.make("dead", |_| {});
        fake.make(NAME, |queue| queue.redrive = Some(("dead".to_owned(), 1000)));
        subject(fake, NAME).await.counting_failures()
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

async fn lease(queue: &SqsQueue, max: usize, duration: Duration) -> Vec<Message> {
    queue.lease(max, duration, NONE).await.unwrap()
}

async fn lease_one(queue: &SqsQueue, duration: Duration) -> Message {
    queue.lease(1, duration, PATIENCE).await.unwrap().remove(0)
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
    assert_eq!(fake.with(NAME, |q| q.bodies().len()), 1000);
    let mut held = Vec::new();
    loop {
        let found = lease(&queue, 10, LONG).await;
        if found.is_empty() {
            break;
        }
        held.extend(found);
    }
    // Many tasks run at about the same time, as in a host. Each sends its own requests.
    let renewals = held.iter().map(|message| queue.extend(&message.receipt, LONG));
    let renewed = join_all(renewals).await.into_iter().map(Result::unwrap);
    let receipts: Vec<Receipt> = renewed.collect();
    for acked in join_all(receipts.iter().map(|receipt| queue.ack(receipt))).await {
        acked.unwrap();
    }
    let requests = made(&queue);
    assert_eq!(fake.with(NAME, |q| q.bodies().len()), 0);
    let (taken, renewed) = (requests.receive + requests.delete, requests.extend);
    assert!(taken <= 250, "{requests:?}");
    assert!(renewed <= 250, "{requests:?}");
    assert_eq!(queue.inner.leases.len(), 0);
    assert_eq!(queue.inner.copies.len(), 0);
}

/// The number of requests that a host makes per task, for 400 tasks of this length. The host runs
/// two tasks at a time and leases up to four ahead, as `host run --parallel 2` does.
async fn requests_per_task(length: Duration) -> f64 {
    const TASKS: usize = 400;
    let (fake, queue) = standard().await;
    queue.send(&numbers(TASKS)).await.into_iter().for_each(Result::unwrap);
    let before = made(&queue).total();
    let queue = Arc::new(queue);
    let (slots, room) = (Arc::new(Semaphore::new(2)), Arc::new(Semaphore::new(6)));
    let (mut begun, mut tasks) = (0, JoinSet::new());
    while begun < TASKS {
        let first = room.clone().acquire_many_owned(2).await.unwrap();
        let most = 2 + room.available_permits();
        let found = queue.lease(most, LONG, PATIENCE).await.unwrap();
        assert!(found.len() <= most);
        drop(first);
        begun += found.len();
        for message in found {
            let place = room.clone().try_acquire_owned().unwrap();
            let (queue, slots) = (queue.clone(), slots.clone());
            tasks.spawn(async move {
                let slot = slots.acquire_owned().await.unwrap();
                tokio::time::sleep(length).await;
                drop((slot, place));
                queue.ack(&message.receipt).await.unwrap();
            });
        }
    }
    tasks.join_all().await;
    assert_eq!(fake.with(NAME, |q| q.bodies().len()), 0);
    (made(&queue).total() - before) as f64 / TASKS as f64
}

#[tokio::test]
async fn short_tasks_take_a_quarter_of_a_request_each_at_any_pace() {
    for length in [0, 1, 10].map(Duration::from_millis) {
        let requests = requests_per_task(length).await;
        assert!(requests <= 0.25, "{requests} for tasks of {length:?}");
    }
}

#[tokio::test]
async fn more_is_leased_than_the_host_asks_for_only_while_tasks_are_short() {
    let (fake, queue) = standard().await;
    queue.send(&numbers(100)).await.into_iter().for_each(Result::unwrap);
    let in_flight = || fake.with(NAME, |q| q.in_flight());
    for _ in 0..10 {
        let message = lease_one(&queue, LONG).await;
        assert_eq!(in_flight(), 1);
        queue.ack(&message.receipt).await.unwrap();
    }
    let before = made(&queue).receive;
    for _ in 0..10 {
        lease_one(&queue, LONG).await;
    }
    assert_eq!((made(&queue).receive - before, in_flight()), (1, 10));
    lease_one(&queue, LONG).await;
    assert_eq!(in_flight(), 20);
    queue.close().await;
    assert_eq!(in_flight(), 11, "what was not handed out is given back");
}

#[tokio::test]
async fn a_message_is_held_for_as_long_as_the_service_allows_and_then_lost_with_a_reason() {
    let most = Duration::from_secs(60);
    let fake = Fake::default();
    fake.make(NAME, |queue| queue.max_lease = most);
    let queue = queue_with_max_lease(&fake, most).await;
    send(&queue, &["1"]).await;
    let message = lease_one(&queue, most).await;
    // A longer duration is cut to the rest, so that the service does not reject it.
    let receipt = queue.extend(&message.receipt, LONG).await.unwrap();
    let row = queue.inner.leases.get(&receipt).unwrap();
    assert!(row.until <= row.held.received + most, "{row:?}");
    // Make it look as if nearly all of that time had passed.
    let received = row.held.received - most + SHORT / 2;
    let held = LeasedMessage { received, ..(*row.held).clone() };
    let old = queue.inner.leases.add(Arc::new(held), row.until);
    check_invalid(queue.extend(&old, LONG).await, &["was held for 1m", "shorter"]);
    check_lost(queue.ack(&old).await);
    assert_eq!(fake.with(NAME, |q| q.bodies().len()), 1);
}

#[tokio::test]
async fn a_lease_never_ends_later_here_than_at_the_service() {
    let most = Duration::from_secs(60);
    let fake = Fake::default();
    fake.make(NAME, |queue| queue.max_lease = most);
    let queue = queue_with_max_lease(&fake, most).await;
    send(&queue, &["1"]).await;
    let mut receipt = lease_one(&queue, LONG).await.receipt;
    for duration in [NONE, Duration::from_millis(20_500), most, LONG] {
        let there = fake.with(NAME, |q| q.visible()).remove(0);
        let here = queue.until(&receipt).unwrap();
        assert!(here <= there, "{duration:?}: {:?} later", here - there);
        let duration = duration.max(most / 2);
        receipt = queue.extend(&receipt, duration).await.unwrap();
    }
}

#[tokio::test]
async fn a_task_is_cancelled_when_its_message_can_be_held_no_longer() {
    let most = Duration::from_secs(3);
    let fake = Fake::default();
    fake.make(NAME, |queue| queue.max_lease = most);
    let queue = Arc::new(queue_with_max_lease(&fake, most).await);
    send(&queue, &["1"]).await;
    let leases = crate::lease::Leases::alone(queue.clone(), Duration::from_secs(2));
    let lease = leases.lease(1, PATIENCE).await.unwrap().remove(0);
    tokio::time::timeout(PATIENCE, lease.lost().cancelled()).await.expect("it is still ours");
}

async fn queue_with_max_lease(fake: &Fake, most: Duration) -> SqsQueue {
    let opened = queue(fake).await;
    let Inner { name, service, settings, requests, .. } = &*opened.inner;
    let (name, service, settings) = (name.clone(), service.clone(), settings.clone());
    let access = Access::default();
    let mut inner = Inner::new(name, service, settings, requests.clone(), &access, None);
    inner.max_lease = most;
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
    // Another host now holds the other message.
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
    // An entry that failed because of the service is retried. An entry that failed because of the
    // caller is not.
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
    check_unavailable(queue.lease(1, LONG, NONE).await, &["RequestThrottled"]);
    assert_eq!(made(&queue).receive, 4);
}

#[tokio::test]
async fn too_many_messages_in_flight_are_told() {
    let fake = Fake::default();
    fake.make(NAME, |queue| queue.most_in_flight = 3);
    let queue = queue(&fake).await;
    send(&queue, &["1", "2", "3", "4"]).await;
    assert_eq!(lease(&queue, 10, LONG).await.len(), 3);
    check_unavailable(queue.lease(1, LONG, NONE).await, &["120,000 messages in flight"]);
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
    let mut given_up = queue.ack(&messages[0].receipt);
    assert!(futures_util::poll!(&mut given_up).is_pending());
    drop(given_up);
    queue.ack(&messages[1].receipt).await.unwrap();
    assert_eq!(fake.with(NAME, |q| q.bodies().len()), 0);
}

#[tokio::test]
async fn a_release_that_nobody_waits_for_is_done_to_its_end() {
    let (fake, queue) = standard().await;
    send(&queue, &["1"]).await;
    let message = lease_one(&queue, LONG).await;
    let mut release = queue.release(&message.receipt, NONE, Release::Failed("why"));
    assert!(futures_util::poll!(&mut release).is_pending());
    drop(release);
    queue.close().await;
    assert_eq!(fake.with(NAME, |q| (q.bodies().len(), q.in_flight())), (1, 0));
    assert_eq!(lease_one(&queue, LONG).await.failures, ["why"]);
}

#[tokio::test]
async fn what_nobody_takes_is_given_back_before_its_lease_is_over() {
    let (fake, queue) = standard().await;
    let mut poll = queue.lease(1, Duration::from_secs(20), PATIENCE);
    assert!(futures_util::poll!(&mut poll).is_pending());
    drop(poll);
    send(&queue, &["1"]).await;
    let in_flight = || fake.with(NAME, |q| q.in_flight());
    while in_flight() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    while in_flight() > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // The message was released, so its receive has a known outcome.
    let message = lease_one(&self::queue(&fake).await, LONG).await;
    assert_eq!((message.attempts, message.unaccounted), (0, 0));
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
    // The other messages of the group wait for this one, in every process.
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
    // Equal bodies are not treated as copies of one message.
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
    assert!(queue.limits_deliveries() && !queue.charges_for_holding());
    send(&queue, &["1"]).await;
    // Drains and failed executions are recorded, and use up no receives.
    for attempts in 0..5 {
        let message = lease_one(&queue, LONG).await;
        assert_eq!((message.attempts, message.unaccounted), (attempts, 0));
        queue.release(&message.receipt, NONE, Release::Uncounted).await.unwrap();
        let message = lease_one(&queue, LONG).await;
        queue.release(&message.receipt, NONE, Release::Failed("x")).await.unwrap();
    }
    // The service counts the deliveries of hosts that are killed.
    for unaccounted in 0..2 {
        let message = lease_one(&self::queue(&fake).await, LONG).await;
        assert_eq!((message.attempts, message.unaccounted), (5, unaccounted));
        fake.with(NAME, |q| q.expire());
    }
    assert!(lease(&queue, 1, LONG).await.is_empty());
    assert_eq!(fake.with("dead", |q| q.bodies()), ["1"]);

    let admin = Admin::of(queue);
    let facts = crate::queue::Admin::facts(&admin).await.unwrap();
    assert_eq!((facts.receive_limit, facts.every_delivery_counts), (Some(2), false));
    assert_eq!(facts.dead_letter_queue.unwrap(), "arn:aws:sqs:eu-west-1:123456789012:dead");
    assert!(facts.notes.iter().any(|note| note.contains("after 2 receives")), "{:?}", facts.notes);
    let looked: Vec<_> = crate::queue::Admin::messages(&admin).collect().await;
    check_invalid(looked.into_iter().next().unwrap(), &["redrive"]);
}

#[tokio::test]
async fn on_a_fifo_queue_a_message_that_is_held_ahead_uses_up_a_receive() {
    let fake = Fake::default();
    fake.make("dead.fifo", |_| {});
    fake.make(ORDERED, |queue| queue.redrive = Some(("dead.fifo".to_owned(), 9)));
    let queue = open(&fake, ORDERED, &Access::default()).await;
    assert!(queue.limits_deliveries() && queue.charges_for_holding());
    send(&queue, &["1"]).await;
    for _ in 0..8 {
        let message = lease_one(&queue, LONG).await;
        // The number of receives carries no information.
        assert_eq!((message.attempts, message.deaths, message.unaccounted), (0, 0, 0));
        queue.release(&message.receipt, NONE, Release::Uncounted).await.unwrap();
    }
    let facts = crate::queue::Admin::facts(&Admin::of(queue)).await.unwrap();
    assert!(facts.every_delivery_counts);
}

#[tokio::test]
async fn what_was_only_held_by_hosts_that_were_killed_was_never_tried() {
    let (fake, queue) = standard().await;
    send(&queue, &["1", "2", "3"]).await;
    for killed in 0..7 {
        let host = self::queue(&fake).await;
        for message in lease(&host, 10, LONG).await {
            let Message { attempts, deaths, unaccounted, .. } = message;
            assert_eq!((attempts, deaths, unaccounted), (0, 0, killed));
        }
        fake.with(NAME, |q| q.expire());
    }
    // A drain does not reset the number. An execution that ends does.
    let message = lease_one(&queue, LONG).await;
    queue.release(&message.receipt, NONE, Release::Uncounted).await.unwrap();
    let held = lease(&queue, 10, LONG).await;
    assert_eq!(held.iter().map(|m| m.unaccounted).collect::<Vec<_>>(), [7, 7, 7]);
    for message in held {
        queue.start(&message.receipt).await.unwrap();
        queue.release(&message.receipt, NONE, Release::Failed("x")).await.unwrap();
    }
    for message in lease(&queue, 10, LONG).await {
        assert_eq!((message.attempts, message.unaccounted), (1, 0));
    }
}

#[tokio::test]
async fn a_lease_that_a_living_host_lost_is_no_death() {
    let (fake, queue) = standard().await;
    send(&queue, &["1"]).await;
    for _ in 0..5 {
        let message = lease_one(&queue, LONG).await;
        assert_eq!(message.unaccounted, 0);
        queue.start(&message.receipt).await.unwrap();
        fake.with(NAME, |q| q.expire());
        check_lost(queue.extend(&message.receipt, LONG).await);
    }
}

#[tokio::test]
async fn a_copy_that_could_not_be_deleted_is_not_run_again() {
    let (fake, queue) = standard().await;
    send(&queue, &["1"]).await;
    let message = lease_one(&queue, LONG).await;
    fake.fail("DeleteMessageBatch", 2, What::Refuse(403, "AccessDeniedException"));
    for _ in 0..2 {
        let released = queue.release(&message.receipt, NONE, Release::Failed("x")).await;
        check_unavailable(released, &["AccessDenied", "allow sqs:DeleteMessage on this queue"]);
        // The message is sent again only once.
        assert_eq!(fake.with(NAME, |q| q.bodies().len()), 2);
    }
    fake.with(NAME, |q| q.expire());
    let held = lease(&queue, 10, LONG).await;
    assert_eq!((held.len(), held[0].attempts), (1, 1));
    assert_eq!(held[0].id, message.id);
    queue.close().await;
    assert_eq!(fake.with(NAME, |q| q.bodies().len()), 1);
}

#[tokio::test]
async fn a_lease_that_cannot_be_renewed_now_is_not_lost() {
    let (fake, queue) = standard().await;
    send(&queue, &["1"]).await;
    let mut receipt = lease_one(&queue, LONG).await.receipt;
    let mut check = async |what: What, words: &[&str]| {
        fake.fail("ChangeMessageVisibilityBatch", 1, what);
        check_unavailable(queue.extend(&receipt, LONG).await, words);
        receipt = queue.extend(&receipt, LONG).await.unwrap();
    };
    let denied = ["AccessDenied", "allow sqs:ChangeMessageVisibility on this queue"];
    check(What::Refuse(403, "AccessDeniedException"), &denied).await;
    check(What::Refuse(403, "ExpiredTokenException"), &["renew the credentials"]).await;
    check(What::Refuse(400, "InvalidAddress"), &["InvalidAddress"]).await;
    check(What::Entries(vec![0], "AccessDenied", true), &denied).await;
    check(What::Entries(vec![0], "UnsupportedOperation", true), &["UnsupportedOperation"]).await;
    fake.fail("DeleteMessageBatch", 1, What::Refuse(403, "AccessDeniedException"));
    check_unavailable(queue.ack(&receipt).await, &["allow sqs:DeleteMessage on this queue"]);
    queue.ack(&receipt).await.unwrap();
}

#[tokio::test]
async fn a_queue_that_was_removed_is_used_again_when_it_is_made_again() {
    let (fake, queue) = standard().await;
    fake.remove(NAME);
    let sent = queue.send(&numbers(1)).await.remove(0);
    check_unavailable(sent, &["the queue no longer exists", "create it again"]);
    check_unavailable(queue.lease(1, LONG, NONE).await, &["the queue no longer exists"]);
    check_unavailable(queue.counts().await, &["the queue no longer exists"]);
    fake.make(NAME, |_| {});
    send(&queue, &["1"]).await;
    lease_one(&queue, LONG).await;
}

#[tokio::test]
async fn a_request_that_is_refused_for_one_of_its_messages_is_made_for_the_others() {
    let (fake, queue) = standard().await;
    fake.fail("SendMessageBatch", 2, What::Refuse(400, "InvalidMessageContents"));
    let results = queue.send(&numbers(10)).await;
    assert_eq!(results.iter().filter(|result| result.is_err()).count(), 1, "{results:?}");
    check_invalid(results.into_iter().find(Result::is_err).unwrap(), &["InvalidMessageContents"]);
    assert_eq!(fake.with(NAME, |q| q.bodies().len()), 9);
}

#[tokio::test]
async fn a_clock_that_differs_from_the_services_is_noticed() {
    let (fake, queue) = standard().await;
    let skew = |queue: &SqsQueue| queue.inner.requests.clock.skew();
    assert_eq!(skew(&queue), None);
    fake.set_clock(3600);
    queue.counts().await.unwrap();
    let told = skew(&queue).unwrap().to_string();
    assert!(told.contains("behind the service's"), "{told}");
    fake.set_clock(-3600);
    let queue = self::queue(&fake).await;
    for _ in 0..3 {
        queue.counts().await.unwrap();
    }
    let told = skew(&queue).unwrap().to_string();
    assert!(told.contains("ahead of the service's"), "{told}");
    let facts = crate::queue::Admin::facts(&Admin::of(queue)).await.unwrap();
    assert!(facts.notes.last().unwrap().contains("with NTP"), "{:?}", facts.notes);
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
    // Sending was attempted only once.
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
    // If even the count does not fit, only this host knows it.
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
                partition: "aws".to_owned(),
                region: "eu-west-1".to_owned(),
                account: "123456789012".to_owned(),
                name: name.to_owned(),
            },
        ] {
            let missing = SqsQueue::open_with(&address, &Access::default(), overrides(&fake)).await;
            check_invalid(missing, &[name, "eu-west-1", "--create-queues"]);
            assert!(!fake.exists(name));
            SqsQueue::open_with(&address, &create, overrides(&fake)).await.unwrap();
            let retention = fake.with(name, |q| q.settings["MessageRetentionPeriod"].clone());
            assert_eq!(retention, "1209600");
            fake.remove(name);
        }
    }
    let by_name = Sqs::Name("new".to_owned());
    let access = Access { region: Some("eu-west-1".to_owned()), ..create };
    let queue = SqsQueue::open_with(&by_name, &access, overrides(&fake)).await.unwrap();
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
    check_invalid(crate::queue::Admin::release_all(&admin).await, &["leases of other processes"]);
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
