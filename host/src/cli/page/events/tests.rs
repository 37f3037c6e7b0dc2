//! Tests of the feed. Their clock advances only while all tasks of the runtime wait.

use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::BodyDataStream;
use futures_util::StreamExt;
use serde_json::json;

use super::*;

/// Figures that a test changes, and the number of times they were requested.
#[derive(Default)]
struct Source {
    done: AtomicU64,
    asked: AtomicU64,
}

impl Source {
    fn feed(self: &Arc<Self>) -> Arc<Feed> {
        let source = self.clone();
        Feed::start(move || {
            let asked = source.asked.fetch_add(1, Ordering::Relaxed);
            let done = source.done.load(Ordering::Relaxed);
            text(json!({"now": {"time": asked, "done": done}}))
        })
    }
}

/// Figures in the format that a page gets.
async fn text(figures: Value) -> Arc<str> {
    figures.to_string().into()
}

async fn open(feed: &Arc<Feed>) -> BodyDataStream {
    let answer = follow(State(feed.clone())).await;
    assert_eq!(answer.status(), StatusCode::OK);
    let mut events = answer.into_body().into_data_stream();
    assert_eq!(events.next().await.unwrap().unwrap(), RETRY);
    events
}

/// Waits for the next event. Returns its number of done tasks, or none for an event without
/// figures.
async fn done(events: &mut BodyDataStream) -> Option<u64> {
    let event = events.next().await.unwrap().unwrap();
    if event == STILL {
        return None;
    }
    let text = std::str::from_utf8(&event).unwrap();
    let line = text.strip_prefix("data: ").unwrap().strip_suffix("\n\n").unwrap();
    let figures: Value = serde_json::from_str(line).unwrap();
    figures["now"]["done"].as_u64()
}

#[tokio::test(start_paused = true)]
async fn a_slow_client_gets_the_newest_figures_and_nothing_is_kept_for_it() {
    let source = Arc::new(Source::default());
    let feed = source.feed();
    let (mut quick, mut slow) = (open(&feed).await, open(&feed).await);
    assert_eq!(done(&mut slow).await, Some(0));
    assert_eq!(done(&mut quick).await, Some(0));
    for number in 1..=100 {
        source.done.store(number, Ordering::Relaxed);
        assert_eq!(done(&mut quick).await, Some(number));
    }
    assert_eq!(done(&mut slow).await, Some(100));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_knows_the_figures_hears_that_the_connection_lives() {
    let source = Arc::new(Source::default());
    let feed = source.feed();
    let mut events = open(&feed).await;
    assert_eq!(done(&mut events).await, Some(0));
    let start = Instant::now();
    assert_eq!(done(&mut events).await, None);
    assert!(start.elapsed() >= LONGEST, "{:?}", start.elapsed());
    // A client that connects now gets the figures.
    assert_eq!(done(&mut open(&feed).await).await, Some(0));
}

#[tokio::test(start_paused = true)]
async fn figures_are_made_only_while_a_page_is_open() {
    let source = Arc::new(Source::default());
    let feed = source.feed();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(source.asked.load(Ordering::Relaxed), 0);
    let mut events = open(&feed).await;
    assert_eq!(done(&mut events).await, Some(0));
    drop(events);
    // The feed may be computing figures at this moment.
    tokio::time::sleep(2 * SHORTEST).await;
    let asked = source.asked.load(Ordering::Relaxed);
    source.done.store(7, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(source.asked.load(Ordering::Relaxed), asked);
    assert_eq!(done(&mut open(&feed).await).await, Some(7), "not what was known before");
}

#[tokio::test(start_paused = true)]
async fn more_clients_than_allowed_are_turned_away_until_one_leaves() {
    let feed = Arc::new(Source::default()).feed();
    let mut clients = Vec::new();
    for _ in 0..MOST_CLIENTS {
        clients.push(open(&feed).await);
    }
    let refused = follow(State(feed.clone())).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    clients.pop();
    assert_eq!(done(&mut open(&feed).await).await, Some(0));
}

#[tokio::test(start_paused = true)]
async fn large_figures_are_sent_less_often() {
    let number = AtomicU64::new(0);
    let feed = Feed::start(move || {
        let done = number.fetch_add(1, Ordering::Relaxed);
        text(json!({"now": {"done": done}, "text": "x".repeat(10 << 18)}))
    });
    let mut events = open(&feed).await;
    assert_eq!(done(&mut events).await, Some(0));
    let start = Instant::now();
    assert_eq!(done(&mut events).await, Some(1));
    assert!(start.elapsed() >= 10 * SHORTEST, "{:?}", start.elapsed());
}

#[test]
fn the_time_alone_is_no_change() {
    let figures = |time| {
        let host = json!({"age_seconds": time, "snapshot": {"time": 5}});
        without_clock(&json!({"now": {"time": time, "done": 1}, "hosts": [host]}).to_string())
    };
    assert_eq!(figures(1), figures(2));
    let kept = json!({"now": {"done": 1}, "hosts": [{"snapshot": {"time": 5}}]});
    assert_eq!(figures(1), kept);
}
