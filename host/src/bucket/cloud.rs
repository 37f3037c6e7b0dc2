//! Makes the clients of a bucket of a service, from what the environment says.

mod aws;
mod azure;
mod google;

use std::sync::Arc;

use object_store::ClientOptions;
use object_store::http::HttpBuilder;

use self::aws::S3;
#[cfg(test)]
pub(super) use self::azure::EMULATOR as AZURE_EMULATOR;
use super::address::{Place, Service};
use super::object::{ObjectBucket, Probe, Stores};
use super::transport::{Patience, Transport};
use super::{Access, BucketError};

/// Makes a bucket of it. Asks for credentials where they come from a service, and for the
/// region of a bucket of S3 where nothing says it.
pub(super) async fn open(
    place: Place,
    access: &Access,
    patience: Patience,
) -> Result<ObjectBucket, BucketError> {
    let problem = |problem: String| BucketError::invalid(&place.url(), problem);
    let make = match place.service {
        Service::S3 => S3::find(&place.name, access, patience).await.and_then(|s3| s3.stores()),
        Service::Google => google::stores(&place.name, access, patience),
        Service::Azure => azure::stores(&place.name, access, patience),
        Service::Http => http(&place.name, patience),
    };
    let stores = make.map_err(problem)?;
    Ok(ObjectBucket::new(place, stores, patience.idle))
}

fn http(url: &str, patience: Patience) -> Result<Stores, String> {
    let make = |patience: Patience| {
        let store = HttpBuilder::new()
            .with_url(url)
            .with_client_options(client(patience, url))
            .with_retry(patience.retry())
            .with_http_connector(Transport { idle: patience.idle })
            .build();
        store.map(Arc::new).map_err(text)
    };
    Ok(Stores {
        reads: make(patience)?,
        writes: None,
        probe: Probe::Head(make(patience.at_start())?),
    })
}

/// The client for an endpoint: without encryption only where the endpoint says so.
fn client(patience: Patience, endpoint: &str) -> ClientOptions {
    patience.client().with_allow_http(endpoint.starts_with("http://"))
}

fn text(error: object_store::Error) -> String {
    error.to_string()
}
