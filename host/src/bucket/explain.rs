//! From the error of a store to one for people: what is wrong, and what to do about it.

use std::error::Error as StdError;
use std::fmt;

use object_store::Error;
use object_store::client::{HttpError, HttpErrorKind};

use super::BucketError;
use super::address::{Service, ServiceAddress};
use super::transport::Reaching;

/// What went wrong, as far as it matters to who has to do something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// There is no such object.
    NoObject,
    /// There is no such bucket.
    NoBucket,
    /// The object is archived, and has to be restored before it can be read.
    Archived,
    /// The credentials are not accepted, or there are none.
    Credentials,
    /// They are, and they don't allow this.
    Denied,
    /// The clock of this machine is off.
    Clock,
    /// The bucket is in another region.
    Region,
    /// The service has too much to do.
    Throttled,
    /// The name of the server is not known.
    NoServer,
    /// There is no connection to be had.
    NoConnection,
    /// The server didn't answer in time.
    NoAnswer,
    /// Anything else.
    Other,
}

impl Trouble {
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
            // Before all else: a server that says nothing more says this of both.
            Error::NotFound { .. } => return Self::NoObject,
            Error::PermissionDenied { .. } => return Self::Denied,
            Error::Unauthenticated { .. } => return Self::Credentials,
            _ => {}
        }
        // Those of a listing have no kinds.
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

/// What our own lookup of credentials begins its complaint with.
pub(super) const NO_CREDENTIALS: &str = "no credentials";

/// True for an error of ours whose cause is that the credentials don't allow what was done.
pub(super) fn is_denied(error: &(dyn StdError + 'static)) -> bool {
    error.downcast_ref().is_some_and(|e: &Explained| e.trouble == Trouble::Denied)
}

/// An error of a store with what it means before it.
#[derive(Debug)]
pub(super) struct Explained {
    text: String,
    trouble: Trouble,
    source: Error,
}

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl StdError for Explained {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.source)
    }
}

/// What an error on `key` means for the caller.
pub(super) fn failed(
    address: &ServiceAddress,
    bucket: &impl fmt::Display,
    doing: &'static str,
    key: &(impl fmt::Display + ?Sized),
    error: Error,
) -> BucketError {
    if let Error::InvalidPath { source } = &error {
        return BucketError::invalid(bucket, format!("key `{key}`: {source}"));
    }
    match Trouble::of(&error) {
        Trouble::NoObject => {
            BucketError::NotFound { bucket: bucket.to_string(), key: key.to_string() }
        }
        // No further try can help before somebody acts.
        Trouble::Archived => {
            let text = explain(address, doing, Trouble::Archived, &error);
            BucketError::invalid(bucket, format!("`{key}` {text}"))
        }
        trouble => {
            let text = explain(address, doing, trouble, &error);
            BucketError::unavailable(bucket, doing, key, Explained { text, trouble, source: error })
        }
    }
}

/// The text for people.
pub(super) fn explain(
    address: &ServiceAddress,
    doing: &str,
    trouble: Trouble,
    error: &Error,
) -> String {
    let said = said(error);
    let ServiceAddress { service, name, .. } = address;
    match trouble {
        Trouble::NoObject => "there is no such object".to_owned(),
        Trouble::NoBucket => {
            let what = if *service == Service::Azure { "container" } else { "bucket" };
            format!("there is no {what} `{name}`; check its name, or create it")
        }
        Trouble::Archived => {
            let text = chain(error);
            let class = between(&text, "<StorageClass>", "</StorageClass>");
            let class = class.map(|class| format!(" ({class})")).unwrap_or_default();
            let cure = if *service == Service::Azure {
                "rehydrate it with `az storage blob set-tier --tier Hot`"
            } else {
                "restore it with `aws s3api restore-object`"
            };
            format!(
                "is archived{class} and can't be read before it is restored: {cure}, wait until \
                 that is done, and send the task again"
            )
        }
        Trouble::Credentials => format!(
            "the credentials were not accepted: {said}; {}",
            match service {
                Service::S3 =>
                    "log in again, or check AWS_PROFILE, AWS_ACCESS_KEY_ID and \
                     AWS_SECRET_ACCESS_KEY; --anonymous is for buckets that everybody may read",
                Service::Google =>
                    "log in with `gcloud auth application-default login`, or check \
                     GOOGLE_APPLICATION_CREDENTIALS; --anonymous is for buckets that everybody \
                     may read",
                Service::Azure =>
                    "check AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY (or \
                     AZURE_STORAGE_CONNECTION_STRING), and the clock of this machine",
                Service::Http => "the server wants a login, which can't be given",
            }
        ),
        Trouble::Denied => format!(
            "access denied: {said}; {}",
            match (service, doing) {
                (Service::Http, _) => "the server does not give it to us",
                (Service::S3, "listing") => "the credentials need s3:ListBucket",
                (Service::S3, "writing") => "the credentials need s3:PutObject",
                (Service::S3, _) =>
                    "the credentials need s3:GetObject; without s3:ListBucket, S3 says this of \
                     objects that do not exist too",
                (Service::Google, "writing") =>
                    "the account needs roles/storage.objectUser on the bucket",
                (Service::Google, _) =>
                    "the account needs roles/storage.objectViewer on the bucket",
                (Service::Azure, "writing") =>
                    "the account needs the role Storage Blob Data Contributor",
                (Service::Azure, _) => "the account needs the role Storage Blob Data Reader",
            }
        ),
        Trouble::Clock => {
            format!("the clock of this machine is wrong: {said}; set it (for example by NTP)")
        }
        Trouble::Region => {
            let text = chain(error);
            let region = between(&text, "expecting '", "'")
                .or_else(|| between(&text, "<Region>", "</Region>"));
            match region {
                Some(region) => {
                    format!("the bucket is in the region {region}; give it with --region {region}")
                }
                None => "the bucket is in another region; give it with --region".to_owned(),
            }
        }
        Trouble::Throttled => format!("the service has too much to do and refuses: {said}"),
        Trouble::NoServer => format!(
            "the name of the server{} is not known: {said}; check the address or endpoint, and \
             the network",
            host(error)
        ),
        Trouble::NoConnection => format!(
            "no connection to the server{}: {said}; check the address or endpoint, and the \
             network",
            host(error)
        ),
        Trouble::NoAnswer => format!("the server{} does not answer: {said}", host(error)),
        Trouble::Other => said,
    }
}

/// What the service or the network said, in short.
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
    // The innermost cause says it in the fewest words.
    let mut cause: &(dyn StdError + 'static) = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// An error with all its causes. Each may or may not repeat the next.
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

/// The server that was to be reached, for a sentence about it.
fn host(error: &Error) -> String {
    let reaching = find::<Reaching>(error).filter(|reaching| !reaching.host.is_empty());
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
