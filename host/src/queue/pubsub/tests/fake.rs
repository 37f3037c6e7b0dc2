//! A small fake of Pub/Sub with documented features of the service that Google's emulator lacks:
//! exactly-once delivery, counted deliveries, rejected deadlines, and temporary errors. Requests
//! arrive over a real connection.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use gcloud_gax::grpc::{Code, Status};
use gcloud_googleapis::pubsub::v1 as api;
use parking_lot::{Mutex, MutexGuard};
use prost::Message;
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::status;

/// The maximum time that a pull waits for a message.
const BOUNDED: Duration = Duration::from_secs(3);

/// The server. It stops when this is dropped.
pub(super) struct Fake {
    /// The address that the server listens on.
    pub(super) host: String,
    state: Arc<Mutex<State>>,
    _serving: DropGuard,
}

/// The state of the server.
#[derive(Default)]
pub(super) struct State {
    topics: BTreeMap<String, api::Topic>,
    subscriptions: BTreeMap<String, Subscribed>,
    published: u64,
    deliveries: u64,
    /// Errors of the next requests of a method, which then have no effect.
    pub(super) faults: VecDeque<(&'static str, Status)>,
    /// The methods of all requests.
    pub(super) calls: Vec<String>,
    /// The deadlines that were set, in seconds.
    pub(super) deadlines: Vec<i32>,
    /// Whether pulls that found messages are held back, and the number of pulls that wait for a
    /// response.
    pub(super) holds_pulls: bool,
    pub(super) waiting_pulls: usize,
    /// The time by which the server's clock is ahead.
    pub(super) ahead: Duration,
}

struct Subscribed {
    config: api::Subscription,
    messages: Vec<Kept>,
}

struct Kept {
    message: api::PubsubMessage,
    ack_id: String,
    until: Instant,
    deliveries: i32,
}

impl Fake {
    pub(super) async fn start() -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let state = Arc::<Mutex<State>>::default();
        let stop = CancellationToken::new();
        let serving = serve(listener, state.clone());
        tokio::spawn(stop.clone().run_until_cancelled_owned(serving));
        Fake { host, state, _serving: stop.drop_guard() }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Changes the settings of a subscription.
    pub(super) fn configure(&self, name: &str, change: impl FnOnce(&mut api::Subscription)) {
        change(&mut self.state().subscriptions.get_mut(name).unwrap().config);
    }

    /// Ends all leases, as if they had expired.
    pub(super) fn expire(&self, name: &str) {
        let now = Instant::now();
        for kept in &mut self.state().subscriptions.get_mut(name).unwrap().messages {
            kept.until = now;
        }
    }

    /// The number of deliveries of each message, oldest first.
    pub(super) fn deliveries(&self, name: &str) -> Vec<i32> {
        self.state().subscriptions[name].messages.iter().map(|kept| kept.deliveries).collect()
    }

    /// The number of messages of a subscription, and how many of them are not leased.
    pub(super) fn messages(&self, name: &str) -> (usize, usize) {
        let state = self.state();
        let messages = &state.subscriptions[name].messages;
        let now = Instant::now();
        (messages.len(), messages.iter().filter(|kept| kept.until <= now).count())
    }
}

async fn serve(listener: TcpListener, state: Arc<Mutex<State>>) {
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        let state = state.clone();
        tokio::spawn(async move {
            let mut connection = h2::server::handshake(socket).await.unwrap();
            while let Some(Ok((request, respond))) = connection.accept().await {
                tokio::spawn(answer(state.clone(), request, respond));
            }
        });
    }
}

async fn answer(
    state: Arc<Mutex<State>>,
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
) {
    let method = request.uri().path().rsplit('/').next().unwrap().to_owned();
    let deadline = request.headers().get("grpc-timeout").map(|value| time(value.to_str().unwrap()));
    let mut stream = request.into_body();
    let mut body = BytesMut::new();
    while let Some(data) = stream.data().await {
        let Ok(data) = data else { return };
        let _ = stream.flow_control().release_capacity(data.len());
        body.extend_from_slice(&data);
    }
    // Skip a byte that says that the message is not compressed, and four bytes with its length.
    body.advance(5);
    let lock = || state.lock();
    let mut result = Ok(());
    if method == "Pull" {
        let waiting = wait_for_messages(&lock, &body);
        lock().waiting_pulls += 1;
        let waited = tokio::time::timeout(deadline.unwrap_or(Duration::MAX), waiting).await;
        lock().waiting_pulls -= 1;
        result = waited.map_err(|_| Status::deadline_exceeded("Deadline exceeded"));
    }
    let result = result.and_then(|()| lock().call(&method, &body));
    let head = http::Response::builder().header("content-type", "application/grpc");
    let Ok(mut out) = respond.send_response(head.body(()).unwrap(), false) else { return };
    let mut trailers = http::HeaderMap::new();
    match result {
        Ok(message) => {
            let mut data = BytesMut::new();
            data.put_u8(0);
            data.put_u32(u32::try_from(message.len()).unwrap());
            data.extend_from_slice(&message);
            let _ = out.send_data(data.freeze(), false);
            trailers.insert("grpc-status", "0".parse().unwrap());
        }
        Err(status) => status.add_header(&mut trailers).unwrap(),
    }
    let _ = out.send_trailers(trailers);
}

/// Parses a time in the format of gRPC.
fn time(text: &str) -> Duration {
    let (number, unit) = text.split_at(text.len() - 1);
    let number: u64 = number.parse().unwrap();
    match unit {
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => panic!("{text}"),
    }
}

/// Waits until a pull has a message to return, or its time is over.
async fn wait_for_messages<'a>(state: &impl Fn() -> MutexGuard<'a, State>, body: &[u8]) {
    let request = api::PullRequest::decode(body).unwrap();
    let end = Instant::now() + BOUNDED;
    loop {
        let found = {
            let state = state();
            let now = Instant::now();
            let is_free = |kept: &Kept| kept.until <= now;
            let found = state.subscriptions.get(&request.subscription);
            let is_there = found.is_none_or(|s| s.messages.iter().any(is_free));
            (is_there || !state.faults.is_empty()).then_some(state.holds_pulls)
        };
        if found == Some(false) {
            return;
        }
        #[expect(deprecated, reason = "it is what the client asks for")]
        if found.is_none() && (request.return_immediately || Instant::now() > end) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

impl State {
    fn call(&mut self, method: &str, body: &[u8]) -> Result<Vec<u8>, Status> {
        self.calls.push(method.to_owned());
        if self.faults.front().is_some_and(|(of, _)| *of == method) {
            return Err(self.faults.pop_front().unwrap().1);
        }
        fn read<M: Message + Default>(body: &[u8]) -> M {
            M::decode(body).unwrap()
        }
        match method {
            "CreateTopic" => {
                let topic: api::Topic = read(body);
                self.topics.insert(topic.name.clone(), topic.clone());
                Ok(topic.encode_to_vec())
            }
            "GetTopic" => {
                let name = read::<api::GetTopicRequest>(body).topic;
                self.topic(&name).map(Message::encode_to_vec)
            }
            "ListTopicSubscriptions" => {
                let name = read::<api::ListTopicSubscriptionsRequest>(body).topic;
                let of = |s: &&Subscribed| s.config.topic == name;
                let subscriptions = self.subscriptions.values().filter(of);
                let subscriptions = subscriptions.map(|s| s.config.name.clone()).collect();
                let next_page_token = String::new();
                let list = api::ListTopicSubscriptionsResponse { subscriptions, next_page_token };
                Ok(list.encode_to_vec())
            }
            "CreateSubscription" => {
                let config: api::Subscription = read(body);
                self.topic(&config.topic)?;
                let encoded = config.encode_to_vec();
                let name = config.name.clone();
                self.subscriptions.insert(name, Subscribed { config, messages: Vec::new() });
                Ok(encoded)
            }
            "GetSubscription" => {
                let name = read::<api::GetSubscriptionRequest>(body).subscription;
                self.subscribed(&name).map(|found| found.config.encode_to_vec())
            }
            "Publish" => self.publish(read(body)),
            "Pull" => self.pull(read(body)),
            "ModifyAckDeadline" => {
                let request: api::ModifyAckDeadlineRequest = read(body);
                let seconds = request.ack_deadline_seconds;
                if !(0..=600).contains(&seconds) {
                    return Err(Status::invalid_argument("Invalid ack deadline"));
                }
                self.deadlines.push(seconds);
                let until = Instant::now() + Duration::from_secs(seconds.unsigned_abs().into());
                self.each_held(&request.subscription, &request.ack_ids, |kept| {
                    kept.until = until;
                    true
                })
            }
            "Acknowledge" => {
                let request: api::AcknowledgeRequest = read(body);
                self.each_held(&request.subscription, &request.ack_ids, |_| false)
            }
            _ => Err(Status::unimplemented(method)),
        }
    }

    fn topic(&self, name: &str) -> Result<&api::Topic, Status> {
        self.topics.get(name).ok_or_else(|| Status::not_found("Resource not found"))
    }

    fn subscribed(&mut self, name: &str) -> Result<&mut Subscribed, Status> {
        let found = self.subscriptions.get_mut(name);
        found.ok_or_else(|| Status::not_found("Resource not found"))
    }

    fn publish(&mut self, request: api::PublishRequest) -> Result<Vec<u8>, Status> {
        self.topic(&request.topic)?;
        let size: usize = request.messages.iter().map(Message::encoded_len).sum();
        let is_empty = |m: &api::PubsubMessage| m.data.is_empty() && m.attributes.is_empty();
        if size > 10_000_000
            || request.messages.len() > 1000
            || request.messages.iter().any(is_empty)
        {
            return Err(Status::invalid_argument(
                "The request is too large or has an empty message",
            ));
        }
        let mut message_ids = Vec::new();
        for mut message in request.messages {
            self.published += 1;
            message.message_id = self.published.to_string();
            message.publish_time = Some((SystemTime::now() + self.ahead).into());
            message_ids.push(message.message_id.clone());
            for subscribed in self.subscriptions.values_mut() {
                if subscribed.config.topic == request.topic {
                    subscribed.messages.push(Kept {
                        message: message.clone(),
                        ack_id: String::new(),
                        until: Instant::now(),
                        deliveries: 0,
                    });
                }
            }
        }
        Ok(api::PublishResponse { message_ids }.encode_to_vec())
    }

    fn pull(&mut self, request: api::PullRequest) -> Result<Vec<u8>, Status> {
        let mut deliveries = self.deliveries;
        let subscribed = self.subscribed(&request.subscription)?;
        let deadline = subscribed.config.ack_deadline_seconds.unsigned_abs().into();
        let is_counted = subscribed.config.dead_letter_policy.is_some();
        let mut received_messages = Vec::new();
        let now = Instant::now();
        let free = subscribed.messages.iter_mut().filter(|kept| kept.until <= now);
        for kept in free.take(request.max_messages.unsigned_abs() as usize) {
            deliveries += 1;
            kept.deliveries += 1;
            kept.ack_id = format!("delivery {deliveries}");
            kept.until = now + Duration::from_secs(deadline);
            received_messages.push(api::ReceivedMessage {
                ack_id: kept.ack_id.clone(),
                message: Some(kept.message.clone()),
                delivery_attempt: if is_counted { kept.deliveries } else { 0 },
            });
        }
        self.deliveries = deliveries;
        Ok(api::PullResponse { received_messages }.encode_to_vec())
    }

    /// Calls `change` for each message that is held under one of these ids. If `change` returns
    /// false, the message is deleted. Other ids fail if the subscription reports them.
    fn each_held(
        &mut self,
        subscription: &str,
        ids: &[String],
        mut change: impl FnMut(&mut Kept) -> bool,
    ) -> Result<Vec<u8>, Status> {
        let subscribed = self.subscribed(subscription)?;
        let now = Instant::now();
        let mut missing: Vec<&String> = ids.iter().collect();
        subscribed.messages.retain_mut(|kept| {
            let is_held = ids.contains(&kept.ack_id) && kept.until > now;
            missing.retain(|id| !is_held || **id != kept.ack_id);
            !is_held || change(kept)
        });
        if missing.is_empty() || !subscribed.config.enable_exactly_once_delivery {
            return Ok(Vec::new());
        }
        let gone = |id: &&String| (id.to_string(), "PERMANENT_FAILURE_INVALID_ACK_ID");
        let gone: Vec<(String, &str)> = missing.iter().map(gone).collect();
        let gone: Vec<(&str, &str)> = gone.iter().map(|(id, why)| (&**id, *why)).collect();
        Err(status::with_failures(Code::FailedPrecondition, &gone))
    }
}
