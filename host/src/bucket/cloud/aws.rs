//! S3: credentials, region and endpoint as in the AWS tools.
//!
//! The AWS SDK's chain finds credentials in variables, profiles with roles and SSO, web identity,
//! containers and instance metadata. If the chain finds none, the key that CloudVolume users have
//! in their home directory is used.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use aws_config::{BehaviorVersion, Region};
use aws_sdk_sqs::config::{ProvideCredentials, SharedCredentialsProvider};
use object_store::aws::{
    AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, AwsCredential, AwsCredentialProvider, Checksum,
    resolve_bucket_region,
};
use object_store::client::CredentialProvider;
use object_store::{HeaderMap, HeaderValue, StaticCredentialProvider};
use tokio::sync::Mutex;

use super::super::Access;
use super::super::object::Stores;
use super::super::service_error::NO_CREDENTIALS;
use super::super::transport::{Patience, Transport};
use super::{client, text};
use crate::environment::{AwsSecret, Environment};

/// Credentials are renewed when they are valid for less than this.
const RENEWED: Duration = Duration::from_secs(300);
/// How long credentials without an expiry are cached.
const UNSAID: Duration = Duration::from_secs(900);
/// The timeout of the request for a bucket's region.
const REGION: Duration = Duration::from_secs(10);

/// The settings for the clients of one bucket.
pub(super) struct S3 {
    bucket: String,
    region: String,
    endpoint: Option<String>,
    credentials: Option<AwsCredentialProvider>,
    requester_pays: bool,
    environment: Environment,
    patience: Patience,
    transport: Transport,
}

impl S3 {
    pub(super) async fn find(
        bucket: &str,
        access: &Access,
        patience: Patience,
        transport: Transport,
    ) -> Result<Self, String> {
        let environment = &access.environment;
        let key = static_key(environment);
        let region = access.region.as_deref();
        let region = region.or(environment.first(&["AWS_REGION", "AWS_DEFAULT_REGION"]));
        let mut endpoint =
            environment.first(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]).map(str::to_owned);
        let mut region = region.map(str::to_owned);

        // The profile may have the settings that are still missing.
        let is_known = key.is_some() || access.anonymous;
        let mut chain = None;
        if !is_known || (region.is_none() && endpoint.is_none()) {
            let mut loader = aws_config::defaults(BehaviorVersion::latest());
            if let Some(region) = &region {
                loader = loader.region(Region::new(region.clone()));
            }
            if is_known {
                loader = loader.no_credentials();
            }
            let config = loader.load().await;
            endpoint = endpoint.or_else(|| config.endpoint_url().map(str::to_owned));
            // The SDK reads `AWS_REGION=` as a region with an empty name.
            let found = config.region().map(ToString::to_string).filter(|name| !name.is_empty());
            region = region.or(found);
            chain = config.credentials_provider();
        }
        // The file is read only if it may be needed, so that a broken file is an error only then.
        let needs_secret = !is_known || (region.is_none() && endpoint.is_none());
        let secret = if needs_secret { environment.cloudvolume_aws() } else { Ok(None) };
        let credentials: Option<AwsCredentialProvider> = match (access.anonymous, key, chain) {
            (true, ..) => None,
            (_, Some(key), _) => Some(Arc::new(StaticCredentialProvider::new(key))),
            (.., chain) => {
                let fallback = secret.clone();
                let profile = environment.missing_aws_profile();
                Some(Arc::new(Chain { chain, fallback, profile, kept: Mutex::default() }))
            }
        };
        let region = match (region, &endpoint, &secret) {
            (Some(region), ..) => region,
            (None, _, Ok(Some(AwsSecret { region: Some(region), .. }))) => region.clone(),
            // S3-compatible services seldom use the region.
            (None, Some(_), _) => "us-east-1".to_owned(),
            (None, None, secret) => {
                let found = region_of(bucket, patience).await;
                let more = [environment.missing_aws_profile(), secret.clone().err()];
                found.map_err(|problem| because(problem, &more))?
            }
        };
        if endpoint.is_none() && region.starts_with("cn-") {
            endpoint = Some(format!("https://s3.{region}.amazonaws.com.cn"));
        }
        Ok(Self {
            bucket: bucket.to_owned(),
            region,
            endpoint,
            credentials,
            requester_pays: access.requester_pays,
            environment: environment.clone(),
            patience,
            transport,
        })
    }

    pub(super) fn stores(self) -> Result<Stores, String> {
        let quick = Arc::new(self.store(self.patience.at_start(), true)?);
        Ok(Stores {
            reads: Arc::new(self.store(self.patience, true)?),
            writes: Some(Arc::new(self.store(self.patience, false)?)),
            quick_reads: quick.clone(),
            quick_writes: Some(Arc::new(self.store(self.patience.at_start(), false)?)),
            quick_list: Some(quick),
        })
    }

    fn store(&self, patience: Patience, reads: bool) -> Result<AmazonS3, String> {
        let mut builder = AmazonS3Builder::new();
        for (name, value) in self.environment.starting("AWS_") {
            if let Ok(key) = name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>()
                && !is_ours(&key)
            {
                builder = builder.with_config(key, value);
            }
        }
        // These variables, which the AWS SDKs also read, switch off features that some
        // S3-compatible services lack.
        let wants = |name: &str| {
            !self.environment.get(name).is_some_and(|v| v.eq_ignore_ascii_case("when_required"))
        };
        let mut options = client(patience, self.endpoint.as_deref().unwrap_or("https://"));
        if reads && wants("AWS_RESPONSE_CHECKSUM_VALIDATION") {
            let mut headers = HeaderMap::new();
            headers.insert("x-amz-checksum-mode", HeaderValue::from_static("ENABLED"));
            options = options.with_default_headers(headers);
        }
        if !reads
            && wants("AWS_REQUEST_CHECKSUM_CALCULATION")
            && self.environment.get("AWS_CHECKSUM_ALGORITHM").is_none()
        {
            builder = builder.with_checksum_algorithm(Checksum::SHA256);
        }
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        builder = match &self.credentials {
            Some(credentials) => builder.with_credentials(credentials.clone()),
            None => builder.with_skip_signature(true),
        };
        if self.requester_pays {
            builder = builder.with_request_payer(true);
        }
        builder
            .with_bucket_name(&self.bucket)
            // Some S3-compatible services lack the request that deletes many objects.
            .with_disable_bulk_delete(true)
            .with_region(&self.region)
            .with_client_options(options)
            .with_retry(patience.retry())
            .with_http_connector(self.transport.with(patience))
            .build()
            .map_err(text)
    }
}

/// True for settings that this module sets, and the store must not read from variables.
fn is_ours(key: &AmazonS3ConfigKey) -> bool {
    use AmazonS3ConfigKey as K;
    matches!(
        key,
        K::AccessKeyId
            | K::SecretAccessKey
            | K::Token
            | K::Region
            | K::DefaultRegion
            | K::Bucket
            | K::Endpoint
            | K::S3Endpoint
            | K::RoleArn
            | K::RoleSessionName
            | K::WebIdentityTokenFile
            | K::ContainerCredentialsRelativeUri
            | K::ContainerCredentialsFullUri
            | K::ContainerAuthorizationTokenFile
            | K::Client(_)
    )
}

fn static_key(environment: &Environment) -> Option<AwsCredential> {
    // As in the SDK, only a profile given in code takes precedence over these variables.
    Some(AwsCredential {
        key_id: environment.get("AWS_ACCESS_KEY_ID")?.to_owned(),
        secret_key: environment.get("AWS_SECRET_ACCESS_KEY")?.to_owned(),
        token: environment.get("AWS_SESSION_TOKEN").map(str::to_owned),
    })
}

/// Asks S3 for a bucket's region. This needs no credentials.
async fn region_of(bucket: &str, patience: Patience) -> Result<String, String> {
    let options = patience.client();
    let asked = resolve_bucket_region(bucket, &options);
    let give = "set it with --region, AWS_REGION or in ~/.aws/config";
    match tokio::time::timeout(REGION, asked).await {
        Ok(Ok(region)) => Ok(region),
        Ok(Err(error)) if error.to_string().contains("not found") => {
            Err(format!("there is no bucket `{bucket}`; check its name, or create it"))
        }
        Ok(Err(error)) => {
            Err(format!("its region is unknown, and S3 can't name it: {error}; {give}"))
        }
        Err(_) => Err(format!("its region is unknown, and S3 did not name it in time; {give}")),
    }
}

/// Credentials of the SDK's chain, or the key in the home directory, cached while they are valid.
struct Chain {
    chain: Option<SharedCredentialsProvider>,
    /// The key in the home directory, or the problem with its file.
    fallback: Result<Option<AwsSecret>, String>,
    /// A message that the requested profile does not exist.
    profile: Option<String>,
    kept: Mutex<Option<(Arc<AwsCredential>, SystemTime)>>,
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Chain")
    }
}

#[async_trait]
impl CredentialProvider for Chain {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        // The lock is held during the request, so that concurrent callers share one request.
        let mut kept = self.kept.lock().await;
        let now = SystemTime::now();
        if let Some((credential, until)) = &*kept
            && *until > now
        {
            return Ok(credential.clone());
        }
        let (credential, until) = self.ask(now).await?;
        let credential = Arc::new(credential);
        *kept = Some((credential.clone(), until));
        Ok(credential)
    }
}

impl Chain {
    async fn ask(&self, now: SystemTime) -> object_store::Result<(AwsCredential, SystemTime)> {
        let problem = match &self.chain {
            None => "the AWS SDK has none".to_owned(),
            Some(chain) => match chain.provide_credentials().await {
                Ok(found) => {
                    let until = found.expiry().and_then(|end| end.checked_sub(RENEWED));
                    let credential = AwsCredential {
                        key_id: found.access_key_id().to_owned(),
                        secret_key: found.secret_access_key().to_owned(),
                        token: found.session_token().map(str::to_owned),
                    };
                    return Ok((credential, until.unwrap_or(now + UNSAID)));
                }
                Err(error) => first_line(&innermost(&error)),
            },
        };
        match &self.fallback {
            Ok(Some(key)) => {
                let AwsSecret { key_id, secret_key, token, .. } = key.clone();
                Ok((AwsCredential { key_id, secret_key, token }, now + UNSAID))
            }
            fallback => {
                let more = [self.profile.clone(), fallback.clone().err()];
                let problem = because(problem, &more);
                Err(object_store::Error::Generic {
                    store: "S3",
                    source: format!("{NO_CREDENTIALS} for AWS were found ({problem})").into(),
                })
            }
        }
    }
}

/// A problem followed by its possible causes.
fn because(problem: String, causes: &[Option<String>]) -> String {
    causes.iter().flatten().fold(problem, |problem, cause| format!("{problem}; {cause}"))
}

/// The first line of an SDK error. The other lines describe each source of credentials.
fn first_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    line.trim_end_matches("Attempted:").trim_end_matches([' ', '.']).to_owned()
}

fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::super::super::address::{Service, ServiceAddress};
    use super::*;
    use crate::bucket::StoredEncoding;
    use crate::key::Prefix;

    async fn find(anonymous: bool, variables: &[(&str, &str)]) -> Result<S3, String> {
        let address =
            ServiceAddress { service: Service::S3, name: "b".into(), prefix: Prefix::root() };
        let transport = Transport::new(&address, StoredEncoding::Decode);
        let environment = variables.iter().copied().collect();
        let access = Access { anonymous, ..Access::new(environment) };
        S3::find("b", &access, Patience::default(), transport).await
    }

    #[tokio::test]
    async fn a_broken_secret_stops_only_who_needs_it_and_is_named() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join(".cloudvolume/secrets");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("aws-secret.json"), "{ not JSON").unwrap();
        let home = ("HOME", home.path().to_str().unwrap());
        let endpoint = ("AWS_ENDPOINT_URL", "http://127.0.0.1:9");
        let key = [("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "key")];
        find(true, &[home, endpoint]).await.unwrap();
        find(false, &[home, endpoint, key[0], key[1]]).await.unwrap();
        find(false, &[home, endpoint]).await.unwrap();

        let fallback = environment_of(home).cloudvolume_aws();
        let chain = Chain { chain: None, fallback, profile: None, kept: Mutex::default() };
        let error = chain.get_credential().await.unwrap_err().to_string();
        assert!(error.contains("no credentials for AWS were found"), "{error}");
        assert!(error.contains("aws-secret.json: "), "{error}");
    }

    fn environment_of(variable: (&str, &str)) -> Environment {
        [variable].into_iter().collect()
    }
}
