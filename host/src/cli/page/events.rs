//! `/api/events`: sends the figures of a page as server-sent events whenever they change.
//!
//! The figures are computed once for all pages, and only while a page is open. A client that reads
//! slowly misses events: it always gets the newest figures, and there is no backlog for it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, RETRY_AFTER};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use serde_json::Value;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;

/// The maximum number of open pages.
const MOST_CLIENTS: usize = 32;
/// The minimum time between two events.
const SHORTEST: Duration = Duration::from_secs(1);
/// The maximum time between two events. A client that gets none for longer has lost its connection.
const LONGEST: Duration = Duration::from_secs(15);
/// The maximum average rate for one client. Large figures are sent less often.
const MOST_BYTES_PER_SECOND: u32 = 256 * 1024;
/// An event for a client that has the newest figures already.
const STILL: Bytes = Bytes::from_static(b"event: still\ndata:\n\n");
/// How long a browser waits before it connects again.
const RETRY: &[u8] = b"retry: 2000\n\n";

/// The newest figures, for all clients.
pub(super) struct Feed {
    newest: watch::Sender<Newest>,
    /// Notified when a client connects.
    joined: Notify,
    places: Arc<Semaphore>,
}

/// The newest figures as an event.
#[derive(Clone, Default)]
struct Newest {
    /// The number of the event; 0 if there are no figures yet.
    number: u64,
    event: Bytes,
}

impl Feed {
    /// Starts a feed that computes its figures in the current runtime.
    pub(super) fn start<F, A>(figures: F) -> Arc<Self>
    where
        F: Fn() -> A + Send + Sync + 'static,
        A: Future<Output = Arc<str>> + Send + 'static,
    {
        let feed = Arc::new(Self {
            newest: watch::Sender::default(),
            joined: Notify::new(),
            places: Arc::new(Semaphore::new(MOST_CLIENTS)),
        });
        tokio::spawn(publish(feed.clone(), figures));
        feed
    }
}

/// Produces events while there are clients. Never returns.
async fn publish<F, A>(feed: Arc<Feed>, figures: F)
where
    F: Fn() -> A,
    A: Future<Output = Arc<str>>,
{
    let mut number = 0;
    loop {
        feed.joined.notified().await;
        let mut known = Value::Null;
        let mut sent = Instant::now();
        while feed.newest.receiver_count() > 0 {
            let text = figures().await;
            let mut pause = SHORTEST;
            let made = without_clock(&text);
            if made != known {
                known = made;
                number += 1;
                sent = Instant::now();
                let event = Bytes::from(format!("data: {text}\n\n"));
                let fair = SHORTEST * event.len() as u32 / MOST_BYTES_PER_SECOND;
                pause = fair.clamp(SHORTEST, LONGEST);
                feed.newest.send_replace(Newest { number, event });
            } else if sent.elapsed() >= LONGEST {
                sent = Instant::now();
                feed.newest.send_modify(|_| ());
            }
            tokio::time::sleep(pause).await;
        }
        // Forget the figures, so that the next client gets new ones.
        feed.newest.send_replace(Newest::default());
    }
}

/// The figures without their times, which change even if nothing else does.
fn without_clock(figures: &str) -> Value {
    let mut figures: Value = serde_json::from_str(figures).unwrap_or_default();
    if let Some(now) = figures.get_mut("now").and_then(Value::as_object_mut) {
        now.remove("time");
    }
    for host in figures.get_mut("hosts").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(host) = host.as_object_mut() {
            host.remove("age_seconds");
        }
    }
    figures
}

/// A client that follows a feed.
struct Client {
    newest: watch::Receiver<Newest>,
    /// The number of the last event that it received.
    has: u64,
    _place: OwnedSemaphorePermit,
}

/// The answer to `GET /api/events`.
pub(super) async fn follow(State(feed): State<Arc<Feed>>) -> Response {
    let Ok(place) = feed.places.clone().try_acquire_owned() else {
        let why = format!("{MOST_CLIENTS} pages are open, and no more are allowed\n");
        return (StatusCode::SERVICE_UNAVAILABLE, [(RETRY_AFTER, "10")], why).into_response();
    };
    let mut newest = feed.newest.subscribe();
    // This client has not seen the current figures, which others may have.
    newest.mark_changed();
    feed.joined.notify_one();
    let client = Client { newest, has: 0, _place: place };
    let first = stream::iter([Ok::<_, Infallible>(Bytes::from_static(RETRY))]);
    let events = stream::unfold(client, |mut client| async {
        let event = client.next().await?;
        Some((Ok::<_, Infallible>(event), client))
    });
    let body = Body::from_stream(stream::StreamExt::chain(first, events));
    const UNBUFFERED: HeaderName = HeaderName::from_static("x-accel-buffering");
    let headers =
        [(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-store"), (UNBUFFERED, "no")];
    (headers, body).into_response()
}

impl Client {
    /// Waits for the next event. `None` when the feed has ended.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            self.newest.changed().await.ok()?;
            let newest = self.newest.borrow_and_update();
            if newest.number == 0 {
                continue;
            }
            if newest.number == self.has {
                return Some(STILL);
            }
            self.has = newest.number;
            return Some(newest.event.clone());
        }
    }
}

#[cfg(test)]
mod tests;
