//! Opening a queue: found, looked at, and made if that was asked for.

use std::time::Duration;

use super::client::{self, Instead, Reached};
use super::failure::Failure;
use super::pointer::Payloads;
use super::requests::Service;
use super::settings::{self, Settings};
use super::{Inner, SqsQueue};
use crate::queue::address::Sqs;
use crate::queue::{Access, QueueError};

/// How long opening may take.
const PATIENCE: Duration = Duration::from_secs(60);

impl SqsQueue {
    /// Opens the queue, which is asked for how it is set up.
    ///
    /// # Errors
    /// [`QueueError::Invalid`] when there is no such queue, no region, or no credentials, or
    /// we are not allowed to use it; [`QueueError::Unavailable`] when it does not answer.
    pub async fn open(address: &Sqs, access: &Access) -> Result<Self, QueueError> {
        Self::open_with(address, access, Instead::default()).await
    }

    pub(super) async fn open_with(
        address: &Sqs,
        access: &Access,
        instead: Instead,
    ) -> Result<Self, QueueError> {
        let name = address.to_string();
        let payloads = instead.payloads.clone();
        let reached = client::reach(address, access, instead).await?;
        let found = tokio::time::timeout(PATIENCE, find(&reached, address, access)).await;
        let found = found.unwrap_or_else(|_| {
            let text = format!("there was no answer in {} s", PATIENCE.as_secs());
            Err(Failure::Unavailable(text))
        });
        let (service, settings) =
            found.map_err(|failure| cant_open(failure, &name, address, &reached))?;
        let payloads = match (&access.body_bucket, payloads) {
            (None, _) => None,
            (Some(url), Some(store)) => Some(Payloads::of(&name, url, access, store)?),
            (Some(url), None) => Some(Payloads::open(&name, url, access, &reached.config)?),
        };
        Ok(Self::of(Inner::new(name, service, settings, reached.requests, access, payloads)))
    }
}

async fn find(
    reached: &Reached,
    address: &Sqs,
    access: &Access,
) -> Result<(Service, Settings), Failure> {
    let client = &reached.client;
    let mut url = match address {
        Sqs::Url(url) => Ok(url.clone()),
        Sqs::Name(name) => url_of(client, name, None).await,
        Sqs::Arn { account, name, .. } => url_of(client, name, Some(account)).await,
    };
    let name = address.name();
    if access.create && url == Err(Failure::NoQueue) {
        url = settings::create(client, name).await;
    }
    let mut service = Service { client: client.clone(), url: url? };
    match Settings::read(&service).await {
        Err(Failure::NoQueue) if access.create => {
            service.url = settings::create(client, name).await?;
            let settings = Settings::read(&service).await?;
            Ok((service, settings))
        }
        Err(Failure::Denied(text)) => {
            tracing::warn!(
                "{address}: its attributes can't be read ({text}): it is taken for one without a \
                 redrive policy that takes messages of 256 KiB; allow sqs:GetQueueAttributes"
            );
            Ok((service, Settings::unknown(address.is_fifo())))
        }
        settings => settings.map(|settings| (service, settings)),
    }
}

async fn url_of(
    client: &aws_sdk_sqs::Client,
    name: &str,
    account: Option<&str>,
) -> Result<String, Failure> {
    let request = client.get_queue_url().queue_name(name);
    let answer = request.set_queue_owner_aws_account_id(account.map(str::to_owned)).send().await?;
    answer.queue_url.ok_or_else(|| Failure::Unavailable("the answer names no queue".to_owned()))
}

fn cant_open(failure: Failure, queue: &str, address: &Sqs, reached: &Reached) -> QueueError {
    let Reached { region, endpoint, .. } = reached;
    let invalid = |problem| QueueError::Invalid { queue: queue.to_owned(), problem };
    match failure {
        Failure::NoQueue => invalid(format!(
            "there is no queue {} in {region} ({endpoint}); --create-queues makes it, or: aws \
             sqs create-queue --queue-name {0} --region {region}",
            address.name()
        )),
        Failure::Denied(text) | Failure::Unknown(text) => {
            invalid(format!("it can't be used at {endpoint}: {text}"))
        }
        other => other.of_queue(queue, &format!("reaching SQS at {endpoint}")),
    }
}
