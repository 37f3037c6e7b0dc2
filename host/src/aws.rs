//! What all AWS services share: region, credentials, retries, and the texts of errors.

use std::error::Error;

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_sqs::config::retry::RetryConfig;
use aws_sdk_sqs::config::{
    Credentials, ProvideCredentials, SharedCredentialsProvider, SharedHttpClient,
};

use crate::environment::{AwsSecret, Environment};

/// How often a request is tried.
const TRIES: u32 = 4;

/// Tells the user how to provide missing credentials.
pub(crate) const NO_CREDENTIALS: &str = "there are no credentials for AWS: set AWS_ACCESS_KEY_ID \
    and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run where the machine has a role";

/// The settings of clients. The region is `region`, the one that the AWS tools would use, the one
/// in CloudVolume's secret file, or `usual`; `None` if there is none. Tests pass `credentials` and
/// `http` to replace the usual ones. Sends no request, except to find credentials.
pub(crate) async fn settings(
    region: Option<String>,
    usual: Option<String>,
    environment: &Environment,
    credentials: Option<Credentials>,
    http: Option<SharedHttpClient>,
) -> Option<SdkConfig> {
    let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12());
    if let Some(region) = region {
        loader = loader.region(Region::new(region));
    }
    // Users of python-task-queue have their credentials in this file.
    let secret = environment.cloudvolume_aws();
    loader = match credentials {
        Some(credentials) => loader.credentials_provider(credentials),
        None => loader,
    };
    if let Some(http) = http {
        loader = loader.http_client(http);
    }
    let mut config = loader.load().await;
    // The SDK reads `AWS_REGION=` as a region with an empty name.
    if config.region().is_none_or(|region| region.as_ref().is_empty()) {
        let secret = secret.as_ref().ok().and_then(Option::as_ref);
        let region = secret.and_then(|secret| secret.region.clone()).or(usual)?;
        config = config.into_builder().region(Region::new(region)).build();
    }
    if !matches!(secret, Ok(None))
        && let Some(standard) = config.credentials_provider()
        // The file is not a link of the SDK's chain, because the chain ends at the machine's role
        // even if the role is denied to this process.
        && standard.provide_credentials().await.is_err()
    {
        match secret {
            Ok(Some(AwsSecret { key_id, secret_key, token, .. })) => {
                let found = Credentials::new(key_id, secret_key, token, None, "aws-secret.json");
                let provider = SharedCredentialsProvider::new(found);
                config = config.into_builder().credentials_provider(provider).build();
            }
            Ok(None) => {}
            Err(problem) => tracing::warn!("no credentials can be read from {problem}"),
        }
    }
    Some(config)
}

/// The retry settings of the user, or our default.
pub(crate) fn retries(config: &SdkConfig) -> RetryConfig {
    let standard = RetryConfig::standard();
    match config.retry_config() {
        Some(set) if set.max_attempts() != standard.max_attempts() => set.clone(),
        _ => standard.with_max_attempts(TRIES),
    }
}

/// An error and its causes.
pub(crate) fn chain<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| (*error).source())
}

/// The texts of an error's innermost cause and of one error around it, without repetitions.
pub(crate) fn reasons(error: &(dyn Error + 'static)) -> String {
    let reasons: Vec<String> = chain(error).map(ToString::to_string).collect();
    // Outer errors repeat the inner ones or add nothing.
    let mut said: Vec<String> = Vec::new();
    for reason in reasons.into_iter().rev() {
        let is_news = !said.iter().any(|s| reason.contains(s.as_str()));
        if said.is_empty() || (is_news && said.len() < 2) {
            said.push(reason);
        }
    }
    said.reverse();
    said.join(": ")
}
