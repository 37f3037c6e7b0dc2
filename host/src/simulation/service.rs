//! Simulates SQS for a fleet: one standard queue of up to a million messages, with the rules of the
//! service.
//!
//! The service answers below the SDK, without sockets. Requests and answers take some milliseconds
//! each. A receive sometimes returns fewer messages than there are, and a few messages are
//! delivered twice.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_sqs::config::http::{HttpRequest, HttpResponse};
use aws_sdk_sqs::config::{HttpClient, RuntimeComponents};
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::http::StatusCode;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The maximum number of messages in flight.
const MOST_IN_FLIGHT: usize = 120_000;
/// The latency of a request or an answer, in milliseconds.
const WAY: Range<u64> = 4..12;
/// The share of receives that return fewer messages than there are.
const SHORT_ANSWERS: f64 = 0.1;
/// The share of deliveries that leave the message visible.
const DUPLICATES: f64 = 1e-5;

/// Requests by kind, counted by the service.
#[derive(Debug, Clone, Default)]
pub(super) struct Requests {
    pub(super) receive: u64,
    /// Receives that returned no message.
    pub(super) empty: u64,
    pub(super) delete: u64,
    /// Renewals, and releases without a new copy.
    pub(super) change: u64,
    /// Releases with a new copy.
    pub(super) send: u64,
    pub(super) other: u64,
    /// Requests of all kinds that failed in an outage.
    pub(super) failed: u64,
}

impl Requests {
    pub(super) fn all(&self) -> u64 {
        self.receive + self.delete + self.change + self.send + self.other
    }
}

/// The service.
#[derive(Debug, Clone)]
pub(super) struct Service(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    /// Notified when a message will become visible before all other hidden ones.
    hurry: Notify,
    /// Notified when the last message is deleted.
    emptied: Notify,
}

#[derive(Debug)]
struct Queue {
    random: fastrand::Rng,
    messages: Vec<Option<Message>>,
    /// Messages that can be received, and whether another receive already holds them.
    visible: VecDeque<(usize, bool)>,
    /// When hidden messages become visible. Some of the entries are outdated.
    hidden: BinaryHeap<Reverse<(Instant, usize)>>,
    /// Long polls that wait for a message.
    polls: VecDeque<Poll>,
    in_flight: usize,
    left: usize,
    receives: u64,
    duplicates: u64,
    outage: Option<Range<Instant>>,
    requests: Requests,
}

#[derive(Debug)]
struct Message {
    body: String,
    attributes: Value,
    receives: u32,
    /// The number of the last receive of this message. 0: never received.
    receive: u64,
    hidden_until: Option<Instant>,
}

#[derive(Debug)]
struct Poll {
    max: usize,
    visibility: Duration,
    answer: oneshot::Sender<Vec<Value>>,
}

impl Service {
    /// A service whose queue holds these messages.
    pub(super) fn new(seed: u64, bodies: impl Iterator<Item = String>) -> Self {
        let message = |body| Message {
            body,
            attributes: Value::Null,
            receives: 0,
            receive: 0,
            hidden_until: None,
        };
        let messages: Vec<_> = bodies.map(|body| Some(message(body))).collect();
        let count = messages.len();
        let queue = Queue {
            random: fastrand::Rng::with_seed(seed),
            messages,
            visible: (0..count).map(|number| (number, false)).collect(),
            hidden: BinaryHeap::new(),
            polls: VecDeque::new(),
            in_flight: 0,
            left: count,
            receives: 0,
            duplicates: 0,
            outage: None,
            requests: Requests::default(),
        };
        let service = Self(Arc::new(Shared {
            queue: Mutex::new(queue),
            hurry: Notify::new(),
            emptied: Notify::new(),
        }));
        tokio::spawn(service.clone().keep_time());
        service
    }

    /// Resets the request counts. All requests fail during `outage`.
    pub(super) fn start(&self, outage: Option<Range<Instant>>) {
        let mut queue = self.0.queue.lock();
        queue.requests = Requests::default();
        queue.outage = outage;
    }

    /// Waits until all messages are deleted.
    pub(super) async fn emptied(&self) {
        loop {
            let emptied = self.0.emptied.notified();
            if self.0.queue.lock().left == 0 {
                return;
            }
            emptied.await;
        }
    }

    pub(super) fn requests(&self) -> Requests {
        self.0.queue.lock().requests.clone()
    }

    /// Messages that hosts hold.
    pub(super) fn in_flight(&self) -> usize {
        self.0.queue.lock().in_flight
    }

    /// Messages that are in the queue.
    pub(super) fn left(&self) -> usize {
        self.0.queue.lock().left
    }

    /// Deliveries of messages that another receive already held.
    pub(super) fn duplicates(&self) -> u64 {
        self.0.queue.lock().duplicates
    }

    /// Makes messages visible when their leases expire, and gives them to waiting polls.
    async fn keep_time(self) {
        loop {
            let next = {
                let mut queue = self.0.queue.lock();
                queue.show(Instant::now());
                queue.hidden.peek().map(|Reverse((at, _))| *at)
            };
            let ends = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = ends => {}
                () = self.0.hurry.notified() => {}
            }
        }
    }

    async fn answer(self, request: HttpRequest) -> Result<HttpResponse, ConnectorError> {
        let target = request.headers().get("x-amz-target").unwrap_or_default();
        let operation = target.rsplit('.').next().unwrap_or_default().to_owned();
        let input: Value = serde_json::from_slice(request.body().bytes().unwrap_or_default())
            .expect("the request is no JSON");
        let there = {
            let mut queue = self.0.queue.lock();
            let requests = &mut queue.requests;
            *match &*operation {
                "ReceiveMessage" => &mut requests.receive,
                "DeleteMessageBatch" => &mut requests.delete,
                "ChangeMessageVisibilityBatch" => &mut requests.change,
                "SendMessageBatch" => &mut requests.send,
                _ => &mut requests.other,
            } += 1;
            queue.way()
        };
        tokio::time::sleep(there).await;
        if self.is_out() {
            return Ok(self.unavailable());
        }
        let output = match &*operation {
            "ReceiveMessage" => match self.receive(&input).await {
                Some(messages) => json!({"Messages": messages}),
                None => return Ok(self.unavailable()),
            },
            "GetQueueAttributes" => self.0.queue.lock().attributes(),
            _ => {
                let mut queue = self.0.queue.lock();
                let (now, next) = (Instant::now(), queue.next());
                let answer = queue.batch(&operation, &input, now);
                queue.show(now);
                if queue.next() < next {
                    self.0.hurry.notify_one();
                }
                if queue.left == 0 {
                    self.0.emptied.notify_waiters();
                }
                answer
            }
        };
        let back = self.0.queue.lock().way();
        tokio::time::sleep(back).await;
        if self.is_out() {
            self.0.queue.lock().requests.failed += 1;
            return Err(ConnectorError::io("connection reset by peer".into()));
        }
        Ok(response(200, &output))
    }

    /// Receives messages. `None` during an outage.
    async fn receive(&self, input: &Value) -> Option<Vec<Value>> {
        let number = |name: &str| input[name].as_u64().unwrap_or(0);
        let max = number("MaxNumberOfMessages") as usize;
        let visibility = Duration::from_secs(number("VisibilityTimeout"));
        let wait = Duration::from_secs(number("WaitTimeSeconds"));
        let (answer, answered) = oneshot::channel();
        {
            let mut queue = self.0.queue.lock();
            let next = queue.next();
            queue.polls.push_back(Poll { max, visibility, answer });
            queue.show(Instant::now());
            if queue.next() < next {
                self.0.hurry.notify_one();
            }
        }
        let found = match tokio::time::timeout(wait, answered).await {
            Ok(Ok(found)) => found,
            _ => Vec::new(),
        };
        if found.is_empty() {
            if self.is_out() {
                return None;
            }
            self.0.queue.lock().requests.empty += 1;
        }
        Some(found)
    }

    fn is_out(&self) -> bool {
        self.0.queue.lock().is_out(Instant::now())
    }

    fn unavailable(&self) -> HttpResponse {
        self.0.queue.lock().requests.failed += 1;
        response(503, &json!({"__type": "ServiceUnavailable", "message": "try again later"}))
    }
}

fn response(status: u16, body: &Value) -> HttpResponse {
    let status = StatusCode::try_from(status).expect("a status");
    HttpResponse::new(status, body.to_string().into())
}

impl Queue {
    fn way(&mut self) -> Duration {
        Duration::from_millis(self.random.u64(WAY))
    }

    fn is_out(&self, now: Instant) -> bool {
        self.outage.as_ref().is_some_and(|outage| outage.contains(&now))
    }

    /// When the next message becomes visible, in a form that sorts "never" last.
    fn next(&self) -> (bool, Option<Instant>) {
        let next = self.hidden.peek().map(|Reverse((at, _))| *at);
        (next.is_none(), next)
    }

    /// Makes messages visible whose time has come, and answers polls.
    fn show(&mut self, now: Instant) {
        while let Some(Reverse((at, number))) = self.hidden.peek().copied()
            && at <= now
        {
            self.hidden.pop();
            if let Some(message) = &mut self.messages[number]
                && message.hidden_until == Some(at)
            {
                message.hidden_until = None;
                self.in_flight -= usize::from(message.receive > 0);
                self.visible.push_back((number, false));
            }
        }
        while !self.is_out(now) && !self.visible.is_empty() && self.in_flight < MOST_IN_FLIGHT {
            let Some(poll) = self.polls.pop_front() else { return };
            // Polls that timed out have closed their channel.
            if poll.answer.is_closed() {
                continue;
            }
            let most = match self.random.f64() < SHORT_ANSWERS {
                true => self.random.usize(1..=poll.max),
                false => poll.max,
            };
            let found = self.deliver(most, poll.visibility, now);
            if found.is_empty() {
                self.polls.push_front(poll);
                return;
            }
            let _ = poll.answer.send(found);
        }
    }

    fn deliver(&mut self, most: usize, visibility: Duration, now: Instant) -> Vec<Value> {
        let mut found = Vec::new();
        while found.len() < most
            && let Some((number, is_held)) = self.visible.pop_front()
        {
            let Some(message) = &mut self.messages[number] else { continue };
            if is_held {
                self.duplicates += 1;
            }
            self.in_flight += usize::from(message.hidden_until.is_none());
            self.receives += 1;
            message.receives += 1;
            message.receive = self.receives;
            message.hidden_until = Some(now + visibility);
            self.hidden.push(Reverse((now + visibility, number)));
            let mut shown = json!({
                "MessageId": format!("{number:08}"),
                "ReceiptHandle": format!("{number} {}", message.receive),
                "Body": message.body,
                "Attributes": {"ApproximateReceiveCount": message.receives.to_string()},
            });
            if message.attributes.is_object() {
                shown["MessageAttributes"] = message.attributes.clone();
            }
            found.push(shown);
            if self.random.f64() < DUPLICATES {
                self.visible.push_back((number, true));
            }
        }
        found
    }

    fn batch(&mut self, operation: &str, input: &Value, now: Instant) -> Value {
        let entries = input["Entries"].as_array().map(Vec::as_slice).unwrap_or_default();
        assert!((1..=10).contains(&entries.len()), "a batch of {} entries", entries.len());
        let (mut done, mut failed) = (Vec::new(), Vec::new());
        for entry in entries {
            let id = &entry["Id"];
            let result = match operation {
                "DeleteMessageBatch" => self.delete(entry),
                "ChangeMessageVisibilityBatch" => self.change(entry, now),
                "SendMessageBatch" => self.send(entry, now),
                other => panic!("the simulated service can't do {other}"),
            };
            match result {
                Ok(output) => done.push(json!({"Id": id, "MessageId": output})),
                Err(code) => failed.push(json!({"Id": id, "Code": code, "SenderFault": true})),
            }
        }
        json!({"Successful": done, "Failed": failed})
    }

    /// The message of a receipt handle, unless it was deleted or received again.
    fn held(&self, entry: &Value) -> Option<usize> {
        let handle = entry["ReceiptHandle"].as_str()?;
        let (number, receive) = handle.split_once(' ')?;
        let number: usize = number.parse().ok()?;
        let message = self.messages.get(number)?.as_ref()?;
        (message.receive.to_string() == receive).then_some(number)
    }

    /// A delete with an old handle succeeds and deletes nothing.
    fn delete(&mut self, entry: &Value) -> Result<String, &'static str> {
        if let Some(number) = self.held(entry)
            && let Some(message) = self.messages[number].take()
        {
            self.in_flight -= usize::from(message.hidden_until.is_some());
            self.left -= 1;
        }
        Ok(String::new())
    }

    fn change(&mut self, entry: &Value, now: Instant) -> Result<String, &'static str> {
        let number = self.held(entry).ok_or("ReceiptHandleIsInvalid")?;
        let seconds = entry["VisibilityTimeout"].as_u64().unwrap_or(0);
        let Some(message) = &mut self.messages[number] else { return Ok(String::new()) };
        if message.hidden_until.is_none() {
            return Err("MessageNotInflight");
        }
        let until = now + Duration::from_secs(seconds);
        message.hidden_until = Some(until);
        self.hidden.push(Reverse((until, number)));
        Ok(String::new())
    }

    fn send(&mut self, entry: &Value, now: Instant) -> Result<String, &'static str> {
        let number = self.messages.len();
        let delay = entry["DelaySeconds"].as_u64().filter(|delay| *delay > 0);
        let hidden_until = delay.map(|delay| now + Duration::from_secs(delay));
        self.messages.push(Some(Message {
            body: entry["MessageBody"].as_str().unwrap_or_default().to_owned(),
            attributes: entry["MessageAttributes"].clone(),
            receives: 0,
            receive: 0,
            hidden_until,
        }));
        self.left += 1;
        match hidden_until {
            Some(until) => self.hidden.push(Reverse((until, number))),
            None => self.visible.push_back((number, false)),
        }
        Ok(format!("{number:08}"))
    }

    fn attributes(&self) -> Value {
        json!({"Attributes": {
            "MaximumMessageSize": "262144",
            "ApproximateNumberOfMessages": (self.left - self.in_flight).to_string(),
            "ApproximateNumberOfMessagesNotVisible": self.in_flight.to_string(),
            "ApproximateNumberOfMessagesDelayed": "0",
        }})
    }
}

/// One host's connection to the service.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub(super) service: Service,
    /// Cancelled when the host dies. The connection then sends and receives nothing.
    pub(super) dead: CancellationToken,
}

impl HttpConnector for Line {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let Self { service, dead } = self.clone();
        HttpConnectorFuture::new(async move {
            tokio::select! {
                biased;
                () = dead.cancelled() => Err(ConnectorError::user("the host is dead".into())),
                answer = service.answer(request) => answer,
            }
        })
    }
}

impl HttpClient for Line {
    fn http_connector(
        &self,
        _settings: &HttpConnectorSettings,
        _components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}
