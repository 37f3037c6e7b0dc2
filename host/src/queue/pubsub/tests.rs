//! The queue against Google's emulator.

use std::sync::Arc;

use gcloud_gax::conn::Environment;

use super::*;
use crate::queue::conformance::{Lacks, Subject, suite};

fn emulator() -> String {
    std::env::var("TASK_HOST_TEST_PUBSUB").expect("run by `cargo xtask test`")
}

/// An address that nobody else uses.
fn fresh() -> (String, PubSub) {
    let name = format!("t-{}", uuid::Uuid::new_v4());
    let at = PubSub {
        project: "test".to_owned(),
        topic: name.clone(),
        subscription: Some(format!("{name}-s")),
    };
    (format!("pubsub://projects/test/topics/{name}/subscriptions/{name}-s"), at)
}

async fn client(url: &str) -> Client {
    Client::to(url, Environment::Emulator(emulator())).await.unwrap()
}

async fn open(url: &str, at: &PubSub, access: &Access) -> Result<PubSubQueue, QueueError> {
    PubSubQueue::with(client(url).await, at, access).await
}

mod conformance {
    use super::*;

    suite!({
        let (url, at) = fresh();
        let access = Access { create: true, ..Access::default() };
        let ours = open(&url, &at, &access).await.unwrap();
        let theirs = open(&url, &at, &Access::default()).await.unwrap();
        Subject::new(Arc::new(ours), Arc::new(theirs), ())
            .lacking(Lacks { notes: true, recall: true })
    });
}
