//! The HTTP client of the stores: its timeouts, the header values that it keeps, and the changes to
//! responses that `object_store` could not read otherwise.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
    ReqwestConnector,
};
use object_store::{BackoffConfig, ClientOptions, HeaderValue, RetryConfig};

use super::StoredEncoding;
use super::address::{Service, ServiceAddress};
use super::checksums::Checksums;
use super::encoding::ContentEncoding;
use super::listing::{self, Skipped};
use super::store_clock::StoreClock;

/// The slowest upload that does not time out, in bytes per second.
const SLOWEST_UPLOAD: u64 = 32 * 1024;
/// The read timeout of a connection. Longer than the upload of any part takes, because the client
/// counts the time of uploads too.
const READ: Duration = Duration::from_secs(600);

/// The wait before the first retry.
const FIRST_WAIT: Duration = Duration::from_millis(100);

/// How long to wait for a service.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// Retries of a request after 408, 429, 5xx and broken connections.
    pub(super) retries: usize,
    /// The time after which a request is not retried.
    pub(super) retry_for: Duration,
    /// The longest wait between two retries. The first wait is 0.1 s. Each may be twice as long as
    /// the one before.
    pub(super) longest_wait: Duration,
    /// The timeout of a connection attempt.
    pub(super) connect: Duration,
    /// The timeout for the start of a response, and for the next bytes of a body.
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
    /// Fewer retries and shorter timeouts, for checks while the user waits for the host to start.
    pub(super) fn at_start(self) -> Self {
        Self {
            retries: self.retries.min(2),
            retry_for: self.retry_for.min(Duration::from_secs(10)),
            longest_wait: self.longest_wait.min(Duration::from_secs(1)),
            idle: self.idle.min(Duration::from_secs(15)),
            ..self
        }
    }

    /// The wait before the retry after this number of failures.
    pub(super) fn wait(self, failures: u32) -> Duration {
        let doubled = FIRST_WAIT.saturating_mul(1 << failures.saturating_sub(1).min(16));
        doubled.min(self.longest_wait)
    }

    pub(super) fn retry(self) -> RetryConfig {
        let init_backoff = self.wait(1);
        let backoff = BackoffConfig { init_backoff, max_backoff: self.longest_wait, base: 2. };
        RetryConfig { backoff, max_retries: self.retries, retry_timeout: self.retry_for }
    }

    pub(super) fn client(self) -> ClientOptions {
        // A request's time depends on its size, so `Transport` and downloads set their own
        // timeouts.
        ClientOptions::new()
            .with_connect_timeout(self.connect)
            .with_timeout_disabled()
            .with_read_timeout(READ)
    }
}

/// Makes the HTTP clients of one bucket.
#[derive(Debug, Clone)]
pub(super) struct Transport {
    service: Service,
    idle: Duration,
    /// The `Accept-Encoding` of a request for an object.
    accepted: Option<HeaderValue>,
    skipped: Arc<Skipped>,
    clock: StoreClock,
}

impl Transport {
    /// Makes the clients of the bucket at `address`.
    pub(super) fn new(address: &ServiceAddress, encoding: StoredEncoding) -> Self {
        // Unless the request accepts gzip, Google decompresses objects and sends neither entity tag
        // nor length. A web server may compress a response, which is only useful to a client that
        // decodes. S3 and Azure always send the stored bytes.
        let accepted = match (address.service, encoding) {
            (Service::Google, _) | (Service::Http, StoredEncoding::Decode) => Some("gzip"),
            (Service::Http, StoredEncoding::Keep) => Some("identity"),
            (Service::S3 | Service::Azure, _) => None,
        };
        Self {
            service: address.service,
            idle: Patience::default().idle,
            accepted: accepted.map(HeaderValue::from_static),
            skipped: Arc::new(Skipped::new(address.url())),
            clock: StoreClock::default(),
        }
    }

    /// The clock of the service, from its responses.
    pub(super) fn clock(&self) -> &StoreClock {
        &self.clock
    }

    pub(super) fn with(&self, patience: Patience) -> Self {
        Self { idle: patience.idle, ..self.clone() }
    }
}

impl HttpConnector for Transport {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(TimedClient { client, transport: self.clone() }))
    }
}

/// A client with a timeout for the start of a response. It also changes responses that the stores
/// would not accept.
#[derive(Debug)]
struct TimedClient {
    client: HttpClient,
    transport: Transport,
}

/// A request extension that marks requests for an object.
#[derive(Debug, Clone, Copy)]
pub(super) struct ForObject;

/// A response extension with facts from the headers.
#[derive(Debug, Clone)]
pub(super) struct ResponseFacts {
    /// Checksums of the whole stored object.
    pub(super) checksums: Checksums,
    /// The server accepts range requests.
    pub(super) has_ranges: bool,
    /// The encoding in which the object is stored.
    pub(super) encoding: ContentEncoding,
    /// The response has a length.
    pub(super) has_length: bool,
    /// The entity tag, if it was removed from the headers.
    pub(super) tag: Option<String>,
}

impl Default for ResponseFacts {
    /// For a store without HTTP.
    fn default() -> Self {
        Self {
            checksums: Checksums::default(),
            has_ranges: false,
            encoding: ContentEncoding::Plain,
            has_length: true,
            tag: None,
        }
    }
}

#[async_trait]
impl HttpService for TimedClient {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let Transport { service, idle, accepted, skipped, clock } = &self.transport;
        let host = request.uri().authority().map(ToString::to_string).unwrap_or_default();
        let is_head = request.method().as_str() == "HEAD";
        let is_listing = request.method().as_str() == "GET"
            && request.uri().query().is_some_and(listing::is_listing);
        let is_object = request.extensions().get::<ForObject>().is_some();
        if is_object && let Some(accepted) = accepted {
            request.headers_mut().insert("accept-encoding", accepted.clone());
        }
        let bytes = request.body().content_length() as u64;
        let limit = *idle + Duration::from_secs(bytes / SLOWEST_UPLOAD);
        let answer = tokio::time::timeout(limit, self.client.execute(request)).await;
        let answer =
            answer.unwrap_or_else(|_| Err(HttpError::new(HttpErrorKind::Timeout, NoAnswer(limit))));
        let mut answer = answer
            .map_err(|source| HttpError::new(source.kind(), RequestError { host, source }))?;
        if is_head && *service == Service::Http && refuses_head(answer.status().as_u16()) {
            return Err(HttpError::new(HttpErrorKind::Unknown, HeadRefused));
        }
        if is_listing && answer.status().is_success() {
            if let Some(date) = answer.headers().get("date").and_then(|date| date.to_str().ok()) {
                clock.saw(date, SystemTime::now());
            }
            return prune(*service, answer, skipped).await;
        }
        let header = |name: &str| answer.headers().get(name)?.to_str().ok();
        let mut facts = ResponseFacts {
            checksums: Checksums::of_headers(header),
            has_ranges: header("accept-ranges") == Some("bytes"),
            encoding: header("content-encoding")
                .map(ContentEncoding::of_header)
                .unwrap_or_default(),
            has_length: header("content-length").is_some(),
            tag: None,
        };
        if is_object && !facts.has_length && *service == Service::Http {
            // The store's client requires a length, so this sets a false one. With an entity tag,
            // the client would resume a body that breaks off, and rely on that length.
            facts.tag = header("etag").map(str::to_owned);
            answer.headers_mut().remove("etag");
            answer.headers_mut().insert("content-length", HeaderValue::from_static("0"));
        }
        answer.extensions_mut().insert(facts);
        Ok(answer)
    }
}

/// Removes unusable keys from a listing.
async fn prune(
    service: Service,
    answer: HttpResponse,
    skipped: &Skipped,
) -> Result<HttpResponse, HttpError> {
    let (parts, body) = answer.into_parts();
    let body = body.bytes().await?;
    let pruned =
        std::str::from_utf8(&body).ok().and_then(|xml| listing::prune(service, xml, skipped));
    let body = pruned.map_or(body, Bytes::from);
    Ok(HttpResponse::from_parts(parts, body.into()))
}

/// True for statuses with which servers reject HEAD requests.
fn refuses_head(status: u16) -> bool {
    matches!(status, 400 | 403 | 405 | 501)
}

#[derive(Debug, thiserror::Error)]
#[error("no answer within {} s", .0.as_secs_f64())]
struct NoAnswer(Duration);

/// A request that failed, with the server's name.
#[derive(Debug, thiserror::Error)]
#[error("{host}: {source}")]
pub(super) struct RequestError {
    /// The name of the server, with its port if one is given.
    pub(super) host: String,
    source: HttpError,
}

/// A web server rejected a HEAD request.
#[derive(Debug, thiserror::Error)]
#[error("the server refuses HEAD requests")]
pub(super) struct HeadRefused;
