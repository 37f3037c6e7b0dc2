//! Bodies that are too large for SQS. They are stored in an S3 bucket. The message contains a
//! pointer to the body, in the format of the Amazon SQS Extended Client Library.
//!
//! Anyone who can send a message can write any pointer. A pointer must not make a host show or
//! delete other objects:
//!
//! - A pointer is followed only into the bucket and prefix that the user set, which must not
//!   overlap the data, and only if the object's name is a UUID, as senders choose.
//! - The object is used only if it is a task, or a report where reports are expected. Otherwise it
//!   is not deleted, and none of its content is shown.
//! - Only objects that were used are deleted, after their message, under a valid lease.
//!
//! A pointer to the body of another message is followed. That message's task then runs once more,
//! and its body is deleted.

use std::sync::Arc;
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
use crate::message;
use crate::queue::{Access, LONGEST_MESSAGE, QueueError};
use crate::scheme;
use parking_lot::Mutex;

/// The class names in pointers: the class of the current library, and that of its first version.
const CLASS: &str = "software.amazon.payloadoffloading.PayloadS3Pointer";
const OLD_CLASS: &str = "com.amazon.sqs.javamessaging.MessageS3Pointer";
/// The attribute of messages with a pointer. Its value is the size of the body.
const SIZE: &str = "ExtendedPayloadSize";
const OLD_SIZE: &str = "SQSLargePayloadSize";
/// How long credentials without an expiry are used before they are requested again.
const LASTING: Duration = Duration::from_secs(600);

/// The bucket for large bodies.
#[derive(Debug)]
pub(super) struct LargeBodies {
    bucket: String,
    /// Ends with a slash.
    prefix: String,
    is_report: Option<fn(&[u8]) -> bool>,
    store: Arc<dyn ObjectStore>,
}

/// Where the body of a message is.
#[derive(Debug)]
pub(super) enum BodyLocation {
    /// In the message.
    Inline,
    /// In the bucket, under this key.
    Stored(Path),
    /// The pointer is not followed, for this reason.
    Refused(String),
}

/// The result of fetching a body.
#[derive(Debug)]
pub(super) enum FetchedBody {
    /// The body.
    Body(Bytes),
    /// There is no usable body, for this reason.
    Refused(String),
}

#[derive(Deserialize)]
struct Pointer(String, S3Location);

#[derive(Deserialize)]
struct S3Location {
    #[serde(rename = "s3BucketName")]
    bucket: String,
    #[serde(rename = "s3Key")]
    key: String,
}

impl LargeBodies {
    /// Opens `s3://BUCKET/PREFIX` with the credentials and the region of the queue.
    pub(super) fn open(
        queue: &str,
        url: &str,
        access: &Access,
        config: &SdkConfig,
    ) -> Result<Self, QueueError> {
        let (bucket, _) = named(queue, url)?;
        let mut builder = AmazonS3Builder::new().with_bucket_name(&bucket);
        for (name, value) in access.environment.starting("AWS_") {
            if let Ok(key) = name.to_ascii_lowercase().parse() {
                builder = builder.with_config(key, value);
            }
        }
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
        Self::of(queue, url, access, Arc::new(store))
    }

    /// The bucket with this URL, opened as `store`.
    pub(super) fn of(
        queue: &str,
        url: &str,
        access: &Access,
        store: Arc<dyn ObjectStore>,
    ) -> Result<Self, QueueError> {
        let (bucket, prefix) = named(queue, url)?;
        Ok(Self { bucket, prefix, is_report: access.is_report, store })
    }

    /// Finds where the body of a message is.
    pub(super) fn locate(large_bodies: Option<&Self>, sent: &Sent) -> BodyLocation {
        let is_pointer = [SIZE, OLD_SIZE].iter().any(|name| sent.attributes.contains_key(*name));
        let Some(S3Location { bucket, key }) = is_pointer.then(|| pointer(&sent.body)).flatten()
        else {
            return BodyLocation::Inline;
        };
        let Some(ours) = large_bodies else {
            return BodyLocation::Refused(format!(
                "its body is in the bucket {}, but --message-bucket is not set",
                shown(&bucket)
            ));
        };
        let is_ours = bucket == ours.bucket && key.strip_prefix(&*ours.prefix).is_some_and(is_name);
        match Path::parse(&key) {
            Ok(path) if is_ours => BodyLocation::Stored(path),
            _ => BodyLocation::Refused(format!(
                "its pointer names s3://{}/{}, but only s3://{}/{}UUID is followed",
                shown(&bucket),
                shown(&key),
                ours.bucket,
                ours.prefix
            )),
        }
    }

    /// Writes the body to the bucket, and replaces it with a pointer.
    pub(super) async fn put(&self, message: &mut Sent) -> Result<(), Failure> {
        let key = format!("{}{}", self.prefix, uuid::Uuid::new_v4());
        let path = Path::parse(&key).map_err(|error| Failure::Invalid(error.to_string()))?;
        let size = message.body.len();
        if size > LONGEST_MESSAGE {
            return Err(Failure::Invalid(format!(
                "{size} bytes are too large: the limit is {LONGEST_MESSAGE}"
            )));
        }
        let body = std::mem::take(&mut message.body);
        self.store.put(&path, body.into()).await.map_err(|error| failed(&error))?;
        let pointer = serde_json::json!([CLASS, {"s3BucketName": self.bucket, "s3Key": key}]);
        message.body = pointer.to_string().into();
        message.put(SIZE, "Number", size.to_string());
        Ok(())
    }

    /// Fetches a body.
    pub(super) async fn get(&self, path: &Path) -> Result<FetchedBody, Failure> {
        let nothing = |problem: String| {
            Ok(FetchedBody::Refused(format!("its body, s3://{}/{path}, {problem}", self.bucket)))
        };
        let found = match self.store.get(path).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => {
                return nothing("does not exist (it was deleted or never written)".to_owned());
            }
            Err(error) => return Err(failed(&error)),
        };
        let most = if self.is_report.is_some() { LONGEST_MESSAGE } else { message::LONGEST } as u64;
        if found.meta.size > most {
            return nothing(format!(
                "has {} bytes, which exceeds the limit of {most}",
                found.meta.size
            ));
        }
        let body = found.bytes().await.map_err(|error| failed(&error))?;
        let is_body = message::decode(&body).is_ok()
            || self.is_report.is_some_and(|is_report| is_report(&body));
        if !is_body {
            return nothing("is not a task, so it is neither used nor deleted".to_owned());
        }
        Ok(FetchedBody::Body(body))
    }

    /// Deletes the body of a message that was deleted.
    pub(super) async fn delete(&self, path: &Path) {
        match self.store.delete(path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
            Err(error) => tracing::warn!(
                "could not delete s3://{}/{path}, the body of a message that was deleted: {error}",
                self.bucket
            ),
        }
    }
}

fn failed(error: &object_store::Error) -> Failure {
    Failure::Unavailable(format!("--message-bucket: {error}"))
}

/// Checks the URL of the bucket for large bodies.
///
/// # Errors
/// What is wrong with the URL, and what to write instead.
pub fn check_body_bucket(url: &str) -> Result<(), String> {
    match parse(url) {
        Some(_) => Ok(()),
        None => Err(NO_PLACE.to_owned()),
    }
}

const NO_PLACE: &str = "can't be used for large messages: write s3://BUCKET/PREFIX, with a prefix \
                        for messages only (a producer in Java sets the prefix with \
                        `withS3KeyPrefix(\"PREFIX/\")`)";

fn named(queue: &str, url: &str) -> Result<(String, String), QueueError> {
    parse(url).ok_or_else(|| QueueError::Invalid {
        queue: queue.to_owned(),
        problem: format!("{url} {NO_PLACE}"),
    })
}

/// The bucket and the prefix in the URL.
fn parse(url: &str) -> Option<(String, String)> {
    let (scheme, rest) = scheme::split(url)?;
    let (bucket, prefix) = rest.split_once('/').filter(|_| scheme == "s3")?;
    let prefix = prefix.trim_matches('/');
    let is_path = !prefix.is_empty() && Path::parse(prefix).is_ok();
    (!bucket.is_empty() && is_path).then(|| (bucket.to_owned(), format!("{prefix}/")))
}

/// Whether a name has the form that senders give to bodies: a UUID in its usual form.
fn is_name(name: &str) -> bool {
    uuid::Uuid::try_parse(name)
        .is_ok_and(|uuid| uuid.hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer()) == name)
}

/// A name from a pointer, shortened and escaped, because it can be any text.
fn shown(name: &str) -> String {
    const LONGEST: usize = 200;
    name.chars().take(LONGEST).flat_map(char::escape_default).collect()
}

fn pointer(body: &[u8]) -> Option<S3Location> {
    let Pointer(class, location) = serde_json::from_slice(body).ok()?;
    (class == CLASS || class == OLD_CLASS).then_some(location)
}

/// The SDK's credentials. The SDK supports more sources of credentials than `object_store`.
#[derive(Debug)]
struct SdkCredentials {
    provider: SharedCredentialsProvider,
    /// The last credentials, and when they expire.
    known: Mutex<Option<(Arc<AwsCredential>, SystemTime)>>,
}

#[async_trait]
impl CredentialProvider for SdkCredentials {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let soon = SystemTime::now() + Duration::from_secs(60);
        let known = self.known.lock().clone();
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
        let mut known = self.known.lock();
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

    const NAME: &str = "0b5e7c9e-6a58-4c3e-9d0a-5d1f0a7f3c11";

    #[test]
    fn a_pointer_is_followed_to_names_of_bodies_only() {
        let access = Access::default();
        let store = Arc::new(InMemory::new());
        let ours = LargeBodies::of("q", "s3://bodies/tasks", &access, store).unwrap();
        let check = |sent: &Sent, expected: &str| {
            let found = format!("{:?}", LargeBodies::locate(Some(&ours), sent));
            assert!(found.starts_with(expected), "{found}");
        };
        let key = format!("tasks/{NAME}");
        check(&message("bodies", &key, CLASS, SIZE), "Stored");
        check(&message("bodies", &key, OLD_CLASS, OLD_SIZE), "Stored");
        check(&message("other", &key, CLASS, SIZE), "Refused");
        for key in [
            NAME.to_owned(),
            format!("tasks2/{NAME}"),
            format!("tasks{NAME}"),
            format!("tasks//{NAME}"),
            format!("tasks/../{NAME}"),
            format!("tasks/../tasks/{NAME}"),
            format!("tasks/more/{NAME}"),
            format!("tasks/{NAME}/"),
            format!("tasks/{NAME}.json"),
            format!("tasks/{}", NAME.to_uppercase()),
            format!("tasks/{{{NAME}}}"),
            format!("tasks/{}", NAME.replace('-', "")),
            "tasks/components/NO_OP.wasm".to_owned(),
            "tasks/k".to_owned(),
            "tasks/".to_owned(),
            String::new(),
        ] {
            check(&message("bodies", &key, CLASS, SIZE), "Refused");
        }
        // Without the attribute or the class, a body that looks like a pointer is an ordinary body.
        check(&message("bodies", &key, CLASS, "x"), "Inline");
        check(&message("bodies", &key, "x", SIZE), "Inline");
        let none = LargeBodies::locate(None, &message("bodies", &key, CLASS, SIZE));
        assert!(matches!(none, BodyLocation::Refused(_)), "{none:?}");
        let long = message("bodies", &"\\u001b".repeat(10_000), CLASS, SIZE);
        let BodyLocation::Refused(why) = LargeBodies::locate(Some(&ours), &long) else {
            panic!("followed")
        };
        assert!(why.len() < 2_000 && !why.contains('\u{1b}'), "{why}");
    }

    #[test]
    fn what_is_no_bucket_with_a_prefix_is_refused() {
        assert_eq!(parse("s3://b/p/q/"), Some(("b".to_owned(), "p/q/".to_owned())));
        for url in ["s3://", "s3://b", "s3://b/", "s3://b//", "s3:///p", "gs://b/p", "s3://b/../c"]
        {
            assert_eq!(parse(url), None, "{url}");
        }
        let error = named("q", "s3://b").unwrap_err().to_string();
        assert!(error.contains("s3://BUCKET/PREFIX"), "{error}");
    }
}
