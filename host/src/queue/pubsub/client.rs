//! The connection to Pub/Sub: credentials, and requests with retries.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use backon::{ExponentialBuilder, Retryable};
use gcloud_auth::credentials::CredentialsFile;
use gcloud_auth::project;
use gcloud_auth::token::DefaultTokenSourceProvider;
use gcloud_gax::conn::{Channel, ConnectionManager, ConnectionOptions, Environment as Service};
use gcloud_gax::grpc::{Code, Request, Response, Status};
use gcloud_googleapis::pubsub::v1::publisher_client::PublisherClient;
use gcloud_googleapis::pubsub::v1::subscriber_client::SubscriberClient;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::status::{self, chain, unavailable};
use crate::environment::Environment;
use crate::queue::address::PubSub;
use crate::queue::request_counter::RequestCounter;
pub(super) use crate::queue::request_counter::RequestKind;
use crate::queue::service_clock::{self, ServiceClock};
use crate::queue::{Access, QueueError, Requests};

const DOMAIN: &str = "pubsub.googleapis.com";
const ENDPOINT: &str = "https://pubsub.googleapis.com/";
const SCOPES: [&str; 1] = ["https://www.googleapis.com/auth/pubsub"];
/// The maximum time to get credentials. Outside Google Cloud, the metadata server never answers.
const CREDENTIALS: Duration = Duration::from_secs(20);
/// The maximum time to open a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// The maximum time to wait for a response.
pub(super) const ANSWER: Duration = Duration::from_secs(30);
/// A silent connection is probed after this time, and closed after the same time again.
const PROBE: Duration = Duration::from_secs(20);
/// The delays between attempts at a request.
const RETRIES: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(150))
    .with_factor(3.0)
    .with_max_times(3)
    .with_jitter();
/// How long parts of the service may not yet know a new topic or subscription.
const PROPAGATION: Duration = Duration::from_secs(30);
/// How long after a successful request the service is assumed to work.
const RECENT: Duration = Duration::from_secs(10);

/// A connection that carries many requests at a time.
pub(super) struct Client {
    /// The queue's URL, for errors.
    pub(super) queue: String,
    /// The service's clock.
    pub(super) clock: ServiceClock,
    connection: ConnectionManager,
    counter: RequestCounter,
    made: OnceLock<Instant>,
    /// When the last request succeeded. `None` if a request has failed since.
    answered: Mutex<Option<Instant>>,
}

impl Client {
    /// Connects to the emulator if the environment names one, otherwise to the service. Uses the
    /// first credentials found: `GOOGLE_APPLICATION_CREDENTIALS`, `gcloud auth`, the metadata
    /// server, python-task-queue's.
    pub(super) async fn connect(at: &PubSub, access: &Access) -> Result<Client, QueueError> {
        let environment = &access.environment;
        let service = match environment.get("PUBSUB_EMULATOR_HOST") {
            Some(host) => Service::Emulator(host.to_owned()),
            None => {
                crate::roots::tell();
                let found = tokio::time::timeout(CREDENTIALS, credentials(environment)).await;
                let found = found.unwrap_or_else(|_| Err("no answer in time".to_owned()));
                Service::GoogleCloud(Box::new(found.map_err(|problem| QueueError::Invalid {
                    queue: at.to_string(),
                    problem: format!(
                        "no usable Google credentials ({problem}); give the machine a service \
                         account, run `gcloud auth application-default login`, or set \
                         GOOGLE_APPLICATION_CREDENTIALS to a service account's key file"
                    ),
                })?))
            }
        };
        Client::to(at, service).await
    }

    pub(super) async fn to(at: &PubSub, service: Service) -> Result<Client, QueueError> {
        let options = ConnectionOptions {
            connect_timeout: Some(CONNECT),
            http2_keep_alive_interval: Some(PROBE),
            keep_alive_timeout: Some(PROBE),
            ..ConnectionOptions::default()
        };
        let connection = ConnectionManager::new(1, DOMAIN, ENDPOINT, &service, &options);
        let connection = connection.await.map_err(|error| {
            let text = chain(error.to_string(), std::error::Error::source(&error));
            unavailable(&at.to_string(), "connecting to Pub/Sub", text)
        })?;
        Ok(Client {
            queue: at.to_string(),
            clock: ServiceClock::default(),
            connection,
            counter: RequestCounter::default(),
            made: OnceLock::new(),
            answered: Mutex::default(),
        })
    }

    pub(super) fn subscriber(&self) -> SubscriberClient<Channel> {
        // The response may contain many messages of the maximum size.
        SubscriberClient::new(self.connection.conn()).max_decoding_message_size(usize::MAX)
    }

    pub(super) fn publisher(&self) -> PublisherClient<Channel> {
        PublisherClient::new(self.connection.conn())
    }

    /// Sends a request, and retries it after errors that may be temporary. An attempt fails if no
    /// response arrives `within` this time.
    pub(super) async fn tried<A, F>(
        &self,
        kind: RequestKind,
        within: Duration,
        request: impl Fn() -> F,
    ) -> Result<A, Status>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let attempt = || async {
            self.counter.count(kind);
            let answer = tokio::time::timeout(within, request()).await;
            let answer = answer.unwrap_or_else(|_| {
                Err(Status::deadline_exceeded(format!("no answer within {within:?}")))
            });
            *self.answered.lock() = answer.is_ok().then(Instant::now);
            answer
        };
        let answer = attempt
            .retry(RETRIES)
            .when(|error| self.may_change(kind, error))
            .notify(|error, _| tracing::debug!("{}: {error}; trying again", self.queue))
            .await?;
        self.look_at_date(&answer);
        Ok(answer.into_inner())
    }

    fn look_at_date<A>(&self, answer: &Response<A>) {
        let date = answer.metadata().get("date").and_then(|date| date.to_str().ok());
        if let Some(date) = date.and_then(service_clock::parse) {
            self.clock.saw(&self.queue, date, SystemTime::now());
        }
    }

    fn may_change(&self, kind: RequestKind, error: &Status) -> bool {
        let is_new = self.made.get().is_some_and(|made| made.elapsed() < PROPAGATION)
            && matches!(kind, RequestKind::Receive | RequestKind::Send);
        status::is_transient(error) || (is_new && error.code() == Code::NotFound)
    }

    /// Whether the last request succeeded a short time ago.
    pub(super) fn is_well(&self) -> bool {
        self.answered.lock().is_some_and(|answered| answered.elapsed() < RECENT)
    }

    /// Records that a topic or subscription was created.
    pub(super) fn made(&self) {
        self.made.get_or_init(Instant::now);
    }

    pub(super) fn error(&self, doing: &str, error: &Status) -> QueueError {
        status::error(&self.queue, doing, error)
    }

    pub(super) fn invalid(&self, problem: impl Into<String>) -> QueueError {
        QueueError::Invalid { queue: self.queue.clone(), problem: problem.into() }
    }

    pub(super) fn requests(&self) -> Requests {
        self.counter.requests()
    }
}

/// A request with the header that routes it to the resource's region.
pub(super) fn routed<T>(parameter: &str, name: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    // A name that is not a valid header is not a valid topic either; the service reports that.
    if let Ok(value) = format!("{parameter}={name}").parse() {
        request.metadata_mut().insert("x-goog-request-params", value);
    }
    request
}

async fn credentials(environment: &Environment) -> Result<DefaultTokenSourceProvider, String> {
    let config = || project::Config::default().with_audience(ENDPOINT).with_scopes(&SCOPES);
    let words = |error: gcloud_auth::error::Error| {
        chain(error.to_string(), std::error::Error::source(&error))
    };
    let error = match DefaultTokenSourceProvider::new(config()).await {
        Ok(found) => return Ok(found),
        Err(error) => error,
    };
    // Broken credentials are an error. python-task-queue's are used only if there are no others.
    let is_nothing = matches!(error, gcloud_auth::error::Error::CredentialsIOError(_));
    let named = ["GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_APPLICATION_CREDENTIALS_JSON"];
    let secret = match environment.first(&named) {
        None if is_nothing => environment.cloudvolume_secret("google-secret.json"),
        _ => None,
    };
    let Some(secret) = secret else { return Err(words(error)) };
    let shown = secret.display().to_string();
    let file = CredentialsFile::new_from_file(shown.clone());
    let named = |error| format!("{shown}: {}", words(error));
    let file = file.await.map_err(named)?;
    let found = DefaultTokenSourceProvider::new_with_credentials(config(), Box::new(file));
    found.await.map_err(named)
}

#[cfg(test)]
mod tests {
    use gcloud_gax::grpc::transport::{ClientTlsConfig, Endpoint};

    use super::*;

    #[test]
    fn a_connection_to_the_service_can_be_encrypted() {
        // Build the TLS configuration as gcloud-gax does. Without a cryptography provider this
        // fails.
        let tls = ClientTlsConfig::new().with_webpki_roots().domain_name(DOMAIN);
        Endpoint::from_static(ENDPOINT).tls_config(tls).unwrap();
    }
}
