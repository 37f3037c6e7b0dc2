//! What a task queue is to the host, and how to open one by its URL.
//!
//! A backend is one file below `queue/`. All of them run the one conformance suite in
//! `queue/conformance.rs`, which says by example what the methods promise.

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
mod service_clock;
pub mod sqs;

pub use self::address::{Address, AddressError};
use crate::environment::Environment;
use crate::message::{self, DecodeError, Task};

/// Bytes of the longest message that is read from a queue or put into one, whatever the queue
/// would take: a task has at most half of it, and its report has to fit as well.
pub const LONGEST_MESSAGE: usize = 2 * message::LONGEST;
/// The longest a lease lasts unless the service says less: what SQS allows.
const LONGEST_HOLD: Duration = Duration::from_secs(12 * 3600);

/// A message under lease.
#[derive(Debug, Clone)]
pub struct Message {
    /// The queue's own name for the message; the same at every delivery.
    pub id: String,
    /// The text that was sent, byte for byte.
    pub body: Bytes,
    /// Why [`Message::body`] is not the text that was sent, where that could not or must not be
    /// read. Nothing can be done with such a message but to report it: nobody else's text may
    /// stand in the report, and giving the message up destroys nothing but the message.
    pub unread: Option<String>,
    /// The proof that the lease is ours, needed for everything done under it.
    pub receipt: Receipt,
    /// Executions under earlier leases that failed and count as attempts.
    pub attempts: u32,
    /// Executions under earlier leases that were recorded as started, and whose end was never
    /// recorded: the host was killed or lost. Not part of `attempts`.
    pub deaths: u32,
    /// Earlier deliveries of which nobody told how they ended, where the queue counts
    /// deliveries and can't record starts. The host was killed or lost, or only the lease ran
    /// out; whether an execution had begun is not known. An upper bound on deaths, and part of
    /// neither `attempts` nor `deaths`. Zero after an execution that was judged.
    pub unaccounted: u32,
    /// What ended those executions, oldest first, where the queue can remember it.
    pub failures: Vec<String>,
}

impl Message {
    /// The task that it is.
    ///
    /// # Errors
    /// Says where in the message something else was expected, or why its text can't be had.
    pub fn task(&self) -> Result<Task, DecodeError> {
        match &self.unread {
            Some(problem) => Err(DecodeError::unread(problem)),
            None => message::decode(&self.body),
        }
    }
}

/// Proof of a lease. Opaque outside its backend; extending a lease makes a new one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Receipt(pub(crate) String);

/// Why a message is given back, and so whether the execution counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release<'a> {
    /// Not the task's fault: a drain, or a fault of this host. If an execution was
    /// started under this lease it does not count as an attempt.
    Uncounted,
    /// The task failed, and this is why.
    Failed(&'a str),
}

/// How many messages a queue holds. What a backend can't know is `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// All messages in the queue, leased or not.
    pub enqueued: Option<u64>,
    /// Messages that nobody may lease now: leased, or sent with a delay.
    pub leased: Option<u64>,
    /// Messages ever sent, since the counter was last reset.
    pub inserted: Option<u64>,
    /// Messages ever done, since the counter was last reset.
    pub completed: Option<u64>,
}

/// What a failed queue operation means for the caller.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The lease ran out and the message is, or may be, somebody else's. Nothing was done.
    #[error("{queue}: the lease of message {id} is lost")]
    LeaseLost {
        /// The queue.
        queue: String,
        /// The message.
        id: String,
    },
    /// The queue could not be reached or did not answer well. Trying again may help.
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
    /// The queue, its URL or the message is such that trying again can't help.
    #[error("{queue}: {problem}")]
    Invalid {
        /// The queue.
        queue: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
}

impl From<AddressError> for QueueError {
    fn from(AddressError { url, problem }: AddressError) -> Self {
        Self::Invalid { queue: url, problem }
    }
}

/// A queue of messages with timed leases. `Display` is its URL.
///
/// Dropping the future of any method leaves the queue as if the call had not been made or
/// as if it had been completed; a message is never stranded under a lease that nobody holds
/// for longer than that lease.
#[async_trait]
pub trait Queue: fmt::Display + fmt::Debug + Send + Sync + 'static {
    /// Leases up to `max` messages for `hold` each, waiting up to `wait` for the first.
    /// An empty answer means that there was none. No message is given to two callers at
    /// once; one whose lease ran out is given out again.
    async fn lease(
        &self,
        max: usize,
        hold: Duration,
        wait: Duration,
    ) -> Result<Vec<Message>, QueueError>;

    /// Records that an execution starts, before it does. The record survives a crash of the
    /// host: unless the execution's end is recorded too, it counts in [`Message::deaths`] at
    /// the next delivery.
    async fn start(&self, receipt: &Receipt) -> Result<(), QueueError>;

    /// Makes the lease end `hold` from now. The old receipt is of no further use.
    async fn extend(&self, receipt: &Receipt, hold: Duration) -> Result<Receipt, QueueError>;

    /// Deletes the message: it is done.
    async fn ack(&self, receipt: &Receipt) -> Result<(), QueueError>;

    /// Deletes the message of a task that was given up. It does not count in
    /// [`Counts::completed`].
    async fn give_up(&self, receipt: &Receipt) -> Result<(), QueueError> {
        self.ack(receipt).await
    }

    /// The lease is lost, and the execution that was started under it has ended here without
    /// a verdict. Where the queue can record that, the execution is not a death.
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

    /// Sends messages. The answer has one entry for each body, in their order.
    async fn send(&self, bodies: &[Bytes]) -> Vec<Result<(), QueueError>>;

    /// How many messages there are.
    async fn counts(&self) -> Result<Counts, QueueError>;

    /// How many messages it is worth to ask for at once: what one request brings.
    fn batch(&self) -> usize {
        1
    }

    /// When the lease ends by this host's clock, at the earliest, where the queue knows that
    /// better than who asked for it: a service may hold a message for a limited time only, or
    /// begin to count before its answer is here.
    fn until(&self, _receipt: &Receipt) -> Option<Instant> {
        None
    }

    /// The longest time a lease can be made to last from now; who holds it for longer makes
    /// it longer on the way.
    fn longest_hold(&self) -> Duration {
        LONGEST_HOLD
    }

    /// True where the service itself moves a message away that was delivered too often. The
    /// service decides there: a host gives no message up for its deliveries.
    fn limits_deliveries(&self) -> bool {
        false
    }

    /// True where a message that was only held ahead and is given back has used up one of a
    /// limited number of deliveries. A host then holds only what is about to start.
    fn charges_for_holding(&self) -> bool {
        false
    }

    /// Sends what is waiting to be sent with others, and gives back what a poll brings that
    /// was given up on but is still under way. After it, nothing is leased any more.
    async fn close(&self) {}

    /// The requests made so far, where they cost something.
    fn requests(&self) -> Option<Requests> {
        None
    }
}

/// Requests to a service, by what was asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Requests {
    /// For messages.
    pub receive: u64,
    /// To put in messages.
    pub send: u64,
    /// To delete messages.
    pub delete: u64,
    /// To make leases longer, or end them.
    pub extend: u64,
    /// For anything else.
    pub other: u64,
}

impl Requests {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.receive + self.send + self.delete + self.extend + self.other
    }
}

/// A message as its operator sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The message's id.
    pub id: String,
    /// The time since 1970 from which it may be leased; zero if it never was. In the future
    /// it is leased, or was sent or released with a delay. None where nobody can tell.
    pub due: Option<Duration>,
    /// The time since 1970 at which it was sent, where the queue knows.
    pub sent: Option<Duration>,
    /// The text that was sent.
    pub body: Bytes,
    /// Why [`Listed::body`] is not that text: see [`Message::unread`].
    pub unread: Option<String>,
}

/// A queue as its operator sees it: what people do to a queue, as against hosts. `Display`
/// is its URL. What a service can't do is [`QueueError::Invalid`] and says what can be done.
#[async_trait]
pub trait Admin: fmt::Display + fmt::Debug + Send + Sync {
    /// How many messages there are.
    async fn counts(&self) -> Result<Counts, QueueError>;

    /// The messages, in no order, a few at a time in memory. One that comes or goes or moves
    /// meanwhile may be missed, or be seen twice. Where the only way to see a message is to
    /// lease it, only those that nobody holds are seen, and all are given back when the
    /// stream has come to its end.
    fn messages(&self) -> BoxStream<'_, Result<Listed, QueueError>>;

    /// Makes all messages available at once, leased or not. Who holds one loses it. Returns
    /// how many there were.
    async fn release_all(&self) -> Result<u64, QueueError>;

    /// Sets the counters of messages sent and done to zero.
    async fn rezero(&self) -> Result<(), QueueError>;

    /// Removes all messages, and sets the counters to zero. Who holds a message loses it.
    /// Returns how many there were, where that can be known.
    async fn purge(&self) -> Result<Option<u64>, QueueError>;

    /// Waits until what was leased to be looked at is given back: also when a stream of
    /// messages was dropped before its end.
    async fn close(&self) {}

    /// How the queue is set up, as far as it has settings.
    async fn facts(&self) -> Result<Facts, QueueError> {
        Ok(Facts::default())
    }
}

/// How a queue is set up: what a host's own settings have to fit to.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct Facts {
    /// How long a message is leased to those who don't say for how long.
    pub visibility: Option<Duration>,
    /// How often a message may be received before it is moved away.
    pub receive_limit: Option<u32>,
    /// Every delivery uses up one of those, also one after which a task is given back.
    pub every_delivery_counts: bool,
    /// Where it is moved to.
    pub dead_letter_queue: Option<String>,
    /// How long a message is kept.
    pub retention: Option<Duration>,
    /// Bytes of the longest message.
    pub longest_message: Option<u64>,
    /// How long one host may hold a message, however often its lease is extended.
    pub longest_hold: Option<Duration>,
    /// Messages are given out in an order, and so not all at once.
    pub is_ordered: bool,
    /// What else a person should know.
    pub notes: Vec<String>,
}

/// Whether a text can be what a message was called when it was sent first. Services call messages
/// by short plain names; a sender may write anything there.
fn is_id(text: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    (1..=128).contains(&text.len()) && text.bytes().all(is_plain)
}

/// How queues are reached, and what may be done to them.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// The region of SQS queues whose address does not say it. Overrides the environment's.
    pub region: Option<String>,
    /// Create queues that do not exist.
    pub create: bool,
    /// URL of the bucket for bodies that are too large for SQS: such bodies are written there,
    /// and read from there where a message points to it. `None`: large bodies are refused.
    pub body_bucket: Option<String>,
    /// Recognizes reports. A body in the bucket has to be a task; with this, it may be a report
    /// as well, for commands that list and move reports.
    pub is_report: Option<fn(&[u8]) -> bool>,
    /// The message group (SQS) or ordering key (Pub/Sub) of the messages that are sent.
    pub group: Option<String>,
    /// The variables that credentials and endpoints are taken from.
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

/// Opens a queue as [`open`] does. Connections to a service are opened and driven on `runtime`,
/// which blocking file operations should not be able to hold up.
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
