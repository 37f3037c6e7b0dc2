//! The HTTP client of the stores: how long it waits, and what it keeps of an answer.

use std::time::Duration;

use async_trait::async_trait;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
    ReqwestConnector,
};
use object_store::{BackoffConfig, ClientOptions, RetryConfig};

use super::sums::Sums;

/// The slowest line that an upload is expected to have, in bytes a second.
const SLOWEST_UPLOAD: u64 = 32 * 1024;
/// When whatever else is read from a connection counts as broken off. Longer than any upload
/// of a part takes, since the client counts that too.
const READ: Duration = Duration::from_secs(600);

/// How long a bucket is waited for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// How often a request is tried again: after 408, 429, 5xx, and broken connections.
    pub(super) retries: usize,
    /// For how long it is.
    pub(super) retry_for: Duration,
    /// The longest wait between two tries. The first is a tenth of a second, and then each is
    /// up to twice as long.
    pub(super) longest_wait: Duration,
    /// For a connection.
    pub(super) connect: Duration,
    /// For the beginning of an answer, and for the next bytes of a body.
    pub(super) idle: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            retries: 10,
            retry_for: Duration::from_secs(180),
            longest_wait: Duration::from_secs(15),
            connect: Duration::from_secs(5),
            idle: Duration::from_secs(60),
        }
    }
}

impl Patience {
    /// What is left of it when somebody waits for the host to start.
    pub(super) fn at_start(self) -> Self {
        Self {
            retries: self.retries.min(2),
            retry_for: self.retry_for.min(Duration::from_secs(10)),
            longest_wait: self.longest_wait.min(Duration::from_secs(1)),
            idle: self.idle.min(Duration::from_secs(15)),
            ..self
        }
    }

    pub(super) fn retry(self) -> RetryConfig {
        let init_backoff = Duration::from_millis(100).min(self.longest_wait);
        let backoff = BackoffConfig { init_backoff, max_backoff: self.longest_wait, base: 2. };
        RetryConfig { backoff, max_retries: self.retries, retry_timeout: self.retry_for }
    }

    pub(super) fn client(self) -> ClientOptions {
        // The time of a whole request depends on its size; `Transport` and the download have
        // their own limits.
        ClientOptions::new()
            .with_connect_timeout(self.connect)
            .with_timeout_disabled()
            .with_read_timeout(READ)
    }
}

/// Makes clients.
#[derive(Debug, Clone, Copy)]
pub(super) struct Transport {
    pub(super) idle: Duration,
}

impl HttpConnector for Transport {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(Timed { client, idle: self.idle }))
    }
}

/// A client that doesn't wait forever for an answer to begin.
#[derive(Debug)]
struct Timed {
    client: HttpClient,
    idle: Duration,
}

/// What the headers of an answer said, among its extensions.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts {
    /// The checksums of the whole object.
    pub(super) sums: Sums,
    /// The server says that it can be asked for a range.
    pub(super) has_ranges: bool,
}

#[async_trait]
impl HttpService for Timed {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let bytes = request.body().content_length() as u64;
        let limit = self.idle + Duration::from_secs(bytes / SLOWEST_UPLOAD);
        match tokio::time::timeout(limit, self.client.execute(request)).await {
            Ok(answer) => {
                let mut answer = answer?;
                let header = |name: &str| answer.headers().get(name)?.to_str().ok();
                let facts = Facts {
                    sums: Sums::of_headers(header),
                    has_ranges: header("accept-ranges") == Some("bytes"),
                };
                answer.extensions_mut().insert(facts);
                Ok(answer)
            }
            Err(_) => Err(HttpError::new(HttpErrorKind::Timeout, NoAnswer(limit))),
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("no answer within {} s", .0.as_secs_f64())]
struct NoAnswer(Duration);
