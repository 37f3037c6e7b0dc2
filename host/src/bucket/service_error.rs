//! Describes errors of services, and how to fix them.

use std::error::Error as StdError;
use std::fmt;

use object_store::Error;
use object_store::client::{HttpError, HttpErrorKind};

use super::BucketError;
use super::address::{Service, ServiceAddress};
use super::transport::RequestError;
use crate::confinement::may_be_the_cause;

/// The kind of a service's failure, by what the user has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FailureKind {
    /// There is no such object.
    NoObject,
    /// There is no such bucket.
    NoBucket,
    /// The object is archived and has to be restored first.
    Archived,
    /// There are no credentials, or the service does not accept them.
    Credentials,
    /// The credentials do not permit the operation.
    Denied,
    /// This machine's clock is wrong.
    Clock,
    /// The bucket is in another region.
    Region,
    /// The service limits the rate of requests.
    Throttled,
    /// The server's name can't be resolved.
    NoServer,
    /// The server accepts no connection.
    NoConnection,
    /// The server didn't answer in time.
    NoAnswer,
    /// Anything else.
    Other,
}

impl FailureKind {
    pub(super) fn of(error: &Error) -> Self {
        let text = chain(error);
        let has = |part: &str| text.contains(part);
        let code = between(&text, "<Code>", "</Code>").unwrap_or_default();
        match code {
            "NoSuchBucket" | "ContainerNotFound" => return Self::NoBucket,
            "InvalidObjectState" | "BlobArchived" | "BlobBeingRehydrated" => {
                return Self::Archived;
            }
            "RequestTimeTooSkewed" => return Self::Clock,
            "PermanentRedirect" | "AuthorizationHeaderMalformed" | "TemporaryRedirect" => {
                return Self::Region;
            }
            "InvalidAccessKeyId"
            | "SignatureDoesNotMatch"
            | "ExpiredToken"
            | "InvalidToken"
            | "AuthenticationFailed"
            | "AuthenticationRequired"
            | "TokenRefreshRequired"
            | "InvalidSecurity" => return Self::Credentials,
            "AccessDenied" | "AuthorizationPermissionMismatch" | "AuthorizationFailure" => {
                return Self::Denied;
            }
            "SlowDown" | "ServerBusy" | "RequestLimitExceeded" => return Self::Throttled,
            _ => {}
        }
        match error {
            // Checked before the text, because a server without error codes gives no more detail.
            Error::NotFound { .. } => return Self::NoObject,
            Error::PermissionDenied { .. } => return Self::Denied,
            Error::Unauthenticated { .. } => return Self::Credentials,
            _ => {}
        }
        // Errors of listings have no variants of their own.
        if has("status code: 404") {
            Self::NoObject
        } else if has("status code: 403") {
            Self::Denied
        } else if has("status code: 401") || has("invalid_grant") || has(NO_CREDENTIALS) {
            Self::Credentials
        } else if has("Received redirect without LOCATION") {
            Self::Region
        } else if has("status code: 429") || has("status code: 503") {
            Self::Throttled
        } else if has("dns error") || has("failed to lookup address") {
            Self::NoServer
        } else {
            match http_kind(error) {
                Some(HttpErrorKind::Connect) => Self::NoConnection,
                Some(HttpErrorKind::Timeout) => Self::NoAnswer,
                _ => Self::Other,
            }
        }
    }
}

/// The beginning of our own error for missing credentials.
pub(super) const NO_CREDENTIALS: &str = "no credentials";

/// True when the credentials did not permit the operation.
pub(super) fn is_denied(error: &(dyn StdError + 'static)) -> bool {
    error.downcast_ref().is_some_and(|e: &ServiceError| e.kind == FailureKind::Denied)
}

/// A store's error with its description.
#[derive(Debug)]
pub(super) struct ServiceError {
    text: String,
    kind: FailureKind,
    source: Error,
}

impl fmt::Display for ServiceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl StdError for ServiceError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.source)
    }
}

/// The bucket error for a store's error on `key`.
pub(super) fn bucket_error(
    address: &ServiceAddress,
    bucket: &impl fmt::Display,
    doing: &'static str,
    key: &(impl fmt::Display + ?Sized),
    error: Error,
) -> BucketError {
    if let Error::InvalidPath { source } = &error {
        return BucketError::invalid(bucket, format!("key `{key}`: {source}"));
    }
    match FailureKind::of(&error) {
        FailureKind::NoObject => {
            BucketError::NotFound { bucket: bucket.to_string(), key: key.to_string() }
        }
        // A retry can't help until the object is restored.
        FailureKind::Archived => {
            let text = describe(address, doing, FailureKind::Archived, &error);
            BucketError::invalid(bucket, format!("`{key}` {text}"))
        }
        kind => {
            let text = describe(address, doing, kind, &error);
            BucketError::unavailable(bucket, doing, key, ServiceError { text, kind, source: error })
        }
    }
}

/// Describes an error and how to fix it.
pub(super) fn describe(
    address: &ServiceAddress,
    doing: &str,
    kind: FailureKind,
    error: &Error,
) -> String {
    let said = said(error);
    let ServiceAddress { service, name, .. } = address;
    match kind {
        FailureKind::NoObject => "there is no such object".to_owned(),
        FailureKind::NoBucket => {
            let what = if *service == Service::Azure { "container" } else { "bucket" };
            format!("there is no {what} `{name}`; check its name, or create it")
        }
        FailureKind::Archived => {
            let text = chain(error);
            let class = between(&text, "<StorageClass>", "</StorageClass>");
            let class = class.map(|class| format!(" ({class})")).unwrap_or_default();
            let cure = if *service == Service::Azure {
                "rehydrate it with `az storage blob set-tier --tier Hot`"
            } else {
                "restore it with `aws s3api restore-object`"
            };
            format!(
                "is archived{class} and has to be restored first: {cure}, wait until that is done, \
                 and send the task again"
            )
        }
        FailureKind::Credentials => format!(
            "the credentials were not accepted: {said}; {}{}",
            match service {
                Service::S3 =>
                    "log in again, or check AWS_PROFILE, AWS_ACCESS_KEY_ID and \
                     AWS_SECRET_ACCESS_KEY; --anonymous is for public buckets",
                Service::Google =>
                    "log in with `gcloud auth application-default login`, or check \
                     GOOGLE_APPLICATION_CREDENTIALS; --anonymous is for public \
                     buckets",
                Service::Azure =>
                    "check AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY (or \
                     AZURE_STORAGE_CONNECTION_STRING), and the clock of this machine",
                Service::Http => "the server requires a login, which is not supported",
            },
            may_be_the_cause(&chain(error))
        ),
        FailureKind::Denied => format!(
            "access denied: {said}; {}",
            match (service, doing) {
                (Service::Http, _) => "the web server refuses it",
                (Service::S3, "listing") => "the credentials need s3:ListBucket",
                (Service::S3, "writing") => "the credentials need s3:PutObject",
                (Service::S3, "removing") => "the credentials need s3:DeleteObject",
                (Service::S3, _) =>
                    "the credentials need s3:GetObject; without s3:ListBucket, S3 also says this of \
                     objects that do not exist",
                (Service::Google, "writing" | "removing") =>
                    "the account needs roles/storage.objectUser on the bucket",
                (Service::Google, _) =>
                    "the account needs roles/storage.objectViewer on the bucket",
                (Service::Azure, "writing" | "removing") =>
                    "the account needs the role Storage Blob Data Contributor",
                (Service::Azure, _) => "the account needs the role Storage Blob Data Reader",
            }
        ),
        FailureKind::Clock => {
            format!("this machine's clock is wrong: {said}; set it, for example with NTP")
        }
        FailureKind::Region => {
            let text = chain(error);
            let region = between(&text, "expecting '", "'")
                .or_else(|| between(&text, "<Region>", "</Region>"));
            match region {
                Some(region) => {
                    format!("the bucket is in the region {region}; use --region {region}")
                }
                None => "the bucket is in another region; set it with --region".to_owned(),
            }
        }
        FailureKind::Throttled => format!("the service limits the rate of requests: {said}"),
        FailureKind::NoServer => format!(
            "the server name{} can't be resolved: {said}; check the address or endpoint, and \
             the network",
            host(error)
        ),
        FailureKind::NoConnection => format!(
            "no connection to the server{}: {said}; check the address or endpoint, and the \
             network{}",
            host(error),
            may_be_the_cause(&said)
        ),
        FailureKind::NoAnswer => format!("the server{} does not answer: {said}", host(error)),
        FailureKind::Other => said,
    }
}

/// The shortest text in which the service or the network names the failure.
fn said(error: &Error) -> String {
    let text = chain(error);
    if let Some(code) = between(&text, "<Code>", "</Code>") {
        return match between(&text, "<Message>", "</Message>") {
            // Azure adds lines about the request.
            Some(message) => format!("{} ({code})", message.lines().next().unwrap_or_default()),
            None => code.to_owned(),
        };
    }
    if let Some(status) = between(&text, "status code: ", ":") {
        return status.to_owned();
    }
    if let Some(found) = text.find(NO_CREDENTIALS) {
        return text[found..].lines().next().unwrap_or_default().to_owned();
    }
    // The innermost cause is the shortest.
    let mut cause: &(dyn StdError + 'static) = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// An error with all its causes, without repetitions.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

/// The server's name after a space, or nothing.
fn host(error: &Error) -> String {
    let reaching = find::<RequestError>(error).filter(|reaching| !reaching.host.is_empty());
    reaching.map(|reaching| format!(" {}", reaching.host)).unwrap_or_default()
}

/// The cause of this type, if there is one.
pub(super) fn find<T: StdError + 'static>(error: &Error) -> Option<&T> {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        cause = error.source();
    }
    None
}

fn http_kind(error: &Error) -> Option<HttpErrorKind> {
    find::<HttpError>(error).map(HttpError::kind)
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(start)?;
    Some(rest.split_once(end)?.0)
}
