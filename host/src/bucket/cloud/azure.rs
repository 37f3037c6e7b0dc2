//! Azure Blob Storage: account and credentials from the variables of `object_store` or of the Azure
//! CLI, or from a connection string.

use std::collections::HashMap;
use std::sync::Arc;

use object_store::azure::{AzureConfigKey, MicrosoftAzure, MicrosoftAzureBuilder};

use super::super::Access;
use super::super::object::Stores;
use super::super::transport::{Patience, Transport};
use super::{client, text};
use crate::environment::Environment;

/// The account and key of Azurite, the emulator. They are the same everywhere.
pub(in super::super) const EMULATOR: (&str, &str) = (
    "devstoreaccount1",
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==",
);

pub(super) fn stores(
    container: &str,
    access: &Access,
    patience: Patience,
    transport: &Transport,
) -> Result<Stores, String> {
    let patient = Arc::new(store(container, access, patience, transport)?);
    let quick = Arc::new(store(container, access, patience.at_start(), transport)?);
    Ok(Stores {
        reads: patient.clone(),
        writes: Some(patient),
        quick_reads: quick.clone(),
        quick_writes: Some(quick.clone()),
        quick_list: Some(quick),
    })
}

fn store(
    container: &str,
    access: &Access,
    patience: Patience,
    transport: &Transport,
) -> Result<MicrosoftAzure, String> {
    let environment = &access.environment;
    let mut builder = MicrosoftAzureBuilder::new();
    for (name, value) in environment.starting("AZURE_") {
        use AzureConfigKey as K;
        if let Ok(key) = name.to_ascii_lowercase().parse::<AzureConfigKey>()
            && !matches!(key, K::ContainerName | K::UseEmulator | K::Client(_))
        {
            builder = builder.with_config(key, value);
        }
    }
    if let Some(endpoint) = environment.get("IDENTITY_ENDPOINT") {
        builder = builder.with_msi_endpoint(endpoint);
    }
    let account = Account::find(environment)?;
    let endpoint = account.endpoint.as_deref();
    if let Some(endpoint) = endpoint {
        builder = builder.with_endpoint(endpoint.to_owned());
    }
    if let Some(key) = account.key {
        builder = builder.with_access_key(key);
    }
    if let Some(sas) = account.sas {
        builder = builder.with_config(AzureConfigKey::SasKey, sas);
    }
    if access.anonymous {
        builder = builder.with_skip_signature(true);
    }
    builder
        .with_account(account.name)
        .with_container_name(container)
        .with_client_options(client(patience, endpoint.unwrap_or("https://")))
        .with_retry(patience.retry())
        .with_http_connector(transport.with(patience))
        .build()
        .map_err(text)
}

/// A storage account and how to reach it.
#[derive(Debug, PartialEq, Eq)]
struct Account {
    name: String,
    key: Option<String>,
    sas: Option<String>,
    endpoint: Option<String>,
}

impl Account {
    fn find(environment: &Environment) -> Result<Self, String> {
        let said = |names: &[&str]| environment.first(names).map(str::to_owned);
        let name = said(&["AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT"]);
        let key =
            said(&["AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_KEY"]);
        let endpoint = said(&["AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"]);
        let emulator = environment.get("AZURITE_BLOB_STORAGE_URL");
        if environment.is_on("AZURE_STORAGE_USE_EMULATOR") || emulator.is_some() {
            let url = emulator.unwrap_or("http://127.0.0.1:10000");
            let name = name.unwrap_or_else(|| EMULATOR.0.to_owned());
            return Ok(Self {
                key: Some(key.unwrap_or_else(|| EMULATOR.1.to_owned())),
                endpoint: Some(format!("{}/{name}", url.trim_end_matches('/'))),
                name,
                sas: None,
            });
        }
        if let Some(name) = name {
            return Ok(Self { name, key, sas: None, endpoint });
        }
        match environment.get("AZURE_STORAGE_CONNECTION_STRING") {
            Some(text) => Self::parse(text),
            None => Err("names a container but no account; set AZURE_STORAGE_ACCOUNT_NAME (and \
                         AZURE_STORAGE_ACCOUNT_KEY), or AZURE_STORAGE_CONNECTION_STRING"
                .to_owned()),
        }
    }

    /// Parses a connection string.
    fn parse(text: &str) -> Result<Self, String> {
        let parts: HashMap<String, &str> = text
            .split(';')
            .filter_map(|part| part.split_once('='))
            .map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim()))
            .collect();
        let part = |name: &str| parts.get(name).map(|value| (*value).to_owned());
        if parts.get("usedevelopmentstorage").is_some_and(|v| v.eq_ignore_ascii_case("true")) {
            let (name, key) = (EMULATOR.0.to_owned(), Some(EMULATOR.1.to_owned()));
            let endpoint = Some(format!("http://127.0.0.1:10000/{name}"));
            return Ok(Self { name, key, sas: None, endpoint });
        }
        let Some(name) = part("accountname") else {
            return Err("AZURE_STORAGE_CONNECTION_STRING has no AccountName".to_owned());
        };
        let scheme = parts.get("defaultendpointsprotocol").unwrap_or(&"https");
        let suffix = parts.get("endpointsuffix");
        let endpoint = part("blobendpoint")
            .map(|url| url.trim_end_matches('/').to_owned())
            .or_else(|| Some(format!("{scheme}://{name}.blob.{}", suffix?)));
        Ok(Self { key: part("accountkey"), sas: part("sharedaccesssignature"), endpoint, name })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(variables: &[(&str, &str)]) -> Result<Account, String> {
        Account::find(&variables.iter().copied().collect())
    }

    #[test]
    fn an_account_is_found_in_variables_and_in_a_connection_string() {
        let got = account(&[("AZURE_STORAGE_ACCOUNT", "a"), ("AZURE_STORAGE_KEY", "k")]).unwrap();
        assert_eq!((&*got.name, got.key.as_deref(), got.endpoint), ("a", Some("k"), None));

        let text = "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=k==;\
                    EndpointSuffix=core.windows.net";
        let got = account(&[("AZURE_STORAGE_CONNECTION_STRING", text)]).unwrap();
        let endpoint = Some("https://a.blob.core.windows.net".to_owned());
        let key = Some("k==".to_owned());
        assert_eq!(got, Account { name: "a".into(), key, sas: None, endpoint });

        let error = account(&[]).unwrap_err();
        assert!(error.contains("set AZURE_STORAGE_ACCOUNT_NAME"), "{error}");
    }

    #[test]
    fn azurite_is_used_where_it_is_asked_for() {
        let got = account(&[("AZURITE_BLOB_STORAGE_URL", "http://h:1/")]).unwrap();
        assert_eq!(got.endpoint.as_deref(), Some("http://h:1/devstoreaccount1"));
        let got = account(&[("AZURE_STORAGE_CONNECTION_STRING", "UseDevelopmentStorage=true")]);
        assert_eq!(got.unwrap().name, "devstoreaccount1");
    }
}
