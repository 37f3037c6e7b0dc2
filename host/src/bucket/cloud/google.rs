//! Google Cloud Storage: credentials as for Google's own libraries, as far as `object_store`
//! knows them.

use std::path::Path;
use std::sync::Arc;

use object_store::gcp::{
    GcpCredential, GoogleCloudStorage, GoogleCloudStorageBuilder, GoogleConfigKey,
};
use object_store::{ClientOptions, HeaderMap, HeaderValue, StaticCredentialProvider};
use serde::Deserialize;

use super::super::Access;
use super::super::object::{Probe, Stores};
use super::super::transport::{Patience, Transport};
use super::{client, text};
use crate::environment::Environment;

/// What names the project that pays.
const PROJECT: [&str; 3] = ["GOOGLE_CLOUD_PROJECT", "CLOUDSDK_CORE_PROJECT", "GCLOUD_PROJECT"];

pub(super) fn stores(bucket: &str, access: &Access, patience: Patience) -> Result<Stores, String> {
    Ok(Stores {
        reads: Arc::new(store(bucket, access, patience)?),
        writes: Some(Arc::new(store(bucket, access, patience)?)),
        probe: Probe::List(Arc::new(store(bucket, access, patience.at_start())?)),
    })
}

fn store(bucket: &str, access: &Access, patience: Patience) -> Result<GoogleCloudStorage, String> {
    let environment = &access.environment;
    let mut builder = GoogleCloudStorageBuilder::new();
    for (name, value) in environment.starting("GOOGLE_") {
        use GoogleConfigKey as K;
        if let Ok(key) = name.to_ascii_lowercase().parse::<GoogleConfigKey>()
            && !matches!(key, K::Bucket | K::Client(_) | K::ServiceAccount | K::ServiceAccountKey)
        {
            builder = builder.with_config(key, value);
        }
    }
    let account = account(bucket, environment)?;
    let mut base = environment.get("GOOGLE_BASE_URL").map(str::to_owned);
    if let Some(account) = &account {
        builder = builder.with_service_account_key(account);
        let account: Account = serde_json::from_str(account).unwrap_or_default();
        base = base.or(account.gcs_base_url);
    }
    // The variable of Google's own libraries. An emulator wants no credentials.
    let emulator = environment.get("STORAGE_EMULATOR_HOST").map(|host| match host {
        host if host.contains("://") => host.trim_end_matches('/').to_owned(),
        host => format!("http://{}", host.trim_end_matches('/')),
    });
    if let Some(emulator) = &emulator {
        builder = builder.with_base_url(emulator);
    }
    if access.anonymous || emulator.is_some() {
        let nobody = GcpCredential { bearer: String::new() };
        builder = builder.with_credentials(Arc::new(StaticCredentialProvider::new(nobody)));
        builder = builder.with_skip_signature(access.anonymous);
    }
    let endpoint = emulator.or(base).unwrap_or_default();
    builder
        .with_bucket_name(bucket)
        .with_client_options(payer(client(patience, &endpoint), access)?)
        .with_retry(patience.retry())
        .with_http_connector(Transport { idle: patience.idle })
        .build()
        .map_err(text)
}

/// What we look at in the key of a service account.
#[derive(Default, Deserialize)]
struct Account {
    private_key: Option<String>,
    /// Another server than Google's.
    gcs_base_url: Option<String>,
}

/// The key of a service account, if that is what is to be used, and not a login or the
/// machine's own account.
fn account(bucket: &str, environment: &Environment) -> Result<Option<String>, String> {
    if let Some(key) = environment.get("GOOGLE_SERVICE_ACCOUNT_KEY") {
        return Ok(Some(key.to_owned()));
    }
    let read = |path: &Path| {
        std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
    };
    let named = ["GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH"];
    if let Some(path) = environment.first(&named) {
        return read(Path::new(path)).map(Some);
    }
    if let Some(path) = environment.get("GOOGLE_APPLICATION_CREDENTIALS") {
        let text = read(Path::new(path))?;
        let account: Account = serde_json::from_str(&text)
            .map_err(|error| format!("GOOGLE_APPLICATION_CREDENTIALS: {path}: {error}"))?;
        return Ok(account.private_key.is_some().then_some(text));
    }
    let login = environment.home(".config/gcloud/application_default_credentials.json");
    if login.is_some_and(|path| path.is_file()) || environment.get("GOOGLE_BEARER_TOKEN").is_some()
    {
        return Ok(None);
    }
    let secret = environment
        .cloudvolume_secret(&format!("{bucket}-google-secret.json"))
        .or_else(|| environment.cloudvolume_secret("google-secret.json"));
    secret.map(|path| read(&path)).transpose()
}

/// Names the project that pays, if we do.
fn payer(options: ClientOptions, access: &Access) -> Result<ClientOptions, String> {
    if !access.requester_pays {
        return Ok(options);
    }
    let project = access
        .environment
        .first(&PROJECT)
        .ok_or("--requester-pays needs to know the project that pays: set GOOGLE_CLOUD_PROJECT")?;
    let value = HeaderValue::from_str(project)
        .map_err(|_| format!("{project:?} can't be the name of a project"))?;
    let mut headers = HeaderMap::new();
    headers.insert("x-goog-user-project", value);
    Ok(options.with_default_headers(headers))
}
