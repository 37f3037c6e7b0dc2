//! Tests against the server that the test command starts.

use super::*;
use crate::queue;

/// The server's URL.
fn endpoint() -> String {
    std::env::var("TASK_HOST_TEST_AWS")
        .expect("TASK_HOST_TEST_AWS is not set: run by `cargo xtask test`")
}

fn named(name: &str) -> Sqs {
    Sqs::Url(format!("{}/000000000000/{name}", endpoint()))
}

fn unique() -> String {
    format!("task-host-{}", uuid::Uuid::new_v4())
}

async fn open(address: &Sqs, access: &Access) -> Result<SqsQueue, QueueError> {
    let overrides = TestOverrides { credentials: Some(credentials()), ..TestOverrides::default() };
    SqsQueue::open_with(address, access, overrides).await
}

async fn subject(name: &str) -> Subject {
    let create = Access { create: true, ..Access::default() };
    let ours = open(&named(name), &create).await.unwrap();
    let theirs = open(&named(name), &Access::default()).await.unwrap();
    let limit = ours.inner.settings.limit;
    Subject::new(Arc::new(ours), Arc::new(theirs), ()).texts_only().limited_to(limit).polling()
}

suite!({ subject(&unique()).await.counting_failures() });

mod fifo {
    use super::*;

    suite!({ subject(&format!("{}.fifo", unique())).await.counting_own_failures() });
}

#[tokio::test]
async fn a_queue_that_is_not_there_is_told_with_how_to_make_it() {
    let address = named(&unique());
    let error = open(&address, &Access::default()).await.unwrap_err();
    assert!(matches!(error, QueueError::Invalid { .. }), "{error}");
    for part in [address.name(), "us-east-1", "--create-queues"] {
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[tokio::test]
async fn looking_into_a_queue_changes_nothing() {
    let name = unique();
    let access = Access { create: true, ..Access::default() };
    let queue = open(&named(&name), &access).await.unwrap();
    let bodies: Vec<Bytes> = (0..25).map(|n: u32| n.to_string().into()).collect();
    for sent in queue.send(&bodies).await {
        sent.unwrap();
    }
    let admin = Admin::of(open(&named(&name), &access).await.unwrap());
    for _ in 0..2 {
        let seen: Vec<_> = queue::Admin::messages(&admin).collect().await;
        let mut seen: Vec<u32> = seen
            .into_iter()
            .map(|listed| {
                let listed = listed.unwrap();
                assert!(listed.sent.is_some());
                String::from_utf8(listed.body.to_vec()).unwrap().parse().unwrap()
            })
            .collect();
        seen.sort();
        assert_eq!(seen, (0..25).collect::<Vec<_>>());
    }
    let mut left = 0;
    loop {
        let found = queue.lease(10, LONG, NONE).await.unwrap();
        if found.is_empty() {
            break;
        }
        assert!(found.iter().all(|message| message.attempts == 0));
        left += found.len();
    }
    assert_eq!(left, 25);
    assert_eq!(queue::Admin::counts(&admin).await.unwrap().leased, Some(25));
    queue::Admin::purge(&admin).await.unwrap();
    assert_eq!(queue::Admin::counts(&admin).await.unwrap().enqueued, Some(0));
}

#[tokio::test]
async fn a_service_that_is_not_there_is_told_with_where_it_was_sought() {
    let check = async |url: &str, why: &str| {
        let address = Sqs::Url(format!("{url}/000000000000/x"));
        let error = open(&address, &Access::default()).await.unwrap_err();
        assert!(matches!(error, QueueError::Unavailable { .. }), "{error}");
        assert!(error.to_string().contains(url), "{error}");
        assert!(error.to_string().contains(why), "{error}");
    };
    check("http://127.0.0.1:1", "Connection refused").await;
    check("http://nobody.invalid", "dns error").await;
}
