//! A fake of AWS, in this process and below the SDK: it gives prepared answers and records the
//! requests.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_sqs::config::http::{HttpRequest, HttpResponse};
use aws_sdk_sqs::config::retry::RetryConfig;
use aws_sdk_sqs::config::{Credentials, HttpClient, RuntimeComponents, SharedHttpClient};
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::http::StatusCode;
use bytesize::ByteSize;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::Aws;
use crate::environment::Environment;
use crate::fleet::Spec;

/// Attempts per request, with almost no wait between them.
const TRIES: u32 = 4;

/// Services that give prepared answers.
#[derive(Debug, Clone, Default)]
pub(in crate::fleet) struct Fake {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    answers: BTreeMap<&'static str, VecDeque<(u16, Value)>>,
    asked: Vec<(String, Value)>,
}

impl Fake {
    /// Adds an answer of an operation. The last answer is repeated.
    pub(in crate::fleet) fn says(&self, operation: &'static str, answer: Value) -> &Self {
        self.answers(operation, 200, answer)
    }

    /// Adds an error as an answer of an operation.
    pub(in crate::fleet) fn refuses(
        &self,
        operation: &'static str,
        status: u16,
        code: &str,
        message: &str,
    ) -> &Self {
        self.answers(operation, status, json!({"__type": code, "code": code, "message": message}))
    }

    fn answers(&self, operation: &'static str, status: u16, answer: Value) -> &Self {
        let mut shared = self.shared.lock();
        shared.answers.entry(operation).or_default().push_back((status, answer));
        drop(shared);
        self
    }

    /// The bodies of the requests for one operation.
    pub(in crate::fleet) fn asked(&self, operation: &str) -> Vec<Value> {
        let shared = self.shared.lock();
        let of = shared.asked.iter().filter(|(name, _)| name.eq_ignore_ascii_case(operation));
        of.map(|(_, body)| body.clone()).collect()
    }

    /// An account whose services are this fake.
    pub(in crate::fleet) async fn aws(&self, engine: &str) -> Aws {
        let credentials = Credentials::new("key", "secret", None, None, "test");
        let http = SharedHttpClient::new(self.clone());
        let region = Some("eu-west-1".to_owned());
        let none = Environment::default();
        let config = crate::aws::settings(region, None, &none, Some(credentials), Some(http)).await;
        let mut aws = Aws::of(engine.to_owned(), config.expect("a region"));
        let retries = RetryConfig::standard().with_max_attempts(TRIES);
        let retries = retries.with_initial_backoff(Duration::from_millis(1));
        aws.config = aws.config.into_builder().retry_config(retries).build();
        aws
    }

    fn answer(&self, request: &HttpRequest) -> HttpResponse {
        let target = request.headers().get("x-amz-target").unwrap_or(request.uri());
        let operation = target.rsplit(['.', '/']).next().unwrap_or_default().to_owned();
        let body = request.body().bytes().unwrap_or_default();
        let body = serde_json::from_slice(body).unwrap_or(Value::Null);
        let mut shared = self.shared.lock();
        shared.asked.push((operation.clone(), body));
        let known = shared.answers.iter_mut();
        let mut known = known.filter(|(name, _)| name.eq_ignore_ascii_case(&operation));
        let (_, answers) = known.next().unwrap_or_else(|| panic!("nobody expected {operation}"));
        let is_last = answers.len() == 1;
        let next = if is_last { answers.front().cloned() } else { answers.pop_front() };
        let (status, answer) = next.expect("an answer");
        let status = StatusCode::try_from(status).expect("a status");
        HttpResponse::new(status, answer.to_string().into())
    }
}

impl HttpConnector for Fake {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        HttpConnectorFuture::ready(Ok(self.answer(&request)))
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

/// A spec of workers with four cores and these options.
pub(in crate::fleet) fn spec(options: &[(&str, &str)]) -> Spec {
    let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), vec![(*value).to_owned()]);
    Spec {
        fleet: "night".parse().expect("a name"),
        cpus: 4,
        memory: ByteSize::gib(8),
        image: "ghcr.io/task-host/task-host:1".to_owned(),
        program: PathBuf::from("/usr/bin/host"),
        walltime: None,
        relay: 1,
        stop_time: Duration::from_secs(30),
        directory: PathBuf::from("/home/me"),
        paths: [].into(),
        environment: [
            ("HOST_BUCKET".to_owned(), "s3://it's-data".to_owned()),
            ("HOST_FLEET".to_owned(), "night".to_owned()),
            ("HOST_QUEUE".to_owned(), "sqs://tasks".to_owned()),
        ]
        .into(),
        pass: [].into(),
        options: options.iter().map(pair).collect(),
    }
}
