//! `/healthz` answers 200 as long as the process lives. `/readyz` answers 200 while the host can
//! work, and 503 while the host stops or can't reach something that it needs. The body says why.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use serde::Serialize;
use task_host::services::Services;

use super::super::super::output;

/// The answer of `/readyz`.
#[derive(Debug, Serialize)]
struct Ready {
    ready: bool,
    /// Why the host is not ready.
    problems: Vec<String>,
}

pub(super) fn router(services: Arc<Services>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(services)
}

async fn ready(State(services): State<Arc<Services>>) -> impl IntoResponse {
    let problems = services.problems();
    let ready = problems.is_empty();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    // Strings can always be written as JSON.
    let body = output::json_line(&Ready { ready, problems }).unwrap_or_default();
    (status, [(CONTENT_TYPE, "application/json")], body)
}
