//! `--listen`: HTTP endpoints for whoever starts, watches and stops the host. All of them only read.
//! There is one file for each group of endpoints.

mod api;
mod health;
mod metrics;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use task_host::activity::snapshot::Setting;
use task_host::services::Services;
use tokio::net::TcpListener;

use super::super::exit_code::Advice;

/// Serves the endpoints at `address` until the process ends.
pub(crate) async fn serve(
    address: SocketAddr,
    services: Arc<Services>,
    settings: Vec<Setting>,
) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).await.map_err(|error| {
        Advice::failed(format!("--listen {address}: {error}"))
            .hint("is another host listening there?")
    })?;
    let address = listener.local_addr()?;
    tracing::info!(
        "listening at http://{address}/api/host, and at /metrics, /healthz and /readyz{}",
        warning(address)
    );
    let watched = services.clone();
    let router = Router::new()
        .merge(health::router(services.clone()))
        .merge(metrics::router(services))
        .merge(api::router(move || watched.view(&settings)));
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::warn!("the endpoints at {address} stopped: {error}");
        }
    });
    Ok(())
}

/// What people should know of an address that others may reach.
fn warning(address: SocketAddr) -> &'static str {
    match address.ip().is_loopback() {
        true => "",
        false => {
            "; there is no login, so everyone who can reach this address can read the names, \
             failures and last lines of tasks, and the settings of this host"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_that_there_is_no_login_where_others_may_reach_the_host() {
        let check = |address: &str, want: bool| {
            let said = warning(address.parse().unwrap());
            assert_eq!(said.contains("no login"), want, "{address}: {said}");
        };
        check("127.0.0.1:8080", false);
        check("[::1]:8080", false);
        check("0.0.0.0:8080", true);
        check("[::]:8080", true);
        check("10.0.0.7:80", true);
    }
}
