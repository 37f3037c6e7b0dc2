//! The state of the fake, and the operations on it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Refused, refused, url};

/// The maximum number of bytes of one request.
const MOST_BYTES: usize = 1024 * 1024;

#[derive(Debug, Default)]
pub(in super::super) struct Store {
    pub(super) queues: HashMap<String, Queue>,
}

#[derive(Debug)]
pub(in super::super) struct Queue {
    name: String,
    pub(in super::super) is_fifo: bool,
    /// MaximumMessageSize.
    pub(in super::super) limit: usize,
    /// The maximum visibility timeout, including all extensions: 12 hours in the service.
    pub(in super::super) max_lease: Duration,
    /// The maximum number of messages in flight: 120,000 in the service.
    pub(in super::super) most_in_flight: usize,
    /// The name of the dead-letter queue, and maxReceiveCount.
    pub(in super::super) redrive: Option<(String, u32)>,
    pub(in super::super) settings: HashMap<String, String>,
    /// The messages, in the order in which they were sent.
    messages: BTreeMap<u64, Message>,
    sent: u64,
    receives: u64,
    seen: HashSet<String>,
    /// The messages that each receive attempt got.
    attempts: HashMap<String, Vec<u64>>,
    purged: Option<Instant>,
}

#[derive(Debug, Clone)]
struct Message {
    id: String,
    body: String,
    attributes: Value,
    group: Option<String>,
    sent: u128,
    visible: Instant,
    receives: u32,
    /// The handle of the last receive.
    handle: String,
    received: Instant,
}

impl Message {
    fn is_in_flight(&self, now: Instant) -> bool {
        !self.handle.is_empty() && self.visible > now
    }

    fn size(&self) -> usize {
        size(&self.body, &self.attributes)
    }
}

fn size(body: &str, attributes: &Value) -> usize {
    let attributes = attributes.as_object().into_iter().flatten();
    let text = |value: &Value| value.as_str().map_or(0, str::len);
    let each = |(name, value): (&String, &Value)| {
        name.len() + text(&value["DataType"]) + text(&value["StringValue"])
    };
    body.len() + attributes.map(each).sum::<usize>()
}

impl Store {
    pub(super) fn queue(&mut self, input: &Value) -> Result<&mut Queue, Refused> {
        let url = input["QueueUrl"].as_str().unwrap_or_default();
        let name = url.rsplit('/').next().unwrap_or_default();
        match self.queues.get_mut(name) {
            Some(queue) => Ok(queue),
            None => refused("QueueDoesNotExist", "The specified queue does not exist."),
        }
    }

    pub(super) fn queue_url(&mut self, input: &Value) -> Result<Value, Refused> {
        let name = input["QueueName"].as_str().unwrap_or_default();
        self.queue(&json!({"QueueUrl": name}))?;
        Ok(json!({"QueueUrl": url(name)}))
    }

    pub(super) fn create(&mut self, input: &Value) -> Result<Value, Refused> {
        let name = input["QueueName"].as_str().unwrap_or_default();
        let mut queue = Queue::new(name);
        for (key, value) in input["Attributes"].as_object().into_iter().flatten() {
            queue.settings.insert(key.clone(), value.as_str().unwrap_or_default().to_owned());
        }
        let says_fifo = queue.settings.get("FifoQueue").is_some_and(|value| value == "true");
        if says_fifo != queue.is_fifo {
            return refused("InvalidParameterValue", "FifoQueue does not fit to the name");
        }
        self.queues.insert(name.to_owned(), queue);
        Ok(json!({"QueueUrl": url(name)}))
    }

    pub(super) fn check_entries(entries: &[Value]) -> Result<(), Refused> {
        let ids: HashSet<_> = entries.iter().map(|entry| entry["Id"].as_str()).collect();
        match entries.len() {
            0 => refused("EmptyBatchRequest", ""),
            11.. => refused("TooManyEntriesInBatchRequest", ""),
            n if n != ids.len() => refused("BatchEntryIdsNotDistinct", ""),
            _ => Ok(()),
        }
    }

    pub(super) fn check_batch(entries: &[Value]) -> Result<(), Refused> {
        Self::check_entries(entries)?;
        let each = |entry: &Value| {
            size(entry["MessageBody"].as_str().unwrap_or_default(), &entry["MessageAttributes"])
        };
        let bytes: usize = entries.iter().map(each).sum();
        if bytes > MOST_BYTES {
            return refused("BatchRequestTooLong", format!("{bytes} bytes"));
        }
        Ok(())
    }

    pub(super) fn receive(&mut self, input: &Value, long: bool) -> Result<Vec<Value>, Refused> {
        let max = input["MaxNumberOfMessages"].as_u64().unwrap_or(1) as usize;
        let duration = Duration::from_secs(input["VisibilityTimeout"].as_u64().unwrap_or(30));
        if !(1..=10).contains(&max) {
            return refused("InvalidParameterValue", "MaxNumberOfMessages is not 1 to 10");
        }
        let queue = self.queue(input)?;
        let attempt = input["ReceiveRequestAttemptId"].as_str();
        if attempt.is_some() && !queue.is_fifo {
            return refused("InvalidParameterValue", "ReceiveRequestAttemptId: not a FIFO queue");
        }
        if duration > Duration::from_secs(43_200) {
            return refused("InvalidParameterValue", "VisibilityTimeout is above 43200");
        }
        let (found, dead) = queue.receive(max, duration, attempt, long)?;
        if let Some((to, _)) = queue.redrive.clone()
            && let Some(to) = self.queues.get_mut(&to)
        {
            for message in dead {
                to.sent += 1;
                let fresh = Message { handle: String::new(), receives: 0, ..message };
                to.messages.insert(to.sent, fresh);
            }
        }
        Ok(found)
    }
}

impl Queue {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            is_fifo: name.ends_with(".fifo"),
            limit: MOST_BYTES,
            max_lease: Duration::from_secs(43_200),
            most_in_flight: 120_000,
            redrive: None,
            settings: HashMap::new(),
            messages: BTreeMap::new(),
            sent: 0,
            receives: 0,
            seen: HashSet::new(),
            attempts: HashMap::new(),
            purged: None,
        }
    }

    /// The bodies of all messages, oldest first.
    pub(in super::super) fn bodies(&self) -> Vec<String> {
        self.messages.values().map(|message| message.body.clone()).collect()
    }

    /// The number of messages that are leased.
    pub(in super::super) fn in_flight(&self) -> usize {
        let now = Instant::now();
        self.messages.values().filter(|message| message.is_in_flight(now)).count()
    }

    /// When each message can be received again, oldest first.
    pub(in super::super) fn visible(&self) -> Vec<Instant> {
        self.messages.values().map(|message| message.visible).collect()
    }

    /// The groups of the messages, oldest first.
    pub(in super::super) fn groups(&self) -> Vec<Option<String>> {
        self.messages.values().map(|message| message.group.clone()).collect()
    }

    /// Ends all leases, as if they had expired.
    pub(in super::super) fn expire(&mut self) {
        let now = Instant::now();
        for message in self.messages.values_mut() {
            message.visible = now;
        }
    }

    pub(super) fn attributes(&self) -> Value {
        let now = Instant::now();
        let waits = |m: &&Message| m.visible > now && !m.is_in_flight(now);
        let (all, leased) = (self.messages.len(), self.in_flight());
        let delayed = self.messages.values().filter(waits).count();
        let mut attributes = json!({
            "MaximumMessageSize": self.limit.to_string(),
            "ApproximateNumberOfMessages": (all - leased - delayed).to_string(),
            "ApproximateNumberOfMessagesNotVisible": leased.to_string(),
            "ApproximateNumberOfMessagesDelayed": delayed.to_string(),
        });
        for (name, value) in &self.settings {
            attributes[name] = json!(value);
        }
        if self.is_fifo {
            attributes["FifoQueue"] = json!("true");
        }
        if let Some((to, receives)) = &self.redrive {
            let arn = format!("arn:aws:sqs:eu-west-1:123456789012:{to}");
            let policy = json!({"deadLetterTargetArn": arn, "maxReceiveCount": receives});
            attributes["RedrivePolicy"] = json!(policy.to_string());
        }
        json!({"Attributes": attributes})
    }

    pub(super) fn purge(&mut self) -> Result<Value, Refused> {
        if self.purged.is_some_and(|at| at.elapsed() < Duration::from_secs(60)) {
            return refused(
                "PurgeQueueInProgress",
                "Only one PurgeQueue operation every 60 seconds",
            );
        }
        self.purged = Some(Instant::now());
        self.messages.clear();
        Ok(json!({}))
    }

    pub(in crate::queue::sqs) fn send(&mut self, entry: &Value) -> Result<Value, Refused> {
        let body = entry["MessageBody"].as_str().unwrap_or_default().to_owned();
        let group = entry["MessageGroupId"].as_str().map(str::to_owned);
        let delay = entry["DelaySeconds"].as_u64();
        let now = Instant::now();
        let message = Message {
            id: uuid::Uuid::new_v4().to_string(),
            body,
            attributes: entry["MessageAttributes"].clone(),
            group,
            sent: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis(),
            visible: now + Duration::from_secs(delay.unwrap_or(0)),
            receives: 0,
            handle: String::new(),
            received: now,
        };
        let is_barred = |c: char| {
            (c < ' ' && !['\t', '\n', '\r'].contains(&c)) || c == '\u{fffe}' || c == '\u{ffff}'
        };
        if message.body.is_empty() {
            return refused(
                "MissingParameter",
                "The request must contain the parameter MessageBody.",
            );
        }
        if message.body.contains(is_barred) {
            return refused("InvalidMessageContents", "");
        }
        if message.size() > self.limit {
            let text = format!("Reason: Message must be shorter than {} bytes.", self.limit);
            return refused("InvalidParameterValue", text);
        }
        let attributes = message.attributes.as_object();
        if attributes.is_some_and(|attributes| attributes.len() > 10) {
            return refused("InvalidParameterValue", "Number of message attributes exceeds 10");
        }
        if delay.is_some_and(|delay| delay > 900 || self.is_fifo) {
            return refused("InvalidParameterValue", "DelaySeconds");
        }
        let id = json!({"MessageId": message.id});
        match (self.is_fifo, entry["MessageDeduplicationId"].as_str()) {
            (true, Some(_)) if message.group.is_none() => {
                return refused("MissingParameter", "MessageGroupId");
            }
            (true, None) => return refused("InvalidParameterValue", "MessageDeduplicationId"),
            (false, Some(_)) => return refused("InvalidParameterValue", "not a FIFO queue"),
            // Only the first message with this id is delivered.
            (true, Some(key)) if !self.seen.insert(key.to_owned()) => return Ok(id),
            _ => {}
        }
        self.sent += 1;
        self.messages.insert(self.sent, message);
        Ok(id)
    }

    /// The messages that are received, and those that are moved to the dead-letter queue instead.
    fn receive(
        &mut self,
        max: usize,
        duration: Duration,
        attempt: Option<&str>,
        long: bool,
    ) -> Result<(Vec<Value>, Vec<Message>), Refused> {
        let now = Instant::now();
        if let Some(same) = attempt.and_then(|attempt| self.attempts.get(attempt)) {
            let messages = same.iter().filter_map(|number| self.messages.get(number));
            return Ok((messages.map(Message::shown).collect(), Vec::new()));
        }
        let room = self.most_in_flight.saturating_sub(self.in_flight());
        if room == 0 {
            // A long poll does not report this error.
            return match long {
                true => Ok((Vec::new(), Vec::new())),
                false => refused("OverLimit", "Too many messages in flight"),
            };
        }
        let in_flight = self.messages.values().filter(|message| message.is_in_flight(now));
        let busy: HashSet<String> = in_flight.filter_map(|message| message.group.clone()).collect();
        let (mut found, mut dead, mut numbers) = (Vec::new(), Vec::new(), Vec::new());
        // Groups in which an earlier message is waiting.
        let mut passed: HashSet<String> = HashSet::new();
        for (number, message) in &mut self.messages {
            if found.len() >= max.min(room) {
                break;
            }
            if self.is_fifo
                && message.group.as_ref().is_some_and(|g| busy.contains(g) || passed.contains(g))
            {
                continue;
            }
            if message.visible > now {
                passed.extend(message.group.clone());
                continue;
            }
            if self.redrive.as_ref().is_some_and(|(_, most)| message.receives >= *most) {
                dead.push(*number);
                continue;
            }
            self.receives += 1;
            message.receives += 1;
            message.handle = format!("{}#{number}#{}", self.name, self.receives);
            message.visible = now + duration;
            message.received = now;
            found.push(message.shown());
            numbers.push(*number);
        }
        if let Some(attempt) = attempt.filter(|_| !found.is_empty()) {
            self.attempts.insert(attempt.to_owned(), numbers);
        }
        let dead = dead.into_iter().filter_map(|number| self.messages.remove(&number)).collect();
        Ok((found, dead))
    }

    /// The number of the message that a handle belongs to, if the message still exists and was not
    /// received again since.
    fn handled(&self, entry: &Value) -> Result<Option<u64>, Refused> {
        let handle = entry["ReceiptHandle"].as_str().unwrap_or_default();
        let number = match handle.split('#').collect::<Vec<_>>()[..] {
            [name, number, _] if name == self.name => number.parse::<u64>().ok(),
            _ => None,
        };
        let Some(number) = number else {
            return refused("ReceiptHandleIsInvalid", "The input receipt handle is invalid.");
        };
        Ok(self.messages.get(&number).filter(|m| m.handle == handle).map(|_| number))
    }

    /// "If you don't provide the most recent receipt handle, the request succeeds, but the
    /// message might not be deleted."
    pub(super) fn delete(&mut self, entry: &Value) -> Result<Value, Refused> {
        if let Some(number) = self.handled(entry)? {
            let now = Instant::now();
            if self.is_fifo && !self.messages[&number].is_in_flight(now) {
                return refused("InvalidParameterValue", "The receipt handle has expired");
            }
            self.messages.remove(&number);
        }
        Ok(json!({}))
    }

    pub(super) fn change(&mut self, entry: &Value) -> Result<Value, Refused> {
        let Some(number) = self.handled(entry)? else {
            return refused(
                "InvalidParameterValue",
                "Value for parameter ReceiptHandle is invalid. Reason: Message does not exist or \
                 is not available for visibility timeout change.",
            );
        };
        let visibility = Duration::from_secs(entry["VisibilityTimeout"].as_u64().unwrap_or(0));
        let (now, most) = (Instant::now(), self.max_lease);
        let Some(message) = self.messages.get_mut(&number) else { return Ok(json!({})) };
        if !message.is_in_flight(now) {
            return refused("MessageNotInflight", "");
        }
        if now + visibility > message.received + most {
            return refused(
                "InvalidParameterValue",
                "Total VisibilityTimeout for the message is beyond the limit [43200 seconds]",
            );
        }
        message.visible = now + visibility;
        Ok(json!({}))
    }
}

impl Message {
    /// The message as it is delivered.
    fn shown(&self) -> Value {
        let mut system = json!({
            "ApproximateReceiveCount": self.receives.to_string(),
            "SentTimestamp": self.sent.to_string(),
        });
        if let Some(group) = &self.group {
            system["MessageGroupId"] = json!(group);
        }
        let mut message = json!({
            "MessageId": self.id,
            "ReceiptHandle": self.handle,
            "Body": self.body,
            "Attributes": system,
        });
        if self.attributes.is_object() {
            message["MessageAttributes"] = self.attributes.clone();
        }
        message
    }
}
