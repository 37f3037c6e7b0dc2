//! What a task queue is to the host, and how to open one by its URL.
//!
//! A backend is one file below `queue/`. All of them run the one conformance suite in
//! `queue/conformance.rs`, which says by example what the methods promise.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

#[cfg(test)]
pub(crate) mod conformance;
pub mod file;
pub mod memory;

/// A message under lease.
#[derive(Debug, Clone)]
pub struct Message {
    /// The queue's own name for the message; the same at every delivery.
    pub id: String,
    /// The text that was sent, byte for byte.
    pub body: Bytes,
    /// The proof that the lease is ours, needed for everything done under it.
    pub receipt: Receipt,
    /// Executions that were started under earlier leases and that count as attempts.
    pub attempts: u32,
    /// What ended those executions, oldest first, where the queue can remember it.
    pub failures: Vec<String>,
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

    /// Records that an execution starts, before it does: it survives a crash of the host,
    /// and counts in [`Message::attempts`] at the next delivery.
    async fn start(&self, receipt: &Receipt) -> Result<(), QueueError>;

    /// Makes the lease end `hold` from now. The old receipt is of no further use.
    async fn extend(&self, receipt: &Receipt, hold: Duration) -> Result<Receipt, QueueError>;

    /// Deletes the message: it is done.
    async fn ack(&self, receipt: &Receipt) -> Result<(), QueueError>;

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
}

/// Opens a queue by its URL, `fq://DIR`, or by a plain path. A directory queue is made if
/// there is none.
pub fn open(url: &str) -> Result<Arc<dyn Queue>, QueueError> {
    let (url, path) = parse(url)?;
    Ok(Arc::new(file::FileQueue::open(&url, &path)?))
}

/// Opens a queue, which must exist, to look into it and to set it right.
pub fn admin(url: &str) -> Result<file::Admin, QueueError> {
    let (url, path) = parse(url)?;
    file::Admin::open(&url, &path)
}

/// What a URL means: the name to call the queue by, and the directory.
fn parse(url: &str) -> Result<(String, PathBuf), QueueError> {
    let invalid = |problem: String| QueueError::Invalid { queue: url.to_owned(), problem };
    let path = match url.split_once("://") {
        None | Some(("fq", "")) if url.is_empty() || url == "fq://" => {
            let problem = "no directory is given; a queue is fq://DIR, like fq://./queue";
            return Err(invalid(problem.to_owned()));
        }
        None => url,
        Some(("fq", path)) => path,
        Some((scheme @ ("sqs" | "pubsub"), _)) => {
            return Err(invalid(format!(
                "this release has no {scheme}:// queues yet; it has directories, fq://DIR"
            )));
        }
        Some((scheme, _)) => {
            return Err(invalid(format!(
                "{scheme}:// is no kind of queue; a queue is a directory, fq://DIR"
            )));
        }
    };
    Ok((format!("fq://{path}"), PathBuf::from(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_the_directory_it_says() {
        let check = |url: &str, name: &str, path: &str| {
            assert_eq!(parse(url).unwrap(), (name.to_owned(), PathBuf::from(path)));
        };
        check("fq://./queue", "fq://./queue", "./queue");
        check("fq:///a/b", "fq:///a/b", "/a/b");
        check("fq://a b", "fq://a b", "a b");
        check("./queue", "fq://./queue", "./queue");
    }

    #[test]
    fn a_queue_that_we_have_not_is_refused_by_name() {
        let check = |url: &str, problem: &str| match parse(url) {
            Err(error @ QueueError::Invalid { .. }) => {
                assert!(error.to_string().contains(problem), "{error}");
            }
            other => panic!("{url}: {other:?}"),
        };
        check("sqs://name", "no sqs:// queues yet");
        check("pubsub://projects/p/topics/t/subscriptions/s", "no pubsub:// queues yet");
        check("s3://bucket", "s3:// is no kind of queue");
        check("fq://", "no directory is given");
        check("", "no directory is given");
    }
}
