//! `--listen`: whether a host lives and can work, for whoever starts, watches and stops it.
//!
//! `/healthz` answers 200 for as long as the process does. `/readyz` answers 200 while the host
//! can work, and 503 while it can't reach something that it needs, or is stopping; the body says
//! why.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use serde::Serialize;
use task_host::services::Services;
use tokio::net::TcpListener;

use super::super::exit_code::Advice;
use super::super::output;

/// What `/readyz` says.
#[derive(Debug, Serialize)]
struct Ready {
    ready: bool,
    /// Why not.
    problems: Vec<String>,
}

/// Answers at `address` until the process ends.
pub(crate) async fn serve(address: SocketAddr, services: Arc<Services>) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).await.map_err(|error| {
        Advice::failed(format!("--listen {address}: {error}"))
            .hint("is another host listening there?")
    })?;
    let address = listener.local_addr()?;
    tracing::info!("listening at http://{address}/readyz");
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(services);
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::warn!("nothing answers at {address} any more: {error}");
        }
    });
    Ok(())
}

async fn ready(State(services): State<Arc<Services>>) -> impl IntoResponse {
    let problems = services.problems();
    let ready = problems.is_empty();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    // Strings always serialise.
    let body = output::json_line(&Ready { ready, problems }).unwrap_or_default();
    (status, [(CONTENT_TYPE, "application/json")], body)
}
