//! Opens a queue: finds it, or creates it if requested, and reads its settings.

use std::time::Duration;

use super::client::{self, Connection, TestOverrides};
use super::failure::Failure;
use super::large_bodies::LargeBodies;
use super::requests::Service;
use super::settings::{self, Settings};
use super::{Inner, SqsQueue};
use crate::queue::address::Sqs;
use crate::queue::{Access, QueueError};

/// The maximum time to open a queue.
const PATIENCE: Duration = Duration::from_secs(60);

impl SqsQueue {
    /// Opens the queue and reads its settings.
    ///
    /// # Errors
    /// [`QueueError::Invalid`] if the queue, region, credentials or permission are missing;
    /// [`QueueError::Unavailable`] if the service does not answer.
    pub async fn open(address: &Sqs, access: &Access) -> Result<Self, QueueError> {
        Self::open_with(address, access, TestOverrides::default()).await
    }

    pub(super) async fn open_with(
        address: &Sqs,
        access: &Access,
        overrides: TestOverrides,
    ) -> Result<Self, QueueError> {
        let name = address.to_string();
        let large_bodies = overrides.large_bodies.clone();
        let connection = client::reach(address, access, overrides).await?;
        let found = tokio::time::timeout(PATIENCE, find(&connection, address, access)).await;
        let found = found.unwrap_or_else(|_| {
            let text = format!("no answer within {} s", PATIENCE.as_secs());
            Err(Failure::Unavailable(text))
        });
        let (service, settings) =
            found.map_err(|failure| cant_open(failure, &name, address, &connection))?;
        let large_bodies = match (&access.body_bucket, large_bodies) {
            (None, _) => None,
            (Some(url), Some(store)) => Some(LargeBodies::of(&name, url, access, store)?),
            (Some(url), None) => Some(LargeBodies::open(&name, url, access, &connection.config)?),
        };
        Ok(Self::of(Inner::new(name, service, settings, connection.requests, access, large_bodies)))
    }
}

async fn find(
    connection: &Connection,
    address: &Sqs,
    access: &Access,
) -> Result<(Service, Settings), Failure> {
    let client = &connection.client;
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
                "{address}: can't read the queue's attributes ({text}); assuming messages of up \
                 to 256 KiB and no redrive policy; allow sqs:GetQueueAttributes"
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
    answer
        .queue_url
        .ok_or_else(|| Failure::Unavailable("the answer contains no queue URL".to_owned()))
}

fn cant_open(failure: Failure, queue: &str, address: &Sqs, connection: &Connection) -> QueueError {
    let Connection { region, endpoint, .. } = connection;
    let invalid = |problem| QueueError::Invalid { queue: queue.to_owned(), problem };
    match failure {
        Failure::NoQueue => invalid(format!(
            "there is no queue {} in {region} ({endpoint}); create it with --create-queues, or \
             with: aws sqs create-queue --queue-name {0} --region {region}",
            address.name()
        )),
        Failure::Denied(text) | Failure::Unknown(text) => {
            invalid(format!("access denied at {endpoint}: {text}"))
        }
        other => other.of_queue(queue, &format!("reaching SQS at {endpoint}")),
    }
}
