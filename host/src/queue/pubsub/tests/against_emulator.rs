//! Tests against Google's emulator.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::TryStreamExt;
use gcloud_gax::conn::Environment;

use super::*;
use crate::queue::Admin as _;
use crate::queue::conformance::{Subject, suite};

fn emulator() -> String {
    std::env::var("TASK_HOST_TEST_PUBSUB").expect("run by `cargo xtask test`")
}

/// An address that no other test uses.
fn fresh() -> PubSub {
    let name = format!("t-{}", uuid::Uuid::new_v4());
    let subscription = Some(format!("{name}-s"));
    PubSub { project: "test".to_owned(), topic: name, subscription }
}

async fn client(at: &PubSub) -> Client {
    Client::to(at, Environment::Emulator(emulator())).await.unwrap()
}

async fn open(at: &PubSub, access: &Access) -> Result<PubSubQueue, QueueError> {
    PubSubQueue::with(client(at).await, at, access).await
}

mod conformance {
    use super::*;

    suite!({
        let at = fresh();
        let access = Access { create: true, ..Access::default() };
        let ours = open(&at, &access).await.unwrap();
        let theirs = open(&at, &Access::default()).await.unwrap();
        Subject::new(Arc::new(ours), Arc::new(theirs), ())
            .counting_failures()
            .polling()
            .limited_to(send::BYTES)
    });
}

/// A new queue, and its `Admin`.
async fn made() -> (PubSubQueue, Admin) {
    let at = fresh();
    let queue = open(&at, &Access { create: true, ..Access::default() }).await.unwrap();
    let admin = Admin::with(client(&at).await, &at, &Access::default()).await.unwrap();
    (queue, admin)
}

async fn send(queue: &PubSubQueue, bodies: &[Bytes]) {
    for result in queue.send(bodies).await {
        result.unwrap();
    }
}

async fn lease_all(queue: &PubSubQueue) -> Vec<Message> {
    let mut all = Vec::new();
    loop {
        let found = queue.lease(1000, MAX_LEASE, Duration::ZERO).await.unwrap();
        if found.is_empty() {
            return all;
        }
        all.extend(found);
    }
}

#[tokio::test]
async fn what_is_not_there_is_not_made_unless_asked_for() {
    let at = fresh();
    let error = open(&at, &Access::default()).await.unwrap_err().to_string();
    assert!(error.starts_with(&at.to_string()) && error.contains("--create-queues"), "{error}");
    let access = Access { create: true, ..Access::default() };
    open(&at, &access).await.unwrap();
    // An existing queue is used unchanged.
    open(&at, &access).await.unwrap();
}

#[tokio::test]
async fn thousands_are_sent_in_a_few_requests() {
    let (queue, _) = made().await;
    let bodies: Vec<Bytes> = (0..2500).map(|n| n.to_string().into()).collect();
    send(&queue, &bodies).await;
    assert_eq!(queue.requests().unwrap().send, 3);
    let found = lease_all(&queue).await;
    let found: BTreeSet<Bytes> = found.into_iter().map(|message| message.body).collect();
    assert!(found == bodies.into_iter().collect());
}

#[tokio::test]
async fn a_message_that_is_too_large_is_refused_alone() {
    let (queue, _) = made().await;
    let large = |bytes: usize| Bytes::from(vec![b'x'; bytes]);
    let bodies = [large(1), large(10_000_001), large(9_900_000), large(2)];
    let sent = queue.send(&bodies).await;
    let ok: Vec<bool> = sent.iter().map(Result::is_ok).collect();
    assert_eq!(ok, [true, false, true, true]);
    let error = sent[1].as_ref().unwrap_err().to_string();
    assert!(error.contains("10000001 bytes is too large"), "{error}");
    let found = lease_all(&queue).await;
    let sizes: BTreeSet<usize> = found.iter().map(|message| message.body.len()).collect();
    assert_eq!(sizes, [1, 2, 9_900_000].into());
    // A large message can also be retried.
    let message = found.into_iter().find(|message| message.body.len() > 2).unwrap();
    queue.release(&message.receipt, Duration::ZERO, Release::Failed("x")).await.unwrap();
    assert_eq!(lease_all(&queue).await[0].attempts, 1);
}

#[tokio::test]
async fn an_ordering_key_keeps_what_was_sent_in_order() {
    let at = fresh();
    let group = Some("group".to_owned());
    let access = Access { create: true, group, ..Access::default() };
    let queue = open(&at, &access).await.unwrap();
    let bodies: Vec<Bytes> = (0..2200).map(|n| n.to_string().into()).collect();
    send(&queue, &bodies).await;
    let found = lease_all(&queue).await;
    let keys = found.iter().map(|m| queue.shared.lease_of(&m.receipt).unwrap());
    let keys: BTreeSet<String> =
        keys.map(|held| held.envelope.again(Duration::ZERO, Some("x")).ordering_key).collect();
    assert_eq!(keys, ["group".to_owned()].into());
}

#[tokio::test]
async fn looking_at_the_messages_leaves_them_where_they_are() {
    let (queue, admin) = made().await;
    let bodies: Vec<Bytes> = (0..250).map(|n| n.to_string().into()).collect();
    send(&queue, &bodies).await;
    let listed: Vec<_> = admin.messages().try_collect().await.unwrap();
    assert!(listed.iter().all(|listed| listed.sent.is_some() && listed.due.is_none()));
    let listed: BTreeSet<Bytes> = listed.into_iter().map(|listed| listed.body).collect();
    assert!(listed == bodies.iter().cloned().collect());
    // A listing that is dropped early leaves no leases either.
    let first = admin.messages().try_next().await.unwrap();
    assert!(first.is_some());
    admin.queue.close().await;
    assert_eq!(lease_all(&queue).await.len(), 250);
}

#[tokio::test]
async fn a_purge_leaves_nothing() {
    let (queue, admin) = made().await;
    let bodies = ["1", "2", "3"].map(Bytes::from);
    send(&queue, &bodies).await;
    let held = queue.lease(1, MAX_LEASE, Duration::from_secs(10)).await.unwrap().remove(0);
    assert_eq!(admin.purge().await.unwrap(), None);
    assert!(lease_all(&queue).await.is_empty());
    // A message that was held during the purge does not come back.
    queue.release(&held.receipt, Duration::ZERO, Release::Uncounted).await.unwrap();
    assert!(lease_all(&queue).await.is_empty());
    send(&queue, &bodies).await;
    assert_eq!(lease_all(&queue).await.len(), 3);
}

#[tokio::test]
async fn an_operator_is_told_what_pubsub_cannot_do() {
    let (_queue, admin) = made().await;
    assert_eq!(admin.counts().await.unwrap(), Counts::default());
    for result in [admin.release_all().await.map(drop), admin.rezero().await] {
        assert!(matches!(result, Err(QueueError::Invalid { .. })), "{result:?}");
    }
    let facts = admin.facts().await.unwrap();
    assert_eq!(facts.visibility, Some(Duration::from_secs(60)));
    assert_eq!(facts.retention, Some(Duration::from_secs(7 * 24 * 3600)));
    assert_eq!((facts.receive_limit, facts.is_ordered), (None, false));
    assert!(facts.notes[0].contains("kills its host"), "{:?}", facts.notes);
}

#[tokio::test]
async fn a_server_that_is_not_there_may_be_there_later() {
    let at = fresh();
    let nobody = Environment::Emulator("127.0.0.1:1".to_owned());
    let error = Client::to(&at, nobody).await.err().unwrap();
    assert!(matches!(error, QueueError::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains("Connection refused"), "{error}");
}
