//! Checks and creates the topic and the subscription.

use std::time::Duration;

use gcloud_gax::grpc::{Code, Status};
use gcloud_googleapis::pubsub::v1::{
    ExpirationPolicy, GetSubscriptionRequest, GetTopicRequest, ListTopicSubscriptionsRequest,
    Subscription, Topic,
};

use super::client::{ANSWER, Client, RequestKind, routed};
use crate::queue::QueueError;
use crate::queue::address::PubSub;

/// The subscription's own deadline in seconds. If a host dies before it extends a lease, the
/// message is hidden for this long.
const ACK_DEADLINE: i32 = 60;
/// How long Pub/Sub keeps messages.
const RETENTION: Duration = Duration::from_secs(7 * 24 * 3600);
/// The topic of a subscription whose topic was deleted.
const DELETED: &str = "_deleted-topic_";

/// The operation in errors about the topic.
const TOPIC: &str = "looking for the topic";

/// The full name of the topic.
pub(super) fn topic(at: &PubSub) -> String {
    format!("projects/{}/topics/{}", at.project, at.topic)
}

/// The full name of the subscription.
pub(super) fn subscription(at: &PubSub) -> Option<String> {
    let name = at.subscription.as_ref()?;
    Some(format!("projects/{}/subscriptions/{name}", at.project))
}

/// Checks that messages to the topic arrive at the subscription. A topic without a subscription
/// drops its messages. Creates the topic and subscription if they do not exist and `create` is set.
pub(super) async fn check(client: &Client, at: &PubSub, create: bool) -> Result<(), QueueError> {
    let topic = match look_up_topic(client, &topic(at)).await {
        Err(error) if error.code() == Code::NotFound => {
            if !create {
                return Err(client.invalid(format!(
                    "there is no topic {} in project {}; create it with --create-queues, or with \
                     `gcloud pubsub topics create {0} --project {1}`",
                    at.topic, at.project
                )));
            }
            make_topic(client, at).await?
        }
        topic => topic.map_err(|error| client.error(TOPIC, &error))?,
    };
    if at.subscription.is_none() {
        return check_listeners(client, at, &topic).await;
    }
    let found = match look_up(client, at).await {
        Err(error) if error.code() == Code::NotFound => None,
        found => Some(found.map_err(|e| client.error("looking for the subscription", &e))?),
    };
    match found {
        Some(found) => fits(&found, at).map_err(|problem| client.invalid(problem)),
        None if create => make_subscription(client, at).await,
        None => {
            let name = at.subscription.as_deref().unwrap_or_default();
            Err(client.invalid(format!(
                "there is no subscription {name} in project {}; create it with --create-queues, \
                 or with `gcloud pubsub subscriptions create {name} --topic {} --project {0} \
                 --ack-deadline {ACK_DEADLINE} --expiration-period never`",
                at.project, at.topic
            )))
        }
    }
}

/// Reads the subscription.
pub(super) async fn look_up(client: &Client, at: &PubSub) -> Result<Subscription, Status> {
    let name = subscription(at).unwrap_or_default();
    let get = || async {
        let request = GetSubscriptionRequest { subscription: name.clone() };
        client.subscriber().get_subscription(routed("subscription", &name, request)).await
    };
    client.tried(RequestKind::Other, ANSWER, get).await
}

/// Reads the topic with this full name.
pub(super) async fn find_topic(client: &Client, name: &str) -> Result<Topic, QueueError> {
    look_up_topic(client, name).await.map_err(|error| client.error(TOPIC, &error))
}

async fn look_up_topic(client: &Client, name: &str) -> Result<Topic, Status> {
    let get = || async {
        let request = GetTopicRequest { topic: name.to_owned() };
        client.publisher().get_topic(routed("topic", name, request)).await
    };
    client.tried(RequestKind::Other, ANSWER, get).await
}

/// Checks that the subscription is suitable for tasks.
fn fits(found: &Subscription, at: &PubSub) -> Result<(), String> {
    let name = at.subscription.as_deref().unwrap_or_default();
    let is_pushed = found.push_config.as_ref().is_some_and(|push| !push.push_endpoint.is_empty());
    let is_exported = found.bigquery_config.as_ref().is_some_and(|to| !to.table.is_empty())
        || found.cloud_storage_config.as_ref().is_some_and(|to| !to.bucket.is_empty());
    if found.topic == DELETED {
        Err(format!("the topic of subscription {name} was deleted; create another subscription"))
    } else if found.topic != topic(at) {
        Err(format!("subscription {name} belongs to {}, not to {}", found.topic, topic(at)))
    } else if found.detached {
        Err(format!("subscription {name} is detached from its topic; create another one"))
    } else if is_pushed || is_exported {
        Err(format!("subscription {name} pushes or exports its messages; use a pull subscription"))
    } else {
        Ok(())
    }
}

/// Checks that the topic has a subscription or retains messages itself. Otherwise it drops its
/// messages.
async fn check_listeners(client: &Client, at: &PubSub, found: &Topic) -> Result<(), QueueError> {
    if found.message_retention_duration.is_some() {
        return Ok(());
    }
    let name = topic(at);
    let list = || async {
        let request = ListTopicSubscriptionsRequest {
            topic: name.clone(),
            page_size: 1,
            page_token: String::new(),
        };
        let request = routed("topic", &name, request);
        client.publisher().list_topic_subscriptions(request).await
    };
    let listed = client.tried(RequestKind::Other, ANSWER, list).await;
    let listed = listed.map_err(|e| client.error("looking for the topic's subscriptions", &e))?;
    if listed.subscriptions.is_empty() {
        return Err(client.invalid(format!(
            "topic {} has no subscription, so messages to it would be lost; add one to the URL, \
             pubsub://{name}/subscriptions/SUBSCRIPTION, and use --create-queues",
            at.topic
        )));
    }
    Ok(())
}

async fn make_topic(client: &Client, at: &PubSub) -> Result<Topic, QueueError> {
    let topic = Topic { name: topic(at), ..Topic::default() };
    let create = || async {
        client.publisher().create_topic(routed("name", &topic.name, topic.clone())).await
    };
    match client.tried(RequestKind::Other, ANSWER, create).await {
        Ok(made) => {
            client.made();
            tracing::info!("created {}", made.name);
            Ok(made)
        }
        // Another host created it at the same time.
        Err(error) if error.code() == Code::AlreadyExists => Ok(topic),
        Err(error) => Err(client.error("creating the topic", &error)),
    }
}

async fn make_subscription(client: &Client, at: &PubSub) -> Result<(), QueueError> {
    let subscription = Subscription {
        name: subscription(at).unwrap_or_default(),
        topic: topic(at),
        ack_deadline_seconds: ACK_DEADLINE,
        message_retention_duration: RETENTION.try_into().ok(),
        // A policy without a time means that the subscription never expires.
        expiration_policy: Some(ExpirationPolicy::default()),
        ..Subscription::default()
    };
    let create = || async {
        let request = routed("name", &subscription.name, subscription.clone());
        client.subscriber().create_subscription(request).await
    };
    match client.tried(RequestKind::Other, ANSWER, create).await {
        Ok(made) => {
            client.made();
            tracing::info!("created {}", made.name);
            Ok(())
        }
        Err(error) if error.code() == Code::AlreadyExists => Ok(()),
        Err(error) => Err(client.error("creating the subscription", &error)),
    }
}
