//! The settings of a queue: reads them, and creates a queue with suitable settings.

use std::collections::HashMap;
use std::time::Duration;

use aws_sdk_sqs::Client;
use aws_sdk_sqs::types::QueueAttributeName as Name;
use serde::Deserialize;

use super::failure::Failure;
use super::requests::Service;

/// The maximum retention period that SQS allows.
const LONGEST_RETENTION: Duration = Duration::from_secs(14 * 24 * 3600);
const VISIBILITY: Duration = Duration::from_secs(300);
const LONG_POLL: Duration = Duration::from_secs(20);
/// How long parts of the service may not yet know a new queue.
const BECOMING: Duration = Duration::from_secs(10);

/// The attributes of a queue that this program uses.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) is_fifo: bool,
    /// The maximum number of bytes of a message with its attributes.
    pub(super) limit: usize,
    /// The default lease duration.
    pub(super) visibility: Option<Duration>,
    pub(super) retention: Option<Duration>,
    /// The default delay of messages.
    pub(super) delay: Option<Duration>,
    /// How long a receive request waits by default.
    pub(super) wait: Option<Duration>,
    /// When and where SQS moves messages that were received too often.
    pub(super) redrive: Option<Redrive>,
}

/// The redrive policy of a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Redrive {
    /// The number of receives after which a message is moved.
    pub(super) receives: u32,
    /// The ARN of the dead-letter queue.
    pub(super) to: String,
}

impl Settings {
    /// Reads the settings. Fails with [`Failure::NoQueue`] if the queue does not exist.
    pub(super) async fn read(service: &Service) -> Result<Self, Failure> {
        let attributes = service.attributes(&[Name::All]).await?;
        Ok(Self::of(&attributes, service.url.ends_with(".fifo")))
    }

    /// The settings that are assumed if they cannot be read.
    pub(super) fn unknown(is_fifo: bool) -> Self {
        Self::of(&HashMap::new(), is_fifo)
    }

    fn of(attributes: &HashMap<Name, String>, is_fifo: bool) -> Self {
        let number = |name| attributes.get(&name).and_then(|text| text.parse::<u64>().ok());
        let time = |name| number(name).map(Duration::from_secs);
        let limit = number(Name::MaximumMessageSize).and_then(|n| usize::try_from(n).ok());
        Self {
            is_fifo: is_fifo || attributes.get(&Name::FifoQueue).is_some_and(|v| v == "true"),
            // The smallest limit that SQS has ever had.
            limit: limit.unwrap_or(256 * 1024),
            visibility: time(Name::VisibilityTimeout),
            retention: time(Name::MessageRetentionPeriod),
            delay: time(Name::DelaySeconds),
            wait: time(Name::ReceiveMessageWaitTimeSeconds),
            redrive: attributes.get(&Name::RedrivePolicy).and_then(|text| Redrive::parse(text)),
        }
    }
}

impl Redrive {
    /// Parses a policy. Some tools write the count in quotes.
    fn parse(text: &str) -> Option<Self> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Policy {
            dead_letter_target_arn: String,
            max_receive_count: serde_json::Value,
        }
        let policy: Policy = serde_json::from_str(text).ok()?;
        let receives = match policy.max_receive_count {
            serde_json::Value::String(text) => text.parse().ok()?,
            other => u32::try_from(other.as_u64()?).ok()?,
        };
        Some(Self { receives, to: policy.dead_letter_target_arn })
    }
}

/// Creates a queue for tasks and reports, with the maximum retention period and with long polls by
/// default. Returns its URL.
pub(super) async fn create(client: &Client, name: &str) -> Result<String, Failure> {
    let seconds = |time: Duration| time.as_secs().to_string();
    let mut request = client
        .create_queue()
        .queue_name(name)
        .attributes(Name::MessageRetentionPeriod, seconds(LONGEST_RETENTION))
        .attributes(Name::VisibilityTimeout, seconds(VISIBILITY))
        .attributes(Name::ReceiveMessageWaitTimeSeconds, seconds(LONG_POLL));
    if name.ends_with(".fifo") {
        // High throughput: limits apply to each group.
        request = request
            .attributes(Name::FifoQueue, "true")
            .attributes(Name::DeduplicationScope, "messageGroup")
            .attributes(Name::FifoThroughputLimit, "perMessageGroupId");
    }
    let made = request.send().await?;
    let url = made.queue_url.unwrap_or_default();
    let service = Service { client: client.clone(), url: url.clone() };
    let started = tokio::time::Instant::now();
    // A new queue cannot be used for a second or more.
    while let Err(Failure::NoQueue) = service.attributes(&[Name::QueueArn]).await {
        if started.elapsed() > BECOMING {
            return Err(Failure::NoQueue);
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redrive_policy_is_read_as_all_tools_write_it() {
        let check = |count: &str| {
            let text = format!(r#"{{"deadLetterTargetArn":"arn:q","maxReceiveCount":{count}}}"#);
            let redrive = Redrive { receives: 3, to: "arn:q".to_owned() };
            assert_eq!(Redrive::parse(&text), Some(redrive), "{count}");
        };
        check("3");
        check("\"3\"");
        assert_eq!(Redrive::parse("{}"), None);
    }
}
