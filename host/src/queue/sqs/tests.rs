//! Tests of SQS queues: against a server with the SQS protocol, and against a fake that behaves as
//! the service's documentation says.

use std::sync::Arc;
use std::time::Duration;

use aws_sdk_sqs::config::{Credentials, SharedHttpClient};

use futures_util::future::join_all;
use futures_util::stream::StreamExt;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::client::TestOverrides;
use super::*;
use crate::queue::address::Sqs;
use crate::queue::conformance::{Subject, suite};

mod against_fake;
mod against_server;
mod fake;
mod large_bodies;

const NONE: Duration = Duration::ZERO;
const SHORT: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(300);
const PATIENCE: Duration = Duration::from_secs(30);

fn credentials() -> Credentials {
    Credentials::new("test", "test", None, None, "test")
}

/// Opens a queue of a service with this HTTP client.
pub(crate) async fn open_over(service: SharedHttpClient) -> SqsQueue {
    let url = "https://sqs.eu-west-1.amazonaws.com/123456789012/tasks".to_owned();
    let http = Some(service);
    let overrides = TestOverrides { credentials: Some(credentials()), http, large_bodies: None };
    SqsQueue::open_with(&Sqs::Url(url), &Access::default(), overrides).await.unwrap()
}
