//! Bodies that are too large for SQS: in a bucket of S3, with a pointer to them in the
//! message, as the Amazon SQS Extended Client Library writes and reads them.
//!
//! A pointer is followed into the one bucket that the user named, and below its prefix, and
//! nowhere else: who can send a message is not to make a host read what it may read.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use aws_config::SdkConfig;
use aws_sdk_sqs::config::{ProvideCredentials, SharedCredentialsProvider};
use bytes::Bytes;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, AwsCredential};
use object_store::path::Path;
use object_store::{CredentialProvider, ObjectStore, ObjectStoreExt};
use serde::Deserialize;

use super::attempts::Sent;
use super::failure::Failure;
use crate::queue::QueueError;

/// The classes that pointers are said to be of: of today's library, and of its first version.
const CLASS: &str = "software.amazon.payloadoffloading.PayloadS3Pointer";
const OLD_CLASS: &str = "com.amazon.sqs.javamessaging.MessageS3Pointer";
/// The attribute that says that there is a pointer; its value is the size of the body.
const SIZE: &str = "ExtendedPayloadSize";
const OLD_SIZE: &str = "SQSLargePayloadSize";
/// Bytes of the largest body that is fetched.
const MOST: u64 = 64 * 1024 * 1024;
/// How long credentials that don't expire are used before they are looked up again.
const LASTING: Duration = Duration::from_secs(600);

/// The bucket for large bodies.
#[derive(Debug)]
pub(super) struct Payloads {
    bucket: String,
    /// Empty, or with a slash at its end.
    prefix: String,
    store: Arc<dyn ObjectStore>,
}

/// What a message has for its body.
#[derive(Debug)]
pub(super) enum Body {
    /// The text itself.
    Here,
    /// What it points to.
    There(Path),
    /// It points to where we don't go, and this is why.
    Elsewhere(String),
}

#[derive(Deserialize)]
struct Pointer(String, Location);

#[derive(Deserialize)]
struct Location {
    #[serde(rename = "s3BucketName")]
    bucket: String,
    #[serde(rename = "s3Key")]
    key: String,
}

impl Payloads {
    /// Opens `s3://BUCKET` or `s3://BUCKET/PREFIX` with the credentials and the region of the
    /// queue.
    pub(super) fn open(queue: &str, url: &str, config: &SdkConfig) -> Result<Self, QueueError> {
        let (bucket, _) = named(queue, url)?;
        let mut builder = AmazonS3Builder::from_env().with_bucket_name(&bucket);
        if let Some(region) = config.region() {
            builder = builder.with_region(region.to_string());
        }
        if let Some(provider) = config.credentials_provider() {
            let credentials = SdkCredentials { provider, known: Mutex::default() };
            builder = builder.with_credentials(Arc::new(credentials));
        }
        let plain =
            |key| builder.get_config_value(&key).is_some_and(|url| url.starts_with("http://"));
        let is_plain = plain(AmazonS3ConfigKey::Endpoint) || plain(AmazonS3ConfigKey::S3Endpoint);
        let store = builder.with_allow_http(is_plain).build().map_err(|error| {
            let problem = format!("the bucket {url} can't be used: {error}");
            QueueError::Invalid { queue: queue.to_owned(), problem }
        })?;
        Self::of(queue, url, Arc::new(store))
    }

    /// The bucket of that URL, which is this store.
    pub(super) fn of(
        queue: &str,
        url: &str,
        store: Arc<dyn ObjectStore>,
    ) -> Result<Self, QueueError> {
        let (bucket, prefix) = named(queue, url)?;
        Ok(Self { bucket, prefix, store })
    }

    /// Where the body of a message is.
    pub(super) fn locate(payloads: Option<&Self>, sent: &Sent) -> Body {
        let is_pointer = [SIZE, OLD_SIZE].iter().any(|name| sent.attributes.contains_key(*name));
        let Some(Location { bucket, key }) = is_pointer.then(|| pointer(&sent.body)).flatten()
        else {
            return Body::Here;
        };
        let Some(ours) = payloads else {
            return Body::Elsewhere(format!(
                "its body is in the bucket {bucket}, and no bucket for large bodies is set"
            ));
        };
        match Path::parse(&key) {
            Ok(path) if bucket == ours.bucket && key.starts_with(&ours.prefix) => Body::There(path),
            _ => Body::Elsewhere(format!(
                "its body is s3://{bucket}/{key}, which is not in s3://{}/{}",
                ours.bucket, ours.prefix
            )),
        }
    }

    /// Puts the body into the bucket, and a pointer into its place.
    pub(super) async fn put(&self, message: &mut Sent) -> Result<(), Failure> {
        let key = format!("{}{}", self.prefix, uuid::Uuid::new_v4());
        let path = Path::parse(&key).map_err(|error| Failure::Invalid(error.to_string()))?;
        let size = message.body.len();
        if size as u64 > MOST {
            return Err(Failure::Invalid(format!("{size} bytes are more than {MOST}")));
        }
        let body = std::mem::take(&mut message.body);
        self.store.put(&path, body.into()).await.map_err(|error| failed(&error))?;
        let pointer = serde_json::json!([CLASS, {"s3BucketName": self.bucket, "s3Key": key}]);
        message.body = pointer.to_string().into();
        message.put(SIZE, "Number", size.to_string());
        Ok(())
    }

    /// The body. None: there is no such object, or it is too large to be one.
    pub(super) async fn get(&self, path: &Path) -> Result<Option<Bytes>, Failure> {
        let found = match self.store.get(path).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(failed(&error)),
        };
        if found.meta.size > MOST {
            return Ok(None);
        }
        found.bytes().await.map(Some).map_err(|error| failed(&error))
    }

    /// Removes the body of a message that is gone.
    pub(super) async fn delete(&self, path: &Path) {
        match self.store.delete(path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
            Err(error) => tracing::warn!(
                "the body s3://{}/{path} of a message that is done could not be deleted: {error}",
                self.bucket
            ),
        }
    }
}

fn failed(error: &object_store::Error) -> Failure {
    Failure::Unavailable(format!("the bucket for large bodies: {error}"))
}

fn named(queue: &str, url: &str) -> Result<(String, String), QueueError> {
    parse(url).ok_or_else(|| QueueError::Invalid {
        queue: queue.to_owned(),
        problem: format!(
            "{url} is no bucket for large bodies; one is s3://BUCKET or s3://BUCKET/PREFIX"
        ),
    })
}

/// The bucket and the prefix of its URL.
fn parse(url: &str) -> Option<(String, String)> {
    let rest = url.strip_prefix("s3://")?;
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let prefix = prefix.trim_matches('/');
    let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
    let is_path = Path::parse(prefix.trim_end_matches('/')).is_ok();
    (!bucket.is_empty() && is_path).then(|| (bucket.to_owned(), prefix))
}

fn pointer(body: &[u8]) -> Option<Location> {
    let Pointer(class, location) = serde_json::from_slice(body).ok()?;
    (class == CLASS || class == OLD_CLASS).then_some(location)
}

/// The credentials of the SDK, which knows more places to look for them.
#[derive(Debug)]
struct SdkCredentials {
    provider: SharedCredentialsProvider,
    /// Those found last, and for how long they are good.
    known: Mutex<Option<(Arc<AwsCredential>, SystemTime)>>,
}

#[async_trait]
impl CredentialProvider for SdkCredentials {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let soon = SystemTime::now() + Duration::from_secs(60);
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((credential, until)) = known
            && until > soon
        {
            return Ok(credential);
        }
        let found = self.provider.provide_credentials().await.map_err(|error| {
            object_store::Error::Generic { store: "S3", source: Box::new(error) }
        })?;
        let until = found.expiry().unwrap_or(SystemTime::now() + LASTING);
        let credential = Arc::new(AwsCredential {
            key_id: found.access_key_id().to_owned(),
            secret_key: found.secret_access_key().to_owned(),
            token: found.session_token().map(str::to_owned),
        });
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        *known = Some((credential.clone(), until));
        Ok(credential)
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;

    fn message(bucket: &str, key: &str, class: &str, attribute: &str) -> Sent {
        let body = format!(r#"["{class}",{{"s3BucketName":"{bucket}","s3Key":"{key}"}}]"#);
        let mut sent = Sent { body: body.into(), ..Sent::default() };
        sent.put(attribute, "Number", "3".to_owned());
        sent
    }

    #[test]
    fn a_pointer_is_followed_into_the_named_bucket_only() {
        let ours = Payloads::of("q", "s3://bodies/tasks", Arc::new(InMemory::new())).unwrap();
        let check = |sent: &Sent, expected: &str| {
            let found = format!("{:?}", Payloads::locate(Some(&ours), sent));
            assert!(found.starts_with(expected), "{found}");
        };
        check(&message("bodies", "tasks/k", CLASS, SIZE), "There");
        check(&message("bodies", "tasks/k", OLD_CLASS, OLD_SIZE), "There");
        check(&message("other", "tasks/k", CLASS, SIZE), "Elsewhere");
        check(&message("bodies", "k", CLASS, SIZE), "Elsewhere");
        check(&message("bodies", "tasks2/k", CLASS, SIZE), "Elsewhere");
        check(&message("bodies", "tasks/../k", CLASS, SIZE), "Elsewhere");
        // What nobody calls a pointer is a body that looks like one.
        check(&message("bodies", "tasks/k", CLASS, "x"), "Here");
        check(&message("bodies", "tasks/k", "x", SIZE), "Here");
        let none = Payloads::locate(None, &message("bodies", "tasks/k", CLASS, SIZE));
        assert!(matches!(none, Body::Elsewhere(_)), "{none:?}");
    }

    #[test]
    fn what_is_no_bucket_is_refused() {
        assert_eq!(parse("s3://b"), Some(("b".to_owned(), String::new())));
        assert_eq!(parse("s3://b/p/q/"), Some(("b".to_owned(), "p/q/".to_owned())));
        assert_eq!(parse("s3://"), None);
        assert_eq!(parse("gs://b"), None);
        assert_eq!(parse("s3://b/../c"), None);
    }
}
