//! How a queue is set up: read when it is opened, or made as we would have it.

use std::collections::HashMap;
use std::time::Duration;

use aws_sdk_sqs::Client;
use aws_sdk_sqs::types::QueueAttributeName as Name;
use serde::Deserialize;

use super::failure::Failure;
use super::requests::Service;

/// The longest that SQS keeps a message.
const LONGEST_RETENTION: Duration = Duration::from_secs(14 * 24 * 3600);
const VISIBILITY: Duration = Duration::from_secs(300);
const LONG_POLL: Duration = Duration::from_secs(20);
/// For how long a queue that was just made may be unknown to parts of the service.
const BECOMING: Duration = Duration::from_secs(10);

/// The attributes of a queue that matter here.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) is_fifo: bool,
    /// Bytes of one message with its attributes, at the most.
    pub(super) limit: usize,
    /// How long a message is leased by those who don't say.
    pub(super) visibility: Option<Duration>,
    pub(super) retention: Option<Duration>,
    /// The delay of messages that are sent without one.
    pub(super) delay: Option<Duration>,
    /// How long a receive waits that does not say.
    pub(super) wait: Option<Duration>,
    /// What becomes of messages that were received too often.
    pub(super) redrive: Option<Redrive>,
}

/// The redrive policy of a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Redrive {
    /// Receives after which a message is moved.
    pub(super) receives: u32,
    /// The ARN of the queue that it is moved to.
    pub(super) to: String,
}

impl Settings {
    /// Reads them; this is also how it is known that the queue is there.
    pub(super) async fn read(service: &Service) -> Result<Self, Failure> {
        let attributes = service.attributes(&[Name::All]).await?;
        Ok(Self::of(&attributes, service.url.ends_with(".fifo")))
    }

    /// What is taken to hold of a queue that does not let us look.
    pub(super) fn unknown(is_fifo: bool) -> Self {
        Self::of(&HashMap::new(), is_fifo)
    }

    fn of(attributes: &HashMap<Name, String>, is_fifo: bool) -> Self {
        let number = |name| attributes.get(&name).and_then(|text| text.parse::<u64>().ok());
        let time = |name| number(name).map(Duration::from_secs);
        let limit = number(Name::MaximumMessageSize).and_then(|n| usize::try_from(n).ok());
        Self {
            is_fifo: is_fifo || attributes.get(&Name::FifoQueue).is_some_and(|v| v == "true"),
            // The smallest that the service ever had for all queues.
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
    /// A count as a number, or in quotes, as some tools write it.
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

/// Makes a queue that suits tasks and reports: messages are kept for as long as can be, and
/// whoever polls without saying how long polls long. Returns its URL.
pub(super) async fn create(client: &Client, name: &str) -> Result<String, Failure> {
    let seconds = |time: Duration| time.as_secs().to_string();
    let mut request = client
        .create_queue()
        .queue_name(name)
        .attributes(Name::MessageRetentionPeriod, seconds(LONGEST_RETENTION))
        .attributes(Name::VisibilityTimeout, seconds(VISIBILITY))
        .attributes(Name::ReceiveMessageWaitTimeSeconds, seconds(LONG_POLL));
    if name.ends_with(".fifo") {
        // Each group for itself: the others are not slowed down by it.
        request = request
            .attributes(Name::FifoQueue, "true")
            .attributes(Name::DeduplicationScope, "messageGroup")
            .attributes(Name::FifoThroughputLimit, "perMessageGroupId");
    }
    let made = request.send().await?;
    let url = made.queue_url.unwrap_or_default();
    let service = Service { client: client.clone(), url: url.clone() };
    let started = tokio::time::Instant::now();
    // It can't be used for a second or more.
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
