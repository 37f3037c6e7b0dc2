//! Turns the service's errors into [`QueueError`]s.

use std::error::Error;

use aws_sdk_sqs::config::http::HttpResponse;
use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sqs::types::BatchResultErrorEntry;
use rustix::io::Errno;

use crate::aws::{NO_CREDENTIALS, chain, reasons};
use crate::confinement::may_be_the_cause;
use crate::queue::QueueError;

/// Why a request or an entry of a batch failed. Many callers may get the same failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// The lease has expired.
    Lost,
    /// The queue does not exist.
    NoQueue,
    /// A permission is missing.
    Denied(String),
    /// The service rejects the credentials, or the time of the signature.
    Unknown(String),
    /// The messages are too large for one request.
    TooLong,
    /// A retry cannot help.
    Invalid(String),
    /// A retry may help.
    Unavailable(String),
}

/// Why one entry of a batch failed.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) failure: Failure,
    /// Whether to retry soon. The SDK retries only whole requests.
    pub(super) again: bool,
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self { failure, again: false }
    }
}

impl Failure {
    /// Adds the missing permission to the text.
    pub(super) fn needing(self, action: &str) -> Self {
        match self {
            Self::Denied(text) => Self::Denied(format!("{text}; allow {action} on this queue")),
            other => other,
        }
    }

    /// The error for the caller, for the operation `doing` on message `id`.
    pub(super) fn of_message(self, queue: &str, doing: &str, id: &str) -> QueueError {
        match self {
            Self::Lost => QueueError::LeaseLost { queue: queue.to_owned(), id: id.to_owned() },
            other => other.of_queue(queue, &format!("{doing} message {id}")),
        }
    }

    /// The error for the caller, for the operation `doing`.
    pub(super) fn of_queue(self, queue: &str, doing: &str) -> QueueError {
        let queue = queue.to_owned();
        let invalid = |problem| QueueError::Invalid { queue: queue.clone(), problem };
        match self {
            Self::Invalid(problem) => invalid(format!("{doing} failed: {problem}")),
            Self::TooLong => invalid(format!("{doing} failed: it is too large for one request")),
            Self::Lost => unavailable(queue, doing, "the lease has expired".to_owned()),
            // An operator may fix the queue, credentials and policies while the host runs.
            Self::NoQueue => {
                let text = "the queue no longer exists; create it again".to_owned();
                unavailable(queue, doing, text)
            }
            Self::Denied(text) | Self::Unknown(text) | Self::Unavailable(text) => {
                unavailable(queue, doing, text)
            }
        }
    }
}

fn unavailable(queue: String, doing: &str, text: String) -> QueueError {
    QueueError::Unavailable { queue, doing: doing.to_owned(), source: text.into() }
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self::Unavailable(errno.to_string())
    }
}

impl<E> From<SdkError<E, HttpResponse>> for Failure
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    fn from(error: SdkError<E, HttpResponse>) -> Self {
        let status = error.raw_response().map(|response| response.status().as_u16());
        match &error {
            SdkError::ServiceError(service) => match service.err().code() {
                Some(code) => of_code(code, service.err().message().unwrap_or_default()),
                None => Self::Unavailable(format!(
                    "HTTP status {} without an error code",
                    status.unwrap_or_default()
                )),
            },
            SdkError::TimeoutError(_) => Self::Unavailable("no answer in time".to_owned()),
            SdkError::ResponseError(_) => match status {
                Some(status) if status >= 300 => Self::Unavailable(format!("HTTP status {status}")),
                _ => Self::Unavailable(format!("the answer is malformed: {}", reasons(&error))),
            },
            SdkError::ConstructionFailure(_) | SdkError::DispatchFailure(_) => {
                let reasons = reasons(&error);
                let reasons = format!("{reasons}{}", may_be_the_cause(&reasons));
                if chain(&error).any(|error| error.to_string().contains("credential")) {
                    return Self::Unknown(format!("{NO_CREDENTIALS} ({reasons})"));
                }
                Self::Unavailable(reasons)
            }
            _ => Self::Unavailable(reasons(&error)),
        }
    }
}

const CLOCK: &str = "this machine's clock is wrong: set it by NTP (`timedatectl set-ntp true`)";

impl From<&BatchResultErrorEntry> for Refusal {
    fn from(entry: &BatchResultErrorEntry) -> Self {
        let failure = of_code(entry.code(), entry.message().unwrap_or_default());
        let again = match failure {
            Failure::Unavailable(_) => true,
            Failure::Lost | Failure::Denied(_) | Failure::Unknown(_) => false,
            _ => !entry.sender_fault(),
        };
        Self { failure, again }
    }
}

/// Interprets an error code of the JSON protocol, or of the older query protocol, which some batch
/// entries still use.
fn of_code(code: &str, message: &str) -> Failure {
    let code = code.rsplit('#').next().unwrap_or(code);
    let code = code.strip_prefix("AWS.SimpleQueueService.").unwrap_or(code);
    let text = match message {
        "" => code.to_owned(),
        message => format!("{code}: {message}"),
    };
    match code {
        "ReceiptHandleIsInvalid" | "MessageNotInflight" => Failure::Lost,
        "InvalidParameterValue" if is_about_a_lease(message) => Failure::Lost,
        "QueueDoesNotExist" | "NonExistentQueue" => Failure::NoQueue,
        "BatchRequestTooLong" => Failure::TooLong,
        "OverLimit" => Failure::Unavailable(
            "the queue has 120,000 messages in flight, which is SQS's limit; run fewer hosts or \
             lower --prefetch"
                .to_owned(),
        ),
        "AccessDenied" | "AccessDeniedException" => Failure::Denied(text),
        "KMS.AccessDeniedException" | "KmsAccessDenied" => Failure::Denied(format!(
            "{text}; allow kms:Decrypt and kms:GenerateDataKey on the queue's key"
        )),
        "RequestTimeTooSkewed" | "RequestExpired" => Failure::Unknown(format!("{text}; {CLOCK}")),
        "SignatureDoesNotMatch" | "InvalidSignatureException" | "IncompleteSignature" => {
            let is_time = message.contains("expired") || message.contains("not yet current");
            let cure =
                if is_time { CLOCK } else { "check the secret key and this machine's clock" };
            Failure::Unknown(format!("{text}; {cure}"))
        }
        "ExpiredToken" | "ExpiredTokenException" => {
            Failure::Unknown(format!("{text}; renew the credentials"))
        }
        "InvalidClientTokenId"
        | "UnrecognizedClientException"
        | "InvalidAccessKeyId"
        | "InvalidSecurity"
        | "MissingAuthenticationToken"
        | "OptInRequired" => Failure::Unknown(text),
        "InvalidParameterValue"
        | "InvalidParameterCombination"
        | "MissingParameter"
        | "InvalidMessageContents"
        | "InvalidAttributeName"
        | "InvalidAttributeValue"
        | "InvalidAddress"
        | "UnsupportedOperation"
        | "QueueDeletedRecently"
        | "QueueNameExists"
        | "PurgeQueueInProgress" => Failure::Invalid(text),
        _ => Failure::Unavailable(text),
    }
}

/// Whether an error means that the message is not in flight or was deleted.
fn is_about_a_lease(message: &str) -> bool {
    message.contains("not available for visibility timeout change")
        || message.contains("receipt handle")
        || message.contains("ReceiptHandle")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_that_is_over_is_told_by_many_codes() {
        let check = |code: &str, message: &str, lost: bool| {
            assert_eq!(of_code(code, message) == Failure::Lost, lost, "{code}: {message}");
        };
        check("ReceiptHandleIsInvalid", "", true);
        check("com.amazonaws.sqs#MessageNotInflight", "", true);
        check("AWS.SimpleQueueService.MessageNotInflight", "", true);
        let reason = "Value x for parameter ReceiptHandle is invalid. Reason: Message does not \
                      exist or is not available for visibility timeout change.";
        check("InvalidParameterValue", reason, true);
        check("InvalidParameterValue", "Value 17 for parameter DelaySeconds is invalid.", false);
        check("RequestThrottled", "", false);
        let total = "Total VisibilityTimeout for the message is beyond the limit [43200 seconds]";
        check("InvalidParameterValue", total, false);
    }

    #[test]
    fn an_error_says_what_to_do() {
        let check = |code: &str, message: &str, words: &str| {
            let error =
                of_code(code, message).needing("sqs:DeleteMessage").of_queue("q", "deleting");
            assert!(matches!(error, QueueError::Unavailable { .. }), "{error}");
            assert!(error.to_string().contains(words), "{error}");
        };
        check("AccessDeniedException", "no", "no; allow sqs:DeleteMessage on this queue");
        check("KMS.AccessDeniedException", "no", "kms:Decrypt");
        check("RequestTimeTooSkewed", "", "NTP");
        check("InvalidSignatureException", "Signature expired: 1 is now earlier than 2", "NTP");
        check("InvalidSignatureException", "Signature not yet current: 3 is later", "NTP");
        check("SignatureDoesNotMatch", "The request signature we calculated", "secret key");
        check("ExpiredToken", "", "renew the credentials");
        check("QueueDoesNotExist", "", "create it again");
        check("RequestThrottled", "slow", "RequestThrottled: slow");
    }
}
