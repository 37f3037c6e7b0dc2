//! The queue interface, and how to open a queue.
//!
//! Each backend is a module below `queue/`. All backends pass the same conformance suite,
//! `queue/conformance.rs`, which specifies by example what the methods promise.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use tokio::time::Instant;

pub mod address;
#[cfg(test)]
pub(crate) mod conformance;
mod copies;
mod denial;
pub mod file;
pub mod memory;
mod on_runtime;
pub mod pubsub;
mod request_counter;
mod service_clock;
pub mod sqs;

pub use self::address::{Address, AddressError};
use crate::environment::Environment;
use crate::message::{self, DecodeError, Task};

/// The maximum size of a message in bytes, for reading and sending, even if the queue allows more.
/// A task may have at most half of this, so that a report that contains the task fits.
pub const LONGEST_MESSAGE: usize = 2 * message::LONGEST;
/// The maximum lease duration, unless the service allows less. SQS has the same limit.
const MAX_LEASE: Duration = Duration::from_secs(12 * 3600);

/// A message under lease.
#[derive(Debug, Clone)]
pub struct Message {
    /// The queue's id of the message. It is the same at every delivery.
    pub id: String,
    /// The bytes that were sent.
    pub body: Bytes,
    /// Why [`Message::body`] is not the text that was sent, if the queue could not or must not read
    /// that text. Such a message can only be reported and deleted. The report must not contain data
    /// that the message points to, and deleting the message must not delete anything else.
    pub unread: Option<String>,
    /// Proves that this process holds the lease. Every operation under the lease takes it.
    pub receipt: Receipt,
    /// Executions under earlier leases that failed and count as attempts.
    pub attempts: u32,
    /// Executions under earlier leases that started and did not end: their host was killed or
    /// lost. They are not part of `attempts`.
    pub deaths: u32,
    /// The number of earlier deliveries whose outcome is unknown, if the queue counts deliveries
    /// but cannot record starts. In these deliveries the host was killed or lost, or the lease
    /// expired; an execution may or may not have started. The number is an upper bound on deaths.
    /// It is not part of `attempts` or `deaths`. An execution that ends resets it to zero.
    pub unaccounted: u32,
    /// Why the failed executions failed, oldest first, if the queue can store it.
    pub failures: Vec<String>,
}

impl Message {
    /// Decodes the task.
    ///
    /// # Errors
    /// Says what was expected and where, or why the message could not be read.
    pub fn task(&self) -> Result<Task, DecodeError> {
        match &self.unread {
            Some(problem) => Err(DecodeError::unread(problem)),
            None => message::decode(&self.body),
        }
    }
}

/// Proof of a lease. Opaque outside its backend. Extending a lease makes a new receipt.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Receipt(pub(crate) String);

/// Why a message is released. The reason decides whether the execution counts as an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release<'a> {
    /// A drain, or a fault of this host. An execution under this lease is not an attempt.
    Uncounted,
    /// The task failed with this error.
    Failed(&'a str),
}

/// The number of messages in a queue. A count is `None` if the backend cannot know it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// All messages in the queue, leased or not.
    pub enqueued: Option<u64>,
    /// Messages that cannot be leased now: leased, waiting for a retry, or sent with a delay.
    pub leased: Option<u64>,
    /// The part of `leased` that no worker holds: messages that wait for a retry or were sent with
    /// a delay.
    pub retrying: Option<u64>,
    /// Messages sent since the counter was last reset.
    pub inserted: Option<u64>,
    /// Messages acknowledged since the counter was last reset.
    pub completed: Option<u64>,
}

impl Counts {
    /// Messages that can be leased now.
    pub fn waiting(&self) -> Option<u64> {
        Some(self.enqueued?.saturating_sub(self.leased?))
    }

    /// Messages that workers hold. If the queue cannot count the messages that wait for a retry,
    /// they are included.
    pub fn held(&self) -> Option<u64> {
        Some(self.leased?.saturating_sub(self.retrying.unwrap_or_default()))
    }
}

/// What a failed queue operation means for the caller.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The lease expired, so another worker may hold the message. Nothing was done.
    #[error("{queue}: the lease of message {id} is lost")]
    LeaseLost {
        /// The queue.
        queue: String,
        /// The message.
        id: String,
    },
    /// The queue could not be reached, or it failed. Trying again may help.
    #[error("{queue}: {doing} failed: {source}")]
    Unavailable {
        /// The queue.
        queue: String,
        /// What was being done.
        doing: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The queue, its URL or the message is wrong. Trying again cannot help.
    #[error("{queue}: {problem}")]
    Invalid {
        /// The queue.
        queue: String,
        /// What is wrong, and what to do instead.
        problem: String,
    },
}

impl From<AddressError> for QueueError {
    fn from(AddressError { url, problem }: AddressError) -> Self {
        Self::Invalid { queue: url, problem }
    }
}

/// A queue of messages with timed leases. `Display` is its URL.
/// Dropping the future of a method leaves the queue as if the method had not been called, or as
/// if it had completed. A message that was leased meanwhile is released, at the latest when its
/// lease expires.
#[async_trait]
pub trait Queue: fmt::Display + fmt::Debug + Send + Sync + 'static {
    /// Leases up to `max` messages for `duration` each. Waits up to `wait` for the first one, and
    /// returns nothing if none came. A message is never leased to two callers at once. It is
    /// delivered again when its lease expires.
    async fn lease(
        &self,
        max: usize,
        duration: Duration,
        wait: Duration,
    ) -> Result<Vec<Message>, QueueError>;

    /// Records that an execution is about to start. The record survives a crash of the host. An
    /// execution whose end is not recorded counts in [`Message::deaths`] at the next delivery.
    async fn start(&self, receipt: &Receipt) -> Result<(), QueueError>;

    /// Sets the end of the lease to `duration` from now. The old receipt becomes invalid.
    async fn extend(&self, receipt: &Receipt, duration: Duration) -> Result<Receipt, QueueError>;

    /// Deletes a message whose task succeeded.
    async fn ack(&self, receipt: &Receipt) -> Result<(), QueueError>;

    /// Deletes a message whose task is rejected. It does not count in
    /// [`Counts::completed`].
    async fn give_up(&self, receipt: &Receipt) -> Result<(), QueueError> {
        self.ack(receipt).await
    }

    /// Records that an execution whose lease was lost has stopped, or that a recorded execution did
    /// not begin. The execution then does not count as a death. Queues without such records do
    /// nothing.
    async fn disown(&self, _receipt: &Receipt) -> Result<(), QueueError> {
        Ok(())
    }

    /// Ends the lease: the message can be leased again `after` from now.
    async fn release(
        &self,
        receipt: &Receipt,
        after: Duration,
        why: Release<'_>,
    ) -> Result<(), QueueError>;

    /// Sends messages. Returns one result for each body, in the same order.
    async fn send(&self, bodies: &[Bytes]) -> Vec<Result<(), QueueError>>;

    /// Returns the number of messages.
    async fn counts(&self) -> Result<Counts, QueueError>;

    /// The maximum number of messages that one request can lease.
    fn batch(&self) -> usize {
        1
    }

    /// The earliest end of the lease by this host's clock. If `None`, the caller adds `duration` to
    /// the time of its call. A service may grant a shorter lease, or start the lease before its
    /// response arrives.
    fn until(&self, _receipt: &Receipt) -> Option<Instant> {
        None
    }

    /// The maximum lease duration of one request. To hold a message longer, extend the lease.
    fn max_lease(&self) -> Duration {
        MAX_LEASE
    }

    /// Whether the service moves a message to a dead-letter queue after too many deliveries. Then
    /// the host never rejects a message because of its number of deliveries.
    fn limits_deliveries(&self) -> bool {
        false
    }

    /// Whether a message that is leased and released without an execution uses up one of a limited
    /// number of deliveries. Then the host holds no messages ahead.
    fn charges_for_holding(&self) -> bool {
        false
    }

    /// Sends the requests that wait for a batch to fill, and releases the messages of abandoned
    /// receive requests. No message can be leased afterwards.
    async fn close(&self) {}

    /// The number of requests so far, if requests cost money.
    fn requests(&self) -> Option<Requests> {
        None
    }
}

/// Counts of requests to a service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Requests {
    /// Requests that lease messages.
    pub receive: u64,
    /// Requests that send messages.
    pub send: u64,
    /// Requests that delete messages.
    pub delete: u64,
    /// Requests that extend or end leases.
    pub extend: u64,
    /// All other requests.
    pub other: u64,
}

impl Requests {
    /// The total number of requests.
    pub fn total(&self) -> u64 {
        self.receive + self.send + self.delete + self.extend + self.other
    }
}

/// A message in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The message's id.
    pub id: String,
    /// When the message can be leased, as a time since 1970. Zero if it was never leased. A time in
    /// the future means that the message is leased, or was sent or released with a delay. `None` if
    /// unknown.
    pub due: Option<Duration>,
    /// When the message was sent, as a time since 1970, if known.
    pub sent: Option<Duration>,
    /// The text that was sent.
    pub body: Bytes,
    /// Why [`Listed::body`] is not the text that was sent: see [`Message::unread`].
    pub unread: Option<String>,
}

/// The operations that operators need to inspect and repair a queue. `Display` is its URL. An
/// operation that the service does not support fails with [`QueueError::Invalid`], which says what
/// to do instead.
#[async_trait]
pub trait Admin: fmt::Display + fmt::Debug + Send + Sync {
    /// Returns the number of messages.
    async fn counts(&self) -> Result<Counts, QueueError>;

    /// Lists the messages, in no particular order, and keeps only a few in memory at a time. A
    /// message that is sent, leased or deleted during the listing may be missed or listed twice.
    /// Some backends must lease a message to list it. They do not list leased messages, and they
    /// release the listed ones at the end of the stream.
    fn messages(&self) -> BoxStream<'_, Result<Listed, QueueError>>;

    /// Ends all leases and delays, so that every message can be leased at once. Workers lose the
    /// leases that they hold. Returns the number of messages.
    async fn release_all(&self) -> Result<u64, QueueError>;

    /// Resets the counters of sent and completed messages.
    async fn rezero(&self) -> Result<(), QueueError>;

    /// Deletes all messages and resets the counters. Workers lose the leases that they hold.
    /// Returns the number of messages, if known.
    async fn purge(&self) -> Result<Option<u64>, QueueError>;

    /// Waits until the messages that were leased for a listing are released. They are released even
    /// if the listing was dropped before its end.
    async fn close(&self) {}

    /// The queue's own settings.
    async fn facts(&self) -> Result<Facts, QueueError> {
        Ok(Facts::default())
    }
}

/// The settings of a queue. The host's settings must be compatible with them.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct Facts {
    /// The default lease duration of the queue.
    pub visibility: Option<Duration>,
    /// The number of times that a message may be received before it is moved to the dead-letter
    /// queue.
    pub receive_limit: Option<u32>,
    /// Whether a delivery counts towards `receive_limit` if the message is released afterwards.
    pub every_delivery_counts: bool,
    /// The dead-letter queue.
    pub dead_letter_queue: Option<String>,
    /// How long a message is kept.
    pub retention: Option<Duration>,
    /// The maximum size of a message in bytes.
    pub longest_message: Option<u64>,
    /// The maximum time that one host may hold a message, including all extensions.
    pub max_lease: Option<Duration>,
    /// Whether messages are delivered in order, and therefore not all at once.
    pub is_ordered: bool,
    /// Notes for the operator.
    pub notes: Vec<String>,
}

/// Whether a text is a valid id of the kind that services give to messages. The id arrives in an
/// attribute, and a sender can write anything into it.
fn is_id(text: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    (1..=128).contains(&text.len()) && text.bytes().all(is_plain)
}

/// How queues are reached, and which operations are allowed.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// The region of SQS queues whose address does not contain one. Overrides the environment's
    /// region.
    pub region: Option<String>,
    /// Create queues that do not exist.
    pub create: bool,
    /// The URL of the bucket for bodies that are too large for SQS. Such bodies are written to this
    /// bucket, and read from it if a message points to it. If `None`, large bodies are refused.
    pub body_bucket: Option<String>,
    /// Recognizes reports. A body in the bucket must be a task. With this function it may also be a
    /// report, for commands that list and move reports.
    pub is_report: Option<fn(&[u8]) -> bool>,
    /// The message group (SQS) or ordering key (Pub/Sub) of the messages that are sent.
    pub group: Option<String>,
    /// The environment variables that provide credentials and endpoints.
    pub environment: Environment,
}

/// Opens a queue. A directory queue is created if it does not exist; an SQS or Pub/Sub queue is
/// created only with [`Access::create`].
///
/// # Errors
/// [`QueueError::Invalid`] if the queue does not exist or can't be used,
/// [`QueueError::Unavailable`] if it does not answer.
pub async fn open(address: &Address, access: &Access) -> Result<Arc<dyn Queue>, QueueError> {
    match address {
        Address::Directory(path) => {
            Ok(Arc::new(file::FileQueue::open(&address.to_string(), path)?))
        }
        Address::Sqs(address) => Ok(Arc::new(sqs::SqsQueue::open(address, access).await?)),
        Address::PubSub(address) => Ok(Arc::new(pubsub::PubSubQueue::open(address, access).await?)),
    }
}

/// Opens a queue as [`open`] does. Connections to a service are opened and driven on `runtime`, so
/// that blocking file operations cannot delay them.
///
/// # Errors
/// As [`open`].
pub async fn open_on(
    runtime: &tokio::runtime::Handle,
    address: &Address,
    access: &Access,
) -> Result<Arc<dyn Queue>, QueueError> {
    if !address.is_remote() {
        return open(address, access).await;
    }
    let (there, access) = (address.clone(), access.clone());
    let opened = runtime.spawn(async move { open(&there, &access).await }).await;
    let queue = opened.map_err(|stopped| QueueError::Unavailable {
        queue: address.to_string(),
        doing: "opening the queue".to_owned(),
        source: Box::new(stopped),
    })??;
    Ok(Arc::new(on_runtime::OnRuntime::new(queue, runtime.clone())))
}

/// Opens an existing queue to inspect and repair it.
///
/// # Errors
/// As [`open`].
pub async fn admin(address: &Address, access: &Access) -> Result<Box<dyn Admin>, QueueError> {
    match address {
        Address::Directory(path) => Ok(Box::new(file::Admin::open(&address.to_string(), path)?)),
        Address::Sqs(address) => Ok(Box::new(sqs::Admin::open(address, access).await?)),
        Address::PubSub(address) => Ok(Box::new(pubsub::Admin::open(address, access).await?)),
    }
}
