//! Google Cloud Storage: credentials as for Google's own libraries, as far as `object_store`
//! knows them.

use std::sync::Arc;

use object_store::gcp::{
    GcpCredential, GoogleCloudStorage, GoogleCloudStorageBuilder, GoogleConfigKey,
};
use object_store::{ClientOptions, HeaderMap, HeaderValue, StaticCredentialProvider};

use super::super::Access;
use super::super::object::{Probe, Stores};
use super::super::transport::{Patience, Transport};
use super::text;
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
        if let Ok(key) = name.to_ascii_lowercase().parse::<GoogleConfigKey>()
            && !matches!(key, GoogleConfigKey::Bucket | GoogleConfigKey::Client(_))
        {
            builder = builder.with_config(key, value);
        }
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
    } else if !is_said(environment)
        && let Some(path) = environment
            .cloudvolume_secret(&format!("{bucket}-google-secret.json"))
            .or_else(|| environment.cloudvolume_secret("google-secret.json"))
    {
        builder = builder.with_service_account_path(path.to_string_lossy());
    }
    let base = emulator.as_deref().or(environment.get("GOOGLE_BASE_URL"));
    let http = base.is_some_and(|base| base.starts_with("http://"))
        || environment.is_on("GOOGLE_ALLOW_HTTP");
    builder
        .with_bucket_name(bucket)
        .with_client_options(payer(patience.client().with_allow_http(http), access)?)
        .with_retry(patience.retry())
        .with_http_connector(Transport { idle: patience.idle })
        .build()
        .map_err(text)
}

/// True when something says which credentials are to be used.
fn is_said(environment: &Environment) -> bool {
    let names = [
        "GOOGLE_SERVICE_ACCOUNT",
        "GOOGLE_SERVICE_ACCOUNT_PATH",
        "GOOGLE_SERVICE_ACCOUNT_KEY",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "GOOGLE_BEARER_TOKEN",
    ];
    let login = environment.home(".config/gcloud/application_default_credentials.json");
    environment.first(&names).is_some() || login.is_some_and(|path| path.is_file())
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
