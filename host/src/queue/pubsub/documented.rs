//! What the service's documentation says and the emulator does not do.

use std::sync::Arc;

use futures_util::TryStreamExt;
use gcloud_gax::conn::Environment;
use gcloud_gax::grpc::Code;
use gcloud_googleapis::pubsub::v1 as api;

use super::fake::Fake;
use super::*;
use crate::queue::Admin as _;
use crate::queue::conformance::{Subject, suite};

const URL: &str = "pubsub://projects/p/topics/t/subscriptions/s";
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
    Client::to(URL, Environment::Emulator(fake.host.clone())).await.unwrap()
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

async fn lease(queue: &PubSubQueue, hold: Duration) -> Message {
    queue.lease(1, hold, Duration::from_secs(10)).await.unwrap().remove(0)
}

fn is_lost<T>(result: Result<T, QueueError>) -> bool {
    matches!(result, Err(QueueError::LeaseLost { .. }))
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
        let message = lease(&queue, LONGEST_HOLD).await;
        // Behind our back, and longer than our own clock would tell.
        let held = queue.shared.held(&message.receipt).unwrap();
        queue.shared.set_deadline(vec![held.ack_id], Duration::ZERO).await.unwrap();
        let is_lost = match change {
            "extend" => is_lost(queue.extend(&message.receipt, LONGEST_HOLD).await),
            "ack" => is_lost(queue.ack(&message.receipt).await),
            _ => is_lost(queue.release(&message.receipt, HOUR, Release::Uncounted).await),
        };
        assert!(is_lost, "{change}");
        assert!(super::held::id(&message.receipt) == message.id);
        assert!(matches!(queue.start(&message.receipt).await, Err(QueueError::LeaseLost { .. })));
    }
    assert_eq!(fake.messages(S), (1, 1));
}

#[tokio::test]
async fn what_fails_for_a_moment_is_tried_again() {
    let (fake, queue) = with_message().await;
    let busy = |of| (of, Status::unavailable("busy"));
    fake.state().faults.extend([busy("Pull"), busy("ModifyAckDeadline")]);
    let message = lease(&queue, LONGEST_HOLD).await;
    let held = queue.shared.held(&message.receipt).unwrap();
    let transient = [(&*held.ack_id, "TRANSIENT_FAILURE_BUSY")];
    let transient = status::with_failures(Code::FailedPrecondition, &transient);
    let throttled = Status::resource_exhausted("quota");
    fake.state().faults.extend([("Acknowledge", transient), ("Acknowledge", throttled)]);
    queue.ack(&message.receipt).await.unwrap();
    assert_eq!(fake.messages(S).0, 0);
    assert_eq!(queue.requests().unwrap().delete, 3);
    // But not for ever, and who asked is told.
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
    // What was there before has gone.
    let queue = open(&fake, &at(Some("s")), false).await.unwrap();
    fake.state().faults.push_back(missing("Pull"));
    assert!(problem(queue.lease(1, HOUR, Duration::ZERO).await).contains("--create-queues"));
}

#[tokio::test]
async fn who_asks_for_counts_learns_whether_the_queue_answers() {
    let (fake, queue) = with_message().await;
    let asked = fake.state().calls.len();
    assert_eq!(queue.counts().await.unwrap(), Counts::default());
    // It has answered a moment ago.
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
async fn what_can_never_work_is_not_tried_again() {
    let (fake, queue) = with_message().await;
    fake.state().faults.push_back(("Pull", Status::permission_denied("no")));
    let before = fake.state().calls.len();
    let found = queue.lease(1, HOUR, Duration::ZERO).await;
    assert!(problem(found).contains("roles/pubsub.subscriber"));
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

#[tokio::test]
async fn with_a_dead_letter_policy_deliveries_count_and_no_copies_are_sent() {
    let (fake, queue) = with_message().await;
    let dead_letter_topic = "projects/p/topics/dead".to_owned();
    let policy = api::DeadLetterPolicy { dead_letter_topic, max_delivery_attempts: 5 };
    fake.configure(S, |s| s.dead_letter_policy = Some(policy));
    let first = lease(&queue, HOUR).await;
    assert_eq!(first.attempts, 0);
    queue.release(&first.receipt, Duration::ZERO, Release::Failed("x")).await.unwrap();
    let second = lease(&queue, HOUR).await;
    assert_eq!((second.attempts, &second.id), (1, &first.id));
    assert_eq!(fake.state().calls.iter().filter(|call| *call == "Publish").count(), 1);
    let admin = Admin::with(client(&fake).await, &at(Some("s")), &Access::default()).await;
    let facts = admin.unwrap().facts().await.unwrap();
    assert_eq!(facts.receive_limit, Some(5));
    assert_eq!(facts.dead_letter_queue.unwrap(), "pubsub://projects/p/topics/dead");
    assert!(facts.notes[0].contains("counts for the dead letter policy"), "{:?}", facts.notes);
}

#[tokio::test]
async fn a_message_that_waits_is_listed_with_its_time() {
    let (fake, queue) = with_message().await;
    let message = lease(&queue, HOUR).await;
    queue.release(&message.receipt, HOUR, Release::Failed("x")).await.unwrap();
    // Nobody has received the copy yet, and put it off.
    let admin = Admin::with(client(&fake).await, &at(Some("s")), &Access::default()).await;
    let admin = admin.unwrap();
    let listed: Vec<_> = admin.messages().try_collect().await.unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let wait = listed[0].due.unwrap() - now;
    assert!(wait > HOUR / 2 && wait <= HOUR, "{wait:?}");
    assert_eq!(listed[0].id, message.id);
    // It is put off for as long as the service can, by whoever receives it.
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
}

#[tokio::test]
async fn what_a_poll_brings_for_nobody_is_given_back() {
    let (fake, queue) = with_message().await;
    fake.state().slow_pulls = Duration::from_millis(300);
    for wait in [Duration::ZERO, Duration::from_secs(20)] {
        let given_up = queue.lease(1, HOUR, wait);
        assert!(tokio::time::timeout(Duration::from_millis(50), given_up).await.is_err());
        // The pull is under way when nobody waits any more.
        let closing = std::time::Instant::now();
        queue.shared.under_way.close();
        queue.shared.under_way.wait().await;
        queue.shared.under_way.reopen();
        assert!(closing.elapsed() > Duration::from_millis(100), "{:?}", closing.elapsed());
        assert_eq!(fake.messages(S), (1, 1), "{wait:?}");
    }
}

#[tokio::test]
async fn closing_waits_for_the_last_poll_and_not_for_a_message() {
    let fake = Fake::start().await;
    let queue = open(&fake, &at(Some("s")), true).await.unwrap();
    let given_up = queue.lease(1, HOUR, Duration::from_secs(60));
    assert!(tokio::time::timeout(Duration::from_millis(50), given_up).await.is_err());
    let closing = std::time::Instant::now();
    queue.close().await;
    let waited = closing.elapsed();
    assert!(waited < Duration::from_secs(8), "{waited:?}");
    // Though it waits for what is under way.
    assert!(waited > Duration::from_millis(100), "{waited:?}");
}

#[tokio::test]
async fn a_queue_that_would_lose_messages_is_not_opened() {
    let fake = Fake::start().await;
    let check = async |at: &PubSub, create: bool, words: &str| {
        let problem = problem(open(&fake, at, create).await);
        assert!(problem.contains(words), "{problem}");
    };
    check(&at(Some("s")), false, "there is no topic t in project p; --create-queues").await;
    open(&fake, &at(Some("s")), true).await.unwrap();
    check(&at(Some("other")), false, "there is no subscription other in project p").await;
    let change = |change: fn(&mut api::Subscription)| fake.configure(S, change);
    change(|s| s.topic = "_deleted-topic_".to_owned());
    check(&at(Some("s")), true, "the topic of subscription s was deleted").await;
    // And then nobody listens to the topic.
    check(&at(None), false, "has no subscription, and would lose").await;
    change(|s| s.topic = "projects/p/topics/u".to_owned());
    check(&at(Some("s")), true, "is of projects/p/topics/u, not of projects/p/topics/t").await;
    change(|s| s.topic = "projects/p/topics/t".to_owned());
    change(|s| s.detached = true);
    check(&at(Some("s")), true, "detached").await;
    change(|s| s.detached = false);
    change(|s| s.push_config.get_or_insert_default().push_endpoint = "https://a".to_owned());
    check(&at(Some("s")), true, "sends its messages elsewhere").await;
}

#[tokio::test]
async fn a_queue_without_a_subscription_can_only_be_sent_to() {
    let (fake, _) = with_message().await;
    let queue = open(&fake, &at(None), false).await.unwrap();
    queue.send(&[Bytes::new()]).await.remove(0).unwrap();
    assert_eq!(fake.messages(S).0, 2);
    let leased = queue.lease(1, HOUR, Duration::ZERO).await;
    assert!(problem(leased).contains("names no subscription"));
}

#[tokio::test]
async fn a_subscription_that_is_made_keeps_its_messages() {
    let (fake, _queue) = with_message().await;
    fake.configure(S, |s| {
        assert_eq!(s.ack_deadline_seconds, 60);
        assert_eq!(s.message_retention_duration.unwrap().seconds, 7 * 24 * 3600);
        // It never expires.
        assert_eq!(s.expiration_policy.unwrap().ttl, None);
        assert!(!s.enable_message_ordering);
    });
}
