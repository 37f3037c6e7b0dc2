//! Finds the tasks that are done: they have a receipt, and outputs that match it.

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};

use crate::bucket::BucketError;
use crate::message;
use crate::publish::PutOutput;
use crate::queue::QueueError;
use crate::receipt::{self, Found, Receipt, Receipts};

/// How many tasks are checked at once, with a directory and with a service.
const AT_ONCE: usize = 2;
const AT_ONCE_REMOTE: usize = 64;

/// Looks at the tasks of a transfer, and decides which are sent.
#[async_trait]
pub trait Check: Send + Sync {
    /// For each of these messages, whether it is to be sent.
    ///
    /// # Errors
    /// When the bucket can't be read.
    async fn to_send(&self, messages: &[Bytes]) -> Result<Vec<bool>, QueueError>;
}

/// How many tasks are checked at once.
pub(super) fn at_once(receipts: &Receipts) -> usize {
    if receipts.bucket().is_local() { AT_ONCE } else { AT_ONCE_REMOTE }
}

/// An error of a bucket, or of this host, during a transfer.
pub(super) fn unavailable(
    receipts: &Receipts,
    doing: &str,
    error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> QueueError {
    QueueError::Unavailable {
        queue: receipts.bucket().to_string(),
        doing: doing.to_owned(),
        source: error.into(),
    }
}

/// How much of a task is compared with its receipt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Nothing: a task with a receipt is done.
    Receipt,
    /// Sizes and versions of the outputs.
    Versions,
    /// The digests of the outputs, which are read.
    Digests,
}

/// Why a task is not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Undone {
    /// It has no receipt, or an output is not there.
    #[error("{0}")]
    Missing(String),
    /// No output matches the receipt.
    #[error("changed: output {0} does not match the receipt")]
    Changed(String),
    /// Some outputs match the receipt and others do not.
    #[error("mixed: output {0} does not match the receipt, but others do")]
    Mixed(String),
}

/// Called for each task that is not done, with its message and the reason.
pub type Told = dyn Fn(&Bytes, &Undone) + Send + Sync;

/// Finds out which tasks are done.
pub struct Checker {
    receipts: Receipts,
    depth: Depth,
    /// Withdraw the receipts of tasks that are not done.
    withdraws: bool,
    told: Box<Told>,
}

/// How an output compares with its receipt.
enum Compared {
    Same,
    Different,
    Gone,
}

impl Checker {
    /// Looks for receipts, and calls `told` for each task that is not done.
    pub fn new(
        receipts: Receipts,
        depth: Depth,
        told: impl Fn(&Bytes, &Undone) + Send + Sync + 'static,
    ) -> Self {
        Self { receipts, depth, withdraws: false, told: Box::new(told) }
    }

    /// Withdraws the receipts of tasks that are not done, so that hosts run them again.
    #[must_use]
    pub fn that_withdraws(self, withdraws: bool) -> Self {
        Self { withdraws, ..self }
    }

    /// Why the task of a message is not done, if it is not.
    async fn check(&self, message: &Bytes) -> Result<Option<Undone>, BucketError> {
        let missing = |why: String| Ok(Some(Undone::Missing(why)));
        let task = match message::decode(message) {
            Ok(task) => task,
            Err(error) => return missing(error.to_string()),
        };
        let content = receipt::content(&task);
        match self.receipts.find(&content).await? {
            Found::Nothing => missing("missing: has no receipt".to_owned()),
            Found::Unusable { why, .. } => {
                missing(format!("missing: the receipt {} {why}", receipt::key(&content)))
            }
            Found::Receipt { receipt, revision, .. } => {
                let undone = self.compare_all(&receipt).await?;
                if undone.is_some() && self.withdraws {
                    // A newer receipt is not withdrawn: its outputs were not compared.
                    self.receipts.withdraw(&content, &revision).await?;
                }
                Ok(undone)
            }
        }
    }

    async fn compare_all(&self, receipt: &Receipt) -> Result<Option<Undone>, BucketError> {
        let (mut is_any_same, mut different) = (false, None);
        for output in &receipt.outputs {
            match self.compare(output).await? {
                Compared::Same => is_any_same = true,
                Compared::Different => drop(different.get_or_insert(&output.key)),
                Compared::Gone => {
                    let why = format!("missing: output {} is not there", output.key);
                    return Ok(Some(Undone::Missing(why)));
                }
            }
        }
        Ok(different.map(|key| match is_any_same {
            true => Undone::Mixed(key.to_string()),
            false => Undone::Changed(key.to_string()),
        }))
    }

    async fn compare(&self, output: &PutOutput) -> Result<Compared, BucketError> {
        let bucket = self.receipts.bucket();
        let is_same = match self.depth {
            Depth::Receipt => Ok(true),
            Depth::Versions => bucket.head(&output.key).await.map(|version| {
                let is_same_size = !version.tells_size() || version.size == output.size;
                let is_same_tag =
                    output.version.is_empty() || version.stored_tag() == output.version;
                is_same_size && is_same_tag
            }),
            Depth::Digests => {
                let read = bucket.digest(&output.key).await;
                read.map(|read| read == (output.sha256, output.size))
            }
        };
        match is_same {
            Ok(true) => Ok(Compared::Same),
            // `Invalid`: the key is that of a directory, or the object can't be decoded.
            Ok(false) | Err(BucketError::Invalid { .. }) => Ok(Compared::Different),
            Err(BucketError::NotFound { .. }) => Ok(Compared::Gone),
            Err(error) => Err(error),
        }
    }
}

/// Sends the tasks that are not done.
#[async_trait]
impl Check for Checker {
    async fn to_send(&self, messages: &[Bytes]) -> Result<Vec<bool>, QueueError> {
        let at_once = at_once(&self.receipts);
        let checks: Vec<_> = messages.iter().map(|message| self.check(message)).collect();
        let found: Result<Vec<_>, _> = stream::iter(checks).buffered(at_once).try_collect().await;
        let found = found.map_err(|error| unavailable(&self.receipts, "checking tasks", error))?;
        for (message, undone) in messages.iter().zip(&found) {
            if let Some(undone) = undone {
                (self.told)(message, undone);
            }
        }
        Ok(found.iter().map(Option::is_some).collect())
    }
}
