//! Turns the service's errors into [`QueueError`]s.
//!
//! With exactly-once delivery, the service reports each acknowledgement id that failed. A
//! `google.rpc.ErrorInfo` in the details maps the id to `TRANSIENT_FAILURE_…` or
//! `PERMANENT_FAILURE_…`.

use std::collections::HashMap;

use gcloud_gax::grpc::{Code, Status};
use prost::Message as _;
use rustix::io::Errno;

use crate::queue::QueueError;

const ERROR_INFO: &str = "type.googleapis.com/google.rpc.ErrorInfo";
const TRANSIENT: &str = "TRANSIENT_";
const INVALID_ACK_ID: &str = "PERMANENT_FAILURE_INVALID_ACK_ID";

/// `google.rpc.ErrorInfo` from google/rpc/error_details.proto.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ErrorInfo {
    #[prost(string, tag = "1")]
    pub(super) reason: String,
    #[prost(string, tag = "2")]
    pub(super) domain: String,
    #[prost(map = "string, string", tag = "3")]
    pub(super) metadata: HashMap<String, String>,
}

/// The error of a request that failed because this machine lacks a resource.
pub(super) fn starved(errno: Errno) -> Status {
    Status::unavailable(errno.to_string())
}

/// The acknowledgement ids that failed, and why, if the service reports them.
fn failures(status: &Status) -> HashMap<String, String> {
    let Ok(details) = gcloud_googleapis::rpc::Status::decode(status.details()) else {
        return HashMap::new();
    };
    let info = details.details.into_iter().filter(|detail| detail.type_url == ERROR_INFO);
    info.filter_map(|detail| ErrorInfo::decode(&*detail.value).ok())
        .flat_map(|info| info.metadata)
        .collect()
}

/// The acknowledgement ids whose lease has expired, if the service reports them.
pub(super) fn lost(status: &Status) -> Vec<String> {
    let lost = |(id, why): (String, String)| (why == INVALID_ACK_ID).then_some(id);
    failures(status).into_iter().filter_map(lost).collect()
}

/// Whether the same request may succeed after a short time.
pub(super) fn is_transient(status: &Status) -> bool {
    match status.code() {
        // A broken connection causes different codes, depending on when it broke.
        Code::Unavailable
        | Code::Unknown
        | Code::Cancelled
        | Code::Aborted
        | Code::Internal
        | Code::DeadlineExceeded
        | Code::ResourceExhausted => lost(status).is_empty(),
        _ => failures(status).values().any(|why| why.starts_with(TRANSIENT)),
    }
}

/// The error for the caller. `doing` is the operation that failed.
pub(super) fn error(queue: &str, doing: &str, status: &Status) -> QueueError {
    let cure = match status.code() {
        Code::PermissionDenied => {
            "; the account in use needs roles/pubsub.subscriber and roles/pubsub.viewer on the \
             subscription, and roles/pubsub.publisher and roles/pubsub.viewer on the topics"
        }
        Code::Unauthenticated => "; check the credentials and this machine's clock",
        Code::NotFound => "; --create-queues creates missing topics and subscriptions",
        _ => "",
    };
    let said = format!("{}{cure}", said(status));
    match status.code() {
        // These codes mean that the request is wrong. The causes of all other errors may be fixed
        // while the host runs: topics, credentials and permissions.
        Code::InvalidArgument | Code::OutOfRange | Code::Unimplemented => {
            let problem = format!("{doing} failed: {said}");
            QueueError::Invalid { queue: queue.to_owned(), problem }
        }
        _ => unavailable(queue, doing, said),
    }
}

/// The error for an operation that may succeed later.
pub(super) fn unavailable(queue: &str, doing: &str, said: impl Into<String>) -> QueueError {
    QueueError::Unavailable {
        queue: queue.to_owned(),
        doing: doing.to_owned(),
        source: said.into().into(),
    }
}

/// The text of an error and of its causes.
fn said(status: &Status) -> String {
    let mut text = format!("{:?}", status.code());
    if !status.message().is_empty() {
        text = format!("{text}: {}", status.message());
    }
    chain(text, std::error::Error::source(status))
}

/// Appends the causes of an error that the text does not contain yet.
pub(super) fn chain(mut text: String, mut below: Option<&dyn std::error::Error>) -> String {
    while let Some(cause) = below {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        below = cause.source();
    }
    text
}

#[cfg(test)]
pub(super) fn with_failures(code: Code, ids: &[(&str, &str)]) -> Status {
    let info = ErrorInfo {
        reason: "EXACTLY_ONCE_ACKID_FAILURE".to_owned(),
        domain: "pubsub.googleapis.com".to_owned(),
        metadata: ids.iter().map(|(id, why)| (id.to_string(), why.to_string())).collect(),
    };
    let mut details = gcloud_googleapis::rpc::Status {
        code: code as i32,
        details: vec![Default::default()],
        ..Default::default()
    };
    details.details[0].type_url = ERROR_INFO.to_owned();
    details.details[0].value = info.encode_to_vec();
    Status::with_details(code, "Some acknowledgement ids failed", details.encode_to_vec().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_that_ended_is_told_from_what_may_work_in_a_moment() {
        let gone = with_failures(Code::FailedPrecondition, &[("a", INVALID_ACK_ID)]);
        assert_eq!((lost(&gone), is_transient(&gone)), (vec!["a".to_owned()], false));
        // The code does not matter.
        let gone = with_failures(Code::Unknown, &[("a", INVALID_ACK_ID)]);
        assert_eq!((lost(&gone), is_transient(&gone)), (vec!["a".to_owned()], false));
        let busy = with_failures(Code::FailedPrecondition, &[("a", "TRANSIENT_FAILURE_BUSY")]);
        assert_eq!((lost(&busy), is_transient(&busy)), (vec![], true));
        let other = with_failures(Code::FailedPrecondition, &[("a", "PERMANENT_FAILURE_OTHER")]);
        assert_eq!((lost(&other), is_transient(&other)), (vec![], false));
        let plain = Status::failed_precondition("no details");
        assert_eq!((lost(&plain), is_transient(&plain)), (vec![], false));
    }

    #[test]
    fn an_error_says_whether_to_try_again_and_what_to_do() {
        let check = |code: Code, again: bool, text: &str| {
            let error = error("pubsub://q", "receiving messages", &Status::new(code, "why"));
            assert_eq!(matches!(error, QueueError::Unavailable { .. }), again, "{error}");
            let all = format!("{error}");
            assert!(all.starts_with("pubsub://q: receiving messages failed: "), "{all}");
            assert!(all.contains(text), "{all}");
        };
        check(Code::Unavailable, true, "Unavailable: why");
        check(Code::ResourceExhausted, true, "ResourceExhausted: why");
        check(Code::PermissionDenied, true, "needs roles/pubsub.subscriber");
        check(Code::Unauthenticated, true, "clock");
        check(Code::NotFound, true, "--create-queues");
        check(Code::FailedPrecondition, true, "FailedPrecondition: why");
        check(Code::InvalidArgument, false, "InvalidArgument: why");
    }
}
