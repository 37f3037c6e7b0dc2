//! `--listen`: read-only HTTP endpoints for engines, monitoring and browsers. There is one file for
//! each group of endpoints.

mod api;
mod health;
mod metrics;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use task_host::activity::snapshot::{HostView, Setting};
use task_host::services::Services;

use super::super::listener::{Bounded, listen};
use super::super::{output, page};

/// Serves the endpoints at `address` until the process ends.
pub(crate) async fn serve(
    address: SocketAddr,
    services: Arc<Services>,
    settings: Vec<Setting>,
) -> anyhow::Result<()> {
    let listener = listen(address).await?;
    let address = listener.local_addr()?;
    tracing::info!(
        "listening at http://{address}/, and at /api/host, /metrics, /healthz and /readyz{}",
        warning(address)
    );
    let watched = services.clone();
    let view = move || watched.view(&settings);
    let router = Router::new()
        .merge(health::router(services.clone()))
        .merge(metrics::router(services))
        .merge(api::router(view.clone()))
        .merge(page::router(move || figures(view.clone())));
    tokio::spawn(async move {
        if let Err(error) = axum::serve(Bounded::new(listener), router).await {
            tracing::warn!("the endpoints at {address} stopped: {error}");
        }
    });
    Ok(())
}

/// The data of the status page. Computed on a thread for blocking calls, so that other answers
/// don't wait for it.
async fn figures(view: impl Fn() -> HostView + Send + 'static) -> Arc<str> {
    let made = tokio::task::spawn_blocking(move || output::json_line(&view()).unwrap_or_default());
    String::from_utf8_lossy(&made.await.unwrap_or_default()).into()
}

/// A warning about an address that other machines may reach.
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
