//! Bodies that are too large for SQS.

use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use super::*;
use crate::queue::sqs::fake::{self, Fake};

const NAME: &str = "tasks";

struct Large {
    fake: Fake,
    store: Arc<InMemory>,
    queue: SqsQueue,
}

/// A queue for messages of 2,000 bytes, and a bucket for the others.
async fn large() -> Large {
    let fake = Fake::default();
    fake.make(NAME, |queue| queue.limit = 2000);
    let store = Arc::new(InMemory::new());
    let queue = open(&fake, &store, Some("s3://bodies/here")).await;
    Large { fake, store, queue }
}

async fn open(fake: &Fake, store: &Arc<InMemory>, bucket: Option<&str>) -> SqsQueue {
    use aws_sdk_sqs::config::IntoShared;
    let instead = Instead {
        credentials: Some(credentials()),
        http: Some(fake.clone().into_shared()),
        payloads: Some(store.clone()),
    };
    let access = Access { body_bucket: bucket.map(str::to_owned), ..Access::default() };
    SqsQueue::open_with(&Sqs::Url(fake::url(NAME)), &access, instead).await.unwrap()
}

async fn objects(store: &InMemory) -> Vec<Path> {
    store.list(None).map(|found| found.unwrap().location).collect().await
}

#[tokio::test]
async fn a_large_body_goes_through_the_bucket_and_is_gone_when_it_is_done() {
    let Large { fake, store, queue } = large().await;
    let body = Bytes::from("ü".repeat(50_000));
    let results = queue.send(&[body.clone(), "small".into()]).await;
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    let pointer = fake.with(NAME, |q| q.bodies().into_iter().find(|b| b != "small").unwrap());
    let key = objects(&store).await.remove(0).to_string();
    let expected = format!(
        r#"["software.amazon.payloadoffloading.PayloadS3Pointer",{{"s3BucketName":"bodies","s3Key":"{key}"}}]"#
    );
    assert_eq!(pointer, expected);
    assert!(key.starts_with("here/"), "{key}");

    // It is there again after a failure, as often as need be.
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
    queue.send(&["x".repeat(3000).into()]).await.remove(0).unwrap();
    for bucket in [Some("s3://other"), Some("s3://bodies/elsewhere"), None] {
        let theirs = open(&fake, &store, bucket).await;
        let message = theirs.lease(1, LONG, NONE).await.unwrap().remove(0);
        assert!(message.body.starts_with(b"[\"software.amazon"), "{:?}", message.body);
        theirs.release(&message.receipt, NONE, Release::Uncounted).await.unwrap();
    }
    let ours = queue.lease(1, LONG, NONE).await.unwrap().remove(0);
    assert_eq!(ours.body.len(), 3000);
}

#[tokio::test]
async fn a_body_that_is_not_there_is_no_reason_to_hang() {
    let Large { store, queue, .. } = large().await;
    queue.send(&["x".repeat(3000).into()]).await.remove(0).unwrap();
    for path in objects(&store).await {
        store.delete(&path).await.unwrap();
    }
    let message = queue.lease(1, LONG, NONE).await.unwrap().remove(0);
    assert!(message.body.starts_with(b"["), "{:?}", message.body);
    queue.ack(&message.receipt).await.unwrap();
}
