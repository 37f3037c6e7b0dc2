//! The connection to Pub/Sub: whose it is, and requests that are made again when that helps.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use gcloud_auth::credentials::CredentialsFile;
use gcloud_auth::project;
use gcloud_auth::token::DefaultTokenSourceProvider;
use gcloud_gax::conn::{Channel, ConnectionManager, ConnectionOptions, Environment as Service};
use gcloud_gax::grpc::{Code, Request, Response, Status};
use gcloud_googleapis::pubsub::v1::publisher_client::PublisherClient;
use gcloud_googleapis::pubsub::v1::subscriber_client::SubscriberClient;
use tokio::time::Instant;

use super::status::{self, chain, unavailable};
use crate::environment::Environment;
use crate::queue::address::PubSub;
use crate::queue::service_clock::{self, ServiceClock};
use crate::queue::{Access, QueueError, Requests};

const DOMAIN: &str = "pubsub.googleapis.com";
const ENDPOINT: &str = "https://pubsub.googleapis.com/";
const SCOPES: [&str; 1] = ["https://www.googleapis.com/auth/pubsub"];
/// How long getting credentials may take. The metadata server of a machine that is not
/// Google's never answers.
const CREDENTIALS: Duration = Duration::from_secs(20);
/// How long making a connection may take.
const CONNECT: Duration = Duration::from_secs(10);
/// How long an answer may take that is not one to wait for.
pub(super) const ANSWER: Duration = Duration::from_secs(30);
/// After so much silence a connection is probed, and after as much again given up.
const PROBE: Duration = Duration::from_secs(20);
/// The pauses between tries, which vary by half.
const PAUSES: [Duration; 3] =
    [Duration::from_millis(200), Duration::from_millis(600), Duration::from_millis(1500)];
/// For so long after it was made, a topic or subscription may not be there for messages.
const PROPAGATION: Duration = Duration::from_secs(30);
/// For so long it is not asked again whether the service answers.
const RECENT: Duration = Duration::from_secs(10);

/// A connection. Its requests can be made by many at once.
pub(super) struct Client {
    /// The queue's URL, for errors.
    pub(super) queue: String,
    /// What its answers say of the time.
    pub(super) clock: ServiceClock,
    connection: ConnectionManager,
    tally: Tally,
    made: OnceLock<Instant>,
    /// When the last request was done, unless one failed since.
    answered: Mutex<Option<Instant>>,
}

/// What a request is counted as.
#[derive(Debug, Clone, Copy)]
pub(super) enum RequestKind {
    Receive,
    Send,
    Delete,
    Extend,
    Other,
}

#[derive(Default)]
struct Tally {
    receive: AtomicU64,
    send: AtomicU64,
    delete: AtomicU64,
    extend: AtomicU64,
    other: AtomicU64,
}

impl Client {
    /// Connects to the emulator if the environment names one, or to the service with the
    /// credentials that are found: of `GOOGLE_APPLICATION_CREDENTIALS`, of `gcloud auth`, of
    /// the machine's metadata server, or of python-task-queue, in this order.
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
                        "no Google credentials can be used ({problem}); give the machine a \
                             service account, or run `gcloud auth application-default login`, or \
                             set GOOGLE_APPLICATION_CREDENTIALS to a service account's key file"
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
            tally: Tally::default(),
            made: OnceLock::new(),
            answered: Mutex::default(),
        })
    }

    pub(super) fn subscriber(&self) -> SubscriberClient<Channel> {
        // A request for ten messages may bring ten of the largest.
        SubscriberClient::new(self.connection.conn()).max_decoding_message_size(usize::MAX)
    }

    pub(super) fn publisher(&self) -> PublisherClient<Channel> {
        PublisherClient::new(self.connection.conn())
    }

    /// Makes a request, and makes it again while what comes back may change in a moment. One
    /// that is not answered `within` that time is taken to have failed.
    pub(super) async fn tried<A, F>(
        &self,
        kind: RequestKind,
        within: Duration,
        request: impl Fn() -> F,
    ) -> Result<A, Status>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let mut pauses = PAUSES.iter();
        loop {
            self.tally.of(kind).fetch_add(1, Relaxed);
            let answer = tokio::time::timeout(within, request()).await;
            let answer = answer.unwrap_or_else(|_| {
                Err(Status::deadline_exceeded(format!("no answer within {within:?}")))
            });
            *self.answered() = answer.is_ok().then(Instant::now);
            let error = match answer {
                Ok(answer) => {
                    self.look_at_date(&answer);
                    return Ok(answer.into_inner());
                }
                Err(error) => error,
            };
            let pause = pauses.next().filter(|_| self.may_change(kind, &error));
            let Some(pause) = pause else { return Err(error) };
            tracing::debug!("{}: {error}; trying again", self.queue);
            tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
        }
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

    fn answered(&self) -> MutexGuard<'_, Option<Instant>> {
        self.answered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True when the service did a moment ago what it was asked to.
    pub(super) fn is_well(&self) -> bool {
        self.answered().is_some_and(|answered| answered.elapsed() < RECENT)
    }

    /// Notes that a topic or a subscription was made.
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
        self.tally.requests()
    }
}

/// A request with the header that routes it to where what it names is kept.
pub(super) fn routed<T>(parameter: &str, name: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    // A name that fits into no header is none of a topic; the service will say so.
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
    // What is there and can't be used is an error; only where nothing is, there is a last place.
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

impl Tally {
    fn of(&self, kind: RequestKind) -> &AtomicU64 {
        match kind {
            RequestKind::Receive => &self.receive,
            RequestKind::Send => &self.send,
            RequestKind::Delete => &self.delete,
            RequestKind::Extend => &self.extend,
            RequestKind::Other => &self.other,
        }
    }

    fn requests(&self) -> Requests {
        Requests {
            receive: self.receive.load(Relaxed),
            send: self.send.load(Relaxed),
            delete: self.delete.load(Relaxed),
            extend: self.extend.load(Relaxed),
            other: self.other.load(Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use gcloud_gax::grpc::transport::{ClientTlsConfig, Endpoint};

    use super::*;

    #[test]
    fn a_connection_to_the_service_can_be_encrypted() {
        // As gcloud-gax makes it; without a provider of cryptography this fails.
        let tls = ClientTlsConfig::new().with_webpki_roots().domain_name(DOMAIN);
        Endpoint::from_static(ENDPOINT).tls_config(tls).unwrap();
    }
}
