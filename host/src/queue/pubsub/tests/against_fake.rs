//! Tests of documented features of the service that the emulator lacks.

use std::sync::Arc;

use futures_util::TryStreamExt;
use gcloud_gax::conn::Environment;
use gcloud_gax::grpc::Code;
use gcloud_googleapis::pubsub::v1 as api;

use super::fake::Fake;
use super::*;
use crate::queue::Admin as _;
use crate::queue::conformance::{Subject, suite};

const S: &str = "projects/p/subscriptions/s";
const HOUR: Duration = Duration::from_secs(3600);

fn at(subscription: Option<&str>) -> PubSub {
    PubSub {
        project: "p".to_owned(),
        topic: "t".to_owned(),
        subscription: subscription.map(str::to_owned),
    }
}

async fn client(fake: &Fake) -> Client {
    Client::to(&at(Some("s")), Environment::Emulator(fake.host.clone())).await.unwrap()
}

async fn open(fake: &Fake, at: &PubSub, create: bool) -> Result<PubSubQueue, QueueError> {
    PubSubQueue::with(client(fake).await, at, &Access { create, ..Access::default() }).await
}

/// A queue with one message.
async fn with_message() -> (Fake, PubSubQueue) {
    let fake = Fake::start().await;
    let queue = open(&fake, &at(Some("s")), true).await.unwrap();
    queue.send(&[Bytes::from_static(b"{}")]).await.remove(0).unwrap();
    (fake, queue)
}

async fn lease(queue: &PubSubQueue, duration: Duration) -> Message {
    queue.lease(1, duration, Duration::from_secs(10)).await.unwrap().remove(0)
}

fn is_lost<T>(result: Result<T, QueueError>) -> bool {
    matches!(result, Err(QueueError::LeaseLost { .. }))
}

fn unavailable<T>(result: Result<T, QueueError>) -> String {
    match result {
        Err(error @ QueueError::Unavailable { .. }) => error.to_string(),
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it is available"),
    }
}

fn problem<T>(result: Result<T, QueueError>) -> String {
    match result {
        Err(QueueError::Invalid { problem, .. }) => problem,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it is no problem"),
    }
}

mod exactly_once {
    use super::*;

    suite!({
        let fake = Fake::start().await;
        let ours = open(&fake, &at(Some("s")), true).await.unwrap();
        let theirs = open(&fake, &at(Some("s")), false).await.unwrap();
        fake.configure(S, |s| s.enable_exactly_once_delivery = true);
        Subject::new(Arc::new(ours), Arc::new(theirs), fake)
            .counting_failures()
            .polling()
            .limited_to(send::BYTES)
    });
}

#[tokio::test]
async fn a_lease_that_the_service_says_has_ended_is_lost() {
    let (fake, queue) = with_message().await;
    fake.configure(S, |s| s.enable_exactly_once_delivery = true);
    for change in ["extend", "ack", "release"] {
        let message = lease(&queue, MAX_LEASE).await;
        // Release the message directly, so that our clock does not know that the lease has ended.
        let held = queue.shared.lease_of(&message.receipt).unwrap();
        queue.shared.set_deadline(vec![held.ack_id], Duration::ZERO).await.unwrap();
        let is_lost = match change {
            "extend" => is_lost(queue.extend(&message.receipt, MAX_LEASE).await),
            "ack" => is_lost(queue.ack(&message.receipt).await),
            _ => is_lost(queue.release(&message.receipt, HOUR, Release::Uncounted).await),
        };
        assert!(is_lost, "{change}");
        assert!(super::leases::id(&message.receipt) == message.id);
        assert!(matches!(queue.start(&message.receipt).await, Err(QueueError::LeaseLost { .. })));
    }
    assert_eq!(fake.messages(S), (1, 1));
}

#[tokio::test]
async fn what_fails_for_a_moment_is_tried_again() {
    let (fake, queue) = with_message().await;
    let busy = |of| (of, Status::unavailable("busy"));
    fake.state().faults.extend([busy("Pull"), busy("ModifyAckDeadline")]);
    let message = lease(&queue, MAX_LEASE).await;
    let held = queue.shared.lease_of(&message.receipt).unwrap();
    let transient = [(&*held.ack_id, "TRANSIENT_FAILURE_BUSY")];
    let transient = status::with_failures(Code::FailedPrecondition, &transient);
    let throttled = Status::resource_exhausted("quota");
    fake.state().faults.extend([("Acknowledge", transient), ("Acknowledge", throttled)]);
    queue.ack(&message.receipt).await.unwrap();
    assert_eq!(fake.messages(S).0, 0);
    assert_eq!(queue.requests().unwrap().delete, 3);
    // The number of retries is limited, and the caller gets the error.
    for _ in 0..4 {
        fake.state().faults.push_back(busy("Publish"));
    }
    let sent = queue.send(&[Bytes::from_static(b"1"), Bytes::from_static(b"2")]).await;
    assert_eq!(sent.len(), 2);
    for result in sent {
        let error = result.unwrap_err();
        assert!(matches!(error, QueueError::Unavailable { .. }), "{error}");
        assert!(error.to_string().contains("Unavailable: busy"), "{error}");
    }
}

#[tokio::test]
async fn what_was_just_made_may_not_be_there_for_messages_yet() {
    let (fake, queue) = with_message().await;
    let missing = |of| (of, Status::not_found("Resource not found"));
    fake.state().faults.extend([missing("Publish"), missing("Pull")]);
    queue.send(&[Bytes::from_static(b"1")]).await.remove(0).unwrap();
    lease(&queue, HOUR).await;
    // A queue that existed before was deleted.
    let queue = open(&fake, &at(Some("s")), false).await.unwrap();
    fake.state().faults.push_back(missing("Pull"));
    assert!(unavailable(queue.lease(1, HOUR, Duration::ZERO).await).contains("--create-queues"));
}

#[tokio::test]
async fn who_asks_for_counts_learns_whether_the_queue_answers() {
    let (fake, queue) = with_message().await;
    let asked = fake.state().calls.len();
    assert_eq!(queue.counts().await.unwrap(), Counts::default());
    // The service has answered a moment ago.
    assert_eq!(fake.state().calls.len(), asked);
    fake.state().faults.push_back(("Publish", Status::permission_denied("no")));
    queue.send(&[Bytes::from_static(b"1")]).await.remove(0).unwrap_err();
    for _ in 0..4 {
        fake.state().faults.push_back(("GetTopic", Status::unavailable("busy")));
    }
    let counts = queue.counts().await;
    assert!(matches!(counts, Err(QueueError::Unavailable { .. })), "{counts:?}");
    queue.counts().await.unwrap();
}

#[tokio::test]
async fn what_a_moment_does_not_change_is_not_tried_again() {
    let (fake, queue) = with_message().await;
    fake.state().faults.push_back(("Pull", Status::permission_denied("no")));
    let before = fake.state().calls.len();
    let found = queue.lease(1, HOUR, Duration::ZERO).await;
    assert!(unavailable(found).contains("roles/pubsub.subscriber"));
    assert_eq!(fake.state().calls.len() - before, 1);
}

#[tokio::test]
async fn no_deadline_is_asked_for_that_the_service_refuses() {
    let (fake, queue) = with_message().await;
    let message = lease(&queue, HOUR).await;
    let receipt = queue.extend(&message.receipt, HOUR).await.unwrap();
    let odd = queue.extend(&receipt, Duration::from_millis(1500)).await.unwrap();
    queue.release(&odd, HOUR, Release::Uncounted).await.unwrap();
    assert_eq!(fake.state().deadlines, [600, 600, 2, 600]);
}

/// Makes the service count deliveries, as it does for a dead-letter policy.
fn count_deliveries(fake: &Fake) {
    let dead_letter_topic = "projects/p/topics/dead".to_owned();
    let policy = api::DeadLetterPolicy { dead_letter_topic, max_delivery_attempts: 5 };
    fake.configure(S, |s| s.dead_letter_policy = Some(policy));
}

#[tokio::test]
async fn with_a_dead_letter_policy_only_what_nobody_told_of_uses_up_deliveries() {
    let (fake, queue) = with_message().await;
    assert!(!queue.limits_deliveries());
    count_deliveries(&fake);
    let first = lease(&queue, HOUR).await;
    assert!(queue.limits_deliveries() && !queue.charges_for_holding());
    queue.release(&first.receipt, Duration::ZERO, Release::Uncounted).await.unwrap();
    for attempts in 0..7 {
        let message = lease(&queue, HOUR).await;
        assert_eq!((message.attempts, message.deaths, message.unaccounted), (attempts, 0, 0));
        assert_eq!(message.id, first.id);
        queue.release(&message.receipt, Duration::ZERO, Release::Uncounted).await.unwrap();
        let message = lease(&queue, HOUR).await;
        assert_eq!(message.failures.len() as u32, attempts);
        assert_eq!(fake.deliveries(S), [1]);
        queue.release(&message.receipt, Duration::ZERO, Release::Failed("x")).await.unwrap();
    }
    // Only the service counts these deliveries.
    for deliveries in 1..7 {
        let message = lease(&queue, HOUR).await;
        assert_eq!((message.attempts, message.id), (7, first.id.clone()));
        assert_eq!(fake.deliveries(S), [deliveries]);
        fake.expire(S);
    }
    let admin = Admin::with(client(&fake).await, &at(Some("s")), &Access::default()).await;
    let facts = admin.unwrap().facts().await.unwrap();
    assert_eq!((facts.receive_limit, facts.every_delivery_counts), (Some(5), false));
    assert_eq!(facts.dead_letter_queue.unwrap(), "pubsub://projects/p/topics/dead");
    assert!(facts.notes[0].contains("counts for the dead-letter policy"), "{:?}", facts.notes);
}

#[tokio::test]
async fn what_was_not_tried_keeps_its_place_in_an_order() {
    let fake = Fake::start().await;
    let group = Some("g".to_owned());
    let access = Access { create: true, group, ..Access::default() };
    let queue = PubSubQueue::with(client(&fake).await, &at(Some("s")), &access).await.unwrap();
    count_deliveries(&fake);
    let bodies = ["1", "2"].map(Bytes::from);
    assert!(queue.send(&bodies).await.iter().all(Result::is_ok));
    let first = lease(&queue, HOUR).await;
    queue.release(&first.receipt, Duration::ZERO, Release::Uncounted).await.unwrap();
    assert_eq!(lease(&queue, HOUR).await.body, "1");
    assert_eq!(fake.deliveries(S), [2, 0]);
}

#[tokio::test]
async fn a_copy_whose_old_message_could_not_be_ended_is_the_one_that_is_run() {
    let (fake, queue) = with_message().await;
    let message = lease(&queue, HOUR).await;
    for _ in 0..2 {
        fake.state().faults.push_back(("Acknowledge", Status::permission_denied("no")));
        let released = queue.release(&message.receipt, Duration::ZERO, Release::Failed("x")).await;
        assert!(unavailable(released).contains("roles/pubsub.subscriber"));
        assert_eq!(fake.messages(S).0, 2, "it is sent again once only");
    }
    fake.expire(S);
    let held = queue.lease(10, HOUR, Duration::from_secs(10)).await.unwrap();
    assert_eq!((held.len(), held[0].attempts, &held[0].id), (1, 1, &message.id));
    assert_eq!(fake.messages(S).0, 1);
}

#[tokio::test]
async fn a_lease_that_cannot_be_renewed_now_is_not_lost() {
    let (fake, queue) = with_message().await;
    let mut receipt = lease(&queue, HOUR).await.receipt;
    for status in [
        Status::permission_denied("no"),
        Status::unauthenticated("no"),
        Status::failed_precondition("no"),
        Status::not_found("no"),
    ] {
        fake.state().faults.push_back(("ModifyAckDeadline", status));
        unavailable(queue.extend(&receipt, HOUR).await);
        receipt = queue.extend(&receipt, HOUR).await.unwrap();
    }
    fake.state().faults.push_back(("Acknowledge", Status::permission_denied("no")));
    assert!(unavailable(queue.ack(&receipt).await).contains("roles/pubsub.subscriber"));
    queue.ack(&receipt).await.unwrap();
}

#[tokio::test]
async fn a_request_that_is_refused_for_one_of_its_messages_is_made_for_the_others() {
    let (fake, queue) = with_message().await;
    // The requests are for all eight messages, the first four, the first two, and the first.
    for _ in 0..4 {
        fake.state().faults.push_back(("Publish", Status::invalid_argument("bad")));
    }
    let bodies: Vec<Bytes> = (0..8).map(|n| n.to_string().into()).collect();
    let mut sent = queue.send(&bodies).await;
    assert!(problem(sent.remove(0)).contains("bad"));
    assert!(sent.iter().all(Result::is_ok), "{sent:?}");
    assert_eq!(fake.messages(S).0, 1 + 7);
}

#[tokio::test]
async fn a_slow_clock_makes_no_task_wait_for_longer() {
    let (fake, queue) = with_message().await;
    fake.state().ahead = HOUR;
    let message = lease(&queue, HOUR).await;
    queue.release(&message.receipt, Duration::from_secs(1), Release::Failed("x")).await.unwrap();
    // By our clock the message is due in an hour.
    let found = queue.lease(1, HOUR, Duration::from_secs(30)).await.unwrap();
    assert_eq!(found[0].attempts, 1);
    let skew = queue.shared.client.clock.skew().unwrap().to_string();
    assert!(skew.contains("behind the service's"), "{skew}");
}

#[tokio::test]
async fn a_message_that_waits_is_listed_with_its_time() {
    let (fake, queue) = with_message().await;
    let message = lease(&queue, HOUR).await;
    queue.release(&message.receipt, HOUR, Release::Failed("x")).await.unwrap();
    // No host has received the copy yet and postponed it.
    let admin = Admin::with(client(&fake).await, &at(Some("s")), &Access::default()).await;
    let admin = admin.unwrap();
    let listed: Vec<_> = admin.messages().try_collect().await.unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let wait = listed[0].due.unwrap() - now;
    assert!(wait > HOUR / 2 && wait <= HOUR, "{wait:?}");
    assert_eq!(listed[0].id, message.id);
    // A host that receives the copy postpones it for as long as the service allows.
    assert!(queue.lease(1, HOUR, Duration::ZERO).await.unwrap().is_empty());
    assert_eq!(fake.state().deadlines.last(), Some(&600));
}

#[tokio::test]
async fn a_host_that_may_not_send_gives_back_what_failed() {
    let (fake, queue) = with_message().await;
    let message = lease(&queue, HOUR).await;
    fake.state().faults.push_back(("Publish", Status::permission_denied("no")));
    queue.release(&message.receipt, Duration::ZERO, Release::Failed("x")).await.unwrap();
    assert_eq!(fake.messages(S), (1, 1));
    // This host remembers the failure, and does not try to send again for a while.
    for attempts in 1..4 {
        let message = lease(&queue, HOUR).await;
        assert_eq!((message.attempts, message.failures[0].as_str()), (attempts, "x"));
        queue.release(&message.receipt, Duration::ZERO, Release::Failed("x")).await.unwrap();
    }
    assert_eq!(fake.state().calls.iter().filter(|call| *call == "Publish").count(), 2);
}

/// Starts a lease call, and drops it when the pull is under way.
async fn give_up(fake: &Fake, queue: &PubSubQueue, wait: Duration) {
    let mut given_up = queue.lease(1, HOUR, wait);
    assert!(futures_util::poll!(&mut given_up).is_pending());
    while fake.state().waiting_pulls == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn what_a_poll_brings_for_nobody_is_given_back() {
    let (fake, queue) = with_message().await;
    for wait in [Duration::ZERO, Duration::from_secs(20)] {
        fake.state().holds_pulls = true;
        give_up(&fake, &queue, wait).await;
        fake.state().holds_pulls = false;
        queue.shared.under_way.close();
        queue.shared.under_way.wait().await;
        queue.shared.under_way.reopen();
        // The message was delivered and then released.
        assert_eq!(fake.state().waiting_pulls, 0);
        assert_eq!(fake.messages(S), (1, 1), "{wait:?}");
        assert!(fake.deliveries(S)[0] > 0);
    }
}

#[tokio::test]
async fn closing_waits_for_the_last_poll_and_not_for_a_message() {
    let fake = Fake::start().await;
    let queue = open(&fake, &at(Some("s")), true).await.unwrap();
    give_up(&fake, &queue, HOUR).await;
    let closed = tokio::time::timeout(Duration::from_secs(60), queue.close()).await;
    closed.expect("it waits for a message");
    assert_eq!(fake.state().waiting_pulls, 0);
}

#[tokio::test]
async fn a_queue_that_would_lose_messages_is_not_opened() {
    let fake = Fake::start().await;
    let check = async |at: &PubSub, create: bool, words: &str| {
        let problem = problem(open(&fake, at, create).await);
        assert!(problem.contains(words), "{problem}");
    };
    check(
        &at(Some("s")),
        false,
        "there is no topic t in project p; create it with --create-queues",
    )
    .await;
    open(&fake, &at(Some("s")), true).await.unwrap();
    check(&at(Some("other")), false, "there is no subscription other in project p").await;
    let change = |change: fn(&mut api::Subscription)| fake.configure(S, change);
    change(|s| s.topic = "_deleted-topic_".to_owned());
    check(&at(Some("s")), true, "the topic of subscription s was deleted").await;
    // The topic then has no subscription.
    check(&at(None), false, "has no subscription, so messages to it would be lost").await;
    change(|s| s.topic = "projects/p/topics/u".to_owned());
    check(&at(Some("s")), true, "belongs to projects/p/topics/u, not to projects/p/topics/t").await;
    change(|s| s.topic = "projects/p/topics/t".to_owned());
    change(|s| s.detached = true);
    check(&at(Some("s")), true, "detached").await;
    change(|s| s.detached = false);
    change(|s| s.push_config.get_or_insert_default().push_endpoint = "https://a".to_owned());
    check(&at(Some("s")), true, "use a pull subscription").await;
}

#[tokio::test]
async fn a_queue_without_a_subscription_can_only_be_sent_to() {
    let (fake, _) = with_message().await;
    let queue = open(&fake, &at(None), false).await.unwrap();
    queue.send(&[Bytes::new()]).await.remove(0).unwrap();
    assert_eq!(fake.messages(S).0, 2);
    let leased = queue.lease(1, HOUR, Duration::ZERO).await;
    assert!(problem(leased).contains("contains no subscription"));
}

#[tokio::test]
async fn a_subscription_that_is_made_keeps_its_messages() {
    let (fake, _queue) = with_message().await;
    fake.configure(S, |s| {
        assert_eq!(s.ack_deadline_seconds, 60);
        assert_eq!(s.message_retention_duration.unwrap().seconds, 7 * 24 * 3600);
        // The subscription never expires.
        assert_eq!(s.expiration_policy.unwrap().ttl, None);
        assert!(!s.enable_message_ordering);
    });
}
