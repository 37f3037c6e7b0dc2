//! The SQS client: region, endpoint, credentials and timeouts. It counts its requests.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_config::SdkConfig;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::interceptors::{
    BeforeDeserializationInterceptorContextRef, BeforeTransmitInterceptorContextRef,
};
use aws_sdk_sqs::config::timeout::TimeoutConfig;
use aws_sdk_sqs::config::{
    ConfigBag, Credentials, Intercept, RuntimeComponents, SharedHttpClient,
    StalledStreamProtectionConfig,
};
use aws_sdk_sqs::error::BoxError;
use aws_types::service_config::ServiceConfigKey;

use object_store::ObjectStore;
use tokio::time::Instant;

use crate::aws;
use crate::queue::address::Sqs;
use crate::queue::request_counter::{RequestCounter, RequestKind};
use crate::queue::service_clock::{self, ServiceClock};
use crate::queue::{Access, QueueError, Requests};

/// The timeout of one attempt at a request, in addition to the time that the service waits.
const ATTEMPT: Duration = Duration::from_secs(15);
const CONNECT: Duration = Duration::from_secs(5);
/// The minimum timeout of a request.
const SHORTEST: Duration = Duration::from_secs(1);

/// Values that tests use instead of the machine's settings.
#[derive(Debug, Clone, Default)]
pub(super) struct TestOverrides {
    pub(super) credentials: Option<Credentials>,
    pub(super) http: Option<SharedHttpClient>,
    pub(super) large_bodies: Option<Arc<dyn ObjectStore>>,
}

/// A client and its settings.
pub(super) struct Connection {
    pub(super) client: Client,
    pub(super) region: String,
    pub(super) endpoint: String,
    pub(super) requests: Arc<Tally>,
    /// The settings of the client, for other AWS services.
    pub(super) config: SdkConfig,
}

/// Creates a client for the queue. Sends no request.
pub(super) async fn reach(
    queue: &Sqs,
    access: &Access,
    overrides: TestOverrides,
) -> Result<Connection, QueueError> {
    let place = QueuePlace::of(queue);
    // Servers other than AWS have no regions, but requests are signed for one.
    let usual = place.endpoint.as_ref().map(|_| "us-east-1".to_owned());
    let region = access.region.clone().or(place.region);
    let TestOverrides { credentials, http, large_bodies: _ } = overrides;
    let config = aws::settings(region, usual, &access.environment, credentials, http).await;
    let config = config.ok_or_else(|| no_region(queue, access))?;
    let region = config.region().map(ToString::to_string).unwrap_or_default();
    let configured = endpoint(&config);
    let requests = Arc::new(Tally::default());
    let timeouts =
        TimeoutConfig::builder().connect_timeout(CONNECT).operation_attempt_timeout(ATTEMPT);
    let mut client = aws_sdk_sqs::config::Builder::from(&config)
        .retry_config(aws::retries(&config))
        .timeout_config(timeouts.build())
        // The protection would mistake a long poll for a stalled response.
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .interceptor(Counting { queue: queue.to_string(), tally: requests.clone() });
    let endpoint = match (configured, place.endpoint) {
        (Some(url), _) => url,
        (None, Some(url)) => {
            client = client.endpoint_url(&url);
            url
        }
        (None, None) => format!("https://sqs.{region}.amazonaws.com"),
    };
    let client = Client::from_conf(client.build());
    Ok(Connection { client, region, endpoint, requests, config })
}

/// Timeouts for a request that the service may answer after `wait`.
pub(super) fn patient(wait: Duration) -> aws_sdk_sqs::config::Builder {
    let timeouts =
        TimeoutConfig::builder().connect_timeout(CONNECT).operation_attempt_timeout(ATTEMPT + wait);
    aws_sdk_sqs::Config::builder().timeout_config(timeouts.build())
}

/// Timeouts for a request that is useless after `latest`.
pub(super) fn until(latest: Option<Instant>) -> aws_sdk_sqs::config::Builder {
    let left = latest.map_or(ATTEMPT, |latest| latest.saturating_duration_since(Instant::now()));
    let left = left.max(SHORTEST);
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(CONNECT)
        .operation_attempt_timeout(ATTEMPT.min(left))
        .operation_timeout(left);
    aws_sdk_sqs::Config::builder().timeout_config(timeouts.build())
}

/// The endpoint from the environment or the profile, for SQS or for all services.
fn endpoint(config: &SdkConfig) -> Option<String> {
    let key = ServiceConfigKey::builder()
        .service_id("SQS")
        .env("AWS_ENDPOINT_URL")
        .profile("endpoint_url")
        .build()
        .ok()?;
    let own = config.service_config().and_then(|settings| settings.load_config(key));
    own.or_else(|| config.endpoint_url().map(str::to_owned))
}

fn no_region(queue: &Sqs, access: &Access) -> QueueError {
    let profile = access.environment.missing_aws_profile();
    let profile = profile.map(|problem| format!("; {problem}")).unwrap_or_default();
    QueueError::Invalid {
        queue: queue.to_string(),
        problem: format!(
            "no region is set: give --region, or set AWS_REGION or the region of your profile in \
             ~/.aws/config, or name the queue by its URL{profile}"
        ),
    }
}

/// The region and endpoint in a queue's address.
#[derive(Debug, Default, PartialEq, Eq)]
struct QueuePlace {
    region: Option<String>,
    /// The endpoint, if it is not the region's default.
    endpoint: Option<String>,
}

impl QueuePlace {
    fn of(queue: &Sqs) -> Self {
        match queue {
            Sqs::Name(_) => Self::default(),
            Sqs::Arn { region, .. } => Self { region: Some(region.clone()), endpoint: None },
            Sqs::Url(url) => Self::of_url(url),
        }
    }

    fn of_url(url: &str) -> Self {
        let Some((scheme, rest)) = url.split_once("://") else { return Self::default() };
        let host = rest.split('/').next().unwrap_or(rest);
        let origin = Some(format!("{scheme}://{host}"));
        let labels: Vec<&str> = host.split('.').collect();
        let of = |region: &str, endpoint| Self { region: Some(region.to_owned()), endpoint };
        match labels.as_slice() {
            ["sqs", region, "amazonaws", "com"] | ["sqs", region, "amazonaws", "com", "cn"] => {
                of(region, None)
            }
            ["queue", "amazonaws", "com"] => of("us-east-1", None),
            [region, "queue", "amazonaws", "com"] => of(region, None),
            // FIPS, dual-stack and VPC endpoints are used unchanged.
            ["sqs-fips", region, "amazonaws", "com"]
            | ["sqs" | "sqs-fips", region, "api", "aws"]
            | [_, "sqs", region, "vpce", "amazonaws", "com"]
            | [_, _, "sqs", region, "vpce", "amazonaws", "com"] => of(region, origin),
            _ => Self { region: None, endpoint: origin },
        }
    }
}

/// Counts requests, including retries, and reads the date of each response.
#[derive(Debug)]
struct Counting {
    queue: String,
    tally: Arc<Tally>,
}

/// The number of requests, and the service's time from the responses.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) clock: ServiceClock,
    counter: RequestCounter,
}

impl Tally {
    pub(super) fn requests(&self) -> Requests {
        self.counter.requests()
    }
}

impl Intercept for Counting {
    fn name(&self) -> &'static str {
        "Counting"
    }

    fn read_before_transmit(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let target = context.request().headers().get("x-amz-target").unwrap_or_default();
        self.tally.counter.count(match target.rsplit('.').next().unwrap_or_default() {
            "ReceiveMessage" => RequestKind::Receive,
            "SendMessage" | "SendMessageBatch" => RequestKind::Send,
            "DeleteMessage" | "DeleteMessageBatch" => RequestKind::Delete,
            "ChangeMessageVisibility" | "ChangeMessageVisibilityBatch" => RequestKind::Extend,
            _ => RequestKind::Other,
        });
        Ok(())
    }

    fn read_after_transmit(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if let Some(date) = context.response().headers().get("date").and_then(service_clock::parse)
        {
            self.tally.clock.saw(&self.queue, date, SystemTime::now());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_url_says_where_its_queue_is() {
        let check = |url: &str, region: Option<&str>, endpoint: Option<&str>| {
            let place = QueuePlace::of(&Sqs::Url(url.to_owned()));
            assert_eq!(place.region.as_deref(), region, "{url}");
            assert_eq!(place.endpoint.as_deref(), endpoint, "{url}");
        };
        check("https://sqs.eu-west-1.amazonaws.com/123456789012/q", Some("eu-west-1"), None);
        check("https://sqs.cn-north-1.amazonaws.com.cn/1/q", Some("cn-north-1"), None);
        check("https://eu-west-1.queue.amazonaws.com/1/q", Some("eu-west-1"), None);
        check("https://queue.amazonaws.com/1/q", Some("us-east-1"), None);
        let fips = "https://sqs-fips.us-west-2.amazonaws.com";
        check(&format!("{fips}/1/q"), Some("us-west-2"), Some(fips));
        let vpc = "https://vpce-1-a.sqs.us-west-2.vpce.amazonaws.com";
        check(&format!("{vpc}/1/q"), Some("us-west-2"), Some(vpc));
        check("http://127.0.0.1:9324/queue/q", None, Some("http://127.0.0.1:9324"));
    }
}
