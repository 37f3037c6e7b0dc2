//! Google Cloud Storage: credentials as in Google's own libraries, as far as `object_store`
//! supports them.

use std::path::Path;
use std::sync::Arc;

use object_store::gcp::{
    GcpCredential, GoogleCloudStorage, GoogleCloudStorageBuilder, GoogleConfigKey,
};
use object_store::{ClientOptions, HeaderMap, HeaderValue, StaticCredentialProvider};
use serde::Deserialize;

use super::super::Access;
use super::super::object::Stores;
use super::super::transport::{Patience, Transport};
use super::{client, text};
use crate::environment::Environment;

/// The variables that name the project to bill.
const PROJECT: [&str; 3] = ["GOOGLE_CLOUD_PROJECT", "CLOUDSDK_CORE_PROJECT", "GCLOUD_PROJECT"];

pub(super) fn stores(
    bucket: &str,
    access: &Access,
    patience: Patience,
    transport: &Transport,
) -> Result<Stores, String> {
    let patient = Arc::new(store(bucket, access, patience, transport)?);
    let quick = Arc::new(store(bucket, access, patience.at_start(), transport)?);
    Ok(Stores {
        reads: patient.clone(),
        writes: Some(patient),
        quick_reads: quick.clone(),
        quick_writes: Some(quick.clone()),
        quick_list: Some(quick),
    })
}

fn store(
    bucket: &str,
    access: &Access,
    patience: Patience,
    transport: &Transport,
) -> Result<GoogleCloudStorage, String> {
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
    // The variable of Google's own libraries. An emulator needs no credentials.
    let emulator = environment.get("STORAGE_EMULATOR_HOST").map(|host| match host {
        host if host.contains("://") => host.trim_end_matches('/').to_owned(),
        host => format!("http://{}", host.trim_end_matches('/')),
    });
    if let Some(emulator) = &emulator {
        builder = builder.with_base_url(emulator);
    }
    let is_nobody = access.anonymous || emulator.is_some();
    let key = match key(bucket, environment) {
        // A broken key is an error only if a key is needed.
        Err(_) if is_nobody => None,
        key => key?,
    };
    let mut base = environment.get("GOOGLE_BASE_URL").map(str::to_owned);
    if let Some(Key { text, account }) = key {
        if !is_nobody {
            builder = builder.with_service_account_key(text);
        }
        base = base.or(account.gcs_base_url);
    }
    if let Some(base) = base.as_ref().filter(|_| access.anonymous && emulator.is_none()) {
        builder = builder.with_base_url(base);
    }
    if is_nobody {
        let nobody = GcpCredential { bearer: String::new() };
        builder = builder.with_credentials(Arc::new(StaticCredentialProvider::new(nobody)));
        builder = builder.with_skip_signature(access.anonymous);
    }
    let endpoint = emulator.or(base).unwrap_or_default();
    builder
        .with_bucket_name(bucket)
        .with_client_options(payer(client(patience, &endpoint), access)?)
        .with_retry(patience.retry())
        .with_http_connector(transport.with(patience))
        .build()
        .map_err(text)
}

/// The key of a service account.
struct Key {
    text: String,
    account: Account,
}

/// The fields that are read here.
#[derive(Default, Deserialize)]
struct Account {
    private_key: Option<String>,
    /// A server other than Google's.
    gcs_base_url: Option<String>,
}

/// The key of a service account. `None` if a user's login or the machine's own account is used.
fn key(bucket: &str, environment: &Environment) -> Result<Option<Key>, String> {
    let parse = |named: &str, text: String| match serde_json::from_str(&text) {
        Ok(account) => Ok(Key { text, account }),
        Err(error) => Err(format!("{named} does not hold Google credentials: {error}")),
    };
    let read = |path: &Path| {
        let shown = path.display();
        let text = std::fs::read_to_string(path).map_err(|error| format!("{shown}: {error}"))?;
        parse(&shown.to_string(), text)
    };
    if let Some(text) = environment.get("GOOGLE_SERVICE_ACCOUNT_KEY") {
        return parse("GOOGLE_SERVICE_ACCOUNT_KEY", text.to_owned()).map(Some);
    }
    for name in
        ["GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH", "GOOGLE_APPLICATION_CREDENTIALS"]
    {
        let Some(path) = environment.get(name) else { continue };
        let key = read(Path::new(path)).map_err(|error| format!("{name}: {error}"))?;
        // A file without a key is a user's login, which `object_store` reads itself.
        let is_key = name != "GOOGLE_APPLICATION_CREDENTIALS" || key.account.private_key.is_some();
        return Ok(is_key.then_some(key));
    }
    let login = environment.home(".config/gcloud/application_default_credentials.json");
    if environment.get("GOOGLE_BEARER_TOKEN").is_some() {
        return Ok(None);
    }
    if let Some(login) = login.filter(|path| path.is_file()) {
        // `object_store` reads the file itself, but its error does not name a broken file.
        return read(&login).map(|_| None);
    }
    let secret = environment
        .cloudvolume_secret(&format!("{bucket}-google-secret.json"))
        .or_else(|| environment.cloudvolume_secret("google-secret.json"));
    secret.map(|path| read(&path)).transpose()
}

/// Names the project to bill, if the requester pays.
fn payer(options: ClientOptions, access: &Access) -> Result<ClientOptions, String> {
    if !access.requester_pays {
        return Ok(options);
    }
    let project = access
        .environment
        .first(&PROJECT)
        .ok_or("--requester-pays needs the project to bill: set GOOGLE_CLOUD_PROJECT")?;
    let value = HeaderValue::from_str(project)
        .map_err(|_| format!("{project:?} is not the name of a project"))?;
    let mut headers = HeaderMap::new();
    headers.insert("x-goog-user-project", value);
    Ok(options.with_default_headers(headers))
}

#[cfg(test)]
mod tests {
    use super::super::super::address::{Service, ServiceAddress};
    use super::*;
    use crate::bucket::StoredEncoding;
    use crate::key::Prefix;

    #[test]
    fn a_broken_key_stops_only_who_needs_one_and_is_named() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join(".cloudvolume/secrets");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("google-secret.json"), "{ not JSON").unwrap();
        let home = ("HOME", home.path().to_str().unwrap());
        let address =
            ServiceAddress { service: Service::Google, name: "b".into(), prefix: Prefix::root() };
        let transport = Transport::new(&address, StoredEncoding::Decode);
        let make = |anonymous, more: &[(&str, &str)]| {
            let environment = [home].iter().chain(more).copied().collect();
            let access = Access { anonymous, ..Access::new(environment) };
            store("b", &access, Patience::default(), &transport).map(drop)
        };
        let error = make(false, &[]).unwrap_err();
        assert!(error.contains("google-secret.json does not hold Google credentials"), "{error}");
        make(true, &[]).unwrap();
        make(false, &[("STORAGE_EMULATOR_HOST", "localhost:1")]).unwrap();
        let error = make(false, &[("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere")]).unwrap_err();
        assert!(error.contains("GOOGLE_APPLICATION_CREDENTIALS: /nowhere: No such"), "{error}");
        make(true, &[("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere")]).unwrap();
    }
}
