//! A fake of SQS in this process. It behaves as the documentation says, because emulators are less
//! strict than the service.
//!
//! The fake implements the service's JSON protocol below the SDK, without sockets. Its clock is the
//! real clock. Limits that are hours in the service can be set to seconds.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_sdk_sqs::config::http::{HttpRequest, HttpResponse};
use aws_sdk_sqs::config::{HttpClient, RuntimeComponents};
use aws_sdk_sqs::primitives::{DateTime, DateTimeFormat};
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::http::StatusCode;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::Instant;

use self::store::{Queue, Store};

mod store;

/// A service with its queues.
#[derive(Debug, Clone, Default)]
pub(super) struct Fake {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    store: Mutex<Store>,
    faults: Mutex<Vec<Fault>>,
    /// The number of seconds by which the fake's clock is ahead.
    ahead: AtomicI64,
    changed: Notify,
}

/// A fault in the next requests of one kind.
#[derive(Debug, Clone)]
pub(super) struct Fault {
    /// The name of the operation.
    pub(super) of: &'static str,
    pub(super) times: usize,
    pub(super) what: What,
}

#[derive(Debug, Clone)]
pub(super) enum What {
    /// The service returns this error, and does nothing.
    Refuse(u16, &'static str),
    /// The entries with these indexes fail. The flag says whether the caller is at fault.
    Entries(Vec<usize>, &'static str, bool),
    /// The operation is done, but the connection breaks before the response.
    LoseAnswer,
}

/// An error of the service: its code and its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused(&'static str, String);

fn refused<T>(code: &'static str, text: impl Into<String>) -> Result<T, Refused> {
    Err(Refused(code, text.into()))
}

impl Fake {
    /// Creates a queue and applies `set_up` to it.
    pub(super) fn make(&self, name: &str, set_up: impl FnOnce(&mut Queue)) -> String {
        let mut queue = Queue::new(name);
        set_up(&mut queue);
        self.shared.store.lock().queues.insert(name.to_owned(), queue);
        url(name)
    }

    /// Calls `look` with a queue.
    pub(super) fn with<T>(&self, name: &str, look: impl FnOnce(&mut Queue) -> T) -> T {
        look(self.shared.store.lock().queues.get_mut(name).expect("there is no such queue"))
    }

    pub(super) fn exists(&self, name: &str) -> bool {
        self.shared.store.lock().queues.contains_key(name)
    }

    pub(super) fn remove(&self, name: &str) {
        self.shared.store.lock().queues.remove(name);
    }

    /// Makes this number of the next requests of a kind fail.
    pub(super) fn fail(&self, of: &'static str, times: usize, what: What) {
        let mut faults = self.shared.faults.lock();
        faults.push(Fault { of, times, what });
    }

    /// Sets the fake's clock ahead by this number of seconds.
    pub(super) fn set_clock(&self, ahead: i64) {
        self.shared.ahead.store(ahead, Relaxed);
    }

    /// A response with the date of the fake's clock.
    fn response(&self, status: u16, body: Value) -> HttpResponse {
        let status = StatusCode::try_from(status).expect("a status");
        let mut response = HttpResponse::new(status, body.to_string().into());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970");
        let now = now.as_secs() as i64 + self.shared.ahead.load(Relaxed);
        let date = DateTime::from_secs(now).fmt(DateTimeFormat::HttpDate).expect("a date");
        response.headers_mut().insert("date", date);
        response
    }

    fn fault(&self, operation: &str) -> Option<What> {
        let mut faults = self.shared.faults.lock();
        let fault = faults.iter_mut().find(|fault| fault.of == operation && fault.times > 0)?;
        fault.times -= 1;
        Some(fault.what.clone())
    }

    async fn answer(self, request: HttpRequest) -> Result<HttpResponse, ConnectorError> {
        let target = request.headers().get("x-amz-target").unwrap_or_default();
        let operation = target.rsplit('.').next().unwrap_or_default().to_owned();
        let body = request.body().bytes().unwrap_or_default();
        let input: Value = serde_json::from_slice(body).expect("the request is no JSON");
        let fault = self.fault(&operation);
        let result = match &fault {
            Some(What::Refuse(status, code)) => {
                return Ok(self.response(*status, json!({"__type": code, "message": "on demand"})));
            }
            Some(What::Entries(entries, code, sender)) => {
                let failing = |n: usize| entries.contains(&n).then_some((*code, *sender));
                self.perform(&operation, &input, &failing).await
            }
            _ => self.perform(&operation, &input, &|_| None).await,
        };
        if let Some(What::LoseAnswer) = fault {
            return Err(ConnectorError::io("connection reset by peer".into()));
        }
        Ok(match result {
            Ok(output) => self.response(200, output),
            Err(Refused(code, text)) => {
                let status = if code == "OverLimit" { 403 } else { 400 };
                self.response(
                    status,
                    json!({"__type": format!("com.amazonaws.sqs#{code}"), "message": text}),
                )
            }
        })
    }

    async fn perform(
        &self,
        operation: &str,
        input: &Value,
        failing: &(dyn Fn(usize) -> Option<(&'static str, bool)> + Sync),
    ) -> Result<Value, Refused> {
        let result = match operation {
            "ReceiveMessage" => return self.receive(input).await,
            "SendMessageBatch" => self.batch(input, failing, Store::check_batch, Queue::send),
            "DeleteMessageBatch" => self.batch(input, failing, Store::check_entries, Queue::delete),
            "ChangeMessageVisibilityBatch" => {
                self.batch(input, failing, Store::check_entries, Queue::change)
            }
            "GetQueueUrl" => self.shared.store.lock().queue_url(input),
            "CreateQueue" => self.shared.store.lock().create(input),
            "GetQueueAttributes" => {
                self.shared.store.lock().queue(input).map(|queue| queue.attributes())
            }
            "PurgeQueue" => self.shared.store.lock().queue(input).and_then(Queue::purge),
            other => panic!("the fake can't do {other}"),
        };
        self.shared.changed.notify_waiters();
        result
    }

    fn batch(
        &self,
        input: &Value,
        failing: &dyn Fn(usize) -> Option<(&'static str, bool)>,
        check: fn(&[Value]) -> Result<(), Refused>,
        each: fn(&mut Queue, &Value) -> Result<Value, Refused>,
    ) -> Result<Value, Refused> {
        let entries = input["Entries"].as_array().cloned().unwrap_or_default();
        check(&entries)?;
        let mut store = self.shared.store.lock();
        let queue = store.queue(input)?;
        let (mut done, mut failed) = (Vec::new(), Vec::new());
        for (n, entry) in entries.iter().enumerate() {
            let (result, sender) = match failing(n) {
                Some((code, sender)) => (refused(code, "on demand"), sender),
                None => (each(queue, entry), true),
            };
            match result {
                Ok(mut output) => {
                    output["Id"] = entry["Id"].clone();
                    done.push(output);
                }
                Err(Refused(code, text)) => failed.push(json!({
                    "Id": entry["Id"], "Code": code, "SenderFault": sender, "Message": text,
                })),
            }
        }
        Ok(json!({"Successful": done, "Failed": failed}))
    }

    async fn receive(&self, input: &Value) -> Result<Value, Refused> {
        let wait = input["WaitTimeSeconds"].as_u64().unwrap_or(0);
        if wait > 20 {
            return refused("InvalidParameterValue", "WaitTimeSeconds is above 20");
        }
        let until = Instant::now() + Duration::from_secs(wait);
        loop {
            let found = self.shared.store.lock().receive(input, wait > 0)?;
            if !found.is_empty() || Instant::now() >= until {
                self.shared.changed.notify_waiters();
                return Ok(json!({"Messages": found}));
            }
            // The end of a lease causes no notification.
            let soon = until.min(Instant::now() + Duration::from_millis(20));
            tokio::select! {
                () = self.shared.changed.notified() => {}
                () = tokio::time::sleep_until(soon) => {}
            }
        }
    }
}

/// The URL of a queue of the fake.
pub(super) fn url(name: &str) -> String {
    format!("https://sqs.eu-west-1.amazonaws.com/123456789012/{name}")
}

impl HttpConnector for Fake {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        HttpConnectorFuture::new(self.clone().answer(request))
    }
}

impl HttpClient for Fake {
    fn http_connector(
        &self,
        _settings: &HttpConnectorSettings,
        _components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}
