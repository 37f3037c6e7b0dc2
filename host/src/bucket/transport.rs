//! The HTTP client of the stores: how long it waits, what it keeps of an answer, and what it
//! changes so that the stores can read it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
    ReqwestConnector,
};
use object_store::{BackoffConfig, ClientOptions, HeaderValue, RetryConfig};

use super::StoredEncoding;
use super::address::{Service, ServiceAddress};
use super::encoding::Coding;
use super::listing::{self, Skipped};
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
#[derive(Debug, Clone)]
pub(super) struct Transport {
    service: Service,
    idle: Duration,
    /// What `Accept-Encoding` a request for an object has.
    accepted: Option<HeaderValue>,
    skipped: Arc<Skipped>,
}

impl Transport {
    /// For the clients of one bucket.
    pub(super) fn new(address: &ServiceAddress, encoding: StoredEncoding) -> Self {
        // Google decompresses objects unless it is told not to, and then gives neither their
        // entity tag nor their length. A web server may compress what it stores plain, which
        // only who decodes can want. S3 and Azure give what they store, whatever is asked for.
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
        }
    }

    pub(super) fn with(&self, patience: Patience) -> Self {
        Self { idle: patience.idle, ..self.clone() }
    }
}

impl HttpConnector for Transport {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(Timed { client, transport: self.clone() }))
    }
}

/// A client that doesn't wait forever for an answer to begin, and that makes answers
/// acceptable to the stores.
#[derive(Debug)]
struct Timed {
    client: HttpClient,
    transport: Transport,
}

/// Marks requests for an object among the extensions of a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct ForObject;

/// What the headers of an answer said, among its extensions.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    /// The checksums of the whole object, as it is stored.
    pub(super) sums: Sums,
    /// The server says that it can be asked for a range.
    pub(super) has_ranges: bool,
    /// How the object is stored.
    pub(super) coding: Coding,
    /// The server says how many bytes come.
    pub(super) has_length: bool,
    /// The entity tag, where it was taken from the store's client.
    pub(super) tag: Option<String>,
}

impl Default for Facts {
    /// Of a store that speaks no HTTP.
    fn default() -> Self {
        Self {
            sums: Sums::default(),
            has_ranges: false,
            coding: Coding::Plain,
            has_length: true,
            tag: None,
        }
    }
}

#[async_trait]
impl HttpService for Timed {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let Transport { service, idle, accepted, skipped } = &self.transport;
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
        let mut answer =
            answer.map_err(|source| HttpError::new(source.kind(), Reaching { host, source }))?;
        if is_head && *service == Service::Http && refuses_head(answer.status().as_u16()) {
            return Err(HttpError::new(HttpErrorKind::Unknown, HeadRefused));
        }
        if is_listing && answer.status().is_success() {
            return prune(*service, answer, skipped).await;
        }
        let header = |name: &str| answer.headers().get(name)?.to_str().ok();
        let mut facts = Facts {
            sums: Sums::of_headers(header),
            has_ranges: header("accept-ranges") == Some("bytes"),
            coding: header("content-encoding").map(Coding::of_header).unwrap_or_default(),
            has_length: header("content-length").is_some(),
            tag: None,
        };
        if is_object && !facts.has_length && *service == Service::Http {
            // The client of the store insists on a length. With a tag as well, it would resume a
            // body that breaks off, as if that were its length.
            facts.tag = header("etag").map(str::to_owned);
            answer.headers_mut().remove("etag");
            answer.headers_mut().insert("content-length", HeaderValue::from_static("0"));
        }
        answer.extensions_mut().insert(facts);
        Ok(answer)
    }
}

/// Takes what can't be used out of a listing.
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

/// The answers of servers that know no HEAD, or don't allow it.
fn refuses_head(status: u16) -> bool {
    matches!(status, 400 | 403 | 405 | 501)
}

#[derive(Debug, thiserror::Error)]
#[error("no answer within {} s", .0.as_secs_f64())]
struct NoAnswer(Duration);

/// A failure on the way to a server.
#[derive(Debug, thiserror::Error)]
#[error("{host}: {source}")]
pub(super) struct Reaching {
    /// The name of the server, with its port if one is given.
    pub(super) host: String,
    source: HttpError,
}

/// A web server's refusal of a HEAD request.
#[derive(Debug, thiserror::Error)]
#[error("the server refuses HEAD requests")]
pub(super) struct HeadRefused;
