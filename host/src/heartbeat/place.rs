//! The place where the hosts of a queue store their heartbeats.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::runtime::Handle;

use super::LONGEST;
use crate::blocking::blocking;
use crate::bucket::{Bucket, BucketError};
use crate::digest::Digest;
use crate::key::{BucketKey, HOSTS, Prefix};
use crate::queue::file::HostFiles;
use crate::queue::{Address, QueueError};

/// The maximum number of heartbeats to list.
const MOST: usize = 10_000;
/// The number of hexadecimal digits that identify a queue in a key.
const DIGITS: usize = 16;
/// The suffix of a heartbeat's name.
pub(super) const JSON: &str = ".json";

/// The place where the hosts of a queue store their heartbeats. A clone is another handle to the
/// same place.
#[derive(Debug, Clone)]
pub struct Place(Kind);

#[derive(Debug, Clone)]
enum Kind {
    Files(HostFiles),
    Bucket { bucket: Arc<dyn Bucket>, prefix: Prefix },
}

/// A heartbeat in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed {
    /// Its name in the place.
    pub(super) name: String,
    /// When it was written, according to the clock of the store.
    pub(super) modified: SystemTime,
}

/// A heartbeat could not be written, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// The directory of the queue failed.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The bucket failed.
    #[error(transparent)]
    Bucket(#[from] BucketError),
}

impl Place {
    /// The place in the directory of a queue. `None` if the queue is a service.
    pub fn in_queue(queue: &Address) -> Option<Self> {
        let files = HostFiles::new(&queue.to_string(), queue.directory()?);
        Some(Self(Kind::Files(files)))
    }

    /// The place in a bucket for the hosts of this queue. It does not depend on the form of the
    /// queue's URL.
    pub fn in_bucket(bucket: Arc<dyn Bucket>, queue: &Address) -> Self {
        let identity = match queue {
            Address::Sqs(queue) => format!("sqs {}", queue.name()),
            Address::PubSub(queue) => {
                let name = queue.subscription.as_ref().unwrap_or(&queue.topic);
                format!("pubsub {} {name}", queue.project)
            }
            Address::Directory(path) => format!("fq {}", path.display()),
        };
        let digest = Digest::of(identity.as_bytes()).to_string();
        let prefix = Prefix::internal(&format!("{HOSTS}/{}", &digest[..DIGITS]));
        Self(Kind::Bucket { bucket, prefix })
    }

    /// Writes a heartbeat, and replaces an older one.
    pub(super) async fn write(&self, name: &str, bytes: Bytes) -> Result<(), PlaceError> {
        match self.0.clone() {
            Kind::Files(files) => {
                let name = name.to_owned();
                Ok(blocking(move || files.write(&name, &bytes)).await?)
            }
            Kind::Bucket { bucket, prefix } => {
                let key = key(&prefix, name);
                let put = aside(bucket, async move |bucket| bucket.put_own(&key, bytes).await);
                Ok(put.await?)
            }
        }
    }

    /// Removes a heartbeat if it exists.
    pub(super) async fn remove(&self, name: &str) -> Result<(), PlaceError> {
        match self.0.clone() {
            Kind::Files(files) => {
                let name = name.to_owned();
                Ok(blocking(move || files.remove(&name)).await?)
            }
            Kind::Bucket { bucket, prefix } => {
                let key = key(&prefix, name);
                let removed = aside(bucket, async move |bucket| bucket.remove_own(&key).await);
                Ok(removed.await?)
            }
        }
    }

    /// The heartbeats in this place, in no particular order, and the current time of the clock that
    /// dates them, if known. The list includes incomplete heartbeats of hosts that were killed.
    pub(super) async fn list(&self) -> Result<(Vec<Listed>, SystemTime), PlaceError> {
        match self.0.clone() {
            Kind::Files(files) => {
                let (files, now) = blocking(move || files.list(MOST)).await?;
                let listed = files.into_iter();
                let listed = listed.map(|file| Listed { name: file.name, modified: file.modified });
                Ok((listed.collect(), now))
            }
            Kind::Bucket { bucket, prefix } => {
                let list = async move |bucket: Arc<dyn Bucket>| {
                    let mut found = Vec::new();
                    let mut objects = bucket.list(&prefix);
                    while found.len() < MOST
                        && let Some(object) = objects.next().await.transpose()?
                    {
                        let name = object.key.as_str().strip_prefix(prefix.as_str());
                        let name = name.and_then(|name| name.strip_prefix('/'));
                        if let Some(name) = name.filter(|name| !name.contains('/')) {
                            let name = name.to_owned();
                            found.push(Listed { name, modified: object.modified });
                        }
                    }
                    Ok::<_, BucketError>((found, bucket.now()))
                };
                Ok(aside(bucket, list).await?)
            }
        }
    }

    /// The bytes of a heartbeat. `None` if it does not exist or is longer than a heartbeat can be.
    pub(super) async fn read(&self, name: &str) -> Result<Option<Bytes>, PlaceError> {
        match self.0.clone() {
            Kind::Files(files) => {
                let name = name.to_owned();
                let read = blocking(move || files.read(&name, LONGEST + 1)).await?;
                Ok(read.filter(|bytes| bytes.len() <= LONGEST).map(Bytes::from))
            }
            Kind::Bucket { bucket, prefix } => {
                let key = key(&prefix, name);
                let read = async move |bucket: Arc<dyn Bucket>| {
                    bucket.read(&key, LONGEST as u64).await.map(|(bytes, _)| bytes)
                };
                match aside(bucket, read).await {
                    Ok(bytes) => Ok(Some(bytes)),
                    Err(BucketError::NotFound { .. } | BucketError::Invalid { .. }) => Ok(None),
                    Err(error) => Err(error.into()),
                }
            }
        }
    }
}

/// The key of a heartbeat. The name is one that [`Place::list`] returned or that a host generated.
fn key(prefix: &Prefix, name: &str) -> BucketKey {
    BucketKey::internal(&format!("{prefix}/{name}"))
}

/// Uses a bucket. If the bucket may block the thread, this happens outside the threads of the
/// runtime.
async fn aside<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
    bucket: Arc<dyn Bucket>,
    act: impl FnOnce(Arc<dyn Bucket>) -> F,
) -> T {
    let acting = act(bucket.clone());
    match bucket.is_local() {
        true => {
            let runtime = Handle::current();
            blocking(move || runtime.block_on(acting)).await
        }
        false => acting.await,
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Files(files) => files.fmt(f),
            Kind::Bucket { bucket, prefix } => {
                write!(f, "{}/{prefix}", bucket.to_string().trim_end_matches('/'))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;
    use crate::bucket::tests::conformance::in_memory;

    #[test]
    fn one_queue_has_one_place_however_its_url_is_written() {
        let bucket: Arc<dyn Bucket> = Arc::new(in_memory(Arc::new(InMemory::new())));
        let place = |url: &str| Place::in_bucket(bucket.clone(), &url.parse().unwrap()).to_string();
        let one = place("sqs://my-tasks");
        assert!(one.contains("/_hosts/"), "{one}");
        assert_eq!(one, place("arn:aws:sqs:us-east-1:123456789012:my-tasks"));
        assert_eq!(one, place("https://sqs.us-east-1.amazonaws.com/123456789012/my-tasks"));
        assert_ne!(one, place("sqs://other-tasks"));
        let subscription = "pubsub://projects/p/topics/t/subscriptions/my-tasks";
        assert_ne!(one, place(subscription));
        let files = Place::in_queue(&"./queue".parse().unwrap()).unwrap();
        assert_eq!(files.to_string(), "fq://./queue/hosts");
        assert!(Place::in_queue(&"sqs://my-tasks".parse().unwrap()).is_none());
    }
}
