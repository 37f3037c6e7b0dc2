//! Bodies that are too large for SQS.

use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use serde_json::json;

use super::fake::{self, Fake};
use super::*;
use crate::message;

const NAME: &str = "tasks";

struct Large {
    fake: Fake,
    store: Arc<InMemory>,
    queue: SqsQueue,
}

/// A queue for messages of up to 2,000 bytes, and a bucket for larger ones.
async fn large() -> Large {
    let fake = Fake::default();
    fake.make(NAME, |queue| queue.limit = 2000);
    let store = Arc::new(InMemory::new());
    let queue = open(&fake, &store, Some("s3://bodies/here")).await;
    Large { fake, store, queue }
}

async fn open(fake: &Fake, store: &Arc<InMemory>, bucket: Option<&str>) -> SqsQueue {
    open_with(fake, store, bucket, None).await
}

/// Opens a queue whose bodies may also be reports.
async fn open_for_reports(large: &Large) -> SqsQueue {
    open_with(&large.fake, &large.store, Some("s3://bodies/here"), Some(is_report)).await
}

async fn open_with(
    fake: &Fake,
    store: &Arc<InMemory>,
    bucket: Option<&str>,
    is_report: Option<fn(&[u8]) -> bool>,
) -> SqsQueue {
    use aws_sdk_sqs::config::IntoShared;
    let overrides = TestOverrides {
        credentials: Some(credentials()),
        http: Some(fake.clone().into_shared()),
        large_bodies: Some(store.clone()),
    };
    let access = Access { body_bucket: bucket.map(str::to_owned), is_report, ..Access::default() };
    SqsQueue::open_with(&Sqs::Url(fake::url(NAME)), &access, overrides).await.unwrap()
}

fn is_report(body: &[u8]) -> bool {
    body.windows(11).any(|text| text == b"\"exception\"")
}

/// A task with this number of characters in its payload.
fn task(characters: usize) -> Bytes {
    let payload = "ü".repeat(characters);
    let info = r#"{"name": "A", "base_directory": "d"}"#;
    format!(r#"{{"basic_info": {info}, "payload_info": "{payload}"}}"#).into()
}

/// Sends a message that points to this object. Anyone who can send messages can do this.
fn forge(fake: &Fake, bucket: &str, key: &str) {
    let pointer = json!([
        "software.amazon.payloadoffloading.PayloadS3Pointer",
        {"s3BucketName": bucket, "s3Key": key}
    ]);
    let size = json!({"ExtendedPayloadSize": {"DataType": "Number", "StringValue": "100"}});
    let entry = json!({
        "Id": "1", "MessageBody": pointer.to_string(), "MessageAttributes": size,
    });
    fake.with(NAME, |queue| queue.send(&entry)).unwrap();
}

async fn objects(store: &InMemory) -> Vec<Path> {
    store.list(None).map(|found| found.unwrap().location).collect().await
}

#[tokio::test]
async fn a_large_body_goes_through_the_bucket_and_is_gone_when_it_is_done() {
    let Large { fake, store, queue } = large().await;
    let body = task(50_000);
    let results = queue.send(&[body.clone(), "small".into()]).await;
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    let pointer = fake.with(NAME, |q| q.bodies().into_iter().find(|b| b != "small").unwrap());
    let key = objects(&store).await.remove(0).to_string();
    let expected = format!(
        r#"["software.amazon.payloadoffloading.PayloadS3Pointer",{{"s3BucketName":"bodies","s3Key":"{key}"}}]"#
    );
    assert_eq!(pointer, expected);
    assert!(key.starts_with("here/"), "{key}");

    // The message is delivered again after each failure.
    for attempts in 0..3 {
        let found = queue.lease(10, LONG, NONE).await.unwrap();
        for message in found {
            if message.body == body {
                assert_eq!(message.attempts, attempts);
                queue.release(&message.receipt, NONE, Release::Failed("x")).await.unwrap();
            } else {
                queue.ack(&message.receipt).await.unwrap();
            }
        }
        assert_eq!(objects(&store).await.len(), 1);
    }
    let message = queue.lease(1, LONG, NONE).await.unwrap().remove(0);
    assert_eq!(message.body, body);
    queue.ack(&message.receipt).await.unwrap();
    assert!(objects(&store).await.is_empty());
    assert!(fake.with(NAME, |q| q.bodies()).is_empty());
}

#[tokio::test]
async fn a_body_in_another_bucket_is_not_fetched() {
    let Large { fake, store, queue } = large().await;
    queue.send(&[task(3000)]).await.remove(0).unwrap();
    for bucket in [Some("s3://other/here"), Some("s3://bodies/elsewhere"), None] {
        let theirs = open(&fake, &store, bucket).await;
        let message = theirs.lease(1, LONG, NONE).await.unwrap().remove(0);
        assert!(message.body.starts_with(b"[\"software.amazon"), "{:?}", message.body);
        assert!(message.unread.is_some() && message.task().is_err());
        theirs.release(&message.receipt, NONE, Release::Uncounted).await.unwrap();
    }
    let ours = queue.lease(1, LONG, NONE).await.unwrap().remove(0);
    assert_eq!(ours.body, task(3000));
}

#[tokio::test]
async fn a_body_that_is_not_there_is_no_reason_to_hang() {
    let Large { store, queue, .. } = large().await;
    queue.send(&[task(3000)]).await.remove(0).unwrap();
    for path in objects(&store).await {
        store.delete(&path).await.unwrap();
    }
    let message = queue.lease(1, LONG, NONE).await.unwrap().remove(0);
    let problem = message.unread.unwrap();
    assert!(problem.contains("does not exist"), "{problem}");
    queue.ack(&message.receipt).await.unwrap();
}

const NAMES: [&str; 3] = [
    "0b5e7c9e-6a58-4c3e-9d0a-5d1f0a7f3c11",
    "1b5e7c9e-6a58-4c3e-9d0a-5d1f0a7f3c11",
    "2b5e7c9e-6a58-4c3e-9d0a-5d1f0a7f3c11",
];

#[tokio::test]
async fn forged_pointers_neither_tell_nor_delete_anything() {
    let Large { fake, store, queue } = large().await;
    const SECRET: &str = "a secret";
    // Valid tasks and a component under names that are not names of bodies, and other data under
    // names of bodies.
    let objects = [
        ("components/NO_OP.wasm".to_owned(), Bytes::from(SECRET)),
        ("here/task.json".to_owned(), task(1)),
        (NAMES[0].to_owned(), task(1)),
        (format!("here/more/{}", NAMES[0]), task(1)),
        (format!("here/{}", NAMES[0]), Bytes::from(SECRET)),
        (format!("here/{}", NAMES[1]), json!({"secret": SECRET}).to_string().into()),
        (format!("here/{}", NAMES[2]), vec![b' '; message::LONGEST + 1].into()),
    ];
    for (key, content) in &objects {
        store.put(&Path::from(key.as_str()), content.clone().into()).await.unwrap();
        forge(&fake, "bodies", key);
    }
    forge(&fake, "bodies", "here/../components/NO_OP.wasm");
    let found = queue.lease(10, LONG, NONE).await.unwrap();
    assert_eq!(found.len(), objects.len() + 1);
    for (n, message) in found.iter().enumerate() {
        let said = format!("{:?} {:?}", message.body, message.task().unwrap_err());
        assert!(message.body.starts_with(b"[\"software.amazon"), "{said}");
        assert!(!said.contains(SECRET), "{said}");
        match n % 2 {
            0 => queue.give_up(&message.receipt).await.unwrap(),
            _ => queue.ack(&message.receipt).await.unwrap(),
        }
    }
    for (key, content) in objects {
        let there = store.get(&Path::from(key.as_str())).await.unwrap().bytes().await.unwrap();
        assert!(there == content, "{key}");
    }
}

#[tokio::test]
async fn a_report_is_a_body_only_for_who_looks_for_reports() {
    let large = large().await;
    let key = format!("here/{}", NAMES[0]);
    let report = json!({"host_info": {}, "task": {"secret": 1}, "exception": "x"}).to_string();
    large.store.put(&Path::from(key.as_str()), report.clone().into()).await.unwrap();
    forge(&large.fake, "bodies", &key);
    let message = large.queue.lease(1, LONG, NONE).await.unwrap().remove(0);
    assert!(message.unread.is_some() && !message.body.ends_with(b"secret"));
    large.queue.release(&message.receipt, NONE, Release::Uncounted).await.unwrap();
    let theirs = open_for_reports(&large).await;
    let message = theirs.lease(1, LONG, NONE).await.unwrap().remove(0);
    assert_eq!((message.body, message.unread), (report.into(), None));
    theirs.give_up(&message.receipt).await.unwrap();
    assert!(objects(&large.store).await.is_empty());
}

/// A remaining weakness: a sender who knows the name of another message's body can have that task
/// run under their own message. The other message is then reported with the location of its missing
/// body.
#[tokio::test]
async fn a_body_with_two_messages_is_the_first_ones() {
    let Large { fake, store, queue } = large().await;
    queue.send(&[task(3000)]).await.remove(0).unwrap();
    let key = objects(&store).await.remove(0).to_string();
    let first = queue.lease(1, LONG, NONE).await.unwrap().remove(0);
    forge(&fake, "bodies", &key);
    let second = queue.lease(1, LONG, NONE).await.unwrap().remove(0);
    assert_eq!((&first.body, &second.body), (&task(3000), &task(3000)));
    queue.ack(&second.receipt).await.unwrap();
    assert!(objects(&store).await.is_empty());
    queue.release(&first.receipt, NONE, Release::Uncounted).await.unwrap();
    let first = queue.lease(1, LONG, NONE).await.unwrap().remove(0);
    let problem = first.unread.unwrap();
    assert!(problem.contains(&key) && problem.contains("does not exist"), "{problem}");
    // An expired lease deletes neither the message nor the body.
    queue.send(&[task(3000)]).await.remove(0).unwrap();
    let message = queue.lease(1, SHORT, NONE).await.unwrap().remove(0);
    tokio::time::sleep_until(queue.until(&message.receipt).unwrap()).await;
    let lost = queue.ack(&message.receipt).await;
    assert!(matches!(lost, Err(QueueError::LeaseLost { .. })), "{lost:?}");
    assert_eq!(objects(&store).await.len(), 1);
}

#[tokio::test]
async fn a_message_has_no_name_that_its_sender_made_up() {
    let Large { fake, queue, .. } = large().await;
    for id in ["x".repeat(1000), "a\nb".to_owned(), "\u{202e}".to_owned(), "../x y".to_owned()] {
        let attributes = json!({"task-host-id": {"DataType": "String", "StringValue": id}});
        let entry = json!({"Id": "1", "MessageBody": "{}", "MessageAttributes": attributes});
        fake.with(NAME, |queue| queue.send(&entry)).unwrap();
        let message = queue.lease(1, LONG, NONE).await.unwrap().remove(0);
        assert_ne!(message.id, id);
        queue.ack(&message.receipt).await.unwrap();
    }
}
