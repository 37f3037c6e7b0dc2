//! Makes the clients of a service's bucket from the environment.

mod aws;
mod azure;
mod google;

use std::sync::Arc;

use object_store::ClientOptions;
use object_store::http::HttpBuilder;

use self::aws::S3;
#[cfg(test)]
pub(super) use self::azure::EMULATOR as AZURE_EMULATOR;
use super::address::{Service, ServiceAddress};
use super::object::{ObjectBucket, Stores};
use super::transport::{Patience, Transport};
use super::{Access, BucketError};

/// Opens a service's bucket. May request credentials, and the bucket's region from S3 if no setting
/// names it.
pub(super) async fn open(
    address: ServiceAddress,
    access: &Access,
    patience: Patience,
) -> Result<ObjectBucket, BucketError> {
    crate::roots::tell();
    let problem = |problem: String| BucketError::invalid(&address.url(), problem);
    let transport = Transport::new(&address, access.stored_encoding);
    let clock = transport.clock().clone();
    let name = &address.name;
    let make = match address.service {
        Service::S3 => {
            let found = S3::find(name, access, patience, transport).await;
            found.and_then(|s3| s3.stores())
        }
        Service::Google => google::stores(name, access, patience, &transport),
        Service::Azure => azure::stores(name, access, patience, &transport),
        Service::Http => http(name, patience, &transport),
    };
    let stores = make.map_err(problem)?;
    Ok(ObjectBucket::new(address, stores, patience, clock, access))
}

fn http(url: &str, patience: Patience, transport: &Transport) -> Result<Stores, String> {
    let make = |patience: Patience| {
        let store = HttpBuilder::new()
            .with_url(url)
            .with_client_options(client(patience, url))
            .with_retry(patience.retry())
            .with_http_connector(transport.with(patience))
            .build();
        store.map(Arc::new).map_err(text)
    };
    Ok(Stores {
        reads: make(patience)?,
        writes: None,
        quick_reads: make(patience.at_start())?,
        quick_writes: None,
        quick_list: None,
    })
}

/// The client's options for an endpoint. Plain HTTP is allowed only where the endpoint asks for it.
fn client(patience: Patience, endpoint: &str) -> ClientOptions {
    patience.client().with_allow_http(endpoint.starts_with("http://"))
}

fn text(error: object_store::Error) -> String {
    error.to_string()
}
